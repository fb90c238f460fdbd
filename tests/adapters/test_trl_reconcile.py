"""In real runs of TRL's trainer the loss recomputed from what was captured is the loss it returned."""

import logging

import numpy as np
import pytest
import torch
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer
from trl_runs import DATASET, TOKENIZER, Watched, WatchedTrainer, small_mixture, trainer_for

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


class WatchedRLOO(Watched, RLOOTrainer):
    """RLOOTrainer, watched."""


class WatchedGMPO(Watched, GMPOTrainer):
    """GMPOTrainer, watched."""


RLOO, GMPO = {"cls": WatchedRLOO, "config": RLOOConfig}, {"cls": WatchedGMPO, "config": GMPOConfig}
RUNS |= {
    "rloo": {**RLOO, **OFF_POLICY},
    "rloo, several updates a rollout": {**RLOO, **OFF_POLICY, "steps_per_generation": 2, "num_iterations": 1},
    "rloo, accumulation": {**RLOO, **OFF_POLICY, "gradient_accumulation_steps": 2},
    "rloo, without a reference": {**RLOO, **OFF_POLICY, "beta": 0.0},
    "rloo, far from the reference": {**RLOO, **OFF_POLICY, "beta": 0.5, "max_steps": 8},
    "rloo, whitened": {**RLOO, **OFF_POLICY, "normalize_advantages": True, "reward_clip_range": (0.0, 0.4)},
    "rloo, evaluation": {**RLOO, "num_iterations": 2, "eval_steps": 2},
    "gmpo": {**GMPO, **OFF_POLICY},
    "gmpo, accumulation": {**GMPO, **OFF_POLICY, "gradient_accumulation_steps": 2, "beta": 0.05},
    "gmpo, several updates a rollout": {**GMPO, **OFF_POLICY, "steps_per_generation": 2, "num_iterations": 1},
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
        # A loss that is of whole responses has no per_token_loss.
        assert all((part["token_gap"] is None) is ("cls" in settings) for part in passes)
        token = max((part["token_gap"] or 0.0 for part in passes), default=0.0)
        print(f"{kind}: largest gap {worst:.1e} of the tolerance, of a token {token:.1e}, in {len(passes)} passes")
        assert worst <= 1
        assert token < 1e-5
    assert bundle.manifest.algorithm_notes == []
    assert [record.message for record in caplog.records if record.name == "unipo_hooks"] == []
    metrics = bundle.metrics()
    assert max(metrics.column("loss_gap").to_pylist()) < 1e-5
    if "learning_rate" in settings:  # a step this large moves the policy: ratios of 1 would prove little
        assert max(abs(ratio - 1) for ratio in metrics.column("importance_sampling_ratio").to_pylist()) > 1e-3


@pytest.mark.parametrize("settings", [{"num_iterations": 2}, {"steps_per_generation": 2}], ids=str)
def test_the_log_probs_rloo_sums_are_stored_token_by_token(saved_model, tmp_path, settings):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], **RLOO, **OFF_POLICY | settings, beta=0.5)
    trainer.train()
    bundle, compared = open_bundle(callback.path), 0
    for number, batch in enumerate(trainer.generated):
        tokens = bundle.tokens(rollout=number).to_pandas()
        width = batch["completion_ids"].shape[1]
        for row, total in enumerate(batch["old_logps"]):
            own = np.zeros(width, np.float32)
            mine = tokens[tokens["row"] == row]
            own[mine["position"]] = mine["old_log_probs"].to_numpy(np.float32)
            # The same width and order of additions as the trainer's.
            assert torch.equal(torch.from_numpy(own[None]).sum(1)[0], total)
            compared += 1
    assert not any(dict(row["aliases"]) for row in bundle.rollouts().to_pylist())
    print(f"{compared} sums are bit for bit the trainer's")
    assert compared == 8 * len(trainer.generated) * settings.get("steps_per_generation", 1)


class Unsummed(WatchedRLOO):
    """RLOO whose sums are of something else than what its log-prob method gave."""

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        return batch | {"old_logps": batch["old_logps"] - 0.01}


def test_log_probs_that_are_not_what_was_summed_are_missing_and_never_made_up(saved_model, tmp_path, caplog):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    with caplog.at_level(logging.WARNING, logger="unipo_hooks"):
        trainer_for(
            saved_model, tmp_path, callbacks=[callback], cls=Unsummed, config=RLOOConfig, num_iterations=2
        ).train()
    bundle = open_bundle(callback.path)
    assert "old_log_probs" not in bundle.manifest.channels
    assert not any(dict(row["aliases"]) for row in bundle.rollouts().to_pylist())
    assert len(bundle.updates()) == 4
    assert [part["loss_gap"] for row in bundle.updates().to_pylist() for part in row["micro_batches"]] == [None] * 4
    assert "old_log_probs" in bundle.manifest.algorithm_notes[0]
    assert len([each for each in caplog.messages if "not captured: old_log_probs" in each]) == 1


class OtherNames(GRPOTrainer):
    """Computes TRL's default loss with local variables of other names, or of other shapes."""

    flat = False

    def _compute_loss(self, model, inputs):
        prompt, answer, mask = (inputs[name] for name in ("prompt_ids", "completion_ids", "completion_mask"))
        ids, attended = torch.cat([prompt, answer], 1), torch.cat([inputs["prompt_mask"], mask], 1)
        with torch.no_grad():  # a pass of another kind, as a distilling trainer makes
            self._get_per_token_logps_and_entropies(model, ids, attended, answer.size(1))
        now, _, _ = self._get_per_token_logps_and_entropies(model, ids, attended, answer.size(1), compute_entropy=True)
        old = inputs.get("old_per_token_logps", now.detach())
        ratio, advantages = torch.exp(now - old), inputs["advantages"].unsqueeze(1)
        each = -torch.min(ratio * advantages, ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high) * advantages)
        if self.flat:
            per_token_loss = each[mask.bool()]
            per_token_logps = now[mask.bool()]
            assert per_token_loss.shape == per_token_logps.shape
            entropies = entropy_mask = "moved"  # noqa: F841
        steps = self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return (each * mask).sum() / (inputs["num_items_in_batch"] * steps)


class OtherShapes(OtherNames):
    flat = True


@pytest.mark.parametrize("cls", [OtherNames, OtherShapes])
def test_locals_that_moved_cost_the_channels_that_hung_on_them_and_no_more(saved_model, tmp_path, caplog, cls):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    with caplog.at_level(logging.WARNING, logger="unipo_hooks"):
        trainer_for(saved_model, tmp_path, callbacks=[callback], cls=cls, **OFF_POLICY).train()
    bundle = open_bundle(callback.path)
    passes = [part for row in bundle.updates().to_pylist() for part in row["micro_batches"]]
    worst = max(abs(part["loss_gap"]) / part["loss_tolerance"] for part in passes)
    print(f"largest gap {worst:.1e} of the tolerance")
    assert worst <= 1
    assert [part["token_gap"] for part in passes] == [None] * 4
    assert {"log_probs", "entropies", "old_log_probs"} <= set(bundle.manifest.channels)
    assert max(abs(ratio - 1) for ratio in bundle.metrics().column("importance_sampling_ratio").to_pylist()) > 1e-3
    said = [each for each in caplog.messages if "not captured" in each]
    # The other two come from the log-prob method itself.
    assert len(said) == (2 if cls is OtherShapes else 0)
    assert all(each in " ".join(said) for each in (["entropy_mask", "per_token_loss"] if said else []))
    assert len(said) == len(caplog.messages)


@pytest.mark.parametrize("settings", [RLOO, {"cls": WatchedTrainer}], ids=["rloo", "grpo"])
def test_the_loss_of_a_router_is_accounted_for(tmp_path, settings):
    torch.manual_seed(0)
    folder = tmp_path / "mixture"
    small_mixture(TOKENIZER).save_pretrained(folder)
    callback = UnipoCallback(tmp_path / "run", strict=True)
    settings = settings | OFF_POLICY | {"gradient_accumulation_steps": 2, "router_aux_loss_coef": 0.3}
    trainer = trainer_for(folder, tmp_path, callbacks=[callback], **settings)
    trainer.train()
    passes = [part for row in open_bundle(callback.path).updates().to_pylist() for part in row["micro_batches"]]
    worst = max(abs(part["loss_gap"]) / part["loss_tolerance"] for part in passes)
    print(f"largest gap {worst:.1e} of the tolerance, router losses {[part['router_loss'] for part in passes]}")
    assert worst <= 1
    assert all(part["router_loss"] > 0.01 for part in passes)


def test_a_trainer_with_a_loss_of_its_own_is_told_apart(saved_model, tmp_path, caplog):
    class Other(WatchedTrainer):
        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, inputs) * 1.5 + 0.25

    callback = UnipoCallback(tmp_path / "run", strict=True)
    with caplog.at_level(logging.WARNING, logger="unipo_hooks"):
        trainer_for(saved_model, tmp_path, callbacks=[callback], cls=Other, max_steps=3).train()
    said = [record for record in caplog.records if "away from the trainer's" in record.message]
    assert len(said) == 1 and said[0].message.endswith("Likely cause: Other overrides _compute_loss")
    assert len(open_bundle(callback.path).updates()) == 3


def test_the_users_own_algorithm_is_what_the_loss_is_compared_with(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True, algorithm="gspo", algorithms=["examples/my_algorithm.json"])
    trainer_for(saved_model, tmp_path, callbacks=[callback], importance_sampling_level="sequence", max_steps=2).train()
    manifest = open_bundle(callback.path).manifest
    assert manifest.algorithm["id"] == "gspo"
    assert [each["id"] for each in manifest.algorithms]
