"""A captured update as the engine takes it: one batch a micro-batch, ready for `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from unipo_hooks.bundle import layout
from unipo_hooks.channels import ROLLOUT_TOKEN_FLOATS, UPDATE_TOKEN_FLOATS
from unipo_hooks.objective.inputs import INPUTS, Array, Batch, Normalisers
from unipo_hooks.objective.recorded import TRUNCATED


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """The kept responses of one forward pass, B of them, padded to T positions."""

    update: int
    rank: int
    micro_batch: int
    rollout: int
    row_B: Array
    """Row of each response in its rollout."""
    length_B: Array
    """Tokens of each response, those included that do not count."""
    batch: Batch
    """Its channels; denominators span the whole update, so that a token's weight is what it was in training."""
    whole: bool
    """Whether every response of the forward pass is there: only then is the loss that of the trainer."""
    loss: float | None
    """The trainer's loss without entropy bonus and router loss."""


def micro_batches(
    update: dict[str, Any], tokens: pa.Table, responses: pa.Table, reward_weights: Sequence[float] = ()
) -> list[MicroBatch]:
    """The micro-batches of an update: its row of `Bundle.updates`, its tokens and its responses."""
    kept = responses.filter(responses["kept"])
    names = ("rank", "micro_batch", "rollout", "row")
    keys = np.stack([kept[name].to_numpy() for name in names], axis=1)
    of_tokens = np.stack([tokens[name].to_numpy() for name in names], axis=1)
    found = []
    for line in update["micro_batches"]:
        at = np.flatnonzero((keys[:, 0] == line["rank"]) & (keys[:, 1] == line["micro_batch"]))
        if not len(at):
            continue
        mine = np.flatnonzero((of_tokens[:, 0] == line["rank"]) & (of_tokens[:, 1] == line["micro_batch"]))
        found.append(_micro_batch(update, line, kept.take(at), tokens.take(mine), reward_weights))
    return found


def _micro_batch(
    update: dict[str, Any],
    line: dict[str, Any],
    responses: pa.Table,
    tokens: pa.Table,
    reward_weights: Sequence[float],
) -> MicroBatch:
    row_B, length_B = responses["row"].to_numpy(), responses["length"].to_numpy()
    order = np.argsort(row_B, kind="stable")
    place = order[np.searchsorted(row_B, tokens["row"].to_numpy(), sorter=order)]
    position = tokens["position"].to_numpy()
    shape = (len(row_B), int(length_B.max(initial=0)))

    def padded(name: str) -> Array:
        values_BT = np.full(shape, np.nan)
        values_BT[place, position] = tokens[name].to_numpy()
        return values_BT

    there = set(tokens.column_names)
    floats = [n for n in (*ROLLOUT_TOKEN_FLOATS, *UPDATE_TOKEN_FLOATS, "ids") if n in there and n in INPUTS]
    arrays: dict[str, Any] = {
        name: values for name in floats if np.isfinite(values := padded(name)).any() or name == "log_probs"
    }
    if "mask_reason" in there:
        arrays["truncated"] = (padded("mask_reason") == TRUNCATED).any(1)
    components = [name for name in responses.column_names if name.startswith(layout.COMPONENT)]
    if components:
        arrays["reward_components"] = np.stack([responses[name].to_numpy() for name in components], axis=1)
        if len(reward_weights) == len(components):
            arrays["reward_weights"] = np.array(reward_weights)
    whole = len(row_B) == line["rows"]
    steps = update["accumulation_steps"]
    return MicroBatch(
        update=update["update"],
        rank=line["rank"],
        micro_batch=line["micro_batch"],
        rollout=responses["rollout"][0].as_py(),
        row_B=row_B,
        length_B=length_B,
        whole=whole,
        loss=_policy_loss(line),
        batch=Batch(
            **arrays,
            mask=np.nan_to_num(padded("mask")),
            reward=responses["reward"].to_numpy(),
            group=responses["group"].to_numpy(),
            normalisers=Normalisers(
                accumulation_steps=steps,
                tokens=line["update_tokens"] if whole or line["update_tokens"] else line["tokens"] * steps,
                micro_batch_tokens=None if whole else line["tokens"],
                rows=line["update_rows"] if whole or line["update_rows"] else line["rows"] * steps,
                length=update["length_constant"],
                data_parallel_size=update["data_parallel_size"],
            ),
        ),
    )


def _policy_loss(line: dict[str, Any]) -> float | None:
    if line["loss"] is None:
        return None
    bonus = (line["entropy_coef"] or 0.0) * (line["entropy_bonus"] or 0.0)
    return float(line["loss"] + bonus - (line["router_loss"] or 0.0))
