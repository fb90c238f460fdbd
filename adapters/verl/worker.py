"""In the processes that hold the model: notes what each forward pass of an update gave, and gives it away when asked.

Ray may load this module before verl is there, and verl loads us while it is itself being loaded: hence the first
import.
"""

from __future__ import annotations

import verl  # noqa: F401  isort: skip

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from verl.single_controller.base.decorator import Dispatch, register

from unipo_hooks.adapters.guard import Guard
from unipo_hooks.adapters.host import Copier, HostCopy
from unipo_hooks.adapters.verl.batches import KEEP, ROW
from unipo_hooks.adapters.verl.passes import FIXED, MEASURED, SHARED, micro_batch
from unipo_hooks.adapters.wrap import wrap
from unipo_hooks.record import CapturedMicroBatch, RunInfo


@dataclass(slots=True)
class Noted:
    """One optimizer step of this rank, its passes on their way to the host."""

    learning_rate: float | None = None
    grad_norm: float | None = None
    passes: list[HostCopy] = field(default_factory=list)


class OptimizerStep(NamedTuple):
    """What one optimizer step was on a data-parallel rank."""

    learning_rate: float | None
    grad_norm: float | None
    passes: list[CapturedMicroBatch]


@dataclass(frozen=True, slots=True)
class Drained:
    """What a data-parallel rank gives the driver: the steps since it was last asked."""

    steps: list[OptimizerStep]
    data_parallel_size: int
    seconds: float
    """Time spent here on the thread that trains, since it was last asked."""
    failure: str | None
    """Why nothing is noted any more."""


class Tap:
    """Stands around the loss function and the optimizer step of one `TrainingWorker`."""

    def __init__(self, worker: Any, run: RunInfo, entropy_coef: float) -> None:
        self._run, self._entropy_coef = run, entropy_coef
        self._engine = worker.engine
        self._guard = Guard(strict=False)
        self._guard.speaker = f"unipo-hooks: data-parallel rank {worker.engine.get_data_parallel_rank()}: "
        self._copy = Copier()
        self._steps: list[Noted] = []
        self._told = 0.0
        worker.loss_fn = self._around_loss(worker.loss_fn)
        wrap(worker, "train_batch", self._around_step)

    def drain(self, *, compare: bool) -> Drained:
        """Everything noted so far, as records; it is forgotten here. `compare`: whether losses are computed anew."""
        seconds = self._guard.seconds - self._told
        steps, self._steps = self._steps, []
        made: list[OptimizerStep] = []
        rank = self._engine.get_data_parallel_rank()

        def make() -> None:
            for step in steps:
                passes = [micro_batch(copy.wait(), self._run, rank=rank, compare=compare) for copy in step.passes]
                made.append(OptimizerStep(step.learning_rate, step.grad_norm, passes))

        self._guard(make)
        self._told = self._guard.seconds  # the driver, which waits, counts this itself
        failure = self._guard.reason if self._guard.off else None
        return Drained(made, self._engine.get_data_parallel_size(), seconds, failure)

    def _around_step(self, train_batch: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(data: Any, *args: Any, **kwargs: Any) -> Any:
            self._guard(lambda: self._began(data))
            output = train_batch(data, *args, **kwargs)
            self._guard(lambda: self._stepped(data, output))
            return output

        return wrapped

    def _around_loss(self, loss_fn: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = loss_fn(*args, **kwargs)
            # verl also calls it with a distillation's logits, and where it only measures log-probs.
            if torch.is_grad_enabled() and "model_output" in kwargs and "data" in kwargs:
                self._guard(lambda: self._note(kwargs["model_output"], kwargs["data"], result))
            return result

        return wrapped

    def _began(self, data: Any) -> None:
        if ROW in data.keys():  # noqa: SIM118  a TensorDict's `in` is something else
            groups = getattr(getattr(self._engine, "optimizer", None), "param_groups", None)
            rate = groups[0].get("lr") if groups else None
            if getattr(rate, "is_cuda", False):  # it would have to be waited for
                rate = None
            self._steps.append(Noted(learning_rate=None if rate is None else float(rate)))

    def _stepped(self, data: Any, output: Any) -> None:
        if ROW in data.keys() and output is not None:  # noqa: SIM118
            norm = _plain(output["metrics"]).get("grad_norm")
            self._steps[-1].grad_norm = None if norm is None else float(norm)

    def _note(self, model_output: Mapping[str, Any], data: Any, result: tuple[torch.Tensor, Mapping[str, Any]]) -> None:
        names = set(data.keys())
        if ROW not in names:
            return
        loss, metrics = result
        noted: dict[str, Any] = {
            "rows": data[ROW],
            "lengths": _lengths(data),
            "width": None if data["responses"].is_nested else data["responses"].shape[1],
            "loss": loss,
            "entropy_coef": self._entropy_coef,
            "entropy_bonus": _last(metrics.get("actor/entropy_loss")),
            **{name: _plain(data[name]) for name in SHARED if name in names},
            **{name: model_output[name] for name in MEASURED if model_output.get(name) is not None},
        }
        noted |= {name: _values(noted[name]) for name in MEASURED if name in noted}
        if KEEP in names:
            noted["keep"] = data[KEEP]
            noted |= {name: _padded(data[name]) for name in FIXED if name in names}
        self._steps[-1].passes.append(self._copy(noted))


class Capture:
    """What an actor worker of verl can do beside its own work, where its run is captured."""

    _tap: Tap | None = None

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def unipo_begin(self, run: RunInfo) -> None:
        """Begin to note. Only ranks that hold outputs do: tensor, context and sequence parallel ones repeat rows."""
        worker: Any = self.actor  # type: ignore[attr-defined]
        if self._tap is None and worker.engine.is_mp_src_rank_with_outputs():
            coefficient = self.config.actor.get("entropy_coeff", 0.0)  # type: ignore[attr-defined]
            self._tap = Tap(worker, run, float(coefficient))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def unipo_drain(self, compare: bool) -> Drained | None:
        """What was noted since the last call (see `Tap.drain`); None on a rank that notes nothing."""
        return None if self._tap is None else self._tap.drain(compare=compare)


def capturing(worker: type) -> type:
    """The class of a worker, with `Capture` beside its own methods."""
    return type(f"Capturing{worker.__name__}", (Capture, worker), {})


def _lengths(data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(prompts, responses): tokens of each, (b,)."""
    prompts, responses = data["prompts"], data["responses"]
    if prompts.is_nested:
        return prompts.offsets().diff(), responses.offsets().diff()
    attended = data["attention_mask"]
    return attended[:, : prompts.shape[1]].sum(1), attended[:, prompts.shape[1] :].sum(1)


def _values(tensor: torch.Tensor) -> torch.Tensor:
    """One value a token of prompt and response, row behind row."""
    return tensor.values() if tensor.is_nested else tensor


def _padded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_padded_tensor(0) if tensor.is_nested else tensor


def _plain(value: Any) -> Any:
    """What verl wraps so that a TensorDict holds it."""
    return getattr(value, "data", value) if type(value).__module__.startswith("tensordict") else value


def _last(metric: Any) -> float | None:
    """A number, or the last one of verl's `Metric`."""
    values = getattr(metric, "values", None)
    return values[-1] if isinstance(values, list) and values else metric if isinstance(metric, float) else None
