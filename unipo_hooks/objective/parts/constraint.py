"""Constraint: terms of the loss beside the policy term, with their derivatives in closed form."""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.mask import most_entropic
from unipo_hooks.objective.parts.ratio import sequence_mean, token
from unipo_hooks.objective.parts.types import Constraint, Ratio, capped_exp, part

UNBOUNDED = (np.array(0.0), np.array(np.inf))


def kl_terms(log_BT: Array, estimator: str, clamp: float | None) -> tuple[Array, Array]:
    """Value and derivative by log π_θ of an estimator of KL(π_θ ‖ π_ref), from log π_θ − log π_ref.

    k1, k2, k3 as in http://joschu.net/blog/kl-approx.html; `k1+`, `k3+` and `abs+` keep their value and take the
    gradient of k2 (verl's kl_penalty). `clamp` is verl's: ±20 on the log-ratio, ±10 on k3's value.
    """
    base = estimator.removesuffix("+")
    if base == "k1":
        value, slope = log_BT, np.ones_like(log_BT)
    elif base == "k2":
        value, slope = 0.5 * log_BT * log_BT, log_BT
    elif base == "abs":
        value, slope = np.abs(log_BT), np.sign(log_BT)
    else:
        inverse = -log_BT if clamp is None else np.clip(-log_BT, -20.0, 20.0)
        ratio = capped_exp(inverse)
        value, slope = ratio - inverse - 1, 1 - ratio
        if clamp is not None:
            slope = np.where((np.abs(log_BT) <= 20.0) & (np.abs(value) <= clamp), slope, 0.0)
            value = np.clip(value, -clamp, clamp)
    return value, (log_BT if estimator.endswith("+") else slope)


@part("constraint")
def kl(
    batch: Batch,
    advantages: Array,
    ratio: Ratio,
    *,
    beta: float,
    estimator: str,
    reference: str,
    times_ratio: bool,
    level: str,
    before_weight: bool,
    clamp: float | None,
) -> Constraint:
    """β · an estimate of the divergence from another policy; with `times_ratio` multiplied by the ratio.

    `level` is that ratio's: `same` for the policy term's own, or of a `token`, or a response's `sequence_mean`.
    """
    value, slope = kl_terms(batch["log_probs"] - batch[reference], estimator, clamp)
    if not times_ratio:
        return Constraint(beta * value, beta * slope, before_weight=before_weight)
    if level == "token":
        ratio = token(batch, advantages, UNBOUNDED, reference="old_log_probs", clamp=None)
    elif level == "sequence_mean":
        ratio = sequence_mean(batch, advantages, UNBOUNDED, reference="old_log_probs")
    penalty = beta * value * ratio.value
    return Constraint(penalty, beta * slope * ratio.value, penalty, before_weight, ratio=ratio)


@part("constraint")
def kl_of_selected(batch: Batch, advantages: Array, ratio: Ratio, *, beta: float, share: float) -> Constraint:
    """β · |log ratio| on the tokens where advantage and log-prob vary together the most (KL-Cov)."""
    counted = batch.mask_BT > 0
    log_BT = batch["log_probs"] - batch["old_log_probs"]
    chosen_BT = top_covariance(batch, advantages, share) if "selected" not in batch else batch["selected"] > 0
    chosen_BT = chosen_BT & counted
    return Constraint(beta * np.abs(log_BT) * chosen_BT, beta * np.sign(log_BT) * chosen_BT, before_weight=True)


def top_covariance(batch: Batch, advantages: Array, share: float) -> Array:
    """(B, T) booleans: the share of the tokens that count with the largest (A − mean A)(log π − mean log π)."""
    counted = batch.valid_BT > 0
    chosen_BT = np.zeros(batch.shape, bool)
    advantage = np.broadcast_to(advantages, batch.shape)[counted]
    if not len(advantage):
        return chosen_BT
    log_prob = batch["log_probs"][counted]
    covariance = (advantage - advantage.mean()) * (log_prob - log_prob.mean())
    top = np.argsort(-covariance, kind="stable")[: max(1, int(len(covariance) * share))]
    chosen = np.zeros(len(covariance), bool)
    chosen[top] = True
    chosen_BT[counted] = chosen
    return chosen_BT


@part("constraint")
def kl_of_positives(batch: Batch, advantages: Array, ratio: Ratio, *, beta: float, reference: str) -> Constraint:
    """β · k3; on responses of positive advantage scaled down by the difficulty d of their prompt (View-R1).

    The factor is 1 − e^{−e(1 − d)}, and 1 where every response of the prompt is right or every one is wrong.
    """
    value, slope = kl_terms(batch["log_probs"] - batch[reference], "k3", None)
    difficulty_B1 = batch["difficulty"][:, None]
    scaled = (advantages > 0) & (difficulty_B1 > 0) & (difficulty_B1 < 1)
    factor = beta * np.where(scaled, 1 - np.exp(-np.e * (1 - difficulty_B1)), 1.0)
    return Constraint(factor * value, factor * slope)


@part("constraint")
def kl_hinge(batch: Batch, advantages: Array, ratio: Ratio, *, beta: float, limit: float) -> Constraint:
    """β/2 · max(KL(π_old ‖ π_θ) − limit, 0)², over the tokens of the batch (DisCO)."""
    log_BT = (batch["log_probs"] - batch["old_log_probs"]) * batch.mask_BT
    tokens = max(batch.mask_BT.sum(), 1.0)
    ratio_BT = capped_exp(log_BT)
    divergence = ((ratio_BT - log_BT - 1) * batch.mask_BT).sum() / tokens
    excess = max(divergence - limit, 0.0)
    # The same on every token, so that its mean over tokens is the penalty whether or not all of them are valid.
    penalty = np.full(batch.shape, beta / 2 * excess * excess * tokens / max(batch.valid_BT.sum(), 1.0))
    return Constraint(penalty, beta * excess * (ratio_BT - 1), token_mean=True)


@part("constraint")
def bonus_for_seeing(batch: Batch, advantages: Array, ratio: Ratio, *, beta: float) -> Constraint:
    """−β · KL from the policy that does not see the image: rewards using it (PAPO). The second pass is detached."""
    value, slope = kl_terms(batch["log_probs"] - batch["augmented_log_probs"], "k3", None)
    return Constraint(-beta * value, -beta * slope)


@part("constraint")
def entropy_bonus(
    batch: Batch, advantages: Array, ratio: Ratio, *, coefficient: float, token_mean: bool, quantile: float
) -> Constraint:
    """−coefficient · entropy: over the whole vocabulary, so no share of it belongs to the sampled token.

    With a `quantile` below 1, of the share of tokens with the highest entropy alone.
    """
    among = most_entropic(batch, quantile) if quantile < 1 else None
    return Constraint(-coefficient * batch["entropies"], attributable=False, token_mean=token_mean, among=among)
