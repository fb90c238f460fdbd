"""A capture that fails beside a trainer costs itself: what was begun is ended and counted."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

pytest.importorskip("verl.trainer.ppo", reason="needs verl: make test runs it in .venv-verl")

from verl.trainer.ppo.utils import Role

from unipo_hooks import open_bundle
from unipo_hooks.adapters.verl.trainer import attach
from verl_cpu.pieces import Characters, composed, proto

GRPO = "algorithm.adv_estimator=grpo"


class Trainer:
    """What `RayPPOTrainer` is to a capture; of its workers only what it asks of them."""

    def __init__(self, workers, *overrides):
        self.config, self.tokenizer, self.processor = composed(GRPO, *overrides), Characters(), None
        self.role_worker_mapping = {Role.ActorRollout: SimpleNamespace(__ray_actor_class__=type("Worker", (), {}))}
        self.actor_rollout_wg, self.global_steps, self.total_training_steps = workers, 1, 2
        self.seen = []

    def _update_actor(self, batch):
        self.seen.append(set(batch.batch.keys()))
        return "trained"

    def fit(self):
        return [self._update_actor(batch) for batch in (proto(8), proto(8, seed=1))]


def refuses(*_):
    raise RuntimeError("no such method")


@pytest.mark.parametrize("named", ["unipo_begin", "unipo_drain"])
def test_workers_that_fail_cost_the_capture_and_what_is_lost_is_counted(named, tmp_path, caplog):
    workers = SimpleNamespace(**{"unipo_begin": lambda run: None, "unipo_drain": refuses, named: refuses})
    trainer = Trainer(workers)
    before = signal.getsignal(signal.SIGTERM)
    attach(trainer, {"path": str(tmp_path / "run")})
    assert trainer.fit() == ["trained", "trained"]
    said = [each.getMessage() for each in caplog.records if "capture is off" in each.getMessage()]
    assert len(said) == 1 and "no such method" in said[0]
    assert "unipo_row" not in trainer.seen[-1]
    manifest = open_bundle(tmp_path / "run").manifest
    assert manifest.status == "finished" and manifest.lost.updates > 0
    assert signal.getsignal(signal.SIGTERM) == before
