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
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch

from unipo_hooks.adapters.trl.guard import Guard
from unipo_hooks.adapters.trl.host import Copier
from unipo_hooks.adapters.trl.settings import accumulation_after_loss, divided_by
from unipo_hooks.adapters.trl.translate import (
    Forward,
    Scored,
    captured_micro_batch,
    captured_rollout,
    micro_batch_tensors,
    rollout_tensors,
    to_array,
)
from unipo_hooks.errors import CaptureError
from unipo_hooks.record import CapturedMicroBatch, CapturedRollout, Pending
from unipo_hooks.schema import Kind

LOG_PROB_METHODS = ("_get_per_token_logps_and_entropies", "_get_per_token_logps")

log = logging.getLogger("unipo_hooks")


class Sink(Protocol):
    """Where a tap delivers."""

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
        self._trainer, self._sink, self._guard = trainer, sink, guard
        self._copier = Copier()
        self.closed = False
        """Whether the callback has moved on to another trainer; this one's methods then only pass through."""
        self._rows = f"unipo_rows_{id(self):x}"
        """Column of (start, rollout, row) in the generation batch. One a tap: a trainer may have two callbacks."""
        self._scored: Scored | None = None
        self._generating = False
        self._in_loss = False
        self._model: Any = None
        """The model `_compute_loss` was given, while it runs."""
        self._forwards: list[Forward] = []
        """What the log-prob methods gave while a batch is generated, or a loss computed."""
        self._frame: FrameType | None = None
        self._told: set[str] = set()
        for name, wrap in (
            ("_generate_and_score_completions", self._wrap_generate),
            ("_calculate_rewards", self._wrap_rewards),
            ("_compute_loss", self._wrap_loss),
            *((name, self._wrap_log_probs) for name in LOG_PROB_METHODS),
        ):
            original = getattr(trainer, name, None)
            if original is not None:
                setattr(trainer, name, wrap(original))

    @property
    def _kind(self) -> Kind:
        return "train" if self._trainer.model.training else "eval"

    def _ours(self, action: Callable[[], None]) -> None:
        if not self.closed:
            self._guard(action)

    def _wrap_rewards(self, original: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(original)

        @functools.wraps(original)
        def calculate_rewards(*args: Any, **kwargs: Any) -> Any:
            rewards = original(*args, **kwargs)

            def keep() -> None:
                given = parameters.bind(*args, **kwargs).arguments
                lengths = [len(ids) for ids in given["completion_ids_list"]]
                self._scored = Scored(rewards, lengths, given["prompts"])

            self._ours(keep)
            return rewards

        return calculate_rewards

    def _wrap_generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def generate_and_score_completions(*args: Any, **kwargs: Any) -> Any:
            self._generating = not (self.closed or self._guard.off)
            try:
                batch = original(*args, **kwargs)
            finally:
                self._generating = False
                forwards, self._forwards = self._forwards, []
            self._ours(lambda: self._generated(batch, forwards))
            return batch

        return generate_and_score_completions

    def _wrap_log_probs(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def log_probs(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if self._in_loss or self._generating:
                model = args[0] if args else kwargs.get("model")
                self._forwards.append(Forward(result, of_policy=model is self._model))
            if self._in_loss:
                self._frame = _caller("_compute_loss")
            return result

        return log_probs

    def _wrap_loss(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self._in_loss, self._model = not (self.closed or self._guard.off), model
            try:
                loss = original(model, inputs, *args, **kwargs)
            except BaseException:
                self._frame = None
                raise
            finally:
                self._in_loss, self._model = False, None
                forwards, self._forwards = self._forwards, []
            frame, self._frame = self._frame, None
            try:
                self._ours(lambda: self._computed(inputs, frame, forwards, loss))
            finally:
                # Its caller's frame is this one: left standing, the cycle would keep the graph until a collection.
                frame = None
            return loss

        return compute_loss

    def _generated(self, batch: dict[str, Any], forwards: list[Forward]) -> None:
        trainer, kind = self._trainer, self._kind
        scored, self._scored = self._scored, None
        if scored is None:
            raise RuntimeError(f"{type(trainer).__name__} scored no completions through _calculate_rewards")
        rows = batch["completion_ids"].shape[0]
        start, number = self._sink.next_rollout(kind)
        per_prompt = trainer.num_generations if kind == "train" else _eval_generations(trainer)
        copies = self._copier(rollout_tensors(batch, scored, forwards))
        describe = functools.partial(
            captured_rollout,
            lengths=scored.lengths,
            prompts=scored.prompts,
            kind=kind,
            rollout=number,
            step=trainer.state.global_step + (kind == "train"),
            num_generations=per_prompt,
            reward_weights=to_array(trainer.reward_weights.detach().to("cpu", copy=True)),
            rank=trainer.accelerator.process_index,
            ranks=trainer.accelerator.num_processes,
            lost=self._lost,
        )
        # On the CPU, where reading it back costs no synchronisation.
        batch[self._rows] = torch.stack(
            [torch.full((rows,), start), torch.full((rows,), number), torch.arange(rows)], dim=1
        )
        self._sink.rollout(Pending(CapturedRollout, copies.nbytes, lambda: describe(copies.wait())))

    def _computed(
        self, inputs: dict[str, Any], frame: FrameType | None, forwards: list[Forward], loss: torch.Tensor
    ) -> None:
        if self._rows not in inputs:
            return  # generated before capture was on
        if not forwards:
            raise CaptureError(f"{type(self._trainer).__name__}._compute_loss computed no log-probs of its own")
        identity = inputs[self._rows].numpy()
        if self._sink.from_an_earlier_start(int(identity[0, 0])):
            return
        trainer, kind, rollout = self._trainer, self._kind, int(identity[0, 1])
        local = {} if frame is None else frame.f_locals
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
        record = Pending(CapturedMicroBatch, copies.nbytes, lambda: describe(copies.wait()))
        self._sink.micro_batch(kind, rollout, record)

    def _lost(self, what: str) -> None:
        """Say once that something cannot be read of this trainer; the rest is captured."""
        if what not in self._told:
            self._told.add(what)
            log.warning("unipo-hooks: %s: not captured: %s", type(self._trainer).__name__, what)


def _caller(name: str) -> FrameType | None:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame


def _eval_generations(trainer: Any) -> int:
    return int(getattr(trainer, "num_generations_eval", None) or trainer.num_generations)
