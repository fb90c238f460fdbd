"""Reward: what is made of the rewards before they are compared."""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.constraint import kl_terms
from unipo_hooks.objective.parts.groups import centred, group_std_of
from unipo_hooks.objective.parts.types import Rewards, part


@part("reward")
def normalised_components(batch: Batch, rewards: Rewards, *, eps: float, singleton: str) -> Rewards:
    """Each component normalised inside its group, then summed with weights (GDPO).

    A response a reward function gave nothing for is left out of that function's statistics.
    """
    columns = []
    for column_B in batch["reward_components"].T:
        answered = batch.scoring(np.isfinite(column_B))
        difference_B = centred(answered, column_B, singleton)
        columns.append(difference_B / (group_std_of(answered, column_B, 1, singleton) + eps))
    return Rewards(np.stack(columns, axis=1) @ _weights(batch))


def _components(batch: Batch) -> Array:
    components_BK = batch["reward_components"]
    return np.where(np.isfinite(components_BK), components_BK, 0.0)


def _weights(batch: Batch) -> Array:
    given = batch.get("reward_weights")
    return np.ones(batch["reward_components"].shape[1]) if given is None else given


@part("reward")
def token_kl_penalty(batch: Batch, rewards: Rewards, *, beta: float, estimator: str) -> Rewards:
    """−β · KL estimate of old against reference policy at every token; the reward stands at the last one."""
    value, _ = kl_terms(batch["old_log_probs"] - batch["ref_log_probs"], estimator, 10.0 if estimator == "k3" else None)
    penalty_BT = beta * value * batch.mask_BT
    # not the sum of what is left: a response without a token that counts keeps its reward
    return Rewards(rewards.response_B - penalty_BT.sum(1), rewards.per_token(batch) - penalty_BT)


@part("reward")
def sequence_kl_penalty(batch: Batch, rewards: Rewards, *, beta: float) -> Rewards:
    """−β · Σ (log π_old − log π_ref) over the response."""
    kl_B = ((batch["old_log_probs"] - batch["ref_log_probs"]) * batch.mask_BT).sum(1)
    return Rewards(rewards.response_B - beta * kl_B)


@part("reward")
def overlong_penalty(
    batch: Batch, rewards: Rewards, *, max_length: float, cache: float, floor: float | None
) -> Rewards:
    """Falls linearly from 0 to −1 over the last `cache` tokens before `max_length` (DAPO, eq. 13)."""
    over_B = batch.mask_BT.sum(1) - (max_length - cache)
    penalty_B = np.minimum(-over_B / cache, 0.0)
    return Rewards(rewards.response_B + (penalty_B if floor is None else np.maximum(penalty_B, floor)))


@part("reward")
def clipped_reward(batch: Batch, rewards: Rewards, *, low: float, high: float) -> Rewards:
    """Rewards outside a range are moved to its edge."""
    return Rewards(np.clip(rewards.response_B, low, high))


@part("reward")
def truncation_penalty(batch: Batch, rewards: Rewards, *, value: float) -> Rewards:
    """A response cut off at the length limit gets this reward (DLER: 0)."""
    return Rewards(np.where(batch["truncated"] > 0, value, rewards.response_B))


@part("reward")
def implicit_token_reward(
    batch: Batch, rewards: Rewards, *, beta_dense: float, beta_kl: float, limit: float | None
) -> Rewards:
    """β₁ log(π_dpo/π_ref) − β₂ log(π_old/π_ref) at every token, and the reward at the last one (RTO)."""
    dense_BT = beta_dense * (batch["dpo_log_probs"] - batch["ref_log_probs"])
    if limit is not None:
        dense_BT = np.clip(dense_BT, -limit, limit)
    kl_BT = beta_kl * (batch["old_log_probs"] - batch["ref_log_probs"])
    token_BT = rewards.per_token(batch) + (dense_BT - kl_BT) * batch.mask_BT
    return Rewards(token_BT.sum(1), token_BT)
