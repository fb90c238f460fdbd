"""TRL's tensors → records: names, lengths and what was never computed.

`*_tensors` say on the training thread which tensors are read, and compute nothing that would have to wait for a device;
`captured_*` make records of their copies, on the writing thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unipo_hooks.adapters.prompts import as_messages
from unipo_hooks.errors import CaptureError
from unipo_hooks.objective.inputs import Normalisers
from unipo_hooks.record import Array, CapturedMicroBatch, CapturedRollout, valid_positions
from unipo_hooks.schema import Kind

ROLLOUT_CHANNELS = {
    "old_per_token_logps": "old_log_probs",
    "ref_per_token_logps": "ref_log_probs",
    "sampling_per_token_logps": "rollout_log_probs",
    "importance_sampling_ratio": "is_weights",
    "advantages": "advantages",
}
"""Key of the generation batch → canonical channel."""

UPDATE_CHANNELS = {
    "per_token_logps": "log_probs",
    "entropies": "entropies",
    "per_token_kl": "token_kl",
    "ref_per_token_logps": "ref_log_probs",
}
"""Local of `_compute_loss` → canonical channel. The reference's log-probs are computed there by TRL 0.18 alone."""

POLICY_MASKS = ("entropy_mask", "off_policy_mask")
"""Locals of `_compute_loss` that multiply the policy term; their product is `policy_mask`."""

NEEDED_INPUTS = ("completion_ids", "prompt_ids", "prompt_mask")
"""Keys of a generation batch without which there is no rollout."""

ROLLOUT_INPUTS = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "prompt_ids",
    "prompt_mask",
    "old_logps",
    "num_items_in_batch",
)
"""What is read of a generation batch beside channels."""

LOSS_INPUTS = ("completion_mask", "num_items_in_batch")
"""What is read of the inputs of `_compute_loss`."""

LOCALS = (*UPDATE_CHANNELS, *POLICY_MASKS, "per_token_loss", "entropy_loss", "apply_coef", "aux_loss", "normalizer")
"""What is read of the local variables of `_compute_loss`."""

LOG_PROBS = ("old_log_probs", "ref_log_probs")
"""Channels of the rollout TRL writes as 0 where attention is masked, which would read as probability 1."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What `_calculate_rewards` was given and gave."""

    rewards_per_func: torch.Tensor | None
    """Of all ranks, (ranks · B, K); NaN where a function had no answer. None where they cannot be read."""
    lengths: list[int] | None
    """Tokens of each response of this rank; None where only the mask tells."""
    prompts: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Forward:
    """What a log-prob method gave: log-probs alone up to TRL 0.19, then entropies and a router's loss as well."""

    result: Any
    of_policy: bool
    """Whether the model is the one the loss was asked of."""

    def item(self, number: int) -> torch.Tensor | None:
        """Log-probs (0), entropies (1) or the router's loss (2); None where it was not computed."""
        result = self.result
        if isinstance(result, Mapping):  # TRL 0.20 and 0.21
            result = result.get("logps"), result.get("entropies")
        items = result if isinstance(result, tuple | list) else (result,)
        found = items[number] if number < len(items) else None
        return found if isinstance(found, torch.Tensor) else None


def rollout_tensors(
    batch: Mapping[str, Any], local: Mapping[str, Any], scored: Scored, reward_weights: torch.Tensor
) -> dict[str, Any]:
    """What is read of a generation batch; `local`: variables of the method that made it."""
    values = {**_log_probs_of_sums(batch, local), **batch}
    return {
        "batch": {key: values[key] for key in (*ROLLOUT_INPUTS, *ROLLOUT_CHANNELS) if key in values},
        "rewards_per_func": scored.rewards_per_func,
        "reward_weights": reward_weights,
    }


def micro_batch_tensors(
    inputs: Mapping[str, Any], local: Mapping[str, Any], forwards: Sequence[Forward], loss: torch.Tensor
) -> dict[str, Any]:
    """What is read of one `_compute_loss`: its inputs, its local variables, its forward pass and what it returned."""
    forward = _of_policy(forwards, inputs["completion_ids"].shape)
    own = {key: inputs[key] for key in LOSS_INPUTS if key in inputs}
    if "completion_mask" not in own:
        own["completion_mask"] = torch.ones_like(inputs["completion_ids"])
    return {
        "inputs": own,
        # What the loss was given is of the rollout.
        "local": {key: local[key] for key in LOCALS if local.get(key) is not None and inputs.get(key) is None},
        "forward": None if forward is None else [forward.item(number) for number in range(3)],
        "loss": loss,
    }


def to_array(tensor: torch.Tensor) -> Array:
    """A tensor on the host as an array; bfloat16 and float16 become float32, exactly."""
    array: Array = (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
    return array


def captured_rollout(
    tensors: Mapping[str, Any],
    *,
    lengths: Sequence[int] | None,
    prompts: Sequence[Any],
    kind: Kind,
    rollout: int,
    step: int,
    num_generations: int,
    rank: int,
    ranks: int,
    off_policy: bool = False,
    lost: Callable[[str], None] = lambda _: None,
) -> CapturedRollout:
    """The record of a generation batch before it is shuffled, from copies of its `rollout_tensors`.

    Row i of this rank is row rank · B + i of the rollout. `lengths` and `prompts` are what `_calculate_rewards` was
    given; `off_policy` says that responses outlive the policy they were sampled from; `lost` is told what cannot be
    read.
    """
    batch = tensors["batch"]
    ids_BT = to_array(batch["completion_ids"])
    rows, width = ids_BT.shape
    if "completion_mask" in batch:
        attended_BT = to_array(batch["completion_mask"]).astype(bool)
    elif lengths is not None:
        lost("mask: the generation batch has no completion_mask; every token is taken to count")
        attended_BT = valid_positions(np.array(lengths), width)
    else:
        raise CaptureError("the generation batch has no completion_mask, and nothing else says how long responses are")
    length_B = _lengths(attended_BT) if lengths is None else np.array(lengths, np.int64)
    tool_mask = batch.get("tool_mask")
    mask_BT = attended_BT if tool_mask is None else attended_BT & to_array(tool_mask).astype(bool)
    reward_weights_K = to_array(tensors["reward_weights"])
    components_RK = np.full((rows * ranks, len(reward_weights_K)), np.nan, np.float32)  # of all ranks
    if tensors["rewards_per_func"] is not None:
        components_RK = to_array(tensors["rewards_per_func"])
    components_BK = components_RK[rank * rows : (rank + 1) * rows]
    prompt_ids, prompt_mask = to_array(batch["prompt_ids"]), to_array(batch["prompt_mask"]).astype(bool)
    channels: dict[str, Array] = {}
    for key, name in ROLLOUT_CHANNELS.items():
        if isinstance(batch.get(key), torch.Tensor):
            values = to_array(batch[key])
            values = values[:, 0] if values.shape == (rows, 1) != (rows, width) else values
            if name == "rollout_log_probs" and tool_mask is not None:
                # TRL writes 0 for tokens that nobody sampled.
                values = np.where(to_array(tool_mask).astype(bool) | (values != 0), values, np.float32(np.nan))
            channels[name] = np.where(attended_BT, values, np.nan) if name in LOG_PROBS else values
    if "old_logps" in batch and "old_log_probs" not in channels:
        lost("old_log_probs: no log-probs were found whose sums are those of the batch (old_logps)")
    if "advantages" not in channels:
        lost("advantages: the generation batch has none")
    # Without log-probs of their own TRL takes the current ones; sums over a response are log-probs of their own.
    on_policy = "old_log_probs" not in channels and "old_logps" not in batch
    if on_policy and off_policy:
        lost("old_log_probs: the generation batch has no old_per_token_logps, though rollouts are used again")
        on_policy = False
    return CapturedRollout(
        kind=kind,
        rollout=rollout,
        step=step,
        groups=rows * ranks // num_generations,
        group_B=(rank * rows + np.arange(rows)) // num_generations,
        prompts=[ids[mask] for ids, mask in zip(prompt_ids, prompt_mask, strict=True)],
        messages=as_messages(prompts),
        ids_BT=ids_BT,
        length_B=length_B,
        mask_BT=mask_BT,
        mask_reason_BT=_mask_reason(mask_BT, attended_BT, length_B),
        reward_B=_reward(components_BK, reward_weights_K),
        reward_components_BK=components_BK,
        reward_R=_reward(components_RK, reward_weights_K) if ranks > 1 else None,
        tokens_over_ranks=_number(batch.get("num_items_in_batch")),
        channels=channels,
        aliases={"old_log_probs": "log_probs"} if on_policy else {},
    )


def captured_micro_batch(
    tensors: Mapping[str, Any],
    *,
    rollout: int,
    rows_b: Array,
    router_coef: float,
    divided_by: Callable[[float | None], Normalisers],
    divisor: float = 1,
    lost: Callable[[str], None] = lambda _: None,
) -> CapturedMicroBatch:
    """The record of one `_compute_loss`, from copies of its `micro_batch_tensors`.

    `divided_by` gives what the loss was divided by, from the number of tokens TRL counts (`num_items_in_batch`); its
    accumulation steps divide the router's loss where no local says by what. `divisor` divides the loss after the
    trainer returned it; the record holds what the optimizer sees. A local that is something else than its name says in
    TRL is left out, and `lost` is told. Raises CaptureError where there are no log-probs of the tokens.
    """
    inputs, local, forward = tensors["inputs"], tensors["local"], tensors["forward"]
    normalisers = divided_by(_number(inputs.get("num_items_in_batch")))
    attended_bT = to_array(inputs["completion_mask"]).astype(bool)
    rows, width = attended_bT.shape

    def of_tokens(key: str, *widths: int) -> torch.Tensor | None:
        value = local.get(key)
        fits = isinstance(value, torch.Tensor) and value.shape in [(rows, each) for each in widths]
        return value if fits else None

    def told(key: str, value: torch.Tensor | None) -> torch.Tensor | None:
        if value is None and local.get(key) is not None:
            lost(f"{key} of _compute_loss, which is not one value a token here")
        return value

    channels: dict[str, Array] = {}
    dtype = torch.float32
    for number, (key, name) in enumerate(UPDATE_CHANNELS.items()):
        value = of_tokens(key, width)
        if value is None and forward is not None and name in ("log_probs", "entropies"):
            given = forward[number]
            value = given if given is not None and given.shape == attended_bT.shape else None
        if (value := told(key, value)) is None:
            continue
        channels[name] = np.where(attended_bT, to_array(value), np.float32(np.nan))
        dtype = value.dtype if name == "log_probs" else dtype
    if "log_probs" not in channels:
        raise CaptureError(
            "updates are not captured, rollouts are: _compute_loss holds no log-probs of its tokens, nor does its "
            "log-prob method give any (Unsloth's does not)"
        )
    masks = [told(key, of_tokens(key, width, 1)) for key in POLICY_MASKS if local.get(key) is not None]
    readable = [to_array(mask) for mask in masks if mask is not None]
    if readable and len(readable) == len(masks):
        channels["policy_mask"] = np.prod(np.broadcast_arrays(attended_bT, *readable)[1:], axis=0, dtype=np.float32)
    token_loss = told("per_token_loss", of_tokens("per_token_loss", width, 1))
    bonus, coefficient = _number(local.get("entropy_loss")), _number(local.get("apply_coef"))
    if local.get("entropy_loss") is not None and (bonus is None or coefficient is None):
        lost("the entropy bonus, whose coefficient (apply_coef) or mean (entropy_loss) is not there")
        bonus = coefficient = None
    auxiliary = local.get("aux_loss")
    auxiliary = _number(forward[2] if auxiliary is None and forward is not None else auxiliary)
    # RLOO divides neither term itself: what divides both is the same in all of TRL.
    shared = _number(local.get("normalizer")) or max(normalisers.accumulation_steps, divisor)
    returned = _number(tensors["loss"])
    return CapturedMicroBatch(
        rollout=rollout,
        rows_b=rows_b,
        channels=channels,
        loss=None if returned is None else returned / divisor,
        update_tokens=normalisers.tokens,
        num_items_in_batch=_number(inputs.get("num_items_in_batch")),
        entropy_coef=None if bonus is None else coefficient,
        entropy_bonus=bonus,
        token_loss_bT=None if token_loss is None else to_array(token_loss),
        router_loss=None if auxiliary is None else router_coef * auxiliary / shared,
        dtype=str(dtype).removeprefix("torch."),
    )


def _lengths(attended_BT: Array) -> Array:
    """Tokens of each response, from what is attended: a row that is masked whole was truncated, and has them all."""
    attended_B = attended_BT.sum(1)
    length_B: Array = np.where(attended_B > 0, attended_B, attended_BT.shape[1])
    return length_B


def _log_probs_of_sums(batch: Mapping[str, Any], local: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The log-probs (B, T) of a batch that holds their sums alone, as RLOO's does: the policy's, the reference's.

    They belong to it where the sums beside them are the very same object.
    """
    sums = batch.get("old_logps")
    if sums is None or "old_per_token_logps" in batch or local.get("old_logps") is not sums:
        return {}
    found = {key: local.get(key) for key in ("old_per_token_logps", "ref_per_token_logps")}
    shape = batch["completion_ids"].shape
    return {key: each for key, each in found.items() if isinstance(each, torch.Tensor) and each.shape == shape}


def _of_policy(forwards: Sequence[Forward], shape: tuple[int, ...]) -> Forward | None:
    """The pass the loss is of, where there were several: over all rows, by the policy, with a gradient; the first."""

    def rank(forward: Forward) -> tuple[bool, bool]:
        log_probs = forward.item(0)
        return forward.of_policy, log_probs is not None and log_probs.requires_grad

    whole = [each for each in forwards if (own := each.item(0)) is not None and own.shape == shape]
    return max(whole, key=rank, default=None)


def _number(value: Any) -> float | None:
    """A number, or a tensor of one; None for anything else."""
    if isinstance(value, torch.Tensor):
        return float(value.item()) if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) else None


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
