"""Scale: what the difference from the baseline is divided by. Rewards that are all equal give exactly 0."""

from __future__ import annotations

from math import lgamma

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.groups import all_equal, centred, differ, finite, group_count, group_std_of, group_sum
from unipo_hooks.objective.parts.types import Rewards, part


@part("scale")
def group_std(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float, ddof: int, singleton: str) -> Array:
    """Standard deviation of the group's rewards, plus ε."""
    deviation_B = group_std_of(batch, rewards.response_B, ddof, singleton) + eps
    return np.divide(advantages, deviation_B[:, None], out=np.zeros_like(advantages), where=deviation_B[:, None] > 0)


@part("scale")
def token_weighted_std(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float, limit: float | None) -> Array:
    """Standard deviation of the group's rewards, a response counting once a token, plus ε (HAPO).

    A group in which an advantage reaches the limit gets that of GRPO instead: centred by its mean, divided by its
    deviation plus ε.
    """
    values_B = finite(batch, rewards.response_B)
    length_B = batch.mask_BT.sum(1) * batch.scored_B
    total_B = np.maximum(group_sum(batch, length_B), 1e-300)
    mean_B = group_sum(batch, values_B * length_B) / total_B
    difference_B = np.where(all_equal(batch, values_B), 0.0, values_B - mean_B)
    deviation_B = np.sqrt(group_sum(batch, np.square(difference_B) * length_B) / total_B) + eps
    scaled = np.divide(advantages, deviation_B[:, None], out=np.zeros_like(advantages), where=deviation_B[:, None] > 0)
    if limit is None:
        return scaled
    reaches_BT = (np.abs(scaled) >= limit) & (batch.mask_BT > 0)
    extreme_B = group_sum(batch, np.asarray(reaches_BT.any(1), np.float64)) > 0
    plain_B = centred(batch, values_B, "self") / (group_std_of(batch, values_B, 1, "self") + max(eps, 1e-300))
    return np.where(extreme_B[:, None], plain_B[:, None], scaled)


@part("scale")
def batch_std_of_rewards(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float) -> Array:
    """Standard deviation of all rewards of the batch, plus ε."""
    values = rewards.response_B[batch.scored_B]
    deviation = (values.std(ddof=1) if len(values) > 1 else 0.0) + eps
    return advantages / deviation if deviation > 0 else np.zeros_like(advantages)


@part("scale")
def batch_whiten(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float) -> Array:
    """Minus the batch's mean advantage, divided by its standard deviation, plus ε.

    Over responses where each has one advantage; over the tokens that count where each token has one of its own.
    """
    counted = batch.scored_B[:, None] & (batch.mask_BT > 0 if advantages.shape[1] > 1 else True)
    values = advantages[counted]
    if not len(values):
        return advantages
    if not differ(values):
        return np.zeros_like(advantages)
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    whitened = (advantages - values.mean()) / (deviation + eps) if deviation + eps > 0 else np.zeros_like(advantages)
    return np.where(counted, whitened, 0.0)


@part("scale")
def token_whiten(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float, eps_on: str, ddof: int) -> Array:
    """Minus the mean over all tokens, divided by √(variance + ε) or by the deviation + ε; long responses count more."""
    mask_BT = batch.mask_BT * batch.scored_B[:, None]
    count = mask_BT.sum()
    if count < 2 or not differ(np.broadcast_to(advantages, batch.shape)[mask_BT > 0]):
        return np.zeros(batch.shape)
    mean = (advantages * mask_BT).sum() / count
    variance = (np.square(advantages - mean) * mask_BT).sum() / (count - ddof)
    divisor = np.sqrt(variance + eps) if eps_on == "variance" else np.sqrt(variance) + eps
    if not divisor > 0:
        return np.zeros(batch.shape)
    whitened: Array = (advantages - mean) / divisor * mask_BT
    return whitened


@part("scale")
def group_mean_reward(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float) -> Array:
    """Mean reward of the group plus ε (MaxRL)."""
    mean_B = group_sum(batch, finite(batch, rewards.response_B)) / np.maximum(group_count(batch), 1) + eps
    return np.divide(advantages, mean_B[:, None], out=np.zeros_like(advantages), where=mean_B[:, None] != 0)


@part("scale")
def share_with_reward(batch: Batch, rewards: Rewards, advantages: Array, *, divisor: float) -> Array:
    """Share of responses whose reward is not 0, times a constant (GPG as in verl)."""
    nonzero = np.count_nonzero(finite(batch, rewards.response_B))
    return advantages * len(batch.scored_B) / max(nonzero, 1) / divisor


@part("scale")
def share_with_signal(batch: Batch, rewards: Rewards, advantages: Array, *, divisor: float) -> Array:
    """Share of responses in a group whose rewards differ, times a constant (GPG as in its paper)."""
    alive = np.count_nonzero(~all_equal(batch, finite(batch, rewards.response_B)))
    return advantages * len(batch.scored_B) / max(alive, 1) / divisor


@part("scale")
def beta_density(batch: Batch, rewards: Rewards, advantages: Array, *, limit: float) -> Array:
    """Density of a Beta distribution fitted to the batch's success rates (BNPO)."""
    values_B = finite(batch, rewards.response_B)
    _, first = np.unique(batch.group_B, return_index=True)
    rate_B = group_sum(batch, values_B) / np.maximum(group_count(batch), 1)
    rates = rate_B[first]
    mean, variance = rates.mean(), rates.var(ddof=1) if len(rates) > 1 else 0.0
    common = mean * (1 - mean) / variance - 1 if variance > 0 else 0.0
    a, b = (max(mean * common, 0.0), max((1 - mean) * common, 0.0)) if common > 0 else (0.0, 0.0)
    alpha, beta = max(1 + a / 3, 1.0), max(1 + b / 3, 1.0)
    inside_B = np.clip(rate_B, 1e-12, 1 - 1e-12)
    log_density_B = (alpha - 1) * np.log(inside_B) + (beta - 1) * np.log(1 - inside_B) - _log_beta(alpha, beta)
    scale_B = np.minimum(np.exp(-log_density_B), limit)
    return advantages * scale_B[:, None]


def _log_beta(alpha: float, beta: float) -> float:
    return lgamma(alpha) + lgamma(beta) - lgamma(alpha + beta)


@part("scale")
def pool_std(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float) -> Array:
    """Standard deviation of every reward ever seen for the prompt, plus ε (Reinforce-Ada)."""
    return advantages / (batch["pool_std"][:, None] + eps)
