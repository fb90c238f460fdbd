"""Aggregation: what share of the loss a token is. Weights sum over the tokens that count; 0 where none counts."""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.types import part


def rows_of(batch: Batch, counted_BT: Array, rows: str, span: str = "update") -> float:
    """Responses a mean over responses divides by, in the whole update."""
    known = batch.normalisers.rows
    if known is not None and span == "update":
        return max(known, 1.0)
    own = len(counted_BT) if rows == "all" else np.count_nonzero(counted_BT.any(1))
    return max(float(own), 1.0) * batch.normalisers.accumulation_steps


@part("aggregation")
def sequence_mean_token_mean(batch: Batch, counted_BT: Array, *, rows: str, span: str) -> Array:
    """Mean over a response's tokens, then mean over responses: of the update, or of the micro-batch alone."""
    length_B1 = np.maximum(counted_BT.sum(1, keepdims=True), 1.0)
    return counted_BT / length_B1 / rows_of(batch, counted_BT, rows, span)


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
    own = given.micro_batch_tokens if given.micro_batch_tokens is not None else counted_BT.sum()
    of_update = given.tokens if span == "update" else None
    tokens = of_update if of_update is not None else max(own, 1.0) * given.accumulation_steps
    return counted_BT / max(tokens, 1e-300)


@part("aggregation")
def group_token_mean(batch: Batch, counted_BT: Array) -> Array:
    """Mean over all tokens of a prompt's responses, then mean over prompts."""
    group_B = batch.group_B
    tokens_B = np.maximum(np.bincount(group_B, counted_BT.sum(1)), 1.0)[group_B]
    groups = len(np.unique(group_B[counted_BT.any(1)]))
    return counted_BT / tokens_B[:, None] / max(groups, 1) / batch.normalisers.accumulation_steps


@part("aggregation")
def token_sum(batch: Batch, counted_BT: Array, *, length: float | None) -> Array:
    """Sum over all tokens of the update, divided by a constant where one is given."""
    # ranks average their gradients: each takes its own sum times their number, so that the sum is what remains
    return counted_BT * batch.normalisers.data_parallel_size / (length or 1.0)


@part("aggregation")
def sequence_sum_token_mean(batch: Batch, counted_BT: Array) -> Array:
    """Mean over a response's tokens, summed over responses."""
    length_B1 = np.maximum(counted_BT.sum(1, keepdims=True), 1.0)
    return counted_BT / length_B1 / batch.normalisers.accumulation_steps
