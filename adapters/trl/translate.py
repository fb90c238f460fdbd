"""TRL's tensors → records: names, lengths and what was never computed. Copies to the host and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unipo_hooks.record import Array, CapturedMicroBatch, CapturedRollout
from unipo_hooks.schema import Kind

ROLLOUT_CHANNELS = {
    "old_per_token_logps": "old_log_probs",
    "ref_per_token_logps": "ref_log_probs",
    "sampling_per_token_logps": "rollout_log_probs",
    "importance_sampling_ratio": "is_weights",
    "advantages": "advantages",
}
"""Key of the generation batch → canonical channel."""

UPDATE_CHANNELS = {"per_token_logps": "log_probs", "entropies": "entropies", "per_token_kl": "token_kl"}
"""Local of `_compute_loss` → canonical channel."""

POLICY_MASKS = ("entropy_mask", "off_policy_mask")
"""Locals of `_compute_loss` that multiply the policy term; their product is `policy_mask`."""

LOG_PROBS = ("old_log_probs", "ref_log_probs")
"""Channels of the rollout TRL writes as 0 where attention is masked, which would read as probability 1."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What `_calculate_rewards` was given and gave."""

    rewards_per_func: torch.Tensor
    """Of all ranks, (ranks · B, K); NaN where a function had no answer."""
    lengths: list[int]
    prompts: Sequence[Any]


def to_host(tensor: torch.Tensor) -> Array:
    """A copy on the host; bfloat16 and float16 become float32, exactly."""
    host = tensor.detach().to("cpu", copy=True)
    array: Array = (host.float() if host.dtype in (torch.bfloat16, torch.float16) else host).numpy()
    return array


def captured_rollout(
    batch: Mapping[str, Any],
    scored: Scored,
    *,
    kind: Kind,
    rollout: int,
    step: int,
    num_generations: int,
    reward_weights: Array,
    rank: int,
    ranks: int,
) -> CapturedRollout:
    """The record of a generation batch before it is shuffled. Row i of this rank is row rank · B + i of the rollout."""
    ids_BT = to_host(batch["completion_ids"])
    rows, width = ids_BT.shape
    length_B = np.array(scored.lengths, np.int64)
    attended_BT = to_host(batch["completion_mask"]).astype(bool)
    tool_mask = batch.get("tool_mask")
    mask_BT = attended_BT if tool_mask is None else attended_BT & to_host(tool_mask).astype(bool)
    components_BK = to_host(scored.rewards_per_func)[rank * rows : (rank + 1) * rows]
    prompt_ids, prompt_mask = to_host(batch["prompt_ids"]), to_host(batch["prompt_mask"]).astype(bool)
    channels: dict[str, Array] = {}
    for key, name in ROLLOUT_CHANNELS.items():
        if isinstance(batch.get(key), torch.Tensor):
            values = to_host(batch[key])
            values = values[:, 0] if values.shape == (rows, 1) != (rows, width) else values
            channels[name] = np.where(attended_BT, values, np.nan) if name in LOG_PROBS else values
    return CapturedRollout(
        kind=kind,
        rollout=rollout,
        step=step,
        groups=rows * ranks // num_generations,
        group_B=(rank * rows + np.arange(rows)) // num_generations,
        prompts=[ids[mask] for ids, mask in zip(prompt_ids, prompt_mask, strict=True)],
        messages=_messages(scored.prompts),
        ids_BT=ids_BT,
        length_B=length_B,
        mask_BT=mask_BT,
        mask_reason_BT=_mask_reason(mask_BT, attended_BT, length_B),
        reward_B=_reward(components_BK, reward_weights),
        reward_components_BK=components_BK,
        channels=channels,
        aliases={} if "old_log_probs" in channels else {"old_log_probs": "log_probs"},
    )


def captured_micro_batch(
    inputs: Mapping[str, Any],
    local: Mapping[str, Any],
    loss: torch.Tensor,
    *,
    rollout: int,
    rows_b: Array,
    router_coef: float,
    update_tokens: float | None = None,
    divisor: float = 1,
) -> CapturedMicroBatch:
    """The record of one `_compute_loss`, from its inputs and its local variables.

    `divisor` divides the loss after the trainer returned it; the record holds what the optimizer sees.
    """
    attended_bT = to_host(inputs["completion_mask"]).astype(bool)
    channels = {
        name: np.where(attended_bT, to_host(local[key]), np.float32(np.nan))
        for key, name in UPDATE_CHANNELS.items()
        if isinstance(local.get(key), torch.Tensor)
    }
    masks = [to_host(local[key]) for key in POLICY_MASKS if isinstance(local.get(key), torch.Tensor)]
    if masks:
        channels["policy_mask"] = np.prod(np.broadcast_arrays(attended_bT, *masks)[1:], axis=0, dtype=np.float32)
    bonus, auxiliary = local.get("entropy_loss"), local.get("aux_loss")
    num_items = inputs.get("num_items_in_batch")
    return CapturedMicroBatch(
        rollout=rollout,
        rows_b=rows_b,
        channels=channels,
        loss=loss.item() / divisor,
        update_tokens=update_tokens,
        num_items_in_batch=None if num_items is None else float(num_items),
        entropy_coef=None if bonus is None else float(local["apply_coef"]),
        entropy_bonus=None if bonus is None else bonus.item(),
        token_loss_bT=to_host(local["per_token_loss"])
        if isinstance(local.get("per_token_loss"), torch.Tensor)
        else None,
        router_loss=None if auxiliary is None else router_coef * auxiliary.item() / float(local["normalizer"]),
        dtype=str(local["per_token_logps"].dtype).removeprefix("torch."),
    )


def _messages(prompts: Sequence[Any]) -> list[str] | None:
    """Conversations as JSON, images as their description; None where prompts are plain text."""
    if all(isinstance(prompt, str) for prompt in prompts):
        return None
    return [json.dumps(prompt, ensure_ascii=False, default=str) for prompt in prompts]


def _mask_reason(mask_BT: Array, attended_BT: Array, length_B: Array) -> Array | None:
    """1 tool or environment (attended, not counted), 2 truncated row (no position attended), 3 other."""
    if mask_BT.sum() == length_B.sum():
        return None
    truncated_B1 = ~attended_BT.any(1, keepdims=True)
    reason = np.where(attended_BT, 1, np.where(truncated_B1, 2, 3))
    return np.where(mask_BT, 0, reason).astype(np.uint8)


def _reward(components_BK: Array, weights_K: Array) -> Array:
    """Weighted sum over the functions that answered; NaN where none did (`rewards` in TRL 1.16.0)."""
    answered = ~np.isnan(components_BK)
    total = np.where(answered, components_BK * weights_K, 0).sum(1)
    return np.where(answered.any(1), total, np.nan).astype(np.float32)
