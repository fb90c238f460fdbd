"""A captured update as the engine takes it: one batch a micro-batch, ready for `evaluate`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.tables import find, ints, pair_key
from unipo_hooks.channels import RESPONSE_FLOATS, ROLLOUT_TOKEN_FLOATS, UPDATE_TOKEN_FLOATS
from unipo_hooks.objective.inputs import INPUTS, Array, Batch, Normalisers
from unipo_hooks.objective.recorded import TRUNCATED

_CHANNELS = tuple(name for name in (*ROLLOUT_TOKEN_FLOATS, *UPDATE_TOKEN_FLOATS, "ids") if name in INPUTS)


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """The kept responses of one forward pass, B of them, padded to T positions.

    Where only some prompt groups were kept, a token's weight is what it was in the whole micro-batch: exactly, as long
    as the algorithm takes from the other responses nothing but their number and that of their groups and tokens. All
    the responses of a kept group that were in the micro-batch are there, so statistics of a group are those of
    the micro-batch too; of a group dealt out to several micro-batches each has its own part, as in training.

    Approximate is what depends on the values of responses that were not kept: statistics of the whole batch, quantiles,
    and how many of their tokens a mask or filter of the algorithm leaves out of the denominators.
    """

    attempt: int
    """The start of the trainer it belongs to."""
    update: int
    rank: int
    micro_batch: int
    rollout: int
    row_B: Array
    """Row of each response in its rollout."""
    length_B: Array
    """Tokens of each response, those included that do not count."""
    batch: Batch
    """Its channels; a channel has one value a response where the trainer gave one. Denominators are those of the whole
    update, so that a token's weight is what it was in training."""
    whole: bool
    """Whether every response of the forward pass is there: only then is the loss that of the trainer."""
    loss: float | None
    """The trainer's loss without entropy bonus and router loss."""


def micro_batches(
    update: dict[str, Any],
    tokens: pa.Table,
    responses: pa.Table,
    reward_weights: Sequence[float] = (),
    channels: Collection[str] = (),
) -> list[MicroBatch]:
    """The micro-batches of an update: its row of `Bundle.updates`, its tokens and its responses.

    Of several attempts' tokens and responses those of the update's own are taken. `channels` the run has (those of the
    manifest) are there even in an update without a token that counts.
    """
    attempt, lines = update["attempt"], update["micro_batches"]
    kept = responses.filter(pc.and_(responses["kept"], pc.equal(responses["attempt"], attempt)))
    own = tokens.filter(pc.equal(tokens["attempt"], attempt))
    passes = pair_key(*(np.array([line[name] for line in lines], np.int64) for name in ("rank", "micro_batch")))
    pass_of, pass_of_token = (find(passes, pair_key(ints(t, "rank"), ints(t, "micro_batch"))) for t in (kept, own))
    # Which response each token is of, by its place among those kept.
    home = find(pair_key(pass_of, ints(kept, "row")), pair_key(pass_of_token, ints(own, "row")))
    levels = _levels(own, kept, home, channels)
    found = []
    for number, line in enumerate(lines):
        rows = np.flatnonzero(pass_of == number)
        if len(rows):
            mine = np.flatnonzero((pass_of_token == number) & (home >= 0))
            place = np.searchsorted(rows, home[mine])
            found.append(_micro_batch(update, line, kept.take(rows), own.take(mine), place, levels, reward_weights))
    return found


def _levels(tokens: pa.Table, responses: pa.Table, home: Array, channels: Collection[str]) -> dict[str, str]:
    """Channel → whether an update has a value of it for each `token` or for each `response`; those it has none of lack.

    Said once for the update: a micro-batch in which no token counts has no values either. `home` is the response of
    each token.
    """
    counted = (tokens["mask"].to_numpy() > 0) & (home >= 0)
    known = {*channels, *tokens.column_names, *responses.column_names}
    levels = {}
    for name in _CHANNELS:
        values = _values(tokens, name)[counted]
        if not (np.isfinite(values).any() if len(values) else name in known):
            continue
        of_response = name in RESPONSE_FLOATS and name in responses.column_names
        # A trainer that gave one value a token has none for the response.
        spread = of_response and np.array_equal(values, _values(responses, name)[home[counted]], equal_nan=True)
        levels[name] = "response" if spread else "token"
    if "mask_reason" in tokens.column_names or "mask_reason" in channels:
        levels["truncated"] = "response"
    return {"log_probs": "token", **levels}


def _values(table: pa.Table, name: str) -> Array:
    """A column as float64, NaN throughout where there is none."""
    values = table[name].to_numpy() if name in table.column_names else np.full(table.num_rows, np.nan)
    return np.asarray(values, np.float64)


def _micro_batch(
    update: dict[str, Any],
    line: dict[str, Any],
    responses: pa.Table,
    tokens: pa.Table,
    place: Array,
    levels: dict[str, str],
    reward_weights: Sequence[float],
) -> MicroBatch:
    """One forward pass; `place` is the response of each of its tokens."""
    row_B, length_B = responses["row"].to_numpy(), responses["length"].to_numpy()
    position = tokens["position"].to_numpy()
    shape = (len(row_B), int(length_B.max(initial=0)))

    def padded(name: str) -> Array:
        values_BT = np.full(shape, np.nan)
        values_BT[place, position] = _values(tokens, name)
        return values_BT

    arrays: dict[str, Any] = {
        name: padded(name) if level == "token" else _values(responses, name)
        for name, level in levels.items()
        if name != "truncated"
    }
    if "truncated" in levels:
        arrays["truncated"] = (padded("mask_reason") == TRUNCATED).any(1)
    components = [name for name in responses.column_names if name.startswith(layout.COMPONENT)]
    if components:
        arrays["reward_components"] = np.stack([responses[name].to_numpy() for name in components], axis=1)
        if len(reward_weights) == len(components):
            arrays["reward_weights"] = np.array(reward_weights)
    whole = len(row_B) == line["rows"]
    part = {
        "micro_batch_tokens": line["tokens"],
        "micro_batch_rows": line["rows"],
        "micro_batch_counted_rows": line["counted_rows"],
        "micro_batch_groups": line["groups"],
    }
    return MicroBatch(
        attempt=update["attempt"],
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
                accumulation_steps=update["accumulation_steps"],
                tokens=line["update_tokens"],
                rows=line["update_rows"],
                length=update["length_constant"] or line["width"],
                data_parallel_size=update["data_parallel_size"],
                **({} if whole else part),
            ),
        ),
    )


def _policy_loss(line: dict[str, Any]) -> float | None:
    if line["loss"] is None:
        return None
    bonus = (line["entropy_coef"] or 0.0) * (line["entropy_bonus"] or 0.0)
    return float(line["loss"] + bonus - (line["router_loss"] or 0.0))
