"""A seeded run is one and the same whenever it runs, with capture and a witness beside it or with neither."""

from __future__ import annotations

import pytest

# A module inside verl: `verl` alone would be found wherever this folder's parent is on the path.
pytest.importorskip("verl.trainer.ppo", reason="needs verl: make test runs it in .venv-verl")

pytestmark = pytest.mark.slow


def test_every_metric_of_every_step_is_the_same_with_and_without_capture(alone, captured):
    (run,) = captured("grpo").runs
    names = {name for row in alone.numbers for name in row}
    assert {"actor/pg_loss", "actor/grad_norm", "training/rollout_probs_diff_mean", "critic/score/mean"} <= names
    pairs = list(zip(alone.numbers, run.numbers, strict=True))
    assert len(pairs) == 2
    assert [a.keys() for a, _ in pairs] == [b.keys() for _, b in pairs]
    differ = {name: (a[name], b[name]) for a, b in pairs for name in a if a[name] != b[name]}
    print(f"{len(names)} metrics of {len(pairs)} steps, {len(differ)} of them not equal")
    assert not differ
