"""What a trainer recorded, as the engine takes it: a micro-batch as a batch, an algorithm as it was run on one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from unipo_hooks.algorithm_spec import AlgorithmSpec, PartUse
from unipo_hooks.objective.describe import merged
from unipo_hooks.objective.inputs import INPUTS, Array, Batch, Normalisers
from unipo_hooks.record import CapturedMicroBatch, CapturedRollout, CapturedUpdate

TRUNCATED = 2
"""Value of `mask_reason` in a response that was cut off."""


def as_recorded(spec: AlgorithmSpec, channels: Collection[str]) -> AlgorithmSpec:
    """The algorithm on what the trainer recorded of it, so that it can be recomputed from one micro-batch.

    Advantages, further masks and sampler weights are those the trainer computed, over a batch that a micro-batch is
    only a part of; filters have done their work before. The entropy bonus is left out: it has no share in the tokens,
    and the trainer's own value of it is captured.
    """
    sampler = any(use.part in ("truncated", "banded", "recorded_weight") for use in spec.parts.weight)
    recorded = [{"part": "recorded_weight"}] if "is_weights" in channels and sampler else None
    changes = {
        "filter": [],
        "reward": [],
        "baseline": {"part": "recorded"},
        "scale": [],
        "modulation": [],
        "mask": [{"part": "recorded_mask"}] if "policy_mask" in channels else [],
        "weight": [use.model_dump() for use in spec.parts.weight] if recorded is None else recorded,
        "constraint": [use.model_dump() for use in spec.parts.constraint if not is_bonus(use)],
    }
    return spec.model_copy(update={"parts": merged(spec.parts, changes)})


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
            length=update.length_constant,
            data_parallel_size=update.data_parallel_size,
        ),
    )
