"""What an adapter hands over: frozen records of numpy arrays on the host, in the canonical vocabulary.

Axis suffixes: B responses of a rollout on this rank, b rows of a micro-batch, T token positions (padded on the right),
K reward functions. Arrays are never written to after they are handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.schema import Header, Kind, Trainer

Array = NDArray[Any]
Record = TypeVar("Record")
Sums = dict[str, tuple[float, float, float]]
"""Metric → its sum, its count and its sum of squares."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What is known of a run before its first rollout."""

    header: Header
    """UNIPO's header: task, dataset, algorithm, model, hyper-parameters."""
    trainer: Trainer
    """The library that trains and its settings."""
    decode: Callable[[list[int]], str]
    """Token ids → text, special tokens included, nothing cleaned up."""
    placeholders: Mapping[int, str] = field(default_factory=dict)
    """Token ids that stand for a part of an image or the like → what they stand for: `{32000: "image"}`."""
    reward_names: tuple[str, ...] = ()
    """Names of the reward functions, in the order of `reward_components_BK`."""
    reward_names_found: bool = False
    """Whether these names were seen in a batch, not set: a bundle that goes on keeps its own, `Recorder.reward_names`.
    Only for a run that one rank writes."""
    reward_weights: tuple[float, ...] = ()
    """Weight of each of them in the reward; empty where all count the same."""
    ratio_level: Literal["token", "sequence", "product"] = "token"
    """Whether the importance ratio is one a token or one a response: its tokens' geometric mean, or their product."""
    clip_range: tuple[float, float] | None = None
    """The ratios outside of which the trainer counts as clipped; None where it clips none."""
    algorithm: AlgorithmSpec | None = None
    """The algorithm the trainer's settings come to; None where they are not understood."""
    algorithm_notes: tuple[str, ...] = ()
    """Settings that change the loss and are not understood, a line each."""
    loss_overridden_by: str | None = None
    """The class that overrides the library's own loss, where one does: why a gap may be there, and nothing else."""
    algorithms: tuple[AlgorithmSpec, ...] = ()
    """Algorithms the user registered, to go into the bundle."""
    first_update: int = 0
    """The update this start of the trainer begins with: above 0 where it resumes."""
    steps_before: int | None = None
    """The trainer's steps before this start, where its settings do not say for sure how many updates these were: a
    bundle that goes on does, and `Recorder.first_update` is then its."""
    rank: int = 0
    ranks: int = 1

    @property
    def speaker(self) -> str:
        """What a message of this run begins with."""
        return speaker(self.rank, self.ranks)


@dataclass(frozen=True, slots=True, eq=False)
class CapturedRollout:
    """One generation phase: the responses this rank sampled, and what was fixed then."""

    kind: Kind
    rollout: int
    """Number of the rollout in the run, from 0; evaluation counts apart."""
    step: int
    """The step on the trainer's own charts."""
    groups: int
    """Prompt groups of the rollout over all ranks, numbered 0 to groups - 1."""
    group_B: Array
    prompts: Sequence[Array]
    """Prompt ids of each response as the model saw them, without padding."""
    ids_BT: Array
    length_B: Array
    """Tokens of each response as the trainer decoded them: never derived from masks or padding ids."""
    mask_BT: Array
    """1 where a token counts in the loss."""
    reward_B: Array
    """Scalar reward; NaN where no reward function answered."""
    reward_components_BK: Array
    messages: Sequence[str] | None = None
    """The conversation of each response's prompt as JSON, where there is one."""
    mask_reason_BT: Array | None = None
    reward_R: Array | None = None
    """Rewards of the responses of all ranks, rank 0's first, where they are known: a group may span ranks."""
    tokens_over_ranks: float | None = None
    """Tokens of all ranks that count in the loss, where they are known."""
    channels: Mapping[str, Array] = field(default_factory=dict)
    """Further channels fixed at the rollout: (B, T), or (B,) where there is one value a response."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Channels the trainer defines as equal to another: `{"old_log_probs": "log_probs"}`."""
    handed_over: Sequence[int] | None = None
    """Groups whose tokens are here; None for all of them. Of the others `LeftBehind` says what there is."""
    labels: Mapping[str, Sequence[str | int | float | None]] = field(default_factory=dict)
    """What the trainer says of each response beside its reward: an id, a data source, the version of the weights it was
    sampled with. B values each, all text or all numbers; None where it says nothing."""

    @property
    def nbytes(self) -> int:
        """Host memory of its arrays and texts, in bytes."""
        own = (self.group_B, self.ids_BT, self.length_B, self.mask_BT, self.reward_B, self.reward_components_BK)
        reason = 0 if self.mask_reason_BT is None else self.mask_reason_BT.nbytes
        text = sum(len(message) for message in self.messages or ())
        labels = sum(len(label) if isinstance(label, str) else 8 for of in self.labels.values() for label in of)
        return _total(own) + _total(self.prompts) + _total(self.channels.values()) + reason + text + labels


@dataclass(frozen=True, slots=True, eq=False)
class LeftBehind:
    """What a forward pass says of the rows it did not hand over, computed where they are.

    Of such rows a CapturedRollout has mask, length, reward, components and labels; ids and prompts may be empty, and
    channels NaN.
    """

    rows_b: Array
    """Rows of the rollout that were in the pass and were not handed over."""
    sums: Sums
    """`metrics.token_sums` of these rows."""
    gap: tuple[float, float] | None
    """Recomputed minus returned loss of the whole pass, and the tolerance for it; None where that is not known."""
    width: int
    """Token positions of the whole pass: those of its widest row, handed over or not."""
    no_gap: str | None = None
    """Why the loss of the pass could not be recomputed there."""


@dataclass(frozen=True, slots=True, eq=False)
class CapturedMicroBatch:
    """One forward pass of an update: which rows it held, what the policy said of them, what the loss came to."""

    rollout: int
    rows_b: Array
    """Rows of the rollout that were handed over, in the order of the micro-batch; (0,) where none was."""
    channels: Mapping[str, Array]
    """Channels measured at this update, (b, T) each; `log_probs` is always there."""
    loss: float | None = None
    """As the trainer returned it: divided for accumulation, bonus and router loss included."""
    num_items_in_batch: float | None = None
    """Tokens the trainer normalises by, where it does."""
    update_tokens: float | None = None
    """Tokens a token mean over the whole update divides by, per data-parallel rank."""
    update_rows: float | None = None
    """Responses a mean over the whole update divides by, per data-parallel rank."""
    token_loss_bT: Array | None = None
    """The trainer's own loss of each token, (b, T) or (b, 1): compared with ours, not stored."""
    entropy_coef: float | None = None
    entropy_bonus: float | None = None
    """Mean entropy the coefficient multiplies, divided for accumulation; the loss holds -coef × bonus."""
    router_loss: float | None = None
    """Weighted auxiliary loss of a mixture of experts inside the loss, divided for accumulation."""
    dtype: str = "float32"
    """The type the trainer computed log-probs in."""
    rank: int = 0
    """Data-parallel rank that made the pass, where one record holds those of several."""
    left_behind: LeftBehind | None = None
    """The rest of the pass, where `rows_b` is not all of it."""

    @property
    def all_rows_b(self) -> Array:
        """Every row of the pass, those left behind last."""
        return self.rows_b if self.left_behind is None else np.concatenate([self.rows_b, self.left_behind.rows_b])

    @property
    def policy_loss(self) -> float | None:
        """The loss without entropy bonus and router loss."""
        if self.loss is None:
            return None
        return self.loss + (self.entropy_coef or 0.0) * (self.entropy_bonus or 0.0) - (self.router_loss or 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class CapturedUpdate:
    """One optimizer step: all of its micro-batches on this rank, or on the data-parallel ranks it speaks for."""

    kind: Kind
    update: int
    """Optimizer steps taken before this one; evaluation counts its forward passes apart."""
    step: int
    micro_batches: Sequence[CapturedMicroBatch]
    is_first_step_after_rollout_phase: bool
    learning_rate: float | None = None
    grad_norm: float | None = None
    """Norm of the gradient before it was clipped, where the trainer says it of this update."""
    accumulation_steps: int = 1
    data_parallel_size: int = 1
    length_constant: int | None = None
    """The fixed length Dr. GRPO divides by, where the trainer has one."""
    hook_seconds: float = 0.0
    """Time this capture took on the training thread, its share of the rollout included."""

    @property
    def rollouts(self) -> list[int]:
        """Rollouts it trains on, ascending."""
        return sorted({micro_batch.rollout for micro_batch in self.micro_batches})

    @property
    def nbytes(self) -> int:
        """Host memory of its arrays, in bytes."""
        compared = _total(m.token_loss_bT for m in self.micro_batches if m.token_loss_bT is not None)
        return compared + sum(m.all_rows_b.nbytes + _total(m.channels.values()) for m in self.micro_batches)


@dataclass(frozen=True, slots=True, eq=False)
class Pending(Generic[Record]):
    """A record to be made by the thread that writes it: its arrays may still be on their way to the host."""

    of: type[Record]
    kind: Kind
    nbytes: int
    """Host memory it takes until then, in bytes."""
    make: Callable[[], Record]
    """Called once, on the writing thread; a CaptureError costs this record alone."""


class Counts(NamedTuple):
    """What a whole forward pass held, rows left behind included."""

    rows: int
    tokens: int
    """Those that count in the loss."""
    width: int
    """Token positions it was padded to."""
    counted_rows: int
    """Rows with a token that counts."""
    groups: int
    """Prompt groups with a token that counts."""


def counts_of(micro_batch: CapturedMicroBatch, rollout: CapturedRollout) -> Counts:
    """What a forward pass over rows of a rollout held."""
    rows_b = micro_batch.all_rows_b
    counted_bT = rollout.mask_BT[rows_b].astype(bool)
    counted_b = counted_bT.any(1)
    left = micro_batch.left_behind
    return Counts(
        rows=len(rows_b),
        tokens=int(counted_bT.sum()),
        width=min(micro_batch.channels["log_probs"].shape[1], counted_bT.shape[1]) if left is None else left.width,
        counted_rows=int(counted_b.sum()),
        groups=len(np.unique(np.asarray(rollout.group_B)[rows_b][counted_b])),
    )


def speaker(rank: int, ranks: int) -> str:
    """What a message begins with, so that people know which of several ranks it is of."""
    return f"unipo-hooks: rank {rank}: " if ranks > 1 else "unipo-hooks: "


def _total(arrays: Any) -> int:
    return sum(array.nbytes for array in arrays)


def valid_positions(length_B: Array, width: int) -> NDArray[np.bool_]:
    """(B, width) booleans: the positions that hold a token, whether it counts in the loss or not."""
    return np.arange(width) < length_B[:, None]
