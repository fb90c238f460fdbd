"""What a trainer recorded, as the engine takes it: a micro-batch as a batch, an algorithm as it was run on one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from unipo_hooks.algorithm_spec import AlgorithmSpec, PartUse
from unipo_hooks.objective.describe import is_own, merged
from unipo_hooks.objective.inputs import INPUTS, Array, Batch, Normalisers
from unipo_hooks.record import CapturedMicroBatch, CapturedRollout, CapturedUpdate, counts_of

SAMPLER = ("truncated", "banded")
"""Parts that compute a correction for the sampling engine: the trainer's own weights take their place."""

TRUNCATED = 2
"""Value of `mask_reason` in a response that was cut off."""


def as_recorded(spec: AlgorithmSpec, channels: Collection[str]) -> AlgorithmSpec:
    """The algorithm on what the trainer recorded of it, so that it can be recomputed from one micro-batch.

    Advantages, further masks and sampler weights are those the trainer computed, over a batch that a micro-batch is
    only a part of; filters have done their work before. A mask the trainer recorded nothing of is computed, and so is
    one of the user's own; the recorded one is left out where the ratio takes it. The entropy bonus is left out: it has
    no share in the tokens, and the trainer's own value of it is captured.
    """
    masks = [use.model_dump() for use in spec.parts.mask if _is_computed(use, channels)]
    if "policy_mask" in channels and spec.parts.ratio.parameters.get("over") != "policy_mask":
        masks.insert(0, {"part": "recorded_mask"})
    weights = [
        {"part": "recorded_weight"} if "is_weights" in channels and use.part in SAMPLER else use.model_dump()
        for use in spec.parts.weight
    ]
    changes = {
        "filter": [],
        "reward": [],
        "baseline": {"part": "recorded"},
        "scale": [],
        "modulation": [],
        "mask": masks,
        "weight": weights,
        "constraint": [use.model_dump() for use in spec.parts.constraint if not is_bonus(use)],
    }
    return spec.model_copy(update={"parts": merged(spec.parts, changes)})


def _is_computed(use: PartUse, channels: Collection[str]) -> bool:
    """Whether a mask has to be computed: its effect is neither in `policy_mask` nor in `mask`."""
    if is_own("mask", use.part):
        return True
    return "policy_mask" not in channels and use.part != "truncated_responses"


def is_bonus(use: PartUse) -> bool:
    """Whether a constraint is over the whole vocabulary, so that no sampled token has a share in it."""
    return use.part == "entropy_bonus"


def batch_of(micro_batch: CapturedMicroBatch, rollout: CapturedRollout, update: CapturedUpdate) -> Batch:
    """The (b, T) batch of a micro-batch, with everything its rollout and its update know of it."""
    rows_b = micro_batch.rows_b
    log_probs = micro_batch.channels["log_probs"]
    width = min(log_probs.shape[1], rollout.mask_BT.shape[1])

    def of_rows(values: Array) -> Array:
        return values[rows_b, :width] if values.ndim == 2 else values[rows_b]

    arrays: dict[str, Any] = {name: of_rows(values) for name, values in rollout.channels.items() if name in INPUTS}
    arrays |= {name: values[:, :width] for name, values in micro_batch.channels.items() if name in INPUTS}
    arrays |= {name: arrays[alias] for name, alias in rollout.aliases.items() if alias in arrays}
    if rollout.mask_reason_BT is not None:
        arrays["truncated"] = (of_rows(rollout.mask_reason_BT) == TRUNCATED).any(1)
    return Batch(
        **arrays,
        mask=of_rows(rollout.mask_BT),
        ids=of_rows(rollout.ids_BT),
        reward=rollout.reward_B[rows_b],
        reward_components=rollout.reward_components_BK[rows_b],
        group=np.asarray(rollout.group_B)[rows_b],
        normalisers=Normalisers(
            accumulation_steps=update.accumulation_steps,
            tokens=micro_batch.update_tokens,
            rows=micro_batch.update_rows,
            **({"length": update.length_constant} | _whole_pass(micro_batch, rollout, update)),
            data_parallel_size=update.data_parallel_size,
        ),
    )


def _whole_pass(
    micro_batch: CapturedMicroBatch, rollout: CapturedRollout, update: CapturedUpdate
) -> dict[str, int | None]:
    """Denominators of a forward pass of which rows were left behind: those of all its rows."""
    if micro_batch.left_behind is None:
        return {}
    counts = counts_of(micro_batch, rollout)
    return {
        "length": update.length_constant or counts.width,
        "micro_batch_tokens": counts.tokens,
        "micro_batch_rows": counts.rows,
        "micro_batch_counted_rows": counts.counted_rows,
        "micro_batch_groups": counts.groups,
    }
