"""What an objective is computed from: a batch of channels, and the normalisers of the update it is part of.

Axes: B responses, T token positions padded on the right, K reward functions. Log-probs are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipo_hooks.errors import AlgorithmError, MissingInputError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Input:
    """One array an algorithm may need."""

    axes: str
    """`BT`, `B`, `BK`, `K`, or `B|BT` where either will do."""
    meaning: str
    capture: str
    """How a user comes by it: completes the sentence "to have it, ...". """


_TRAINER = "use a trainer that computes it, or pass it"

INPUTS: dict[str, Input] = {
    "log_probs": Input("BT", "Log-probability of the token under the policy being trained.", "capture an update"),
    "mask": Input("BT", "1 where the token counts in the loss.", "capture a rollout"),
    "old_log_probs": Input(
        "BT",
        "Log-probability under the policy that sampled the response.",
        "pass old_log_probs=log_probs where the trainer skips it because every ratio is 1",
    ),
    "ref_log_probs": Input(
        "BT",
        "Log-probability under the reference policy.",
        "train with a reference policy (TRL: beta > 0; verl: actor_rollout_ref.actor.use_kl_loss=True)",
    ),
    "rollout_log_probs": Input(
        "BT",
        "Log-probability the sampling engine reported.",
        "sample with an engine that reports it (TRL: use_vllm=True; verl: rollout.calculate_log_probs=True)",
    ),
    "augmented_log_probs": Input(
        "BT", "Log-probability with part of the prompt hidden, such as its image.", "run the second forward pass"
    ),
    "dpo_log_probs": Input("BT", "Log-probability under a policy trained with DPO.", "run that policy's forward pass"),
    "entropies": Input("BT", "Entropy of the policy at the position, in nats.", "capture an update with entropies"),
    "old_entropies": Input("BT", "Entropy of the sampling policy at the position.", _TRAINER),
    "sum_pi_squared": Input(
        "BT",
        "Sum over the vocabulary of the squared probability.",
        "let verl compute it (actor.calculate_sum_pi_squared=True)",
    ),
    "values": Input("BT", "The critic's estimate of the return from here on.", "train with a critic (verl: gae)"),
    "rewards": Input("BT", "Reward given at the token.", _TRAINER),
    "ids": Input("BT", "Token ids.", "capture a rollout"),
    "reward": Input("B", "Scalar reward of the response.", "capture a rollout"),
    "reward_components": Input("BK", "What each reward function gave.", "capture a rollout with its reward functions"),
    "reward_weights": Input("K", "Weight of each reward function.", "pass the trainer's reward weights"),
    "group": Input("B", "Which prompt the response answers; any whole numbers or texts.", "capture a rollout"),
    "advantages": Input("B|BT", "Advantages as the trainer computed them.", "capture a rollout"),
    "is_weights": Input(
        "B|BT",
        "Detached weight that corrects for a sampler that disagrees with the trainer.",
        "train with a sampler correction",
    ),
    "policy_mask": Input("BT", "Further factors of 0 or 1 on the policy term.", "capture an update"),
    "selected": Input(
        "BT", "1 where a random or batch-wide choice fell on the token.", "record the choice while training"
    ),
    "source": Input("B", "Where the row comes from: 0 the policy, 1 and above elsewhere.", "pass it"),
    "truncated": Input("B", "1 where the response was cut off at the length limit.", "capture a rollout"),
    "greedy_reward": Input("B", "Reward of the greedy answer to the same prompt.", "train with ReMax"),
    "baselines": Input("B|BT", "An estimate of the reward to expect, from history or a search.", _TRAINER),
    "pool_mean": Input("B", "Mean reward over every response ever sampled for the prompt.", _TRAINER),
    "pool_std": Input("B", "Standard deviation of the reward over that pool.", _TRAINER),
    "historic_advantages": Input("B", "Advantage against all rewards of the prompt so far.", _TRAINER),
    "visits": Input("B", "How often the prompt was trained on, this time included.", _TRAINER),
    "segments": Input("BT", "Number of the segment the token belongs to, from 0.", "pass it"),
    "turns": Input("BT", "Number of the turn the token belongs to, from 0.", "pass it"),
    "anchors": Input("BT", "Environment state the token's step started from; equal where states are equal.", "pass it"),
    "token_weights": Input("BT", "Weight of the token's advantage.", "pass it"),
    "planning": Input("BT", "1 where the token belongs to a planning phrase.", "pass it"),
    "difficulty": Input("B", "How hard the prompt is, from 0 to 1.", "pass it"),
    "answers": Input("B", "Which answer the response gives; equal where answers are equal.", "pass it"),
}
"""Every input by name. User-defined parts may ask for further ones: `Batch(extra={...})`."""

IDENTITIES = ("group", "anchors", "answers")
"""Inputs that are only ever compared with each other: texts or numbers of any size. Parts see them numbered from 0."""


@dataclass(frozen=True, slots=True)
class Normalisers:
    """What the losses of an update are divided by, where the batch is only a part of it.

    A number that is given spans the whole update. One that is not is that of the micro-batch, multiplied by
    `accumulation_steps` as if every micro-batch were like this one. What a micro-batch counts is taken from the batch,
    unless the batch is only a part of it: then the `micro_batch_` numbers say what it was before any mask or filter
    of the algorithm. Of what these take out of the denominators, the part that is there stands for the whole.
    """

    accumulation_steps: float = 1
    """Micro-batches whose losses are averaged."""
    tokens: float | None = None
    """Tokens a token mean divides by, per data-parallel rank."""
    micro_batch_tokens: float | None = None
    """Tokens of the micro-batch that count, where the batch is only a part of it."""
    micro_batch_rows: float | None = None
    """Responses of the micro-batch, where the batch is only a part of it."""
    micro_batch_counted_rows: float | None = None
    """Those of them with a token that counts; None: all."""
    micro_batch_groups: float | None = None
    """Prompt groups of the micro-batch with a token that counts, where the batch is only a part of it."""
    rows: float | None = None
    """Responses a mean over responses divides by, per data-parallel rank."""
    length: float | None = None
    """The constant length Dr. GRPO divides by; None: the width of the batch."""
    data_parallel_size: int = 1
    """Ranks whose gradients are averaged: the gradient weight is divided by it, the loss is not."""


@dataclass(frozen=True, init=False, eq=False)
class Batch:
    """Responses with their channels; immutable.

    Arrays have the axes of `INPUTS`; one of `extra` is per token where it has the shape of `log_probs`, per response
    where it has one value a response. `log_probs` and `mask` are required. Positions where the mask is 0 may hold
    anything. Raises AlgorithmError, naming the array, where a name is unknown or a shape does not fit.

    Parts see it `prepared`: in float64, 0 where a token does not count. A token that counts but whose value is not
    finite contributes nothing to any numerator, keeps its place in every denominator and is marked in `invalid_BT`; a
    response without a finite reward gets advantage 0 and is left out of every statistic. Where anything else of a
    response is not finite, both happen to it: every token of it is invalid, and its reward is as good as missing.
    """

    arrays: Mapping[str, Array]
    normalisers: Normalisers
    invalid_BT: Array = field(repr=False)
    often_B: Array = field(repr=False)
    """How often a response counts: 1, unless a filter drops or repeats it."""

    def __init__(
        self, *, normalisers: Normalisers | None = None, extra: Mapping[str, Any] | None = None, **arrays: Any
    ) -> None:
        given = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
        further = {name: np.asarray(value) for name, value in (extra or {}).items()}
        # One that is known is declared, whichever way it comes.
        given |= {name: values for name, values in further.items() if name in INPUTS}
        for name in given:
            if name not in INPUTS:
                near = get_close_matches(name, INPUTS, n=1)
                raise AlgorithmError(f"unknown input {name}" + (f"; did you mean {near[0]}?" if near else ""))
        for name in ("log_probs", "mask"):
            if name not in given:
                raise MissingInputError(f"a batch needs {name}: {INPUTS[name].meaning}")
        shape = given["log_probs"].shape
        if len(shape) != 2:
            raise AlgorithmError(f"log_probs has shape {shape}; (responses, tokens) is needed")
        for name, values in given.items():
            if values.dtype.kind not in ("fiubUS" if name in IDENTITIES else "fiub"):
                raise AlgorithmError(f"{name} is not numeric (dtype {values.dtype})")
            _check_shape(name, values, shape)
        if "rewards" in given and "reward" not in given:
            given["reward"] = np.where(given["mask"] > 0, given["rewards"], 0).sum(1)
        for name, values in further.items():
            if values.dtype.kind not in "fiub" and name not in IDENTITIES:
                raise AlgorithmError(f"{name} is not numeric (dtype {values.dtype})")
        given |= further
        self._set(given, normalisers or Normalisers(), np.zeros(shape, bool))

    def _set(
        self, arrays: Mapping[str, Array], normalisers: Normalisers, invalid_BT: Array, often_B: Array | None = None
    ) -> Batch:
        object.__setattr__(self, "arrays", arrays)
        object.__setattr__(self, "normalisers", normalisers)
        object.__setattr__(self, "invalid_BT", invalid_BT)
        object.__setattr__(self, "often_B", np.ones(len(invalid_BT)) if often_B is None else often_B)
        return self

    def prepared(self, names: Iterable[str]) -> Batch:
        """The batch with these arrays alone, cleaned: what parts are given."""
        kept = {name: self.arrays[name] for name in (*names, "log_probs", "mask") if name in self.arrays}
        shape, mask_BT = self.shape, self.arrays["mask"] > 0
        axes = {name: axes_of(name, values, shape) for name, values in kept.items()}
        per_token = [name for name in kept if axes[name] == "BT" and name != "mask"]
        usable_BT = mask_BT.copy()
        for name in per_token:
            usable_BT &= _there(kept[name])
        broken_B = np.zeros(shape[0], bool)
        clean = {}
        for name, values in kept.items():
            if name in IDENTITIES:
                # Before anything is rounded to a float64: large integers would become one.
                clean[name] = _numbered(values, usable_BT if axes[name] == "BT" else np.ones(shape[0], bool))
            else:
                clean[name] = values.astype(np.float64)
            # A reward may be missing; anything else of a response may not.
            if axes[name] == "B" and name != "reward":
                missing_B = ~_there(values)
                broken_B |= missing_B
                if name not in IDENTITIES:
                    clean[name][missing_B] = 0.0
        if broken_B.any():
            usable_BT[broken_B] = False
            for name in ("reward", "reward_components"):
                if name in clean:
                    clean[name][broken_B] = np.nan
        for name in per_token:
            np.copyto(clean[name], 0.0, where=~usable_BT)
        clean["mask"] = mask_BT.astype(np.float64)
        return object.__new__(Batch)._set(clean, self.normalisers, mask_BT & ~usable_BT)

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Array:
        """The array; MissingInputError, saying how to have it, where there is none."""
        try:
            return self.arrays[name]
        except KeyError:
            raise MissingInputError(missing(name)) from None

    def get(self, name: str) -> Array | None:
        """The array, or None."""
        return self.arrays.get(name)

    def column(self, name: str) -> Array:
        """A (B,) or (B, T) array as (B, 1) or (B, T)."""
        values = self[name]
        return values[:, None] if values.ndim == 1 else values

    def counting(self, mask_BT: Array) -> Batch:
        """The same batch counting other tokens."""
        arrays = {**self.arrays, "mask": mask_BT}
        return object.__new__(Batch)._set(arrays, self.normalisers, self.invalid_BT, self.often_B)

    def repeating(self, often_B: Array) -> Batch:
        """The same batch in which a response stands for so many like it."""
        return object.__new__(Batch)._set(self.arrays, self.normalisers, self.invalid_BT, self.often_B * often_B)

    def scoring(self, rows_B: Array) -> Batch:
        """The same batch in which other responses have no reward."""
        reward_B = self.arrays.get("reward", np.zeros(self.shape[0]))
        arrays = {**self.arrays, "reward": np.where(rows_B, reward_B, np.nan)}
        return object.__new__(Batch)._set(arrays, self.normalisers, self.invalid_BT, self.often_B)

    @property
    def shape(self) -> tuple[int, int]:
        """Responses and token positions."""
        rows, width = self.arrays["log_probs"].shape
        return rows, width

    @property
    def mask_BT(self) -> Array:
        """1.0 where a token counts."""
        return self.arrays["mask"]

    @cached_property
    def valid_BT(self) -> Array:
        """1.0 where a token counts and every value of it is finite."""
        return self.mask_BT * ~self.invalid_BT

    @cached_property
    def length_B1(self) -> Array:
        """Tokens of each response that count, at least 1."""
        return np.maximum(self.mask_BT.sum(1, keepdims=True), 1.0)

    @cached_property
    def scored_B(self) -> Array:
        """Whether a response has a finite reward, of any function; True everywhere in a batch without rewards."""
        scored = np.ones(self.shape[0], bool)
        if "reward" in self.arrays:
            scored &= np.isfinite(self.arrays["reward"])
        if "reward_components" in self.arrays:
            scored &= np.isfinite(self.arrays["reward_components"]).any(1)
        return scored

    @cached_property
    def group_B(self) -> Array:
        """Groups numbered from 0."""
        return np.unique(self["group"], return_inverse=True)[1].reshape(-1)

    def mean_over_tokens(self, values_BT: Array) -> Array:
        """(B, 1) mean over the tokens of a response that count; 0 for a response without any."""
        return (values_BT * self.mask_BT).sum(1, keepdims=True) / self.length_B1


def axes_of(name: str, values: Array, shape: tuple[int, ...]) -> str:
    """`BT`, `B`, `BK` or `K`: what an array of a batch of `shape` runs along; "" for a further one of another shape.

    The number of reward functions may well be that of the tokens: shapes decide only where nothing is declared.
    """
    declared = INPUTS.get(name)
    if declared is None:
        return "BT" if values.shape == shape else "B" if values.shape == shape[:1] else ""
    if declared.axes == "B|BT":
        return "B" if values.ndim == 1 else "BT"
    return declared.axes


def _there(values: Array) -> Array:
    """Where a value is finite; a text always is."""
    return np.isfinite(values) if values.dtype.kind in "fiub" else np.ones(values.shape, bool)


def _numbered(values: Array, where: Array) -> Array:
    """Equal values as equal numbers from 0, as float64; 0 elsewhere."""
    numbers = np.zeros(values.shape)
    numbers[where] = np.unique(values[where], return_inverse=True)[1].reshape(-1)
    return numbers


def missing(name: str) -> str:
    """What a missing input means and how to come by it."""
    known = INPUTS.get(name)
    return f"needs {name}" if known is None else f"needs {name} ({known.meaning.rstrip('.')}): {known.capture}"


def require(batch: Batch, names: Iterable[str], who: str) -> None:
    """Raise MissingInputError for the first name the batch lacks: `who` "needs ref_log_probs (…): how to have it"."""
    for name in names:
        if name not in batch:
            raise MissingInputError(f"{who} {missing(name)}")


def _check_shape(name: str, values: Array, shape: tuple[int, ...]) -> None:
    rows, width = shape
    expected: dict[str, list[tuple[int, ...]]] = {
        "BT": [(rows, width)],
        "B": [(rows,)],
        "B|BT": [(rows,), (rows, width)],
    }
    axes = INPUTS[name].axes
    if axes == "BK":
        fits = values.ndim == 2 and values.shape[0] == rows
    elif axes == "K":
        fits = values.ndim == 1
    else:
        fits = values.shape in expected[axes]
    if not fits:
        wanted = " or ".join(str(each) for each in expected.get(axes, [f"({rows}, reward functions)"]))
        raise AlgorithmError(f"{name} has shape {values.shape}; {wanted} is needed, like log_probs {tuple(shape)}")
