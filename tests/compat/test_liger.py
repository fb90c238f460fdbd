"""Liger's fused loss, as TRL has it up to 1.13: what can be captured beside it is."""

import logging

import pytest
import torch
import trl
from trl import GRPOConfig, GRPOTrainer
from trl_runs import trainer_for

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.bundle.verify import verify

KERNELS = ("rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy")
"""Those that replace parts of the model, and need a GPU; the loss does not."""


def test_the_fused_loss_costs_the_updates_and_not_the_rollouts(saved_model, tmp_path, caplog, monkeypatch):
    if not hasattr(GRPOTrainer, "compute_liger_loss"):
        pytest.skip(f"TRL {trl.__version__} has no fused loss of Liger's")
    pytest.importorskip("liger_kernel", exc_type=ImportError)
    # Compiled it would need a C compiler.
    monkeypatch.setattr(torch, "compile", lambda function, *_, **__: function)
    settings = {"use_liger_kernel": True, "liger_kernel_config": dict.fromkeys(KERNELS, False)}
    if getattr(GRPOConfig, "use_liger_loss", None) is False:  # later it is None, and stands for the other
        settings = {"use_liger_loss": True}
    callback = UnipoCallback(tmp_path / "run")
    with caplog.at_level(logging.WARNING, logger="unipo_hooks"):
        trainer = trainer_for(
            saved_model, tmp_path, callbacks=[callback], cls=GRPOTrainer, num_iterations=2, max_steps=4, **settings
        )
        trainer.train()
    bundle = open_bundle(callback.path)
    assert [str(fault) for fault in verify(bundle.path)] == []
    assert len(bundle.updates()) == 0 and bundle.manifest.lost.updates == 4
    assert len(bundle.rollouts()) == 2
    assert {"ids", "reward", "advantages", "old_log_probs"} <= set(bundle.manifest.channels)
    said = [record.getMessage() for record in caplog.records if record.name == "unipo_hooks"]
    assert "Liger's fused loss gives no log-probs: updates are not captured, rollouts are" in said[0]
    assert len(said) == 2 and "4 updates are not in" in said[1]
