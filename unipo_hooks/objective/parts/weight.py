"""Weight: detached factors on the policy term. No gradient flows through them."""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.types import capped_exp, part


def sampler_ratio(batch: Batch, level: str) -> Array:
    """π_old/π_sampler of a token, or of a response as product or geometric mean; (B, T) or (B, 1)."""
    log_BT = (batch["old_log_probs"] - batch["rollout_log_probs"]) * batch.mask_BT
    if level == "token":
        return capped_exp(log_BT)
    if level == "sequence_product":
        return capped_exp(log_BT.sum(1, keepdims=True))
    return capped_exp(log_BT.sum(1, keepdims=True) / batch.length_B1)


@part("weight")
def recorded_weight(batch: Batch, *, level: str) -> Array:
    """The trainer's own sampler correction; at the level of responses, the geometric mean over their tokens."""
    weights = batch.column("is_weights")
    if level == "token" or weights.shape[1] == 1:
        return weights
    return capped_exp(batch.mean_over_tokens(np.log(np.maximum(weights, 1e-10)) * batch.valid_BT))


@part("weight")
def truncated(batch: Batch, *, level: str, cap: float, floor: float) -> Array:
    """π_old/π_sampler, no larger than C and no smaller than a floor."""
    return np.clip(sampler_ratio(batch, level), floor, cap)


@part("weight")
def banded(batch: Batch, *, level: str, band_low: float, band_high: float) -> Array:
    """π_old/π_sampler inside a band, 0 outside; the token stays in the denominator."""
    ratio = sampler_ratio(batch, level)
    return np.where((ratio >= band_low) & (ratio <= band_high), ratio, 0.0)


@part("weight")
def indecision(batch: Batch) -> Array:
    """p(1 − p): largest where the policy is undecided."""
    probability_BT = capped_exp(batch["log_probs"])
    return probability_BT * (1 - probability_BT)


@part("weight")
def exploration(batch: Batch, *, power: float) -> Array:
    """(1 − p)^power: larger where the policy finds the token unlikely."""
    weight: Array = np.maximum(1 - capped_exp(batch["log_probs"]), 0.0) ** power
    return weight


@part("weight")
def constant_weight(batch: Batch, *, factor: float) -> Array:
    """The same factor everywhere."""
    return np.full((1, 1), float(factor))
