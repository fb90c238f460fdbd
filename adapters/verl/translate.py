"""verl's names → the canonical ones: the record of a rollout, from what was read of its batch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unipo_hooks.adapters.prompts import as_messages
from unipo_hooks.adapters.verl.batches import SAMPLED, Rows
from unipo_hooks.adapters.verl.tokens import padded, to_array
from unipo_hooks.record import Array, CapturedRollout, valid_positions

CHANNELS = {
    "old_log_probs": "old_log_probs",
    "ref_log_prob": "ref_log_probs",
    "rollout_log_probs": "rollout_log_probs",
    "rollout_is_weights": "is_weights",
    "values": "values",
    "returns": "returns",
    "token_level_rewards": "rewards",
}
"""What is read of tokens → the channel it is."""

RESPONSE_LEVEL = (
    "grpo",
    "grpo_vectorized",
    "grpo_passk",
    "gdpo",
    "gpg",
    "opo",
    "reinforce_plus_plus_baseline",
    "rloo",
    "rloo_vectorized",
)
"""Advantage estimators that give a response one advantage; any other may give every token its own."""

SAID = ("data_source", "min_global_steps", "max_global_steps")
"""What the trainer says of a response: its prompt's source, the weights that sampled its first and its last token."""

TOOL, OTHER = 1, 3
"""Values of `mask_reason` (`channels.MASK_REASONS`)."""


def captured_rollout(
    everywhere: Rows,
    kept: Rows,
    kept_b: Array,
    *,
    rollout: int,
    step: int,
    group_B: Array,
    handed_over: Sequence[int] | None,
    labels: Mapping[str, Sequence[Any]],
    uids: Sequence[str],
    reward_names: Sequence[str],
    estimator: str,
    rejects: bool,
) -> CapturedRollout:
    """The record of a batch as it goes to the workers.

    `everywhere`: what was read of all B responses; `kept`: of rows `kept_b`, those of the groups `handed_over`.
    `estimator`: verl's name of what made the advantages. `rejects`: whether the trainer may take tokens out of the
    loss, which tools have not written.
    """
    length_B = everywhere.length_b
    width = int(length_B.max(initial=0))
    valid_BT = valid_positions(length_B, width)

    def of_all(name: str, fill: float = 0) -> Array:
        return padded(to_array(everywhere.tensors[name]), width, fill)

    def of_kept(name: str, fill: float) -> Array:
        if name not in kept.tensors:  # nothing is kept of this rollout
            return np.full((len(length_B), width), fill)
        values = padded(to_array(kept.tensors[name]), width, fill)
        out = np.full((len(length_B), width), fill, values.dtype)
        out[kept_b] = values
        cut: Array = np.where(valid_BT, out, fill).astype(values.dtype)
        return cut

    mask_BT = of_all("response_mask").astype(bool) & valid_BT
    channels = {channel: of_kept(name, np.nan) for name, channel in CHANNELS.items() if name in kept.tensors}
    if len(kept_b) and "rewards" not in channels:  # without a KL penalty in them they are the scores
        channels["rewards"] = np.where(valid_BT, of_all("rm_scores"), np.nan).astype(np.float32)
    if "rollout_log_probs" in channels:  # 0 stands where nothing was sampled
        unsampled_BT = ~mask_BT & (channels["rollout_log_probs"] == 0)
        channels["rollout_log_probs"][unsampled_BT] = np.nan
    channels["advantages"] = advantages_of(of_all("advantages"), mask_BT, valid_BT, estimator)
    prompts = [to_array(ids) for ids in everywhere.prompts] or [np.empty(0, np.int64)] * len(length_B)
    components = [_numbers([each.get(name) for each in labels["reward_extra_info"]]) for name in reward_names]
    messages = None if "raw_prompt" not in labels else as_messages([_listed(each) for each in labels["raw_prompt"]])
    return CapturedRollout(
        kind="train",
        rollout=rollout,
        step=step,
        groups=int(group_B.max(initial=-1)) + 1,
        group_B=group_B,
        handed_over=handed_over,
        prompts=prompts,
        messages=messages,
        ids_BT=of_kept("responses", 0),
        length_B=length_B,
        mask_BT=mask_BT,
        mask_reason_BT=_mask_reason(mask_BT, valid_BT, _sampled(everywhere, width), rejects=rejects),
        reward_B=np.where(valid_BT, of_all("rm_scores"), 0).sum(1).astype(np.float32),
        reward_components_BK=np.stack(components, 1) if components else np.empty((len(length_B), 0), np.float32),
        channels=channels,
        labels={**_labels(labels, reward_names), "uid": list(uids)},
    )


def reward_names(extras: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of what a reward function said beside the score that are numbers in every response, sorted."""
    first = extras[0] if extras else {}
    return tuple(sorted(name for name in first if all(_is_number(each.get(name)) for each in extras)))


def groups_of(uids: Sequence[str]) -> Array:
    """(B,): the prompt group of each response, counted in the order they first come."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(uid, len(numbers)) for uid in uids], np.int64)


def advantages_of(advantages_BT: Array, mask_BT: Array, valid_BT: Array, estimator: str) -> Array:
    """(B,) where the estimator gives a response one advantage, else (B, T), NaN behind a response.

    verl spreads the one over the tokens that count. A response without any has no share in the loss: 0.
    """
    if estimator in RESPONSE_LEVEL:
        first_B = np.where(mask_BT.any(1), mask_BT.argmax(1), 0)
        one_B = np.where(mask_BT.any(1), advantages_BT[np.arange(len(first_B)), first_B], 0).astype(np.float32)
        if np.array_equal(np.where(mask_BT, advantages_BT, 0), np.where(mask_BT, one_B[:, None], 0), equal_nan=True):
            return one_B
    return np.where(valid_BT, advantages_BT, np.nan).astype(np.float32)


def _sampled(rows: Rows, width: int) -> Array | None:
    """(B, T) booleans: tokens the policy wrote, where they were read and the batch tells them from those of tools."""
    mask = rows.tensors.get(SAMPLED)
    return None if mask is None else padded(to_array(mask), width, 0).astype(bool)


def _mask_reason(mask_BT: Array, valid_BT: Array, sampled_BT: Array | None, *, rejects: bool) -> Array | None:
    """1 tool or environment, 3 taken out by the trainer: tokens its sampler correction rejects."""
    if (mask_BT == valid_BT).all():
        return None
    if sampled_BT is None:
        reason_BT: Array = np.full(mask_BT.shape, OTHER if rejects else TOOL)
    else:
        reason_BT = np.where(sampled_BT, OTHER, TOOL)
    return np.where(mask_BT | ~valid_BT, 0, reason_BT).astype(np.uint8)


def _labels(said: Mapping[str, Sequence[Any]], components: Sequence[str]) -> dict[str, list[Any]]:
    """Texts and numbers said of responses; a name nothing is said under is left out."""
    extras = said["reward_extra_info"]
    further = sorted({name for each in extras for name in each} - set(components))
    found = {name: [each.get(name) for each in extras] for name in further}
    # Last: a reward function's text of the same name is not what the trainer says.
    found |= {name: list(said[name]) for name in SAID if name in said}
    kept: dict[str, list[Any]] = {}
    for name, values in found.items():
        if all(value is None for value in values):
            continue
        numbers = all(value is None or _is_number(value) for value in values)
        kept[name] = [None if value is None else _plain(value) if numbers else _text(value) for value in values]
    return kept


def _plain(number: Any) -> int | float:
    """A number of Python's own."""
    whole = isinstance(number, int | np.integer | np.bool_)
    return int(number) if whole else float(number)


def _numbers(values: Sequence[Any]) -> Array:
    return np.array([float(value) if _is_number(value) else np.nan for value in values], np.float32)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number | np.bool_)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):  # keys that are no text, a value that holds itself
        return str(value)


def _listed(prompt: Any) -> Any:
    """A conversation as a list: verl has arrays of them."""
    return prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
