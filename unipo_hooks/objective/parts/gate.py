"""Gate: what the ratio and the advantage make of a token, with the derivative in closed form.

At a tie (a ratio exactly at a bound, an advantage of exactly 0) nothing counts as clipped and the derivative is that of
the side inside: what autograd gives for PyTorch's clamp and min.
"""

from __future__ import annotations

import numpy as np

from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.types import (
    CAPPED_HIGH,
    CAPPED_LOW,
    DELTA,
    DUAL,
    HIGH,
    LOW,
    REGION,
    Gate,
    Ratio,
    capped_exp,
    part,
)

Bounds = tuple[Array, Array]


def log_prob_gate(batch: Batch, factor: Array, clipped: Array | None = None) -> Gate:
    """factor · log π_θ with a detached factor."""
    return Gate(factor * batch["log_probs"], d_log_prob=factor, clipped=clipped)


@part("gate")
def log_prob(batch: Batch, advantages: Array, ratio: Ratio, bounds: Bounds) -> Gate:
    """A · log π_θ: REINFORCE."""
    return log_prob_gate(batch, advantages)


@part("gate")
def plain_ratio(batch: Batch, advantages: Array, ratio: Ratio, bounds: Bounds) -> Gate:
    """A · ratio, never clipped."""
    objective = advantages * ratio.value
    return Gate(objective, d_log_ratio=objective, clipped=ratio.clipped)


@part("gate")
def ppo_clip(
    batch: Batch,
    advantages: Array,
    ratio: Ratio,
    bounds: Bounds,
    *,
    dual_clip: float | None,
    delta: float | None,
) -> Gate:
    """min(ratio·A, clip(ratio)·A); with a dual clip at least c·A where A < 0; with δ the ratio is capped first."""
    low, high = bounds
    value = ratio.value
    capped = value if delta is None else np.minimum(value, delta)
    free = capped * advantages
    bounded = np.clip(value, low, high) * advantages
    bends = bounded < free
    objective = np.where(bends, bounded, free)
    # Where clip(ratio)·A is the smaller one, the ratio is outside its range, except where δ lies inside it.
    silent = bends & ((value < low) | (value > high))
    codes = np.where(silent, np.where(advantages > 0, HIGH, LOW), 0)
    if delta is not None:
        cut = ~bends & (value > delta) & (advantages != 0)
        silent, codes = silent | cut, np.where(cut, DELTA, codes)
    if dual_clip is not None:
        floor = dual_clip * advantages
        held = (advantages < 0) & (objective < floor)
        objective = np.where(held, floor, objective)
        silent, codes = silent | held, np.where(held, DUAL, codes)
    return Gate(objective, d_log_ratio=np.where(silent, 0.0, value * advantages), clipped=codes)


@part("gate")
def capped_weight(batch: Batch, advantages: Array, ratio: Ratio, bounds: Bounds) -> Gate:
    """A · sg(clip(ratio)) · log π_θ: every token keeps a gradient (CISPO)."""
    low, high = bounds
    value = ratio.value
    codes = np.where(value > high, CAPPED_HIGH, np.where(value < low, CAPPED_LOW, 0))
    return log_prob_gate(batch, np.clip(value, low, high) * advantages, codes)


@part("gate")
def gradient_preserving_clip(
    batch: Batch,
    advantages: Array,
    ratio: Ratio,
    bounds: Bounds,
    *,
    beta_low: float,
    beta_high: float,
    dual_clip: float | None,
) -> Gate:
    """PPO's clip, but a clipped token keeps the gradient of the bound, times β (GPPO, CE-GPPO)."""
    low, high = bounds
    value = ratio.value
    above = (advantages > 0) & (value > high)
    below = (advantages < 0) & (value < low)
    effective = np.where(above, beta_high * high, np.where(below, beta_low * low, value))
    objective = effective * advantages
    derivative = objective
    codes = np.where(above, CAPPED_HIGH, np.where(below, CAPPED_LOW, 0))
    if dual_clip is not None:
        held = (advantages < 0) & (value > dual_clip)
        objective = np.where(held, dual_clip * advantages, objective)
        derivative = np.where(held, 0.0, derivative)
        codes = np.where(held, DUAL, codes)
    return Gate(objective, d_log_ratio=derivative, clipped=codes)


@part("gate")
def sigmoid(
    batch: Batch, advantages: Array, ratio: Ratio, bounds: Bounds, *, tau_positive: float, tau_negative: float
) -> Gate:
    """A · (4/τ) σ(τ(ratio − 1)): a soft gate around 1 (SAPO)."""
    value = ratio.value
    tau = np.where(advantages > 0, tau_positive, tau_negative)
    # tanh does not overflow: σ(x) = (1 + tanh(x/2))/2
    gate = 0.5 * (1 + np.tanh(0.5 * tau * (value - 1)))
    return Gate(4 / tau * gate * advantages, d_log_ratio=4 * gate * (1 - gate) * value * advantages)


@part("gate")
def gamma_weight(
    batch: Batch,
    advantages: Array,
    ratio: Ratio,
    bounds: Bounds,
    *,
    k_positive: float,
    lambda_positive: float,
    k_negative: float,
    lambda_negative: float,
    correction: str,
) -> Gate:
    """A · sg(φ(W)) · log π_θ, φ(W) = W^k e^{λ(1 − W)} of the whole response's ratio (VESPO)."""
    log_W = ratio.log
    if correction != "none":
        weights = np.clip(np.log(np.maximum(batch["is_weights"], 1e-8)), None, 20.0)
        # One of the whole response is its W already.
        log_W = log_W + (weights[:, None] if weights.ndim == 1 else (weights * batch.valid_BT).sum(1, keepdims=True))
    log_W = np.clip(log_W, np.log(1e-8), 20.0)
    up = advantages >= 0
    k, lam = np.where(up, k_positive, k_negative), np.where(up, lambda_positive, lambda_negative)
    phi = np.exp(np.clip(lam + k * log_W - lam * np.exp(log_W), -LIMIT, LIMIT))
    return log_prob_gate(batch, phi * advantages)


LIMIT = 300.0


@part("gate")
def tapered(batch: Batch, advantages: Array, ratio: Ratio, bounds: Bounds) -> Gate:
    """A · log π_θ; negative tokens are weighted by sg(clip(ratio, 0, 1)) (TOPR)."""
    factor = np.where(advantages > 0, 1.0, np.clip(ratio.value, 0.0, 1.0))
    return log_prob_gate(batch, factor * advantages)


@part("gate")
def trust_region_mask(
    batch: Batch,
    advantages: Array,
    ratio: Ratio,
    bounds: Bounds,
    *,
    divergence: str,
    delta_low: float,
    delta_high: float,
    ratio_cap: float | None,
) -> Gate:
    """A · sg(min(ratio, c)) · log π_θ where π_θ is near enough to π_old, or moving back (DPPO)."""
    new_BT, old_BT = np.exp(batch["log_probs"]), np.exp(batch["old_log_probs"])
    if divergence == "tv":
        inside_up, inside_down = new_BT - old_BT <= delta_high, new_BT - old_BT >= -delta_low
    else:
        # verl 0.9.1 compute_policy_loss_dppo_kl: KL of two Bernoulli variables, with its 1e-8
        other = np.log((1 - old_BT + 1e-8) / np.maximum(1 - new_BT + 1e-8, 1e-300))
        kl_BT = old_BT * (batch["old_log_probs"] - batch["log_probs"]) + (1 - old_BT) * other
        inside_up, inside_down = (kl_BT <= delta_high) | (new_BT <= old_BT), (kl_BT <= delta_low) | (new_BT >= old_BT)
    valid = np.where(advantages > 0, inside_up, inside_down)
    value = ratio.value
    limited = value if ratio_cap is None else np.minimum(value, ratio_cap)
    codes = np.where(valid, np.where(limited < value, CAPPED_HIGH, 0), REGION)
    return log_prob_gate(batch, limited * advantages * valid, codes)


@part("gate")
def hard_mask(
    batch: Batch,
    advantages: Array,
    ratio: Ratio,
    bounds: Bounds,
    *,
    sides: str,
    importance: bool,
    ring_low: float,
    ring_high: float,
) -> Gate:
    """A · log π_θ, or A · sg(ratio) · log π_θ, only where the ratio is inside its bounds (REC).

    One side: a token is dropped only where its advantage pushes it further out. Two sides: wherever it is outside.
    Ring: inside, or beyond the ring on the side the advantage pulls it back from.
    """
    low, high = bounds
    value = ratio.value
    if sides == "one":
        inside = ((advantages >= 0) & (value <= high)) | ((advantages <= 0) & (value >= low))
    else:
        inside = (value >= low) & (value <= high)
        if sides == "ring":
            inside = (
                inside | ((advantages >= 0) & (value <= 1 - ring_low)) | ((advantages <= 0) & (value >= 1 + ring_high))
            )
    factor = advantages * inside * (value if importance else 1.0)
    codes = np.where(inside | (advantages == 0), 0, np.where(value > high, HIGH, LOW))
    return log_prob_gate(batch, factor, codes)


@part("gate")
def shaped_probability(batch: Batch, advantages: Array, ratio: Ratio, bounds: Bounds, *, gamma: float) -> Gate:
    """A · p/(p + γ): an unlikely token of another's response counts most (LUFFY)."""
    probability_BT = capped_exp(batch["log_probs"])
    share_BT = probability_BT / (probability_BT + gamma)
    return Gate(advantages * share_BT, d_log_prob=advantages * share_BT * gamma / (probability_BT + gamma))


@part("gate")
def blended_ratio(batch: Batch, advantages: Array, ratio: Ratio, bounds: Bounds) -> Gate:
    """A · 2p/(q + (q + 1)/2): the ratio to a mixture of its source and the uniform guess (RL-PLUS)."""
    old_BT = capped_exp(batch["old_log_probs"])
    objective = advantages * 2 * capped_exp(batch["log_probs"]) / (old_BT + 0.5 * (old_BT + 1))
    return Gate(objective, d_log_prob=objective)


@part("gate")
def squared_residual(batch: Batch, advantages: Array, ratio: Ratio, bounds: Bounds, *, beta: float) -> Gate:
    """−(β log ratio − A)²: the ratio is fitted to the advantage (A*-PO)."""
    residual = beta * ratio.log - advantages
    return Gate(-residual * residual, d_log_ratio=-2 * beta * residual)


def _score(batch: Batch, values: Array) -> Array:
    """(B,) a ratio of whole responses. Raises AlgorithmError where each token has one of its own."""
    if values.shape[1] > 1:
        raise AlgorithmError("gate: a ratio of whole responses is needed (sequence_mean, mean_log_prob), not of tokens")
    return np.broadcast_to(values[:, 0], batch.shape[:1])


@part("gate")
def group_logistic(batch: Batch, advantages: Array, ratio: Ratio, bounds: Bounds, *, tau: float) -> Gate:
    """−log(1 + Σ e^{−s/τ}) over a prompt's good responses, −log(1 + Σ e^{s/τ}) over its bad ones (REAL).

    s is the log ratio, good an advantage above 0. Spread over the group's responses so that a mean over responses is
    the mean over prompts of equal size; a prompt without both kinds teaches nothing.
    """
    score_B = _score(batch, ratio.log)
    good_B = (advantages * batch.mask_BT).sum(1) > 0
    scored_B = batch.scored_B & batch.mask_BT.any(1)
    objective_B, weight_B = np.zeros_like(score_B), np.zeros_like(score_B)
    for group in np.unique(batch.group_B):
        rows = batch.group_B == group
        good, bad = rows & good_B & scored_B, rows & ~good_B & scored_B
        if not (good.any() and bad.any()):
            continue
        for kind, sign in ((good, -1.0), (bad, 1.0)):
            scaled = sign * score_B[kind] / tau
            highest = max(scaled.max(), 0.0)
            total = np.exp(-highest) + np.exp(scaled - highest).sum()
            objective_B[kind] = -rows.sum() / kind.sum() * (highest + np.log(total))
            weight_B[kind] = -sign * rows.sum() / tau * np.exp(scaled - highest) / total
    return Gate(objective_B[:, None], d_log_ratio=weight_B[:, None])


@part("gate")
def discriminative(batch: Batch, advantages: Array, ratio: Ratio, bounds: Bounds, *, tau: float, score: str) -> Gate:
    """Mean score of a prompt's good responses − τ log-mean-exp of its bad ones' scores over τ (DisCO).

    Spread over the group's responses so that a mean over responses is the mean over prompts of equal size. `score` is
    `log`, the ratio part's logarithm as it is, or `ratio`.
    """
    score_B = _score(batch, ratio.log if score == "log" else capped_exp(ratio.log))
    d_score_B = np.ones_like(score_B) if score == "log" else score_B
    good_B = batch["reward"] > 0
    # A response without a token has no score.
    scored_B = batch.scored_B & batch.mask_BT.any(1)
    objective_B, weight_B = np.zeros_like(score_B), np.zeros_like(score_B)
    for group in np.unique(batch.group_B):
        rows = batch.group_B == group
        good, bad = rows & good_B & scored_B, rows & ~good_B & scored_B
        if not (good.any() and bad.any()):
            # There is nothing to tell apart.
            continue
        weight_B[good] = rows.sum() / good.sum()
        objective_B[good] = weight_B[good] * score_B[good]
        highest = score_B[bad].max()
        spread = np.exp((score_B[bad] - highest) / tau)
        weight_B[bad] = -rows.sum() * spread / spread.sum()
        objective_B[bad] = -rows.sum() / bad.sum() * (highest + tau * np.log(spread.mean()))
    return Gate(objective_B[:, None], d_log_ratio=(weight_B * d_score_B)[:, None])
