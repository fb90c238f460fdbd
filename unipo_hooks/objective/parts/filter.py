"""Filter: which responses take part at all, and how often.

What a filter gives is a multiplicity: the loss is that of a batch in which a response stands so many times, in the
numerators and in every denominator; one of 0 is not there at all. Advantages are those of the batch as it was sampled;
only of a group that is dropped as a whole nothing is left in any statistic.
"""

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
    size_B = np.abs(np.where(batch.scored_B, batch["reward"], 0.0))
    weight_B = np.where(batch.scored_B, size_B**power, 0.0)
    if not np.isfinite(weight_B.sum()):
        # Only their proportions matter.
        weight_B = np.where(batch.scored_B, (size_B / size_B.max()) ** power, 0.0)
    weight_B = weight_B + 1e-8
    resampled: Array = weight_B / weight_B.sum() * len(weight_B)
    return resampled


@part("filter")
def positive_advantages(batch: Batch) -> Array:
    """Keeps responses that did better than expected (A-LoL)."""
    baselines = batch.column("baselines")
    # Of baselines per token, the one at the first token is that of the response.
    first_B1 = np.argmax(batch.mask_BT > 0, axis=1)[:, None] if baselines.shape[1] > 1 else np.zeros((1, 1), int)
    first_B1 = np.broadcast_to(first_B1, (len(baselines), 1))
    return (np.nan_to_num(batch["reward"]) > np.take_along_axis(baselines, first_B1, 1)[:, 0]).astype(np.float64)


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
