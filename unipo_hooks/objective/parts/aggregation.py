"""Aggregation: what share of the loss a token is. Weights sum over the tokens that count; 0 where none counts."""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.types import part


def of_micro_batch(known: float | None, counted: float, there: float) -> float:
    """What a micro-batch counts: `counted`, or where only a part of it is there what is known of the whole.

    A mask or filter that leaves `counted` of the part's `there` is taken to leave as large a share of the whole.
    """
    return float(counted if known is None else known * counted / max(there, 1.0))


def rows_of(batch: Batch, counted_BT: Array, rows: str, span: str = "update") -> float:
    """Responses a mean over responses divides by, in the whole update."""
    given = batch.normalisers
    if given.rows is not None and span == "update":
        return max(given.rows, 1.0)
    if rows == "all" or (given.micro_batch_rows is not None and given.micro_batch_counted_rows is None):
        own = of_micro_batch(given.micro_batch_rows, batch.often_B.sum(), len(counted_BT))
    else:
        counted = (batch.often_B * counted_BT.any(1)).sum()
        own = of_micro_batch(given.micro_batch_counted_rows, counted, float(batch.mask_BT.any(1).sum()))
    return max(own, 1.0) * given.accumulation_steps


def lengths(batch: Batch, counted_BT: Array) -> Array:
    """(B, 1) tokens of a response that count, at least 1: of one, however often a filter repeats it."""
    once_B = np.divide(counted_BT.sum(1), batch.often_B, out=np.zeros(len(counted_BT)), where=batch.often_B > 0)
    return np.maximum(once_B, 1.0)[:, None]


@part("aggregation")
def sequence_mean_token_mean(batch: Batch, counted_BT: Array, *, rows: str, span: str) -> Array:
    """Mean over a response's tokens, then mean over responses: of the update, or of the micro-batch alone."""
    return counted_BT / lengths(batch, counted_BT) / rows_of(batch, counted_BT, rows, span)


@part("aggregation")
def sequence_mean_token_sum(batch: Batch, counted_BT: Array, *, rows: str) -> Array:
    """Sum over a response's tokens, then mean over responses."""
    return counted_BT / rows_of(batch, counted_BT, rows)


@part("aggregation")
def sequence_mean_constant_length(batch: Batch, counted_BT: Array, *, rows: str, length: float | None) -> Array:
    """Sum over a response's tokens divided by one constant length, then mean over responses."""
    constant = length or batch.normalisers.length or counted_BT.shape[1]
    return counted_BT / (rows_of(batch, counted_BT, rows) * constant)


@part("aggregation")
def token_mean(batch: Batch, counted_BT: Array, *, span: str) -> Array:
    """Mean over all tokens: of the update, or of the micro-batch alone."""
    given = batch.normalisers
    own = of_micro_batch(given.micro_batch_tokens, counted_BT.sum(), batch.mask_BT.sum())
    of_update = given.tokens if span == "update" else None
    tokens = of_update if of_update is not None else max(own, 1.0) * given.accumulation_steps
    return counted_BT / max(tokens, 1e-300)


@part("aggregation")
def group_token_mean(batch: Batch, counted_BT: Array) -> Array:
    """Mean over all tokens of a prompt's responses, then mean over prompts."""
    group_B, given = batch.group_B, batch.normalisers
    tokens_B = np.maximum(np.bincount(group_B, counted_BT.sum(1)), 1.0)[group_B]
    counted, there = (len(np.unique(group_B[each_BT.any(1)])) for each_BT in (counted_BT, batch.mask_BT))
    groups = of_micro_batch(given.micro_batch_groups, counted, there)
    return counted_BT / tokens_B[:, None] / max(groups, 1.0) / given.accumulation_steps


@part("aggregation")
def token_sum(batch: Batch, counted_BT: Array, *, length: float | None) -> Array:
    """Sum over all tokens of the update, divided by a constant where one is given."""
    # ranks average their gradients: each takes its own sum times their number, so that the sum is what remains
    return counted_BT * batch.normalisers.data_parallel_size / (length or 1.0)


@part("aggregation")
def sequence_sum_token_mean(batch: Batch, counted_BT: Array) -> Array:
    """Mean over a response's tokens, summed over responses."""
    return counted_BT / lengths(batch, counted_BT) / batch.normalisers.accumulation_steps
