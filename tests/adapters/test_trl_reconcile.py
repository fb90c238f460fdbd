"""In real runs of TRL's trainer the loss recomputed from what was captured is the loss it returned."""

import logging

import pytest
from trl_runs import DATASET, WatchedTrainer, trainer_for

from unipo_hooks import UnipoCallback, open_bundle

OFF_POLICY = {"num_iterations": 2, "learning_rate": 5e-2, "max_steps": 4}
RUNS = {
    "defaults": {},
    "accumulation": {"gradient_accumulation_steps": 2, "num_iterations": 2},
    "two rollouts an update": {"gradient_accumulation_steps": 4, "steps_per_generation": 2},
    "several updates a rollout": {"num_iterations": 2, "steps_per_generation": 2, "max_steps": 8},
    "grpo": {"loss_type": "grpo", **OFF_POLICY},
    "bnpo": {"loss_type": "bnpo", "gradient_accumulation_steps": 2, **OFF_POLICY},
    "dr_grpo": {"loss_type": "dr_grpo", **OFF_POLICY},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", **OFF_POLICY},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0, **OFF_POLICY},
    "sapo": {"loss_type": "sapo", **OFF_POLICY},
    "vespo": {"loss_type": "vespo", **OFF_POLICY},
    "sequence level": {"importance_sampling_level": "sequence", **OFF_POLICY},
    "reference policy, with the ratio": {"beta": 0.05, **OFF_POLICY},
    "reference policy, without": {"beta": 0.05, "use_bias_correction_kl": False, **OFF_POLICY},
    "upper cap": {"delta": 1.1, **OFF_POLICY},
    "entropy quantile": {"top_entropy_quantile": 0.5, **OFF_POLICY},
    "off-policy mask": {"off_policy_mask_threshold": 0.001, **OFF_POLICY},
    "truncated responses masked": {"mask_truncated_completions": True, "max_completion_length": 3},
    "entropy bonus": {"entropy_coef": 0.01, **OFF_POLICY},
    "batch scale": {"scale_rewards": "batch", **OFF_POLICY},
    "two rewards normalised apart": {"multi_objective_aggregation": "normalize_then_sum", **OFF_POLICY},
    "evaluation": {"eval_steps": 2},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_the_gap_is_below_tolerance_at_every_update(saved_model, tmp_path, caplog, settings):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    with caplog.at_level(logging.WARNING, logger="unipo_hooks"):
        trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], **settings)
        if "eval_steps" in settings:
            trainer.eval_dataset, trainer.args.eval_strategy = DATASET.select(range(4)), "steps"
        trainer.train()
    bundle = open_bundle(callback.path)
    for kind in ("train", "eval"):
        passes = [part for row in bundle.updates(kind=kind).to_pylist() for part in row["micro_batches"]]
        assert len(passes) == sum(entry["train"] is (kind == "train") for entry in trainer.losses)
        assert all(part["loss_gap"] is not None for part in passes)
        worst = max((abs(part["loss_gap"]) / part["loss_tolerance"] for part in passes), default=0.0)
        token = max((part["token_gap"] for part in passes), default=0.0)
        print(f"{kind}: largest gap {worst:.1e} of the tolerance, of a token {token:.1e}, in {len(passes)} passes")
        assert worst <= 1
        assert token < 1e-5
    assert bundle.manifest.algorithm_notes == []
    assert [record.message for record in caplog.records if record.name == "unipo_hooks"] == []
    metrics = bundle.metrics()
    assert max(metrics.column("loss_gap").to_pylist()) < 1e-5
    if "learning_rate" in settings:  # a step this large moves the policy: ratios of 1 would prove little
        assert max(abs(ratio - 1) for ratio in metrics.column("importance_sampling_ratio").to_pylist()) > 1e-3


def test_a_trainer_with_a_loss_of_its_own_is_told_apart(saved_model, tmp_path, caplog):
    class Other(WatchedTrainer):
        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, inputs) * 1.5 + 0.25

    callback = UnipoCallback(tmp_path / "run", strict=True)
    with caplog.at_level(logging.WARNING, logger="unipo_hooks"):
        trainer_for(saved_model, tmp_path, callbacks=[callback], cls=Other, max_steps=3).train()
    said = [record for record in caplog.records if "away from the trainer's" in record.message]
    assert len(said) == 1 and "Other" in said[0].message
    assert len(open_bundle(callback.path).updates()) == 3


def test_the_users_own_algorithm_is_what_the_loss_is_compared_with(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True, algorithm="gspo", algorithms=["examples/my_algorithm.json"])
    trainer_for(saved_model, tmp_path, callbacks=[callback], importance_sampling_level="sequence", max_steps=2).train()
    manifest = open_bundle(callback.path).manifest
    assert manifest.algorithm["id"] == "gspo"
    assert [each["id"] for each in manifest.algorithms]
