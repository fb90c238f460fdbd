"""Mask: further tokens whose policy term does not count, and whether they leave the denominator too."""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.types import Mask, Ratio, part


@part("mask")
def recorded_mask(batch: Batch, advantages: Array, ratio: Ratio, *, denominator: bool) -> Mask:
    """The trainer's own further factors."""
    return Mask(batch["policy_mask"], denominator)


@part("mask")
def not_selected(batch: Batch, advantages: Array, ratio: Ratio, *, denominator: bool) -> Mask:
    """Everything but a recorded selection (Clip-Cov)."""
    return Mask(1.0 - (batch["selected"] > 0), denominator)


@part("mask")
def truncated_responses(batch: Batch, advantages: Array, ratio: Ratio, *, denominator: bool) -> Mask:
    """Responses cut off at the length limit do not count."""
    return Mask(1.0 - (batch["truncated"] > 0)[:, None], denominator)


@part("mask")
def high_entropy(batch: Batch, advantages: Array, ratio: Ratio, *, quantile: float, denominator: bool) -> Mask:
    """Only the share `quantile` of the batch's tokens with the highest entropy counts."""
    return Mask(most_entropic(batch, quantile), denominator)


def most_entropic(batch: Batch, quantile: float) -> Array:
    """(B, T) 1 on the share `quantile` of the tokens with the highest entropy."""
    counted = batch.valid_BT > 0
    entropies_BT = batch["entropies"]
    if counted.any() and quantile < 1:
        counted = counted & (entropies_BT >= np.quantile(entropies_BT[counted], 1 - quantile))
    return counted.astype(np.float64)


@part("mask")
def unlikely_tokens(batch: Batch, advantages: Array, ratio: Ratio, *, probability: float, denominator: bool) -> Mask:
    """Only tokens the sampling policy gave less than a probability."""
    return Mask((np.exp(batch["old_log_probs"]) < probability).astype(np.float64), denominator)


@part("mask")
def off_policy_sequences(
    batch: Batch, advantages: Array, ratio: Ratio, *, threshold: float, reference: str, denominator: bool
) -> Mask:
    """Drops a response of negative advantage the policy has moved too far away from (OPSM)."""
    drift_B1 = batch.mean_over_tokens(batch[reference] - batch["log_probs"])
    return Mask(1.0 - ((advantages < 0) & (drift_B1 > threshold)), denominator)


@part("mask")
def divergence_limit(
    batch: Batch,
    advantages: Array,
    ratio: Ratio,
    *,
    level: str,
    estimator: str,
    limit_low: float | None,
    limit_high: float,
    reference: str,
    denominator: bool,
) -> Mask:
    """Only tokens, or whole responses, whose estimated divergence from another policy is inside limits."""
    log_BT = np.clip(batch["log_probs"] - batch[reference], -20.0, 20.0)
    if estimator == "k1":
        value = -log_BT
    else:
        value = 0.5 * log_BT * log_BT if estimator == "k2" else np.exp(log_BT) - 1 - log_BT
    if level == "sequence_sum":
        value = (value * batch.mask_BT).sum(1, keepdims=True)
    elif level == "sequence_mean":
        value = batch.mean_over_tokens(value)
    elif level == "sequence_max":
        value = np.where(batch.valid_BT > 0, value, -np.inf).max(1, keepdims=True, initial=-np.inf)
    inside = (value <= limit_high) & (True if limit_low is None else value >= limit_low)
    return Mask(inside.astype(np.float64), denominator)


@part("mask")
def entropy_ratio(
    batch: Batch, advantages: Array, ratio: Ratio, *, change_low: float, change_high: float, denominator: bool
) -> Mask:
    """Only tokens whose entropy changed by little since sampling (ERC)."""
    change_BT = batch["entropies"] / np.maximum(batch["old_entropies"], 1e-8)
    inside = (change_BT >= 1 - change_low) & (change_BT <= 1 + change_high)
    return Mask(inside.astype(np.float64), denominator)


@part("mask")
def prefix(batch: Batch, advantages: Array, ratio: Ratio, *, share: float, denominator: bool) -> Mask:
    """Only the first share of a response's tokens."""
    place_BT = np.cumsum(batch.mask_BT, axis=1)
    return Mask((place_BT <= np.ceil(share * batch.mask_BT.sum(1, keepdims=True))).astype(np.float64), denominator)


@part("mask")
def advantage_entropy(batch: Batch, advantages: Array, ratio: Ratio, *, share: float, denominator: bool) -> Mask:
    """Only the share of each response's tokens with the largest |A| · entropy (D3S)."""
    score_BT = np.where(batch.mask_BT > 0, np.abs(advantages) * batch["entropies"], -np.inf)
    kept_B1 = np.ceil(share * batch.mask_BT.sum(1, keepdims=True))
    rank_BT = np.argsort(np.argsort(-score_BT, axis=1, kind="stable"), axis=1, kind="stable")
    return Mask((rank_BT < kept_B1).astype(np.float64), denominator)


@part("mask")
def conflict_tokens(batch: Batch, advantages: Array, ratio: Ratio, *, denominator: bool) -> Mask:
    """Tokens a response shares, place by place, with one of opposite advantage: ×2 if A > 0, ×0 if A < 0 (GTPO).

    Places are counted from the start and from the end.
    """
    rows, width = batch.shape
    ids, mask = batch["ids"].astype(np.int64), batch.mask_BT > 0
    advantage_B = (
        advantages[:, 0] if advantages.shape[1] == 1 else (advantages * batch.mask_BT).sum(1) / batch.length_B1[:, 0]
    )
    length_B = np.where(mask.any(1), width - np.argmax(mask[:, ::-1], axis=1), 0)
    sign_B = np.sign(advantage_B)
    shift_BT = (np.arange(width)[None, :] + (width - length_B)[:, None]) % width
    mirrored_ids, mirrored_mask = np.zeros_like(ids), np.zeros_like(mask)
    np.put_along_axis(mirrored_ids, shift_BT, ids, axis=1)
    np.put_along_axis(mirrored_mask, shift_BT, mask, axis=1)
    factor = np.ones((rows, width))
    for row in range(rows):
        others = (batch.group_B == batch.group_B[row]) & (sign_B * sign_B[row] < 0)
        if not others.any():
            continue
        shared = ((ids[others] == ids[row]) & mask[others]).any(0)
        mirrored = ((mirrored_ids[others] == mirrored_ids[row]) & mirrored_mask[others]).any(0)
        shared |= mirrored[shift_BT[row]]
        factor[row] = np.where(shared & mask[row], 2.0 if sign_B[row] > 0 else 0.0, 1.0)
    return Mask(factor, denominator)
