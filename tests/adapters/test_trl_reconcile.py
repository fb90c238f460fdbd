"""A trainer that is not quite TRL's: what is still captured of it, and what is said."""

import logging

import pytest
import torch
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer
from trl_runs import Watched, WatchedTrainer, trainer_for

from unipo_hooks import UnipoCallback, open_bundle

OFF_POLICY = {"num_iterations": 2, "learning_rate": 5e-2, "max_steps": 4}


class WatchedRLOO(Watched, RLOOTrainer):
    """RLOOTrainer, watched."""


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
