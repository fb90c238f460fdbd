"""One forward pass of an update, from what a worker noted: a record of the rows that are kept, and sums of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from unipo_hooks.adapters.verl.tokens import padded, to_array
from unipo_hooks.adapters.verl.translate import advantages_of
from unipo_hooks.errors import UnipoError
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

SHARED = ("dp_size", "batch_num_tokens", "global_batch_size", "loss_scale_factor")
"""What verl's `agg_loss` divides by (`ActorConfig.global_batch_info`)."""

FIXED = ("response_mask", "old_log_probs", "advantages", "ref_log_prob", "rollout_is_weights")
"""What the loss took of the rollout: read here only where the rows of a pass do not all reach the driver."""


def micro_batch(noted: Mapping[str, Any], run: RunInfo, *, rank: int) -> CapturedMicroBatch:
    """The record of a pass; its rollout's number is the driver's to give. One of padding alone has no rows.

    Rows that are not kept stay here: their metrics are summed, and the loss of the whole pass is compared, before they
    are let go of.
    """
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
    return _sampled(whole, to_array(noted["keep"])[real_b].astype(bool), fixed, length_b[real_b], run, ranks)


def of_responses(values: Array, prompt_b: Array, length_b: Array) -> Array:
    """(b, T), NaN behind each response, of a model's output for prompts and responses in one row.

    The output at a position is of the token after it (`no_padding_2_padding` of verl 0.9.1).
    """
    ends = np.cumsum(prompt_b + length_b)
    out = np.full((len(length_b), int(length_b.max(initial=0))), np.nan, np.float32)
    for row, (end, length) in enumerate(zip(ends, length_b, strict=True)):
        out[row, :length] = values[end - length - 1 : end - 1]
    return out


def _sampled(
    whole: CapturedMicroBatch, keep_b: Array, fixed: Mapping[str, Array], length_b: Array, run: RunInfo, ranks: float
) -> CapturedMicroBatch:
    """The pass without the rows that are not kept."""
    width = whole.channels["log_probs"].shape[1]
    here = replace(whole, rows_b=np.arange(len(keep_b)))
    rollout = _rollout_of(fixed, length_b, width, str(run.header.hparams.get("adv_estimator")))
    left = replace(here, rows_b=np.flatnonzero(~keep_b), channels=_rows(whole.channels, ~keep_b))
    return replace(
        whole,
        rows_b=whole.rows_b[keep_b],
        channels=_rows(whole.channels, keep_b),
        left_behind=LeftBehind(
            rows_b=whole.rows_b[~keep_b],
            sums=token_sums(left, rollout, run),
            gap=_gap(here, rollout, run, ranks),
            width=width,
        ),
    )


def _rows(channels: Mapping[str, Array], rows_b: Array) -> dict[str, Array]:
    return {name: values[rows_b] for name, values in channels.items()}


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


def _gap(whole: CapturedMicroBatch, rollout: CapturedRollout, run: RunInfo, ranks: float) -> tuple[float, float] | None:
    if run.algorithm is None:
        return None
    update = CapturedUpdate(
        kind="train",
        update=0,
        step=0,
        micro_batches=[whole],
        is_first_step_after_rollout_phase=False,
        data_parallel_size=int(ranks),
        length_constant=run.header.hparams.get("loss_scale_factor"),
    )
    try:
        gap = gap_of(run.algorithm, whole, rollout, update)
    except UnipoError:  # the driver says why, of a pass it has whole
        return None
    return None if gap is None else (gap.loss, gap.tolerance)
