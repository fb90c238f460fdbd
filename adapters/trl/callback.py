"""The one thing a user adds: `callbacks=[UnipoCallback("runs/gsm8k")]`."""

from __future__ import annotations

import logging
import os
import sys
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unipo_hooks.adapters.guard import Guard
from unipo_hooks.adapters.trl.ends import on_failure
from unipo_hooks.adapters.trl.locate import beyond_verified, find_trainer, why_not
from unipo_hooks.adapters.trl.ranks import Meeting
from unipo_hooks.adapters.trl.settings import divided_by, run_info
from unipo_hooks.adapters.trl.tap import Tap, unreadable
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.algorithms import chosen, own, registered
from unipo_hooks.policy import CapturePolicy, policy_from
from unipo_hooks.record import CapturedMicroBatch, CapturedRollout, CapturedUpdate, Pending, speaker
from unipo_hooks.recorder import Recorder
from unipo_hooks.schema import Joined, Kind
from unipo_hooks.signals import unwatch, watch

log = logging.getLogger("unipo_hooks")

MicroBatches = list[tuple[int, Pending[CapturedMicroBatch]]]
"""Those of an update so far, each with the rollout its responses are of."""


class UnipoCallback(TrainerCallback):
    """Captures every update of a GRPO-like trainer, token by token, into a bundle.

    `path`: the bundle's folder, `{output_dir}/unipo` by default; a folder that holds another run is left alone and the
    bundle goes beside it. What to keep is a `CapturePolicy`, or its settings by name: `UnipoCallback("runs/x",
    every=10, max_groups=4)`; the default keeps a short run whole and a long one within a gibibyte. `strict`: raise
    where capture fails, instead of saying so once and training on. `on_full`: whether a disk slower than the run drops
    records, counted, or makes training wait. `trainer`: only needed where the callback cannot find it.

    The algorithm that runs is read from the trainer's settings. `algorithm`: for a trainer that computes a loss of its
    own, what that is (an id, a spec, its JSON or a path to it). `algorithms`: further ones to register and to carry in
    the bundle, so that its tokens can be recomputed under them: a directory of JSON files, a file, a spec, or a list
    of these.

    Training is not changed: weights after it are bit-identical with and without the callback.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        policy: CapturePolicy | None = None,
        *,
        strict: bool = False,
        on_full: Literal["drop", "block"] = "drop",
        trainer: Any = None,
        algorithm: AlgorithmSpec | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        algorithms: Any = (),
        **policy_settings: Any,
    ) -> None:
        if policy is not None and policy_settings:
            raise TypeError(f"give either a policy or its settings by name, not both: {', '.join(policy_settings)}")
        if not isinstance(policy, CapturePolicy | None):
            raise TypeError(f"policy is a CapturePolicy, found {type(policy).__name__}; or give its settings by name")
        if on_full not in ("drop", "block"):
            raise ValueError(f"on_full is 'drop' or 'block', found {on_full!r}")
        self._requested = None if path is None else Path(path)
        self._policy = policy or policy_from(policy_settings)
        self._strict, self._on_full = strict, on_full
        self._algorithm = None if algorithm is None else chosen(algorithm)
        registered(algorithms)
        self._guard = Guard(strict=strict)
        self._meeting = Meeting()
        self._reference: Callable[[], Any] = lambda: None
        """The trainer, which a callback that outlives it does not keep."""
        self._tap: Tap | None = None
        self._recorder: Recorder | None = None
        self._path: Path | None = None
        self._trained_path: Path | None = None
        self._rollouts: dict[Kind, int] = {"train": 0, "eval": 0}
        self._evaluations = 0
        self._newest_rollout = -1
        self._newest_step = -1
        self._micro_batches: MicroBatches = []
        self._handed_over = 0
        """Updates the recorder was given, of those since `_first_update`."""
        self._first_update = 0
        self._learning_rate: float | None = None
        self._seconds_told = 0.0
        self._training = False
        self._starts = 0
        self._stale = False
        """Whether the update being accumulated holds responses of an earlier start."""
        if trainer is not None:
            self._guard(lambda: self._bind(trainer))

    @property
    def path(self) -> Path | None:
        """Where the bundle is; None before the first rollout or the start of training."""
        return self._path

    # --- the trainer's events ---

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Find the trainer the callback was made with."""
        self._guard(lambda: self._bind(find_trainer(state)))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Find the trainer the callback was added to, and start the bundle."""
        if self._starts:
            self._guard.reset()
        self._guard(lambda: self._begin(find_trainer(state)))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rate before the scheduler moves it on."""
        self._guard(lambda: self._note_rate(state, kwargs.get("optimizer")))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The update is complete: hand it over."""
        self._guard(lambda: self._stepped(state))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Keep what only the trainer knows: gradient norm, its own metrics."""
        self._guard(lambda: self._logged(state, logs or {}))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make the bundle as durable as the checkpoint."""
        self._guard(lambda: self._saved(state))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """An evaluation after training is an attempt of its own, and complete."""
        self._guard.always(lambda: self._evaluated(state))

    def on_predict(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """As an evaluation."""
        self._guard.always(lambda: self._evaluated(state))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write what is queued, and say where the run can be seen."""
        self._guard.always(lambda: self._ended(state))

    # --- what the tap delivers to ---

    def listens(self) -> bool:
        """Whether the trainer still has this callback; one that was removed ends its bundle."""
        listens = self in self._trainer.callback_handler.callbacks
        if not listens and self._training:
            self._close("interrupted")
        return listens

    def next_rollout(self, kind: Kind) -> tuple[int, int]:
        """Number of this start of capture, and of a new rollout in it."""
        self._open()
        number = self._rollouts[kind]
        self._rollouts[kind] = number + 1
        return self._starts, number

    def from_an_earlier_start(self, start: int) -> bool:
        """Whether a rollout of that start cannot be joined any more: a trainer's buffer outlives `train()`."""
        stale = start != self._starts
        self._stale |= stale
        return stale

    def rollout(self, rollout: Pending[CapturedRollout]) -> None:
        """A rollout was generated and scored."""
        if self._recorder is not None:
            self._recorder.rollout(rollout)

    def micro_batch(self, kind: Kind, rollout: int, micro_batch: Pending[CapturedMicroBatch]) -> None:
        """A loss was computed: part of the update being accumulated, or an evaluation pass of its own."""
        if kind == "train":
            if self._recorder is not None:
                self._micro_batches.append((rollout, micro_batch))
        else:
            self._hand_over("eval", self._evaluations, self._trainer.state.global_step, [(rollout, micro_batch)])
            self._evaluations += 1

    # --- our own steps ---

    @property
    def _trainer(self) -> Any:
        return self._reference()

    @property
    def _speaks(self) -> bool:
        """Whether this rank tells people how things stand; what went wrong every rank tells."""
        trainer = self._trainer
        return trainer is not None and bool(trainer.args.process_index == 0)

    def _is_of(self, state: TrainerState) -> bool:
        """Whether an event comes from the trainer that is captured: several may have been given this callback."""
        return self._trainer is not None and self._trainer.state is state

    def _bind(self, trainer: Any) -> None:
        if trainer is None or trainer is self._trainer:
            return
        if reason := why_not(trainer):
            self._guard.give_up(reason)
            return
        if told := beyond_verified():
            log.warning("unipo-hooks: %s", told)
        if self._tap is not None:  # one callback, used for one trainer after another
            if self._training:
                log.warning("unipo-hooks: capture goes on to another trainer; a callback of its own captures both")
            self._tap.closed = True
            self._close("interrupted")
        self._reference = weakref.ref(trainer)
        self._guard.speaker = speaker(trainer.accelerator.process_index, trainer.accelerator.num_processes)
        self._tap = tap = Tap(trainer, self, self._guard)
        on_failure(trainer, lambda: None if tap.closed else self._guard.always(self._failed))

    def _begin(self, trainer: Any) -> None:
        self._bind(trainer)
        if self._trainer is None and not self._guard.off:
            self._guard.give_up("no trainer found; pass it: UnipoCallback(..., trainer=trainer), then add_callback")
        if self._guard.off:
            return
        trainer = self._trainer
        if self._training and self._newest_rollout >= 0:  # the last start ended in an exception we were not told of
            self._close("interrupted")
        if self._recorder is not None and (self._first_update or trainer.state.global_step):
            self._close("finished")  # an evaluation's, which is not the beginning of this training
        self._micro_batches, self._stale = [], False
        if self._tap is not None:
            self._tap.generated = self._tap.delivered = 0
        if not self._training:
            self._training = True
            watch(self)
            if self._recorder is not None:  # an evaluation's, before the first step
                self._recorder.expect(trainer.state.max_steps)
            self._open()
            self._trained_path = self._path
            if self._recorder is not None and self._speaks:
                path, resumed = self._recorder.path, self._recorder.start.attempt > 0
                if resumed:
                    told = f"this run goes on in its bundle from update {self._first_update}: unipo-hooks view {path}"
                else:
                    told = f"to see this run, now or later: unipo-hooks view {path}"
                tqdm.write(f"unipo-hooks: {told}", file=sys.stderr)

    def _open(self) -> None:
        """Start the recorder: a new bundle, or where the trainer is past its first step, on with the old one."""
        if self._recorder is not None:
            return
        trainer = self._trainer
        requested = self._requested or Path(trainer.args.output_dir) / "unipo"
        path = self._trained_path if self._trained_path is not None and trainer.state.global_step else requested
        self._starts += 1

        def record(joined: Joined | None) -> Recorder:
            run = run_info(trainer, algorithm=self._algorithm, algorithms=own(), strict=self._strict)
            strict, on_full = self._strict, self._on_full
            return Recorder(path, run, self._policy, strict=strict, on_full=on_full, joined=joined)

        self._recorder = self._meeting.recorder(trainer.accelerator, self._starts, record)
        self._path = self._recorder.path
        # A trainer that only evaluates has no other end.
        self._freed = weakref.finalize(trainer, self._recorder.end, "finished")
        self._freed.atexit = False
        earlier = self._recorder.earlier
        self._rollouts = {"train": earlier.next_rollout["train"], "eval": earlier.next_rollout["eval"]}
        self._evaluations = earlier.next_evaluation
        self._newest_rollout = -1
        self._first_update, self._handed_over = trainer.state.global_step, 0
        self._newest_step = -1

    def _failed(self) -> None:
        """Training ended in an exception: have what is queued written, and keep nobody waiting for it."""
        if self._training:
            self._training = False
            unwatch(self)
            if (recorder := self._taken()) is not None:
                recorder.end("interrupted")
                if self._speaks:
                    tqdm.write(f"unipo-hooks: interrupted; what came before is in {recorder.path}", file=sys.stderr)

    def _close(self, status: Literal["finished", "interrupted"]) -> bool:
        """Whether there was something to close, and the disk took it."""
        self._training = False
        try:
            recorder = self._taken()
            return recorder is not None and recorder.close(status)
        finally:
            unwatch(self)

    def _taken(self) -> Recorder | None:
        """The recorder, which is given nothing more; it counts what it was not given since capture was turned off."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return None
        self._freed.detach()
        trainer, tap = self._trainer, self._tap
        if self._guard.off and trainer is not None and tap is not None:
            updates = trainer.state.global_step - self._first_update - self._handed_over
            recorder.missed(updates, tap.generated - tap.delivered, self._guard.reason)
        return recorder

    def _note_rate(self, state: TrainerState, optimizer: Any) -> None:
        if not self._is_of(state):
            return
        groups = getattr(optimizer, "param_groups", None)
        rate = groups[0].get("lr") if groups else None
        # One on a device would have to be waited for.
        self._learning_rate = None if rate is None or getattr(rate, "is_cuda", False) else float(rate)

    def _stepped(self, state: TrainerState) -> None:
        if not self._is_of(state) or state.global_step == self._newest_step:  # a callback may be there twice
            return
        self._newest_step = state.global_step
        micro_batches, self._micro_batches = self._micro_batches, []
        stale, self._stale = self._stale, False
        if not (stale or micro_batches):
            why = f"{type(self._trainer).__name__} trained without its _compute_loss, so that updates cannot be read"
            micro_batches = [(self._newest_rollout, unreadable("train", why))]
        self._hand_over("train", state.global_step - 1, state.global_step, [] if stale else micro_batches)

    def _saved(self, state: TrainerState) -> None:
        if self._recorder is not None and self._is_of(state):
            self._recorder.checkpoint()

    def _evaluated(self, state: TrainerState) -> None:
        if not self._training and state.global_step and self._is_of(state):
            self._close("finished")

    def _ended(self, state: TrainerState) -> None:
        if not self._is_of(state):
            return
        recorder, trained = self._recorder, state.global_step - self._first_update
        written = self._close("finished")
        if recorder is not None and written and recorder.path.exists() and self._speaks:
            lost = recorder.lost_updates
            number = f"{trained - lost} of {trained}" if lost else trained
            tqdm.write(f"unipo-hooks: {number} updates are in {recorder.path}", file=sys.stderr)
            self._meeting.roll_call()

    def _hand_over(self, kind: Kind, update: int, step: int, micro_batches: MicroBatches) -> None:
        if self._recorder is None:
            return
        trainer = self._trainer
        newest = max((rollout for rollout, _ in micro_batches), default=self._newest_rollout)
        seconds = self._guard.seconds
        describe = partial(
            CapturedUpdate,
            kind=kind,
            update=update,
            step=step,
            is_first_step_after_rollout_phase=kind == "eval" or newest > self._newest_rollout,
            learning_rate=self._learning_rate if kind == "train" else None,
            accumulation_steps=int(divided_by(trainer, kind)(None).accumulation_steps),
            data_parallel_size=trainer.accelerator.num_processes,
            length_constant=getattr(trainer, "max_completion_length", None),
            hook_seconds=seconds - self._seconds_told,
        )
        nbytes = sum(each.nbytes for _, each in micro_batches)
        make = lambda: describe(micro_batches=[each.make() for _, each in micro_batches])  # noqa: E731
        self._recorder.update(Pending(CapturedUpdate, kind, nbytes, make))
        self._seconds_told = seconds
        if kind == "train":
            self._newest_rollout = newest
            self._handed_over += 1

    def _logged(self, state: TrainerState, logs: dict[str, Any]) -> None:
        # 9 digits hold a float32 exactly
        scalars: dict[str, float | None] = {
            name: float(f"{value:.9g}") for name, value in logs.items() if isinstance(value, int | float)
        }
        of_step = self._training and self._is_of(state) and state.global_step
        if self._recorder is not None and scalars and of_step:
            self._recorder.log(state.global_step - 1, state.global_step, scalars)
