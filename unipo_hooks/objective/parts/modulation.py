"""Modulation: how the advantage changes from token to token, or from response to response."""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.bounds import entropy_adaptive, entropy_level
from unipo_hooks.objective.parts.groups import group_sum
from unipo_hooks.objective.parts.ratio import log_ratio
from unipo_hooks.objective.parts.types import capped_exp, part


@part("modulation")
def given_weights(batch: Batch, advantages: Array) -> Array:
    """Times a weight of each token that comes with the batch (TW-GRPO, THR)."""
    return advantages * batch["token_weights"]


@part("modulation")
def planning_bonus(batch: Batch, advantages: Array, *, alpha: float) -> Array:
    """+ α|A| on planning tokens (HICRA)."""
    return advantages + alpha * np.abs(advantages) * batch["planning"]


@part("modulation")
def entropy_penalty(batch: Batch, advantages: Array, *, gamma: float, limit: float) -> Array:
    """− γ · the response's mean entropy; a response above the limit does not count (GTPO)."""
    mean_B1 = batch.mean_over_tokens(batch["entropies"])
    return np.where(mean_B1 > limit, 0.0, advantages - gamma * mean_B1)


@part("modulation")
def entropy_share(batch: Batch, advantages: Array, *, weight: float) -> Array:
    """+ weight · a token's share of the entropy at its position over the group's successful responses (GTPO-S)."""
    entropies_BT = batch["entropies"] * (advantages > 0)
    total_BT = np.stack([group_sum(batch, column_B) for column_B in entropies_BT.T], axis=1)
    count_BT = np.stack([group_sum(batch, column_B) for column_B in ((advantages > 0) * batch.mask_BT).T], axis=1)
    share_BT = np.divide(entropies_BT, total_BT, out=np.zeros(batch.shape), where=total_BT > 0) * count_BT
    return np.where(advantages > 0, advantages + weight * share_BT, advantages)


@part("modulation")
def negatives_by_length(batch: Batch, advantages: Array, *, base: float) -> Array:
    """A wrong response longer than its group's right ones is pushed harder: × (2 − base^(mean − length)) (View-R1).

    Right is a reward of 1 or more, wrong one below 1; a group without a right response is left as it is.
    """
    length_B = batch.mask_BT.sum(1)
    right_B = np.trunc(np.where(batch.scored_B, batch["reward"], 0.0))
    count_B = group_sum(batch, right_B)
    excess_B = length_B - group_sum(batch, length_B * right_B) / np.where(count_B > 0, count_B, 1.0)
    longer_B = (right_B == 0) & (excess_B > 0) & (count_B > 0)
    factor_B = np.where(longer_B, 2 - base ** -np.maximum(excess_B, 0.0), 1.0)
    return advantages * factor_B[:, None]


@part("modulation")
def nearest_history(batch: Batch, advantages: Array) -> Array:
    """The smaller of two mixtures of this step's advantage with that against all rewards so far (DCPO's SAS)."""
    visits_B1 = batch["visits"][:, None]
    total = batch["historic_advantages"][:, None]
    new = (visits_B1 - 1) / visits_B1 * advantages + total / visits_B1
    old = (visits_B1 - 1) / visits_B1 * total + advantages / visits_B1
    return np.where(np.abs(new) < np.abs(old), new, old)


@part("modulation")
def consistency_blend(batch: Batch, advantages: Array, *, gamma: float, rho: float) -> Array:
    """w · local + (1 − w) · advantage over the whole batch, w = σ(γ(H − ρ)), H the entropy of the answers (COPO)."""
    answers, group_B = batch["answers"], batch.group_B
    groups = np.unique(group_B)
    entropy_B, rate_B = np.zeros(len(group_B)), np.zeros(len(group_B))
    reward_B = np.where(batch.scored_B, batch["reward"], 0.0)
    rates = []
    for group in groups:
        rows = group_B == group
        share = np.unique(answers[rows], return_counts=True)[1] / rows.sum()
        entropy_B[rows] = -(share * np.log(share)).sum()
        rate_B[rows] = reward_B[rows].mean()
        rates.append(reward_B[rows].mean())
    deviation = np.std(rates)
    overall_B = (rate_B - np.mean(rates)) / deviation if deviation > 0 else np.zeros(len(group_B))
    weight_B1 = (0.5 * (1 + np.tanh(0.5 * gamma * (entropy_B - rho))))[:, None]
    return weight_B1 * advantages + (1 - weight_B1) * overall_B[:, None]


@part("modulation")
def sharpened_by_novelty(batch: Batch, advantages: Array, *, strength: float) -> Array:
    """Larger for correct responses the policy found unlikely (XRPO; form of the factor not verified)."""
    mean_B1 = batch.mean_over_tokens(batch["old_log_probs"])
    novelty = 1 + strength * np.clip(-mean_B1, 0.0, 1.0)
    return np.where(advantages > 0, advantages * novelty, advantages)


@part("modulation")
def by_entropy_and_ratio(
    batch: Batch,
    advantages: Array,
    *,
    strength: float,
    epsilon_low: float,
    epsilon_high: float,
    stretch: float,
    quantile: float,
    low_side: str,
) -> Array:
    """× (1 + βh) outside a neutral zone of the ratio where h > 0, inside it where h ≤ 0 (HAPO).

    h is the entropy's level; the neutral zone reaches half way from 1 to the bounds `entropy_adaptive` gives with the
    same hyper-parameters.
    """
    level_BT = entropy_level(batch, quantile, low_side)
    low, high = entropy_adaptive(
        batch,
        advantages,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        stretch=stretch,
        quantile=quantile,
        low_side=low_side,
    )
    ratio_BT = capped_exp(log_ratio(batch, "old_log_probs"))
    neutral_BT = (ratio_BT > (1 + low) / 2) & (ratio_BT < (1 + high) / 2)
    changes_BT = np.where(level_BT > 0, ~neutral_BT, neutral_BT)
    return np.where(changes_BT, advantages * (1 + strength * level_BT), advantages)
