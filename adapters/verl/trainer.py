"""In the process that drives a run: a trainer of verl is captured from when it is made until its `fit` ends."""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import verl
from tqdm import tqdm

from unipo_hooks.adapters.guard import Guard
from unipo_hooks.adapters.verl.batches import EVERYWHERE, PROMPTS, RETURNS, SAMPLED, TOKENS, Batch, Rows, batch_of
from unipo_hooks.adapters.verl.settings import Plan, Settings, component_keys, estimator_of, rejects, run_info
from unipo_hooks.adapters.verl.translate import RESPONSE_LEVEL, captured_rollout, groups_of, reward_names
from unipo_hooks.adapters.verl.worker import Drained, capturing
from unipo_hooks.adapters.wrap import wrap
from unipo_hooks.errors import CaptureError
from unipo_hooks.record import Array, CapturedRollout, CapturedUpdate, Pending
from unipo_hooks.recorder import Recorder
from unipo_hooks.signals import unwatch, watch

log = logging.getLogger("unipo_hooks")

SUPPORTED = "verl 0.9 (V1 trainers and trainer.use_v1=False), 0.8 and 0.7 with engine workers"

VERIFIED = ("0.7.1", "0.8.0", "0.9.1")
"""Releases whose runs the tests capture."""

NOT_LOGGED = ("timing_", "perf/", "global_seqlen/")
"""In names of verl's own metrics that say nothing of learning."""


def attach(trainer: Any, given: Any) -> None:
    """Capture this trainer; `given` is what the user set under `unipo`. Whatever fails costs capture, never the run."""
    guard = Guard(strict=bool(hasattr(given, "get") and given.get("strict", False)))
    guard(lambda: Capture(trainer, Settings(given), guard).attach())


class Capture:
    """Capture of one trainer."""

    def __init__(self, trainer: Any, settings: Settings, guard: Guard) -> None:
        self._trainer, self._settings, self._guard = trainer, settings, guard
        self._plan = Plan(trainer.config)
        self._recorder: Recorder | None = None
        self._begun_at = 0
        """Steps that were trained before this start."""
        self._rollout = self._update = 0
        self._trained = self._batches = self._handed_over = 0
        """Updates and batches of this start, captured or not; batches that were handed over."""
        self._marked: Batch | None = None
        self._compare = True
        """Whether anything is kept of the marked batch, so that its losses are computed anew."""
        self._seconds_told = 0.0

    def attach(self) -> None:
        """Stand around the trainer's own methods."""
        if reason := why_not(self._trainer):
            raise CaptureError(reason)
        _check_writable(self._settings.path)
        if verl.__version__ not in VERIFIED:
            log.warning("unipo-hooks: verl %s is not verified, %s are", verl.__version__, ", ".join(VERIFIED))
        trainer = self._trainer
        if getattr(trainer, "role_worker_mapping", None):
            self._equip()
        else:
            wrap(trainer, "_init_resource_pool_mgr", self._afterwards(self._equip))
        wrap(trainer, "_load_checkpoint", self._afterwards(self._loaded))
        wrap(trainer, "_save_checkpoint", self._afterwards(self._saved))
        wrap(trainer, "_update_actor", self._around_update)
        wrap(trainer, "fit", self._around_fit)

    # --- what stands around the trainer's methods ---

    def _afterwards(self, ours: Callable[[], None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def around(method: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                result = method(*args, **kwargs)
                self._guard(ours)
                return result

            return wrapped

        return around

    def _around_update(self, update_actor: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(batch: Any, *args: Any, **kwargs: Any) -> Any:
            self._guard(lambda: self._before(batch))
            result = update_actor(batch, *args, **kwargs)
            before = self._update
            self._guard(self._after)
            self._trained += self._update - before or self._plan.updates_a_batch
            self._batches += 1
            return result

        return wrapped

    def _around_fit(self, fit: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._guard(self._begin)
            try:
                result = fit(*args, **kwargs)
            except BaseException:
                self._guard.always(lambda: self._end("interrupted"))
                raise
            self._guard.always(lambda: self._end("finished"))
            return result

        return wrapped

    def _around_log(self, log_row: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(tracking: Any, data: Any, step: int, *args: Any, **kwargs: Any) -> Any:
            result = log_row(tracking, data, step, *args, **kwargs)
            self._guard(lambda: self._logged(data, step))
            return result

        return wrapped

    # --- our own steps ---

    def _equip(self) -> None:
        """Have the actor's workers note their forward passes: their class gets ours beside it."""
        mapping = self._trainer.role_worker_mapping
        actors = [role for role in mapping if role.name in ("Actor", "ActorRollout", "ActorRolloutRef")]
        if not actors:
            raise CaptureError(f"no actor is among the workers ({', '.join(role.name for role in mapping)})")
        for role in actors:
            mapping[role] = ray.remote(capturing(mapping[role].__ray_actor_class__))

    def _loaded(self) -> None:
        self._begun_at = int(self._trainer.global_steps)

    def _saved(self) -> None:
        if self._recorder is not None:
            self._recorder.checkpoint()

    def _begin(self) -> None:
        from verl.utils.tracking import Tracking

        self._log_row = Tracking.log
        # The trainer makes its own Tracking, and may not keep it: only the class is there to be found.
        Tracking.log = self._around_log(Tracking.log)
        watch(self)
        tqdm.write(
            f"unipo-hooks: to see this run, now or later: unipo-hooks view {self._settings.path}", file=sys.stderr
        )

    def _open(self, extras: Sequence[dict[str, Any]]) -> None:
        """Start the recorder: a new bundle, or where the trainer resumes, on with the old one."""
        trainer, settings = self._trainer, self._settings
        keys = component_keys(trainer.config)
        run = run_info(
            trainer,
            reward_names=reward_names(extras) if keys is None else keys,
            reward_names_found=keys is None,
            steps_before=self._begun_at,
            plan=self._plan,
            strict=settings.strict,
        )
        recorder = Recorder(settings.path, run, settings.policy, strict=settings.strict, on_full=settings.on_full)
        self._recorder = recorder  # before anything can fail: it is to be closed
        self._update = recorder.first_update
        self._rollout = recorder.earlier.next_rollout["train"]
        trainer.actor_rollout_wg.unipo_begin(replace(run, decode=str, algorithms=()))
        if recorder.start.attempt > 0:
            told = (
                f"this run goes on in its bundle from update {recorder.first_update}: unipo-hooks view {recorder.path}"
            )
            tqdm.write(f"unipo-hooks: {told}", file=sys.stderr)

    def _before(self, given: Any) -> None:
        """The batch is complete: hand over its rollout, and mark its rows."""
        self._marked = None
        batch = batch_of(given)
        if self._recorder is None:
            self._open(batch.labels()["reward_extra_info"])
        assert self._recorder is not None
        group_B = groups_of(batch.uids)
        groups = int(group_B.max(initial=-1)) + 1
        policy = self._settings.policy
        handed_over = policy.kept_groups(self._rollout, groups) if self._rollout % policy.every == 0 else []
        keep_B = None if handed_over is None else np.isin(group_B, handed_over)
        kept_b = np.arange(len(group_B)) if keep_B is None else np.flatnonzero(keep_B)
        config = self._trainer.config
        estimator = estimator_of(config)
        of_kept = (*TOKENS, *(() if estimator in RESPONSE_LEVEL else (RETURNS,)))
        of_all = (*EVERYWHERE, *((SAMPLED,) if rejects(config) else ()), *((PROMPTS,) if len(kept_b) else ()))
        labels = batch.labels() if len(kept_b) else {"reward_extra_info": [{}] * len(group_B)}
        everywhere = batch.read(None, (*of_all, *(of_kept if keep_B is None else ())))
        kept = everywhere if keep_B is None else _read(batch, kept_b, of_kept)
        make: Callable[[], CapturedRollout] = partial(
            captured_rollout,
            everywhere,
            kept,
            kept_b,
            rollout=self._rollout,
            step=int(self._trainer.global_steps),
            group_B=group_B,
            handed_over=handed_over,
            labels=labels,
            uids=batch.uids,
            reward_names=self._recorder.reward_names,
            estimator=estimator,
            rejects=rejects(config),
        )
        said = len(repr(labels))  # texts and conversations, about as long as they will be written
        self._recorder.rollout(Pending(CapturedRollout, "train", _nbytes(everywhere, kept) + said, make))
        self._handed_over += 1
        self._marked, self._compare = batch, len(kept_b) > 0
        batch.mark(keep_B)

    def _after(self) -> None:
        """The workers have trained on the batch: have what they noted, and hand it over, an optimizer step each."""
        batch, self._marked = self._marked, None
        recorder = self._recorder
        if batch is None or recorder is None:
            return
        batch.unmark()
        given: list[Drained | None] = self._trainer.actor_rollout_wg.unipo_drain(self._compare)
        ranks = [each for each in given if each is not None]
        if failures := [each.failure for each in ranks if each.failure]:
            raise CaptureError(failures[0])
        if not any(step.passes for each in ranks for step in each.steps):
            raise CaptureError("the workers have noted no forward pass: this verl calls its loss in another way")
        seconds = self._guard.seconds + max(each.seconds for each in ranks)
        for number, of_ranks in enumerate(zip_longest(*(each.steps for each in ranks))):
            steps = [step for step in of_ranks if step is not None]
            update = CapturedUpdate(
                kind="train",
                update=self._update,
                step=int(self._trainer.global_steps),
                micro_batches=[replace(each, rollout=self._rollout) for step in steps for each in step.passes],
                is_first_step_after_rollout_phase=number == 0,
                learning_rate=steps[0].learning_rate,
                grad_norm=steps[0].grad_norm,
                data_parallel_size=ranks[0].data_parallel_size,
                length_constant=self._trainer.config.actor_rollout_ref.actor.get("loss_scale_factor") or batch.width,
                hook_seconds=seconds - self._seconds_told if number == 0 else 0.0,
            )
            recorder.update(update)
            self._update += 1
        self._seconds_told = self._guard.seconds
        self._rollout += 1

    def _logged(self, data: Any, step: int) -> None:
        """Keep the trainer's own row of a step, beside its last update."""
        if self._recorder is None or self._update == self._recorder.first_update:
            return
        scalars: dict[str, float | None] = {
            name: float(f"{float(value):.9g}")
            for name, value in data.items()
            if isinstance(value, int | float | np.number) and not any(part in name for part in NOT_LOGGED)
        }
        self._recorder.log(self._update - 1, int(step), scalars)

    def _end(self, status: Literal["finished", "interrupted"]) -> None:
        """Write what is queued, and say where the run can be seen."""
        from verl.utils.tracking import Tracking

        Tracking.log = getattr(self, "_log_row", Tracking.log)
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            unwatch(self)
            return
        try:
            missed = self._trained - (self._update - recorder.first_update)
            if self._guard.off and missed > 0:
                recorder.missed(missed, self._batches - self._handed_over, self._guard.reason)
            written = recorder.close(status)
        finally:
            unwatch(self)
        if written and recorder.path.exists():
            lost = recorder.lost_updates
            number = f"{self._trained - lost} of {self._trained}" if lost else f"{self._trained}"
            what = "updates are" if status == "finished" else "updates before the interruption are"
            tqdm.write(f"unipo-hooks: {number} {what} in {recorder.path}", file=sys.stderr)


def why_not(trainer: Any) -> str | None:
    """Why this trainer cannot be captured, in one line; None where it can."""
    found = re.match(r"(\d+)\.(\d+)", verl.__version__)
    if found is not None and (int(found[1]), int(found[2])) < (0, 7):
        return f"verl {verl.__version__} is too old; captured are {SUPPORTED}"
    if not hasattr(trainer, "_update_actor") or not hasattr(trainer, "fit"):
        return f"{type(trainer).__name__} is not a trainer that is known; captured are {SUPPORTED}"
    mapping = getattr(trainer, "role_worker_mapping", None) or {}
    legacy = [each for each in mapping.values() if "fsdp_workers" in each.__ray_actor_class__.__module__]
    legacy += [each for each in mapping.values() if "megatron_workers" in each.__ray_actor_class__.__module__]
    if legacy:
        return (
            f"verl {verl.__version__} runs its legacy workers here, which keep no rows apart: "
            "set trainer.use_legacy_worker_impl=disable"
        )
    return None


def _check_writable(path: Path) -> None:
    """Find out before the model is loaded whether the bundle can be written. Raises CaptureError, one line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path if path.is_dir() else path.parent):
            pass
    except OSError as error:
        raise CaptureError(f"cannot write to {path}: {error.strerror or error}") from error


def _read(batch: Batch, kept_b: Array, names: Sequence[str]) -> Rows:
    return batch.read(kept_b, names) if len(kept_b) else Rows({}, np.empty(0, np.int64), [])


def _nbytes(*rows: Rows) -> int:
    """Host memory of what was read, in bytes."""
    tensors = {id(each): each for part in rows for each in (*part.tensors.values(), *part.prompts)}
    values = (each.values() if each.is_nested else each for each in tensors.values())
    return sum(each.numel() * each.element_size() for each in values)
