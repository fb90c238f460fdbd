"""Whether what was captured gives the loss the trainer returned: the proof that every number shown is the run's own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.errors import UnipoError
from unipo_hooks.objective.evaluate import Evaluation, evaluate
from unipo_hooks.objective.inputs import Batch
from unipo_hooks.objective.recorded import as_recorded, batch_of
from unipo_hooks.record import CapturedMicroBatch, CapturedRollout, CapturedUpdate

TOLERANCES: dict[str, float] = {"float64": 1e-6, "float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}
"""Type the trainer computed in → largest gap, in units of max(1, Σ |aggregation × objective|).

That of float32 is ten times its rounding; half precision keeps 11 bits (float16) or 8 (bfloat16) of every log-prob.
"""

OF_RESPONSES = ("sequence_product", "clipped_sequence_mean")
"""Ratios whose loss TRL averages over responses, whether they have a token that counts or not."""


@dataclass(frozen=True, slots=True)
class Gap:
    """How far the recomputed loss of one micro-batch is from the trainer's."""

    loss: float
    """Recomputed minus returned, entropy bonus and router loss aside."""
    tolerance: float
    token: float | None
    """Largest difference of a token's loss, where the trainer's own could be read, ÷ max(1, the largest of them)."""

    @property
    def above(self) -> bool:
        """Whether the loss is further off than rounding explains; also where it is not a number."""
        return not abs(self.loss) <= self.tolerance


def gap_of(
    spec: AlgorithmSpec, micro_batch: CapturedMicroBatch, rollout: CapturedRollout, update: CapturedUpdate
) -> Gap | None:
    """The gap of a micro-batch under the run's algorithm; None where the trainer's loss is not known.

    Where rows of it were left behind it was found there, over all of them. Raises UnipoError where it could not be, and
    MissingInputError where the algorithm needs what was not captured.
    """
    left = micro_batch.left_behind
    if left is not None:
        if left.no_gap is not None:
            raise UnipoError(left.no_gap)
        return None if left.gap is None else Gap(*left.gap, token=None)
    returned = micro_batch.policy_loss
    if returned is None:
        return None
    batch = batch_of(micro_batch, rollout, update)
    evaluation = evaluate(as_recorded(spec, batch.arrays), batch)
    tolerance = TOLERANCES.get(micro_batch.dtype, TOLERANCES["bfloat16"]) * max(1.0, evaluation.magnitude)
    tolerance *= _size_of_sums(spec, batch)
    recomputed = evaluation.loss + _of_responses_without_tokens(spec, batch)
    return Gap(recomputed - returned, tolerance, _token_gap(evaluation, micro_batch))


def _size_of_sums(spec: AlgorithmSpec, batch: Batch) -> float:
    """Largest |Σ log π| of a response where the trainer takes its ratio of such sums, as RLOO does; at least 1.

    A float32 is rounded in proportion to its size: the difference of two sums of -2000 is known to 2e-4.
    """
    parts = spec.parts
    if parts.ratio.part != "sequence_product" or parts.aggregation.part != "sequence_mean_token_mean":
        return 1.0
    log_probs = np.where(batch["mask"] > 0, batch["log_probs"], 0.0).astype(np.float64)
    return float(max(1.0, np.abs(np.nan_to_num(log_probs).sum(1)).max(initial=0.0)))


def _of_responses_without_tokens(spec: AlgorithmSpec, batch: Batch) -> float:
    """What responses none of whose tokens count add to the loss.

    Nothing where the loss is a mean over tokens. TRL's RLOO and GMPO take a mean over responses, in which such a one
    has the ratio 1: −A, a constant that no token has a share in.
    """
    parts = spec.parts
    if parts.ratio.part not in OF_RESPONSES or parts.aggregation.part != "sequence_mean_token_mean":
        return 0.0
    empty_b = np.logical_not((batch["mask"] > 0).any(1))
    if not empty_b.any():
        return 0.0
    advantages_b = np.asarray(batch["advantages"], np.float64)
    if advantages_b.ndim > 1:  # verl's: the mean over no token is 0
        return 0.0
    return float(-advantages_b[empty_b].sum() / len(empty_b) / batch.normalisers.accumulation_steps)


def with_results(
    spec: AlgorithmSpec, micro_batch: CapturedMicroBatch, rollout: CapturedRollout, update: CapturedUpdate
) -> CapturedMicroBatch:
    """The micro-batch with `token_objective` and `gradient_weight` as channels, NaN where a token does not count.

    For an algorithm with a part of the user's own: a reader of the bundle has no code to compute them with.
    """
    batch = batch_of(micro_batch, rollout, update)
    evaluation = evaluate(as_recorded(spec, batch.arrays), batch)
    results = {}
    for name in ("token_objective", "gradient_weight"):
        values_bT = np.full(micro_batch.channels["log_probs"].shape, np.nan, np.float32)
        own_bT = np.where(batch["mask"] > 0, getattr(evaluation, name), np.nan)
        values_bT[:, : own_bT.shape[1]] = own_bT
        results[name] = values_bT
    return replace(micro_batch, channels={**micro_batch.channels, **results})


def _token_gap(evaluation: Evaluation, micro_batch: CapturedMicroBatch) -> float | None:
    if micro_batch.token_loss_bT is None:
        return None
    counted = evaluation.aggregation > 0
    rows, width = counted.shape
    if micro_batch.token_loss_bT.ndim != 2 or micro_batch.token_loss_bT.shape[0] != rows:
        return None  # a trainer's local of that name that is something else
    theirs = np.broadcast_to(micro_batch.token_loss_bT[:, :width], counted.shape)[counted].astype(np.float64)
    if not len(theirs):
        return 0.0
    worst = np.abs(-evaluation.token_objective[counted] - theirs).max()
    return float(worst / max(1.0, np.abs(theirs).max()))
