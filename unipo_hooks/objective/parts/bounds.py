"""Bounds: where a gate bends, as the lowest and the highest ratio."""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.ratio import log_ratio
from unipo_hooks.objective.parts.types import part

Bounds = tuple[Array, Array]


@part("bounds")
def unbounded(batch: Batch, advantages: Array) -> Bounds:
    """No bounds."""
    return np.array(0.0), np.array(np.inf)


@part("bounds")
def around_one(batch: Batch, advantages: Array, *, epsilon_low: float, epsilon_high: float) -> Bounds:
    """[1 − ε_low, 1 + ε_high]."""
    return np.array(1.0 - epsilon_low), np.array(1.0 + epsilon_high)


@part("bounds")
def absolute(batch: Batch, advantages: Array, *, ratio_low: float, ratio_high: float) -> Bounds:
    """The ratio itself between two numbers."""
    return np.array(float(ratio_low)), np.array(float(ratio_high))


@part("bounds")
def probability_adaptive(
    batch: Batch, advantages: Array, *, epsilon_low: float, epsilon_high: float, ratio_cap: float
) -> Bounds:
    """Wider where the sampling probability was small (DCPO): ½ + ½√max(1 − 4ε_low/q, 0), ½ + ½√(1 + 4ε_high/q)."""
    inverse_BT = np.exp(-batch["old_log_probs"])
    low_BT = 0.5 + 0.5 * np.sqrt(np.maximum(1 - 4 * epsilon_low * inverse_BT, 0.0))
    high_BT = 0.5 + 0.5 * np.sqrt(1 + 4 * epsilon_high * inverse_BT)
    return low_BT, np.minimum(high_BT, ratio_cap)


@part("bounds")
def advantage_adaptive(
    batch: Batch, advantages: Array, *, epsilon_low: float, epsilon_high: float, elasticity: float
) -> Bounds:
    """[1 − ε_low·s, 1 + ε_high·s] with s = 1 + elasticity·|A|/(1 + |A|) (ETR, scaling law not verified)."""
    size = np.abs(advantages)
    stretch = 1 + elasticity * size / (1 + size)
    return 1 - epsilon_low * stretch, 1 + epsilon_high * stretch


@part("bounds")
def batch_search(
    batch: Batch,
    advantages: Array,
    *,
    ratio_low: float,
    ratio_low_limit: float,
    ratio_high: float,
    ratio_high_limit: float,
    step: float,
    target: float,
) -> Bounds:
    """Bounds raised step by step until positive tokens hold their share of the batch's contribution (BAPO)."""
    ratio_BT = np.exp(np.clip(log_ratio(batch, "old_log_probs"), -20.0, 20.0))
    weighted_BT = np.broadcast_to(advantages, ratio_BT.shape)
    positive_BT = (weighted_BT > 0) & (batch.valid_BT > 0)
    negative_BT = (weighted_BT < 0) & (batch.valid_BT > 0)

    def share(low: float, high: float) -> float:
        gain = (np.minimum(ratio_BT, high) * weighted_BT)[positive_BT].sum()
        loss = np.abs((np.maximum(ratio_BT, low) * weighted_BT)[negative_BT]).sum()
        return float(gain / loss) if loss > 0 else np.inf

    low, high = ratio_low, ratio_high
    while share(low, high) < target and low < ratio_low_limit and step > 0:
        low = min(low + step, ratio_low_limit)
    while share(low, high) < target and high < ratio_high_limit and step > 0:
        high = min(high + step, ratio_high_limit)
    return np.array(low), np.array(high)


def entropy_level(batch: Batch, quantile: float, low_side: str) -> Array:
    """(B, T) how high the entropy is among the batch's tokens: 0 at the quantile, 1 at the highest, −1 at the lowest.

    On a logarithmic scale, linear on each side. `low_side` says what stands below the quantile: `negative`, as HAPO
    means it, or `positive`, which its released code makes of it.
    """
    counted = batch.valid_BT > 0
    if not counted.any():
        return np.zeros(batch.shape)
    log_BT = np.log(np.maximum(batch["entropies"], 1e-8))
    ordered = np.sort(log_BT[counted])
    # the nearest rank, ties to even
    distance_BT = np.where(counted, log_BT - ordered[round(quantile * (len(ordered) - 1))], 0.0)
    distance_BT = distance_BT / np.sqrt(max(np.square(distance_BT).sum() / len(ordered), 1e-8))
    highest, lowest = max(distance_BT.max(), 1e-8), min(distance_BT.min(), -1e-8)
    below_BT = distance_BT / lowest if low_side == "positive" else -distance_BT / lowest
    return np.where(distance_BT > 0, distance_BT / highest, below_BT)


@part("bounds")
def entropy_adaptive(
    batch: Batch,
    advantages: Array,
    *,
    epsilon_low: float,
    epsilon_high: float,
    stretch: float,
    quantile: float,
    low_side: str,
) -> Bounds:
    """Room where the policy is undecided: ε_high(1 + αh) at high entropy, ε_low(1 − αh) at low entropy (HAPO)."""
    level_BT = entropy_level(batch, quantile, low_side)
    low_BT = np.where(level_BT <= 0, epsilon_low * (1 - stretch * level_BT), epsilon_low)
    high_BT = np.where(level_BT > 0, epsilon_high * (1 + stretch * level_BT), epsilon_high)
    return 1 - low_BT, 1 + high_BT
