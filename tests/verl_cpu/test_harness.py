"""The harness trains for real, nothing of it is left behind, and its witness saw everything."""

from __future__ import annotations

import math

import numpy as np
import pytest

# A module inside verl: `verl` alone would be found wherever this folder's parent is on the path.
pytest.importorskip("verl.trainer.ppo", reason="needs verl: make test runs it in .venv-verl")

pytestmark = pytest.mark.slow

ROWS, EPOCHS, STEPS = 32, 2, 2


@pytest.fixture(scope="module")
def watched(captured):
    return captured("grpo")


def test_it_trains(alone):
    assert [row["step"] for row in alone.rows] == [1, 2]
    for row in alone.rows:
        assert all(math.isfinite(value) for value in row.values())
        assert row["actor/grad_norm"] > 0
    print(f"{alone.seconds:.0f} s, policy loss {[row['actor/pg_loss'] for row in alone.rows]}")


def test_no_process_outlives_a_run(alone, watched):
    assert [run.left for run in (alone, *watched.runs)] == [(), ()]


def test_the_witness_saw_every_row_once_an_epoch(watched):
    (run,), seen = watched.runs, watched.seen
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
        logged = run.rows[update.step - 1]["actor/pg_loss"]
        error = max(error, abs(np.sum([each.pg_loss for each in passes]) / (EPOCHS * 2) - logged))
    print(f"policy loss of the passes, against the trainer's metric: off by {error:.1e} at most")
    assert error < 1e-6


def rows_of(columns):
    """The response and the old log-probs of every row."""
    return zip(columns["input_ids"], columns["old_log_probs"], strict=True)
