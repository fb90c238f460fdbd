"""Reads a trainer while it trains: wraps methods of one trainer instance, and keeps every row's identity.

Nothing official hands a callback per-token tensors. The generation batch gets one more column, of (rollout, row), which
TRL shuffles and splits with the rest; the locals of `_compute_loss` hold what the trainer itself computed. The wrapped
methods return exactly what the originals return.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import weakref
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch

from unipo_hooks.adapters.guard import Guard
from unipo_hooks.adapters.host import Copier
from unipo_hooks.adapters.trl.settings import (
    accumulation_after_loss,
    divided_by,
    expected_locals,
    group_size,
    reuses_rollouts,
    reward_weights,
)
from unipo_hooks.adapters.trl.translate import (
    NEEDED_INPUTS,
    Forward,
    Scored,
    captured_micro_batch,
    captured_rollout,
    micro_batch_tensors,
    rollout_tensors,
)
from unipo_hooks.adapters.wrap import wrap
from unipo_hooks.errors import CaptureError
from unipo_hooks.record import Array, CapturedMicroBatch, CapturedRollout, Pending
from unipo_hooks.schema import Kind

LOG_PROB_METHODS = ("_get_per_token_logps_and_entropies", "_get_per_token_logps")

FUSED = (
    "Liger's fused loss gives no log-probs: updates are not captured, rollouts are. Set use_liger_kernel (first "
    "use_liger_loss) to False, or take TRL 1.14 or newer, to capture log_probs and entropies and to compare the loss"
)

log = logging.getLogger("unipo_hooks")


BEFORE = -1
"""In place of the number of a start: responses were sampled while nobody captured this trainer."""


class Sink(Protocol):
    """Where a tap delivers."""

    def listens(self) -> bool:
        """Whether the trainer still has the callback: a removed one gets no events, and wants no records."""

    def next_rollout(self, kind: Kind) -> tuple[int, int]:
        """Number of this start of capture, and of a new rollout in it."""

    def from_an_earlier_start(self, start: int) -> bool:
        """Whether a rollout of that start cannot be joined any more; its update is then counted as lost."""

    def rollout(self, rollout: Pending[CapturedRollout]) -> None:
        """A rollout was generated and scored."""

    def micro_batch(self, kind: Kind, rollout: int, micro_batch: Pending[CapturedMicroBatch]) -> None:
        """A loss was computed, of responses of that rollout."""


class Tap:
    """The wrapped methods of one trainer, and the little state that links them."""

    def __init__(self, trainer: Any, sink: Sink, guard: Guard) -> None:
        self._reference, self._sink, self._guard = weakref.ref(trainer), sink, guard
        self._copier = Copier()
        self.closed = False
        """Whether the callback has moved on to another trainer; this one's methods then only pass through."""
        self._rows = f"unipo_rows_{id(self):x}"
        """Column of (start, rollout, row) in the generation batch. One a tap: a trainer may have two callbacks."""
        self.generated = self.delivered = 0
        """Rollouts that were made, and those of them that were handed over."""
        self._scored: Scored | None = None
        self._generating = False
        self._in_loss = False
        self._model: Any = None
        """The model `_compute_loss` was given, while it runs."""
        self._forwards: list[Forward] = []
        """What the log-prob methods gave while a loss is computed."""
        self._frame: FrameType | None = None
        """Of the trainer's own method that asked for log-probs last: of its loss, or of its generation."""
        self._told: set[str] = set()
        self._knows_log_probs = any(hasattr(trainer, name) for name in LOG_PROB_METHODS)
        for name, around in (
            ("_generate_and_score_completions", self._around_generate),
            ("_calculate_rewards", self._around_rewards),
            ("_compute_loss", self._around_loss),
            ("compute_liger_loss", self._around_fused_loss),
            *((name, self._around_log_probs) for name in LOG_PROB_METHODS),
        ):
            wrap(trainer, name, around)

    @property
    def _trainer(self) -> Any:
        return self._reference()

    @property
    def _kind(self) -> Kind:
        return "train" if self._trainer.model.training else "eval"

    def _ours(self, action: Callable[[], None]) -> None:
        if not self.closed:
            self._guard(action)

    def _around_rewards(self, original: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(original)

        def calculate_rewards(*args: Any, **kwargs: Any) -> Any:
            rewards = original(*args, **kwargs)

            def keep() -> None:
                given = parameters.bind(*args, **kwargs).arguments
                ids = given.get("completion_ids_list")
                lengths = None if ids is None else [len(each) for each in ids]
                self._scored = Scored(rewards, lengths, given["prompts"])

            self._ours(keep)
            return rewards

        return calculate_rewards

    def _around_generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def generate_and_score_completions(*args: Any, **kwargs: Any) -> Any:
            self._generating = not (self.closed or self._guard.off)
            try:
                batch = original(*args, **kwargs)
            except BaseException:
                self._frame = None
                raise
            finally:
                self._generating = False
            self.generated += 1
            frame, self._frame = self._frame, None
            try:
                self._ours(lambda: self._generated(args[0], batch, {} if frame is None else frame.f_locals))
            finally:
                frame = None  # as below
            return batch

        return generate_and_score_completions

    def _around_log_probs(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def log_probs(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if self._in_loss or self._generating:
                self._ours(lambda: self._forwarded(result, args[0] if args else kwargs.get("model")))
            return result

        return log_probs

    def _around_loss(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self._in_loss, self._model = not (self.closed or self._guard.off), model
            hooks: list[Any] = []
            if self._in_loss and not self._knows_log_probs:
                # Whatever computes them now calls the model from within `_compute_loss`, whose locals hold the rest.
                hold = lambda *_: self._ours(self._hold_frame)  # noqa: E731
                self._ours(lambda: hooks.append(model.register_forward_pre_hook(hold)))
            try:
                loss = original(model, inputs, *args, **kwargs)
            except BaseException:
                self._frame = None
                raise
            finally:
                self._in_loss, self._model = False, None
                forwards, self._forwards = self._forwards, []
                for hook in hooks:
                    hook.remove()
            frame, self._frame = self._frame, None
            try:
                self._ours(lambda: self._computed(inputs, frame, forwards, loss))
            finally:
                # Its caller's frame is this one: left standing, the cycle would keep the graph until a collection.
                frame = None
            return loss

        return compute_loss

    def _around_fused_loss(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Liger's, up to TRL 1.13: it computes log-probs in a kernel, and gives none of them."""

        def compute_fused_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = original(model, inputs, *args, **kwargs)
            self._ours(lambda: self._unseen(inputs, FUSED))
            return loss

        return compute_fused_loss

    def _forwarded(self, result: Any, model: Any) -> None:
        if self._in_loss:
            self._forwards.append(Forward(result, of_policy=model is self._model))
        self._hold_frame()

    def _hold_frame(self) -> None:
        self._frame = _caller("_compute_loss" if self._in_loss else "_generate_and_score_completions")

    def _generated(self, inputs: Any, batch: dict[str, Any], local: Mapping[str, Any]) -> None:
        if not self._sink.listens():
            return
        trainer, kind = self._trainer, self._kind
        if missing := [name for name in NEEDED_INPUTS if name not in batch]:
            raise CaptureError(f"the generation batch of {type(trainer).__name__} has no {' and no '.join(missing)}")
        rows = batch["completion_ids"].shape[0]
        scored, self._scored = self._scored, None
        if scored is None:  # up to TRL 0.18
            rewards = logged_rewards(trainer, rows * trainer.accelerator.num_processes)
            scored = Scored(rewards, None, [each["prompt"] for each in inputs])
        if scored.rewards_per_func is None:
            self._lost("rewards: they are not computed by _calculate_rewards, nor does the trainer's log have them")
        start, number = self._sink.next_rollout(kind)
        per_prompt = group_size(trainer, kind)
        if per_prompt is None:
            self._lost("prompt groups: the trainer has no num_generations; every response is a group of its own")
        copies = self._copier(rollout_tensors(batch, local, scored, reward_weights(trainer)))
        describe = functools.partial(
            captured_rollout,
            lengths=scored.lengths,
            prompts=scored.prompts,
            kind=kind,
            rollout=number,
            step=trainer.state.global_step + (kind == "train"),
            num_generations=per_prompt or 1,
            rank=trainer.accelerator.process_index,
            ranks=trainer.accelerator.num_processes,
            off_policy=reuses_rollouts(trainer),
            lost=self._lost,
        )
        # On the CPU, where reading it back costs no synchronisation.
        batch[self._rows] = torch.stack(
            [
                torch.full((rows,), start, device="cpu"),
                torch.full((rows,), number, device="cpu"),
                torch.arange(rows, device="cpu"),
            ],
            dim=1,
        )
        self._sink.rollout(Pending(CapturedRollout, kind, copies.nbytes, lambda: describe(copies.wait())))
        self.delivered += 1

    def _computed(
        self, inputs: dict[str, Any], frame: FrameType | None, forwards: list[Forward], loss: torch.Tensor
    ) -> None:
        identity = self._identity(inputs)
        if identity is None:
            return
        trainer, kind, rollout = self._trainer, self._kind, int(identity[0, 1])
        local = {} if frame is None else frame.f_locals
        for name, channel in expected_locals(trainer).items():
            if local.get(name) is None:
                self._lost(f"{channel}: _compute_loss has no {name}")
        copies = self._copier(micro_batch_tensors(inputs, local, forwards, loss))
        describe = functools.partial(
            captured_micro_batch,
            rollout=rollout,
            rows_b=identity[:, 2].astype(np.int64),
            router_coef=float(getattr(trainer, "router_aux_loss_coef", 0.0) or 0.0),
            divided_by=divided_by(trainer, kind),
            divisor=accumulation_after_loss(trainer, kind),
            lost=self._lost,
        )
        record = Pending(CapturedMicroBatch, kind, copies.nbytes, lambda: describe(copies.wait()))
        self._sink.micro_batch(kind, rollout, record)

    def _identity(self, inputs: Mapping[str, Any]) -> Array | None:
        """(start, rollout, row) of each row of a micro-batch; None where they cannot be joined with a rollout."""
        identity: Array | None = inputs[self._rows].numpy() if self._rows in inputs else None
        start = BEFORE if identity is None else int(identity[0, 0])
        return None if self._sink.from_an_earlier_start(start) else identity

    def _unseen(self, inputs: Mapping[str, Any], why: str) -> None:
        """A loss was computed of which nothing can be read: its update is counted as lost."""
        if (identity := self._identity(inputs)) is not None:
            self._sink.micro_batch(self._kind, int(identity[0, 1]), unreadable(self._kind, why))

    def _lost(self, what: str) -> None:
        """Say once that something cannot be read of this trainer; the rest is captured."""
        if what not in self._told:
            self._told.add(what)
            log.warning("%s%s: not captured: %s", self._guard.speaker, type(self._trainer).__name__, what)


def unreadable(kind: Kind, why: str) -> Pending[CapturedMicroBatch]:
    """In place of a micro-batch that cannot be read: its update is counted as lost, and `why` is said."""

    def make() -> CapturedMicroBatch:
        raise CaptureError(why)

    return Pending(CapturedMicroBatch, kind, 0, make)


def logged_rewards(trainer: Any, rows: int) -> torch.Tensor | None:
    """Rewards (rows, K) of the newest batch over all ranks, from what the trainer keeps for its table of completions.

    None where that is not the whole batch: it is bounded, and functions of one name share a column.
    """
    log = getattr(trainer, "_textual_logs", None) or getattr(trainer, "_logs", None) or {}
    columns, names = log.get("rewards", {}), trainer.reward_func_names
    if len(set(names)) < len(names) or any(len(columns.get(name, ())) < rows for name in names):
        return None
    return torch.tensor([list(columns[name])[-rows:] for name in names], dtype=torch.float32, device="cpu").T


def _caller(name: str) -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame
