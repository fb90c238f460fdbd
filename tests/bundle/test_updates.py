"""Updates as an adapter hands them over, read back from their bundle."""

import dataclasses
from pathlib import Path

import numpy as np
import records

from unipo_hooks import Recorder, algorithms, open_bundle
from unipo_hooks.bundle.verify import verify


def test_a_gradients_norm_that_is_said_of_an_update_is_its_metric(tmp_path: Path) -> None:
    of = records.rollout()
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=True)
    recorder.rollout(of)
    recorder.update(records.update(0, of, grad_norm=0.5))
    recorder.update(records.update(1, of, learning_rate=None))
    recorder.log(1, 2, {"grad_norm": 0.25})
    recorder.close()
    metrics = open_bundle(recorder.path).metrics()
    assert metrics["grad_norm"].to_pylist() == [0.5, None]
    assert metrics["learning_rate"].to_pylist() == [1e-3, None]
    assert metrics["trainer/grad_norm"].to_pylist() == [None, 0.25]


def test_a_forward_pass_of_no_rows_is_one_all_the_same(tmp_path: Path) -> None:
    """A data-parallel rank may have nothing but padding: its loss of 0 is part of the mean."""
    of = records.rollout()
    made = records.update(0, of, data_parallel_size=2)
    (full,) = made.micro_batches
    none = {name: values[:0] for name, values in full.channels.items()}
    empty = dataclasses.replace(full, rows_b=np.zeros(0, int), channels=none, loss=0.0, rank=1)
    recorder = Recorder(tmp_path / "run", records.run_info(algorithm=algorithms.get("grpo.verl")), strict=True)
    recorder.rollout(of)
    recorder.update(dataclasses.replace(made, micro_batches=[full, empty]))
    recorder.close()
    bundle = open_bundle(recorder.path)
    assert bundle.metrics()["policy_loss"].to_pylist() == [full.loss / 2]
    passes = bundle.updates().to_pylist()[0]["micro_batches"]
    assert [part["rows"] for part in passes] == [8, 0] and passes[1]["loss_gap"] == 0.0
    assert [part.micro_batch for part in bundle.micro_batches(0)] == [0]
    assert verify(bundle.path) == []
