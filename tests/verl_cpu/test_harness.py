"""The harness trains for real, a seeded run is one and the same whenever it runs, and nothing of it is left behind."""

from __future__ import annotations

import math

import numpy as np
import pytest

# A module inside verl: `verl` alone would be found wherever this folder's parent is on the path.
pytest.importorskip("verl.trainer.ppo", reason="needs verl: make test runs it in .venv-verl")

from verl_cpu import witness
from verl_cpu.runs import Run, started

pytestmark = pytest.mark.slow

ROWS, EPOCHS, STEPS = 32, 2, 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run, witness.Witness, list[int]]:
    """Two runs of the same settings; beside the second the witness, and the processes left when it was over."""
    folder = tmp_path_factory.mktemp("runs")
    with started(folder / "alone", steps=STEPS) as process:
        alone = process.wait()
    notes = folder / "notes"
    watching = {"modules": ("verl_cpu.witness",), "env": {witness.FOLDER: str(notes)}}
    with started(folder / "watched", steps=STEPS, **watching) as process:
        watched = process.wait()
    for run in (alone, watched):
        assert run.status == 0, run.output[-6000:]
    return alone, watched, witness.read(notes), process.pids()


def test_it_trains(runs):
    alone, *_ = runs
    assert [row["step"] for row in alone.rows] == [1, 2]
    for row in alone.rows:
        assert all(math.isfinite(value) for value in row.values())
        assert row["actor/grad_norm"] > 0
    print(f"{alone.seconds:.0f} s, policy loss {[row['actor/pg_loss'] for row in alone.rows]}")


def test_two_seeded_runs_give_the_same_numbers_watched_or_not(runs):
    alone, watched, *_ = runs
    names = {name for row in alone.numbers for name in row}
    assert {"actor/pg_loss", "actor/grad_norm", "training/rollout_probs_diff_mean"} <= names
    differ = {
        k: (a.get(k), b.get(k))
        for a, b in zip(alone.numbers, watched.numbers, strict=True)
        for k in a | b
        if a.get(k) != b.get(k)
    }
    assert not differ
    print(f"{len(names)} metrics of {len(alone.rows)} steps equal")


def test_no_process_outlives_a_run(runs):
    assert runs[3] == []


def test_the_witness_saw_every_row_once_an_epoch(runs):
    _, watched, seen, _ = runs
    assert [update.step for update in seen.updates] == list(range(1, STEPS + 1))
    error = 0.0
    for update in seen.updates:
        passes = [each for each in seen.passes if each.step == update.step]
        assert sum(len(each.columns["log_probs"]) for each in passes) == ROWS * EPOCHS
        known = {tokens.tobytes() + log_probs.tobytes() for tokens, log_probs in rows_of(update.columns)}
        given = [
            tokens.tobytes() + log_probs.tobytes() for each in passes for tokens, log_probs in rows_of(each.columns)
        ]
        assert set(given) == known and len(given) == EPOCHS * ROWS
        logged = watched.rows[update.step - 1]["actor/pg_loss"]
        error = max(error, abs(np.sum([each.pg_loss for each in passes]) / (EPOCHS * 2) - logged))
    print(f"policy loss of the passes, against the trainer's metric: off by {error:.1e} at most")
    assert error < 1e-6


def rows_of(columns):
    """The response and the old log-probs of every row."""
    return zip(columns["input_ids"], columns["old_log_probs"], strict=True)
