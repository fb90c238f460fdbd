"""Records → rows: the columns of a bundle's tables, as flat arrays. Pure; nothing is written here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from unipo_hooks.bundle import layout
from unipo_hooks.channels import RESPONSE_FLOATS
from unipo_hooks.metrics import log_ratios
from unipo_hooks.policy import kept_rows
from unipo_hooks.record import Array, CapturedRollout, CapturedUpdate, valid_positions
from unipo_hooks.text import TokenText

Columns = dict[str, Any]
"""Column name → numpy or Arrow array, all of one length."""
Tables = dict[str, Columns]


def rollout_rows(
    rollout: CapturedRollout, kept: list[int] | None, text: TokenText, placeholders: Mapping[int, str] | None = None
) -> Tables:
    """Rows of `responses` (all responses) and `rollout_tokens` (those of the groups in `kept`; None: all).

    `placeholders`: ids that stand for a part of an image or the like → what they stand for. In the text of a prompt
    neighbours that stand for the same are one marker.
    """
    rows = len(rollout.group_B)
    kept_B = kept_rows(rollout.group_B, kept)
    width = rollout.ids_BT.shape[1]
    valid = valid_positions(rollout.length_B, width) & kept_B[:, None]
    responses: Columns = {
        "kind": _constant(rollout.kind, rows),
        "rollout": np.full(rows, rollout.rollout, np.int32),
        "row": np.arange(rows, dtype=np.int32),
        "group": rollout.group_B.astype(np.int32),
        "prompt": _prompts(rollout, text, placeholders or {}),
        "length": rollout.length_B.astype(np.int32),
        "counted": rollout.mask_BT.astype(bool).sum(1).astype(np.int32),
        "kept": kept_B,
        "reward": rollout.reward_B.astype(np.float32),
    }
    if rollout.messages is not None:
        responses["messages"] = pa.array(rollout.messages, pa.string())
    for number, component_B in enumerate(rollout.reward_components_BK.T):
        responses[layout.component_column(number)] = component_B.astype(np.float32)
    for name, label_B in rollout.labels.items():
        if any(label is not None for label in label_B):
            responses[layout.LABEL + name] = _label(label_B)
    tokens: Columns = {
        **_keys(valid, kind=rollout.kind, rollout=rollout.rollout, row=np.arange(rows)),
        "ids": rollout.ids_BT[valid].astype(np.int32),
        "strings": text.strings([rollout.ids_BT[row, : rollout.length_B[row]] for row in np.flatnonzero(kept_B)]),
        "mask": rollout.mask_BT[valid].astype(np.uint8),
    }
    if rollout.mask_reason_BT is not None and rollout.mask_reason_BT[valid].any():
        tokens["mask_reason"] = rollout.mask_reason_BT[valid].astype(np.uint8)
    for name, values in rollout.channels.items():
        if values.ndim == 2:
            tokens[name] = values[valid].astype(np.float32)
        elif name in RESPONSE_FLOATS:
            responses[name] = values.astype(np.float32)
    return {layout.RESPONSES: responses, layout.ROLLOUT_TOKENS: tokens}


def update_rows(
    update: CapturedUpdate, rollouts: Mapping[int, CapturedRollout], kept: Mapping[int, list[int] | None]
) -> Tables:
    """Rows of `update_responses` and `update_tokens`, for the micro-batches whose rollout is a key of `kept`."""
    parts: list[Tables] = []
    for number, micro_batch in enumerate(update.micro_batches):
        if micro_batch.rollout not in kept:
            continue
        rollout = rollouts[micro_batch.rollout]
        rows_b, all_b = micro_batch.rows_b, micro_batch.all_rows_b
        log_ratio, counted = log_ratios(micro_batch, rollout)
        responses: Columns = {
            "kind": _constant(update.kind, len(all_b)),
            "update": np.full(len(all_b), update.update, np.int32),
            "rollout": np.full(len(all_b), micro_batch.rollout, np.int32),
            "row": all_b.astype(np.int32),
            "micro_batch": np.full(len(all_b), number, np.int32),
            "counted": rollout.mask_BT[all_b].astype(bool).sum(1).astype(np.int32),
            "log_ratio_sum": _of_all(log_ratio.sum(1), len(all_b)),
        }
        token_kl = micro_batch.channels.get("token_kl")
        if token_kl is not None:
            kl = np.where(counted, token_kl[:, : counted.shape[1]], 0.0)
            responses["token_kl_sum"] = _of_all(kl.sum(1), len(all_b))
        kept_b = kept_rows(rollout.group_B[rows_b], kept[micro_batch.rollout])
        width = micro_batch.channels["log_probs"].shape[1]
        valid = valid_positions(rollout.length_B[rows_b], width) & kept_b[:, None]
        tokens: Columns = {
            **_keys(
                valid,
                kind=update.kind,
                row=rows_b,
                update=update.update,
                rollout=micro_batch.rollout,
                micro_batch=number,
            ),
            **{name: values[valid].astype(np.float32) for name, values in micro_batch.channels.items()},
        }
        parts.append({layout.UPDATE_RESPONSES: responses, layout.UPDATE_TOKENS: tokens})
    return {table: _stack([part[table] for part in parts]) for table in parts[0]} if parts else {}


def row_count(columns: Columns) -> int:
    """Rows of a table's columns."""
    return len(next(iter(columns.values()))) if columns else 0


def _of_all(sums_b: Array, rows: int) -> Array:
    """A sum of each row that was handed over, then NaN for those left behind."""
    sums = np.full(rows, np.nan, np.float32)
    sums[: len(sums_b)] = sums_b
    return sums


def _label(label_B: Sequence[str | int | float | None]) -> Any:
    """A column of text where any value is text or an int beyond float64, else of float64."""
    if not any(isinstance(label, str) for label in label_B):
        with suppress(OverflowError):
            return np.array([math.nan if label is None else label for label in label_B], np.float64)
    return pa.array([None if label is None else _text(label) for label in label_B], pa.string()).dictionary_encode()


def _text(label: str | int | float) -> str:
    """A label as UTF-8 can hold it; in hexadecimal where it has more digits than Python writes."""
    try:
        return str(label).encode(errors="replace").decode()
    except ValueError:
        return f"{label:#x}"


def _keys(valid: Array, *, kind: str, row: Array, **numbers: int) -> Columns:
    """Key columns of the tokens at the `True` positions of `valid` (rows, T)."""
    per_row = valid.sum(1)
    total = int(per_row.sum())
    return {
        "kind": _constant(kind, total),
        **{name: np.full(total, number, np.int32) for name, number in numbers.items()},
        "row": np.repeat(row.astype(np.int32), per_row),
    }


def _constant(text: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text], pa.string()))


def _prompts(rollout: CapturedRollout, text: TokenText, placeholders: Mapping[int, str]) -> pa.DictionaryArray:
    """Decoded prompts, each distinct one once: the responses of a group share theirs."""
    numbers: dict[bytes, int] = {}
    indices = [numbers.setdefault(ids.tobytes(), len(numbers)) for ids in rollout.prompts]
    distinct = [rollout.prompts[indices.index(number)] for number in range(len(numbers))]
    pieces = text.strings(distinct).to_pylist()
    ends = np.cumsum([len(ids) for ids in distinct]).tolist()
    texts = [
        _with_markers(ids, pieces[start:end], placeholders)
        for ids, start, end in zip(distinct, [0, *ends], ends, strict=False)
    ]
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(texts, pa.string()))


def _with_markers(ids: Array, pieces: list[str], placeholders: Mapping[int, str]) -> str:
    """The text of a prompt: an image, which is hundreds of equal tokens, reads `⟨image, 576 tokens⟩`."""
    parts = []
    for name, run in groupby(zip(ids.tolist(), pieces, strict=True), key=lambda token: placeholders.get(token[0])):
        texts = [piece for _, piece in run]
        parts.append("".join(texts) if name is None else f"⟨{name}, {len(texts)} token{'s'[: len(texts) != 1]}⟩")
    return "".join(parts)


def _stack(parts: list[Columns]) -> Columns:
    names = list(dict.fromkeys(name for part in parts for name in part))
    return {
        name: stack_column([part.get(name) for part in parts], [row_count(part) for part in parts]) for name in names
    }


def stack_column(columns: list[Any], rows: list[int]) -> Any:
    """One column out of several entries'; where an entry lacks it, NaN (floats), 0 (numbers) or null (text).

    A label that is a number in one entry and text in another is text.
    """
    present = [column for column in columns if column is not None]
    if all(isinstance(column, np.ndarray) for column in present):
        dtype = present[0].dtype
        fill = np.nan if dtype.kind == "f" else 0
        return np.concatenate([np.full(n, fill, dtype) if c is None else c for c, n in zip(columns, rows, strict=True)])
    chunks = [
        pa.nulls(n, pa.string()) if c is None else pa.array(c, from_pandas=True).cast(pa.string())
        for c, n in zip(columns, rows, strict=True)
    ]
    return pa.chunked_array(chunks, pa.string())
