"""Filter: which responses take part at all, and how often."""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.groups import group_count, group_sum
from unipo_hooks.objective.parts.types import part


def _spread(batch: Batch) -> Array:
    """(B,) whether the finite rewards of a response's group differ."""
    reward_B, group_B = batch["reward"], batch.group_B
    highest, lowest = np.full(group_B.max(initial=-1) + 1, -np.inf), np.full(group_B.max(initial=-1) + 1, np.inf)
    np.maximum.at(highest, group_B[batch.scored_B], reward_B[batch.scored_B])
    np.minimum.at(lowest, group_B[batch.scored_B], reward_B[batch.scored_B])
    spread: Array = (highest > lowest)[group_B]
    return spread


@part("filter")
def groups_with_signal(batch: Batch) -> Array:
    """Drops groups whose rewards are all equal (DAPO's dynamic sampling, on what was sampled)."""
    return _spread(batch).astype(np.float64)


@part("filter")
def reward_power(batch: Batch, *, power: float) -> Array:
    """A response counts in proportion to |reward|^power: the expectation of PF-PPO's resampling."""
    weight_B = np.where(batch.scored_B, np.abs(np.where(batch.scored_B, batch["reward"], 0.0)) ** power, 0.0)
    weight_B = np.maximum(weight_B + 1e-8, 1e-8)
    resampled: Array = weight_B / weight_B.sum() * len(weight_B)
    return resampled


@part("filter")
def positive_advantages(batch: Batch) -> Array:
    """Keeps responses that did better than expected (A-LoL)."""
    return (np.nan_to_num(batch["reward"]) > batch.column("baselines")[:, 0]).astype(np.float64)


@part("filter")
def most_varied(batch: Batch, *, share: float) -> Array:
    """Keeps the share of responses whose rewards, over the batch, vary most: the extremes (D3S)."""
    rows = len(batch.scored_B)
    keep = max(1, int(np.ceil(share * rows)))
    count_B = group_count(batch)
    mean_B = group_sum(batch, np.where(batch.scored_B, batch["reward"], 0.0)) / np.maximum(count_B, 1)
    centred_B = np.where(batch.scored_B, batch["reward"] - mean_B, 0.0)
    order = np.argsort(centred_B, kind="stable")
    best, best_variance = order[:keep], -1.0
    for low in range(keep + 1):
        chosen = np.concatenate([order[:low], order[rows - (keep - low) :]])
        variance = float(np.var(centred_B[chosen]))
        if variance > best_variance + 1e-12:
            best, best_variance = chosen, variance
    kept_B = np.zeros(rows)
    kept_B[best] = 1.0
    return kept_B
