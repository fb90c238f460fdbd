"""The TRL adapter through everything that happens to a run: starts, ends, restarts, misuse, faults."""

import gc
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl_runs import DATASET, TOKENIZER, trainer_for, weights

from unipo_hooks import CapturePolicy, UnipoCallback, open_bundle
from unipo_hooks.adapters.trl import settings as settings_module
from unipo_hooks.adapters.trl import tap
from unipo_hooks.bundle import layout
from unipo_hooks.bundle.verify import verify
from unipo_hooks.errors import CaptureError
from unipo_hooks.examples.trl_grpo import exact, small_llama


def test_a_callback_added_after_the_trainer_was_made_finds_it_too(saved_model, tmp_path):
    trainer = trainer_for(saved_model, tmp_path)
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer.add_callback(callback)
    trainer.train()
    assert len(open_bundle(callback.path).updates()) == 4


def test_without_a_path_the_bundle_is_in_the_output_folder(saved_model, tmp_path):
    callback = UnipoCallback()
    trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=1).train()
    assert callback.path == tmp_path / "out" / "unipo"
    assert len(open_bundle(callback.path).updates()) == 1


def test_a_trainer_that_is_not_grpo_like_trains_on_and_is_told_in_one_line(tmp_path, caplog):
    model = small_llama(TOKENIZER)
    example = TOKENIZER("1+1=2")["input_ids"]
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True
        ),
        train_dataset=[{"input_ids": example, "labels": example}] * 8,
        callbacks=[UnipoCallback(tmp_path / "run")],
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert [m for m in caplog.messages if "unipo-hooks" in m] == [
        "unipo-hooks: capture is off: Trainer is not GRPO-like (it has no _generate_and_score_completions and no "
        "_compute_loss); use it with TRL's GRPOTrainer or a trainer derived from it. Training goes on."
    ]
    assert not (tmp_path / "run").exists()


def test_an_unwritable_path_costs_the_capture_not_the_training(saved_model, tmp_path, caplog):
    target = Path("/sys/unipo") if os.geteuid() == 0 else tmp_path / "locked" / "run"
    (tmp_path / "locked").mkdir(mode=0o500)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[UnipoCallback(target)], max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    (message,) = [m for m in caplog.messages if "unipo-hooks" in m]
    assert message.startswith(f"unipo-hooks: capture is off: cannot write to {target}: ")


def test_strict_raises_where_capture_cannot_start(saved_model, tmp_path):
    (tmp_path / "file").write_text("")
    trainer = trainer_for(saved_model, tmp_path, callbacks=[UnipoCallback(tmp_path / "file" / "run", strict=True)])
    with pytest.raises(CaptureError, match="cannot write to"):
        trainer.train()


def test_a_defect_in_the_tap_costs_the_capture_not_the_training(saved_model, tmp_path, monkeypatch, caplog):
    without = weights(saved_model, tmp_path, [])
    monkeypatch.setattr(tap, "captured_micro_batch", lambda *_, **__: 1 / 0)
    assert all(
        torch.equal(tensor, without[name])
        for name, tensor in weights(saved_model, tmp_path, [UnipoCallback(tmp_path / "run")]).items()
    )
    assert len([m for m in caplog.messages if "ZeroDivisionError" in m and "Training goes on" in m]) == 1


def test_settings_that_cannot_be_read_cost_the_algorithm_not_the_capture(saved_model, tmp_path, monkeypatch, caplog):
    without = weights(saved_model, tmp_path, [])
    monkeypatch.setattr(settings_module, "spec_from_trl", lambda *_, **__: 1 / 0)
    callback = UnipoCallback(tmp_path / "run")
    captured = weights(saved_model, tmp_path, [callback])
    assert all(torch.equal(tensor, without[name]) for name, tensor in captured.items())
    assert len([each for each in caplog.messages if "ZeroDivisionError" in each]) == 1
    bundle = open_bundle(callback.path)
    assert len(bundle.updates()) == 4
    assert bundle.manifest.algorithm is None
    (note,) = bundle.manifest.algorithm_notes
    assert "ZeroDivisionError" in note
    assert [part["loss_gap"] for row in bundle.updates().to_pylist() for part in row["micro_batches"]] == [None] * 4
    with pytest.raises(CaptureError, match="ZeroDivisionError"):
        weights(saved_model, tmp_path, [UnipoCallback(tmp_path / "strict", strict=True)])


@pytest.mark.parametrize("cls", [RLOOTrainer, GRPOTrainer])
def test_a_defect_in_reading_old_log_probs_costs_the_capture_not_the_training(
    saved_model, tmp_path, monkeypatch, caplog, cls
):
    config = RLOOConfig if cls is RLOOTrainer else GRPOConfig
    trained = {}
    for name, broken in (("without", False), ("with", False), ("broken", True)):
        if broken:
            monkeypatch.setattr(tap, "rollout_tensors", lambda *_: 1 / 0)
        callbacks = [] if name == "without" else [UnipoCallback(tmp_path / name)]
        torch.manual_seed(3)
        settings = {"num_iterations": 2, "beta": 0.05, "learning_rate": 5e-2}
        trainer = trainer_for(saved_model, tmp_path, callbacks=callbacks, cls=cls, config=config, **settings)
        trainer.train()
        trained[name] = {key: tensor.detach().clone() for key, tensor in trainer.model.state_dict().items()}
    for name in ("with", "broken"):
        assert all(torch.equal(tensor, trained["without"][key]) for key, tensor in trained[name].items())
    assert len([each for each in caplog.messages if "capture is off" in each and "ZeroDivision" in each]) == 1


def test_a_second_run_in_the_same_folder_goes_beside_it(saved_model, tmp_path):
    for name in ("run", "run-2"):
        callback = UnipoCallback(tmp_path / "run")
        trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=1).train()
        assert callback.path == tmp_path / name
        assert len(open_bundle(callback.path).updates()) == 1


class Stop(Exception):
    pass


class StopAt(TrainerCallback):
    """Training that ends in an exception."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            self.step = None
            raise Stop


def test_training_that_ended_in_an_exception_and_is_started_anew_gives_two_bundles(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback, StopAt(2)])
    with pytest.raises(Stop):
        trainer.train()
    trainer.train()
    first, second = open_bundle(tmp_path / "run"), open_bundle(tmp_path / "run-2")
    assert (first.manifest.status, second.manifest.status) == ("interrupted", "finished")
    assert first.updates().column("update").to_pylist() == [0, 1]
    assert second.updates().column("update").to_pylist() == [0, 1, 2, 3]


class StopHalfway(TrainerCallback):
    """Training that ends in an exception while its first update is being accumulated."""

    stopped = False

    def on_substep_end(self, args, state, control, **_):
        if not self.stopped:
            self.stopped = True
            raise Stop


def test_half_an_update_of_a_failed_start_is_not_part_of_the_next(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    callbacks = [callback, StopHalfway()]
    trainer = trainer_for(saved_model, tmp_path, callbacks=callbacks, gradient_accumulation_steps=2, max_steps=2)
    with pytest.raises(Stop):
        trainer.train()
    trainer.train()
    bundle = open_bundle(callback.path)
    # TRL's buffer still holds what the failed start sampled, which no rollout of this one could be joined with
    assert [(line["update"], len(line["micro_batches"])) for line in bundle.updates().to_pylist()] == [(1, 2)]
    assert bundle.manifest.lost.updates == 1
    assert len(open_bundle(tmp_path / "run").updates()) == 0


def test_a_run_resumed_from_a_checkpoint_goes_on_in_its_bundle(saved_model, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    first = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[first, StopAt(3)], **settings)
    with pytest.raises(Stop):
        trainer.train()
    again = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[again], **settings)
    trainer.train(resume_from_checkpoint=True)
    bundle = open_bundle(tmp_path / "run")
    assert [str(fault) for fault in verify(bundle.path)] == []
    assert bundle.updates().column("update").to_pylist() == [0, 1, 2, 3, 4, 5]
    assert [attempt.first_update for attempt in bundle.manifest.attempts] == [0, 2]
    assert bundle.updates().column("attempt").to_pylist() == [0, 0, 1, 1, 1, 1]
    assert len(bundle.updates(superseded=True)) == 7


def test_one_callback_used_for_one_trainer_after_another_gives_each_its_bundle(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    first = trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=2)
    first.train()
    second = trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=3)
    second.train()
    assert [len(open_bundle(tmp_path / name).updates()) for name in ("run", "run-2")] == [2, 3]


def test_two_callbacks_on_one_trainer_capture_the_same(saved_model, tmp_path):
    callbacks = [UnipoCallback(tmp_path / name, strict=True) for name in ("one", "two")]
    trainer_for(saved_model, tmp_path, callbacks=callbacks, num_iterations=2).train()
    one, two = (open_bundle(callback.path).tokens(update=3) for callback in callbacks)
    assert len(one) > 0
    assert one.equals(two)


def test_training_may_change_the_working_directory(saved_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Away(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            os.chdir("/")

    trainer_for(saved_model, tmp_path, callbacks=[UnipoCallback("run", strict=True), Away()]).train()
    assert len(open_bundle(tmp_path / "run").updates()) == 4


def test_evaluation_during_training_is_kept_apart(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=3, per_device_eval_batch_size=8)
    trainer.eval_dataset = DATASET.select(range(4))
    trainer.args.eval_strategy, trainer.args.eval_steps = "steps", 2
    trainer.train()
    bundle = open_bundle(callback.path)
    assert [str(fault) for fault in verify(bundle.path)] == []
    assert bundle.updates().column("update").to_pylist() == [0, 1, 2]
    evaluated = [entry for entry in trainer.losses if not entry["train"]]
    evaluations = bundle.updates(kind="eval").to_pylist()
    assert [line["update"] for line in evaluations] == list(range(len(evaluated)))
    assert [line["micro_batches"][0]["loss"] for line in evaluations] == [entry["loss"] for entry in evaluated]
    assert evaluated


def test_a_callback_given_twice_captures_once(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback, callback], max_steps=2)
    trainer.add_callback(callback)
    trainer.train()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("run")] == ["run"]
    assert open_bundle(callback.path).updates().column("update").to_pylist() == [0, 1]
    assert len(open_bundle(callback.path).metrics()) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"on_full": "wait"}, "on_full is 'drop' or 'block', found 'wait'"),
        ({"policy": {"every": 3}}, "policy is a CapturePolicy, found dict"),
        ({"evry": 3}, "did you mean every?"),
    ],
)
def test_misuse_is_told_where_the_callback_is_made(settings, said):
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        UnipoCallback("run", **settings)


def test_a_second_start_never_joins_what_the_first_one_left_in_the_trainers_buffer(saved_model, tmp_path):
    """TRL's buffer of sampled batches outlives `train()`; rollout numbers begin anew."""
    settings = {"steps_per_generation": 3, "gradient_accumulation_steps": 2, "max_steps": 1, "num_generations": 4}
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], **settings)
    trainer.train()
    trainer.args.max_steps = 3
    trainer.train()
    assert callback.path == tmp_path / "run-2"
    bundle = open_bundle(callback.path)
    assert [str(fault) for fault in verify(bundle.path)] == []
    assert bundle.manifest.lost.updates == 1
    assert "before this start" in bundle.manifest.lost.reason
    generated = trainer.generated[1:]
    for number in bundle.updates().column("update").to_pylist():
        for token in bundle.tokens(update=number).to_pylist():
            ids = generated[token["rollout"]]["completion_ids"]
            assert token["ids"] == ids[token["row"], token["position"]]


def test_an_evaluation_after_training_completes_the_bundle_anew(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=2, per_device_eval_batch_size=8)
    trainer.train()
    trainer.evaluate(DATASET.select(range(4)))
    bundle = open_bundle(tmp_path / "run")
    assert bundle.manifest.status == "finished"
    assert [attempt.status for attempt in bundle.manifest.attempts] == ["finished", "finished"]
    assert bundle.metrics().column("update").to_pylist() == [0, 1]
    assert len(bundle.updates(kind="eval")) == 2
    assert [str(fault) for fault in verify(bundle.path)] == []


class Extended(GRPOTrainer):
    """A derived trainer that passes something of its own along."""

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list, bonus=0.0):
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list) + bonus

    def _generate_and_score_completions(self, inputs):
        plain = self._calculate_rewards
        self._calculate_rewards = lambda *args: plain(*args, bonus=1.0)
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self._calculate_rewards = plain


def test_a_derived_trainer_may_pass_more_along(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer_for(saved_model, tmp_path, callbacks=[callback], cls=Extended, rewards=[exact], max_steps=2).train()
    assert set(open_bundle(callback.path).responses().column("reward").to_pylist()) <= {1.0, 2.0}
    assert len(open_bundle(callback.path).updates()) == 2


class Frames(TrainerCallback):
    """Counts frames of `_compute_loss` that are still alive after each step, the collector being off."""

    def __init__(self):
        self.alive = []
        self.before = self.count()

    def count(self):
        frames = (o for o in gc.get_objects() if isinstance(o, FrameType))
        return sum(frame.f_code.co_name in ("_compute_loss", "compute_loss") for frame in frames)

    def on_step_end(self, args, state, control, **_):
        self.alive.append(self.count() - self.before)


def test_nothing_of_a_loss_is_kept_alive(saved_model, tmp_path):
    counter = Frames()
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback, counter], cls=GRPOTrainer)
    gc.collect()
    gc.disable()
    try:
        trainer.train()
    finally:
        gc.enable()
    assert counter.alive == [0, 0, 0, 0]


def test_settings_by_name_and_policies_are_not_mixed():
    with pytest.raises(TypeError, match="either a policy or its settings by name"):
        UnipoCallback("run", CapturePolicy(), every=2)


KILLED = """
import sys
from unipo_hooks.examples.trl_grpo import main
main(sys.argv[1], steps=100000)
"""


@pytest.mark.slow
def test_a_real_run_killed_at_three_random_moments_leaves_whole_bundles(tmp_path):
    random = np.random.default_rng(1)
    for number in range(3):
        path = tmp_path / f"run{number}"
        run = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 600
        index = path / layout.index_name(0)
        while not (index.exists() and index.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.2)
            assert run.poll() is None
        time.sleep(random.uniform(0, 4))
        committed = index.read_text().count("\n")
        run.kill()
        run.wait()
        assert [str(fault) for fault in verify(path) if fault.severity == "fault"] == []
        bundle = open_bundle(path)
        updates = bundle.updates().column("update").to_pylist()
        assert updates == list(range(len(updates)))
        assert len(updates) + len(bundle.rollouts()) >= committed > 0
        metrics = (path / layout.metrics_name(0)).read_text().splitlines()[:-1]
        assert max(json.loads(line)["update"] for line in metrics) >= updates[-1]
        assert len(bundle.tokens(update=updates[-1]))
        print(f"kill {number}: {len(updates)} updates survived")
