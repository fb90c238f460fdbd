"""One forward pass of an update, from what a worker noted: a record of the rows that are kept, and sums of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from unipo_hooks.adapters.verl.tokens import padded, to_array
from unipo_hooks.adapters.verl.translate import advantages_of
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.errors import CaptureError, UnipoError
from unipo_hooks.metrics import token_sums
from unipo_hooks.reconcile import gap_of
from unipo_hooks.record import (
    Array,
    CapturedMicroBatch,
    CapturedRollout,
    CapturedUpdate,
    LeftBehind,
    RunInfo,
    valid_positions,
)

MEASURED = {"log_probs": "log_probs", "entropy": "entropies"}
"""What the model gave → the channel it is."""

SHARED = ("dp_size", "batch_num_tokens", "global_batch_size")
"""What verl's `agg_loss` divides by and a batch says (`ActorConfig.global_batch_info`)."""

FIXED = ("response_mask", "old_log_probs", "advantages", "ref_log_prob", "rollout_is_weights")
"""What the loss took of the rollout: read here only where the rows of a pass do not all reach the driver."""


def micro_batch(noted: Mapping[str, Any], run: RunInfo, *, rank: int, compare: bool) -> CapturedMicroBatch:
    """The record of a pass; its rollout's number is the driver's to give. One of padding alone has no rows.

    Rows that are not kept stay here: their metrics are summed and, if asked to `compare`, the loss of the whole pass is
    computed anew, before they are let go of. Raises CaptureError where the model gave no log-probs.
    """
    if "log_probs" not in noted:
        raise CaptureError("the model gives no log-probs to its loss (a distillation alone does not need them)")
    row_b = to_array(noted["rows"]).reshape(-1)
    real_b = row_b >= 0
    prompt_b, length_b = (to_array(lengths) for lengths in noted["lengths"])
    channels = {
        channel: of_responses(to_array(noted[name]), prompt_b, length_b)[real_b]
        for name, channel in MEASURED.items()
        if name in noted
    }
    ranks = float(noted.get("dp_size") or 1)
    tokens, rows = noted.get("batch_num_tokens"), noted.get("global_batch_size")
    whole = CapturedMicroBatch(
        rollout=-1,
        rank=rank,
        rows_b=row_b[real_b],
        channels=channels,
        loss=float(noted["loss"]),
        update_tokens=None if tokens is None else float(tokens) / ranks,
        update_rows=None if rows is None else float(rows) / ranks,
        entropy_coef=noted["entropy_coef"] or None,
        entropy_bonus=noted["entropy_bonus"],
        dtype=str(noted["log_probs"].dtype).removeprefix("torch."),
    )
    if "keep" not in noted:
        return whole
    fixed = {name: to_array(noted[name])[real_b] for name in FIXED if name in noted}
    rollout = _rollout_of(fixed, length_b[real_b], whole.channels["log_probs"].shape[1], _estimator(run))
    keep_b = to_array(noted["keep"]).reshape(-1)[real_b].astype(bool)
    left_behind = _left_behind(whole, keep_b, rollout, run)
    if compare and run.algorithm is not None:
        length = run.header.hparams.get("loss_scale_factor") or noted["width"]
        left_behind = replace(left_behind, **_gap(whole, rollout, run.algorithm, int(ranks), length))
    kept = {name: values[keep_b] for name, values in whole.channels.items()}
    return replace(whole, rows_b=whole.rows_b[keep_b], channels=kept, left_behind=left_behind)


def of_responses(values: Array, prompt_b: Array, length_b: Array) -> Array:
    """(b, T), NaN behind each response, of a model's output for prompts and responses in one row.

    The output at a position is of the token after it (`no_padding_2_padding` of verl 0.9.1).
    """
    ends = np.cumsum(prompt_b + length_b)
    out = np.full((len(length_b), int(length_b.max(initial=0))), np.nan, np.float32)
    for row, (end, length) in enumerate(zip(ends, length_b, strict=True)):
        out[row, :length] = values[end - length - 1 : end - 1]
    return out


def _estimator(run: RunInfo) -> str:
    return str(run.header.hparams.get("adv_estimator"))


def _left_behind(whole: CapturedMicroBatch, keep_b: Array, rollout: CapturedRollout, run: RunInfo) -> LeftBehind:
    """What there is to say of the rows of a pass that are not kept; `rollout` holds its rows alone."""
    left = {name: values[~keep_b] for name, values in whole.channels.items()}
    return LeftBehind(
        rows_b=whole.rows_b[~keep_b],
        sums=token_sums(replace(whole, rows_b=np.flatnonzero(~keep_b), channels=left), rollout, run),
        gap=None,
        width=whole.channels["log_probs"].shape[1],
    )


def _rollout_of(fixed: Mapping[str, Array], length_b: Array, width: int, estimator: str) -> CapturedRollout:
    """The rows of a pass as a rollout of their own, as far as a loss and its metrics need one."""
    rows = len(length_b)
    names = {
        "old_log_probs": "old_log_probs",
        "advantages": "advantages",
        "ref_log_prob": "ref_log_probs",
        "rollout_is_weights": "is_weights",
    }
    nothing = np.full(rows, np.nan, np.float32)
    mask_BT = padded(fixed["response_mask"], width, 0).astype(bool)
    channels = {names[key]: padded(fixed[key], width, np.nan) for key in names if key in fixed}
    valid_BT = valid_positions(length_b, width)
    channels["advantages"] = advantages_of(channels["advantages"], mask_BT, valid_BT, estimator)
    return CapturedRollout(
        kind="train",
        rollout=-1,
        step=0,
        groups=rows,
        group_B=np.arange(rows),
        prompts=[np.empty(0, np.int64)] * rows,
        ids_BT=np.zeros((rows, width), np.int64),
        length_B=length_b,
        mask_BT=mask_BT,
        reward_B=nothing,
        reward_components_BK=np.empty((rows, 0), np.float32),
        channels=channels,
    )


def _gap(
    whole: CapturedMicroBatch, rollout: CapturedRollout, algorithm: AlgorithmSpec, ranks: int, length: int | None
) -> dict[str, Any]:
    """How far the loss of a whole pass is from what is computed anew, or why that is not known."""
    here = replace(whole, rows_b=np.arange(len(whole.rows_b)))
    update = CapturedUpdate(
        kind="train",
        update=0,
        step=0,
        micro_batches=[here],
        is_first_step_after_rollout_phase=False,
        data_parallel_size=ranks,
        length_constant=length,
    )
    try:
        gap = gap_of(algorithm, here, rollout, update)
    except Exception as error:  # it costs the comparison, as in the driver
        return {"no_gap": str(error) if isinstance(error, UnipoError) else f"{type(error).__name__}: {error}"}
    return {} if gap is None else {"gap": (gap.loss, gap.tolerance)}
