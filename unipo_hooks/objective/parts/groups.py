"""Statistics of prompt groups: sums, centred values and deviations, over responses with a finite reward."""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch


def group_sum(batch: Batch, values_B: Array) -> Array:
    """(B,) sum of a value over the response's group; what has no reward must be 0 already."""
    sums: Array = np.bincount(batch.group_B, values_B)[batch.group_B]
    return sums


def group_count(batch: Batch) -> Array:
    """(B,) responses with a finite reward in the response's group."""
    return group_sum(batch, batch.scored_B.astype(np.float64))


def finite(batch: Batch, values_B: Array) -> Array:
    """(B,) values, 0 where the response has no finite reward."""
    return np.where(batch.scored_B, values_B, 0.0)


def centred(batch: Batch, values_B: Array, singleton: str) -> Array:
    """(B,) value − mean of its group."""
    values_B = finite(batch, values_B)
    count_B = group_count(batch)
    mean_B = group_sum(batch, values_B) / np.maximum(count_B, 1)
    difference_B = np.where(all_equal(batch, values_B), 0.0, values_B - mean_B)
    if singleton == "zero":
        difference_B = np.where(count_B == 1, values_B, difference_B)
    return finite(batch, difference_B)


def differ(values: Array) -> bool:
    """Whether there are two values that are not the same."""
    return bool(len(values)) and bool(values.max() > values.min())


def all_equal(batch: Batch, values_B: Array) -> Array:
    """(B,) whether every finite reward of the response's group is the same."""
    group_B, scored_B = batch.group_B, batch.scored_B
    groups = int(group_B.max(initial=-1)) + 1
    highest, lowest = np.full(groups, -np.inf), np.full(groups, np.inf)
    np.maximum.at(highest, group_B[scored_B], values_B[scored_B])
    np.minimum.at(lowest, group_B[scored_B], values_B[scored_B])
    equal: Array = (highest <= lowest)[group_B]
    return equal


def group_std_of(batch: Batch, values_B: Array, ddof: int, singleton: str) -> Array:
    """(B,) standard deviation of a value inside its group; a group too small for it has 0, or 1 as in verl."""
    count_B = group_count(batch)
    difference_B = centred(batch, values_B, "self")
    variance_B = group_sum(batch, difference_B**2) / np.maximum(count_B - ddof, 1)
    return np.where((count_B <= 1) & (singleton == "zero"), 1.0, np.sqrt(variance_B))
