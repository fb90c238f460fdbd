"""Ratio: how far the policy has moved, at which level, and the Jacobian that carries a gradient back to the tokens."""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.types import HIGH, LOW, Ratio, capped_exp, part

Bounds = tuple[Array, Array]


def log_ratio(batch: Batch, reference: str) -> Array:
    """(B, T) log π_θ − log of the named channel; 0 where a token does not count."""
    difference: Array = batch["log_probs"] - batch[reference]
    return difference


@part("ratio")
def one(batch: Batch, advantages: Array, bounds: Bounds) -> Ratio:
    """No ratio: 1 everywhere."""
    return Ratio(np.zeros((1, 1)), np.zeros_like)


@part("ratio")
def token(batch: Batch, advantages: Array, bounds: Bounds, *, reference: str, clamp: float | None) -> Ratio:
    """π_θ/π of one token."""
    log_BT = log_ratio(batch, reference)
    if clamp is None:
        return Ratio(log_BT, lambda d_BT: d_BT)
    inside_BT = np.abs(log_BT) <= clamp
    return Ratio(np.clip(log_BT, -clamp, clamp), lambda d_BT: d_BT * inside_BT)


@part("ratio")
def segment(batch: Batch, advantages: Array, bounds: Bounds, *, reference: str) -> Ratio:
    """Geometric mean of the token ratios inside each segment."""
    rows, width = batch.shape
    segments_BT = batch["segments"].astype(np.int64)
    count = int(segments_BT.max(initial=0)) + 1
    flat = (np.arange(rows)[:, None] * count + segments_BT).ravel()
    mask_BT = batch.mask_BT
    size = np.maximum(np.bincount(flat, mask_BT.ravel(), rows * count), 1.0)

    def spread(values_BT: Array) -> Array:
        sums = np.bincount(flat, (values_BT * mask_BT).ravel(), rows * count) / size
        spread_BT: Array = sums[flat].reshape(rows, width) * mask_BT
        return spread_BT

    return Ratio(spread(log_ratio(batch, reference)), spread)


@part("ratio")
def sequence_mean(batch: Batch, advantages: Array, bounds: Bounds, *, reference: str) -> Ratio:
    """Geometric mean of a response's token ratios; the gradient flows through all of them (GSPO)."""
    mask_BT = batch.mask_BT

    def pull(d_BT: Array) -> Array:
        return d_BT.sum(1, keepdims=True) / batch.length_B1 * mask_BT

    return Ratio(batch.mean_over_tokens(log_ratio(batch, reference)), pull)


@part("ratio")
def sequence_mean_detached(
    batch: Batch, advantages: Array, bounds: Bounds, *, reference: str, clamp: float | None
) -> Ratio:
    """The same value, but each token's gradient flows through itself alone (GSPO-token)."""
    mean_B1 = batch.mean_over_tokens(log_ratio(batch, reference))
    if clamp is None:
        return Ratio(mean_B1, lambda d_BT: d_BT)
    inside_B1 = mean_B1 <= clamp
    return Ratio(np.minimum(mean_B1, clamp), lambda d_BT: d_BT * inside_B1)


@part("ratio")
def sequence_product(batch: Batch, advantages: Array, bounds: Bounds, *, reference: str, clamp: float | None) -> Ratio:
    """Product of a response's token ratios: the ratio of the whole response; `clamp` limits each token's log-ratio."""
    log_BT, live_BT = log_ratio(batch, reference), batch.mask_BT
    if clamp is not None:
        live_BT = live_BT * (np.abs(log_BT) <= clamp)
        log_BT = np.clip(log_BT, -clamp, clamp)
    log_B1 = (log_BT * batch.mask_BT).sum(1, keepdims=True)
    return Ratio(log_B1, lambda d_BT: d_BT.sum(1, keepdims=True) * live_BT)


@part("ratio")
def clipped_sequence_mean(
    batch: Batch, advantages: Array, bounds: Bounds, *, reference: str, log_low: float, log_high: float, over: str
) -> Ratio:
    """Geometric mean of token ratios that were each clipped first, on the side the advantage pushes to (GMPO)."""
    # A token that counts but is not finite keeps its place, whatever was recorded of it.
    among_BT = batch.mask_BT * np.where(batch.invalid_BT, 1.0, batch[over])
    size_B1 = np.maximum(among_BT.sum(1, keepdims=True), 1.0)
    log_BT = log_ratio(batch, reference)
    sign = np.sign(advantages)
    above_BT = (log_BT > log_high) & (sign > 0)
    below_BT = (log_BT < -log_low) & (sign < 0)
    clipped_BT = np.where(above_BT, log_high, np.where(below_BT, -log_low, log_BT)) * (sign != 0)
    live_BT = among_BT * ~(above_BT | below_BT) * (sign != 0)

    def pull(d_BT: Array) -> Array:
        return d_BT.sum(1, keepdims=True) / size_B1 * live_BT

    codes_BT = np.where(above_BT, HIGH, np.where(below_BT, LOW, 0))
    return Ratio((clipped_BT * among_BT).sum(1, keepdims=True) / size_B1, pull, codes_BT)


@part("ratio")
def hybrid(
    batch: Batch, advantages: Array, bounds: Bounds, *, reference: str, share: float, sequence_epsilon: float
) -> Ratio:
    """A mean of the clipped token ratio and the clipped ratio of the response, each clipped before they mix (DHPO)."""
    log_BT = log_ratio(batch, reference)
    mean_B1 = batch.mean_over_tokens(log_BT)
    low, high = bounds
    token_BT, sequence_B1 = capped_exp(log_BT), capped_exp(mean_B1)
    up, down = advantages > 0, advantages < 0
    token_out = (up & (token_BT > high)) | (down & (token_BT < low))
    sequence_out = (up & (sequence_B1 > 1 + sequence_epsilon)) | (down & (sequence_B1 < 1 - sequence_epsilon))
    token_part = share * np.where(token_out, np.clip(token_BT, low, high), token_BT)
    bounded = np.clip(sequence_B1, 1 - sequence_epsilon, 1 + sequence_epsilon)
    sequence_part = (1 - share) * np.where(sequence_out, bounded, sequence_B1)
    mixed_BT = token_part + sequence_part

    def pull(d_BT: Array) -> Array:
        through_mean = (d_BT * sequence_part / mixed_BT * ~sequence_out * batch.mask_BT).sum(1, keepdims=True)
        return (d_BT * token_part / mixed_BT * ~token_out + through_mean / batch.length_B1) * batch.mask_BT

    silent = token_out & sequence_out
    return Ratio(np.log(mixed_BT), pull, np.where(silent, np.where(up, HIGH, LOW), 0))


@part("ratio")
def mean_log_prob(batch: Batch, advantages: Array, bounds: Bounds) -> Ratio:
    """Mean log-prob of a response, compared with nothing: the score of a discriminative objective."""
    mask_BT = batch.mask_BT
    return Ratio(
        batch.mean_over_tokens(batch["log_probs"]),
        lambda d_BT: d_BT.sum(1, keepdims=True) / batch.length_B1 * mask_BT,
    )
