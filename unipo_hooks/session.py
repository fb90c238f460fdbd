"""The writing side of a capture: what is done with each record, on one thread, contained.

Records come in the order they happened. Every update gets its metrics; rollouts the policy admits get their tokens.
Whatever fails is said once and costs capture, never the run.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from unipo_hooks.algorithms import is_own_code
from unipo_hooks.aside import Aside
from unipo_hooks.bundle.attempts import end_attempt
from unipo_hooks.bundle.rows import rollout_rows, update_rows
from unipo_hooks.bundle.writer import BundleWriter
from unipo_hooks.channels import CHANNELS
from unipo_hooks.errors import CaptureError, UnipoError
from unipo_hooks.metrics import update_sums
from unipo_hooks.policy import EVALUATION_SHARE, CapturePolicy, Pacing, SharedPacing
from unipo_hooks.reconcile import Gap, gap_of, with_results
from unipo_hooks.record import CapturedMicroBatch, CapturedRollout, CapturedUpdate, Pending, RunInfo, counts_of
from unipo_hooks.schema import Kind, LogLine, MetricsLine, MicroBatchLine
from unipo_hooks.text import TokenText

log = Aside(logging.getLogger("unipo_hooks"))


@dataclass(frozen=True, slots=True)
class TrainerLog:
    """What the trainer itself logged after an update."""

    kind: Kind
    update: int
    step: int
    scalars: dict[str, float | None]
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything before it is to be durable."""

    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Missed:
    """Updates and rollouts that nobody captured."""

    updates: int
    rollouts: int
    reason: str
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Expected:
    """How many updates the run will have."""

    updates: int
    nbytes: int = 0


Record = CapturedRollout | CapturedUpdate | TrainerLog | Expected | Missed | Checkpoint
Item = Record | Pending[CapturedRollout] | Pending[CapturedUpdate]


class Session:
    """The writing thread's side: its state, and what it does with each record."""

    def __init__(
        self, run: RunInfo, policy: CapturePolicy, writer: BundleWriter, hurried: Callable[[], bool] = lambda: False
    ) -> None:
        """`hurried`: whether the queue is filling up, so that what can be left out should be."""
        self.final_status: Literal["finished", "interrupted"] = "finished"
        self.failure: str | None = None
        self._run, self._policy, self._writer = run, policy, writer
        kept, used = writer.earlier.kept_rollouts, float(writer.earlier.segment_bytes)
        self._pacing = Pacing(policy, kept=kept)
        self._shared = SharedPacing(policy, run.ranks, kept=kept, used_bytes=used) if run.ranks > 1 else None
        self._text = TokenText(run.decode)
        # pyarrow imports pandas at its first array; while the interpreter ends it no longer could.
        pa.array(np.zeros(1))
        self._rollouts: dict[Kind, dict[int, CapturedRollout]] = {"train": {}, "eval": {}}
        self._kept: dict[Kind, dict[int, list[int] | None]] = {"train": {}, "eval": {}}
        self._gone: dict[Kind, set[int]] = {"train": set(), "eval": set()}
        """Rollouts that were to be kept and did not reach the disk."""
        self._progress: float | None = None
        self._dropped = {"rollouts": 0, "updates": 0, "evaluations": 0, "size": 0}
        """What found the queue full. The training thread counts here, the writing thread only reads."""
        self._reported = dict(self._dropped)
        self._evaluation_bytes = 0.0
        self.earlier, self.reward_names = writer.earlier, tuple(writer.manifest.reward_names)
        self.first_update = writer.manifest.attempts[-1].first_update
        self._off = False
        self._earlier_cost, self._lost_earlier = writer.manifest.cost, writer.manifest.lost
        self._hook_seconds = 0.0
        self._hurried = hurried
        self._told_of_gap = False
        self._algorithm = run.algorithm
        """None once the run's loss could not be recomputed."""

    @property
    def lost_updates(self) -> int:
        """Updates of this start that are counted as lost."""
        return self._writer.manifest.lost.updates - self._lost_earlier.updates

    def process(self, item: Item) -> None:
        """Do one record; whatever fails is contained."""
        if self._off or not self._contained(lambda: self._dispatch(item.make() if isinstance(item, Pending) else item)):
            self._contained(lambda: self._writer.count_lost(**count(item), reason=self.failure))
            if isinstance(item, Pending) and item.of is CapturedUpdate:
                self._forget()

    def lose(self, item: Item, reason: str) -> None:
        """Count a record that will not be written."""
        self._writer.count_lost(**count(item), reason=reason)

    def _forget(self) -> None:
        """An update could not be made: let go of all rollouts but the newest, as no update to come is of them."""
        for kind, live in self._rollouts.items():
            for number in sorted(live)[:-1]:
                del live[number]
                self._kept[kind].pop(number, None)

    def idle(self) -> None:
        """Close a segment that has been open long enough, though nothing comes in."""
        if not self._off:
            self._contained(self._commit_if_due)

    def finish(self) -> None:
        """Commit, end the attempt, close the files."""
        self._contained(self._commit)
        self._contained(lambda: self._writer.give_up(self.failure or "they could not be written"))
        for action in (self._end_attempt, self._write_manifest, self._writer.close, self._tell_lost):
            self._contained(action)

    def abandon(self, error: BaseException, item: Item | None = None) -> None:
        """Do nothing more after an error that was not to be: a defect of ours. `item` is lost by it."""
        self._off = True
        self._fail(
            f"capture is off after an unexpected error ({type(error).__name__}: {error}), please report it", error
        )
        if item is not None:
            self._writer.count_lost(**count(item), reason=self.failure)

    def _end_attempt(self) -> None:
        attempts = end_attempt(self._writer.manifest.attempts, status=self.final_status)
        self._writer.update_manifest(status=self.final_status, attempts=attempts)

    def _tell_lost(self) -> None:
        lost, earlier = self._writer.manifest.lost, self._lost_earlier
        counts = {
            name: number
            for name in ("update", "evaluation", "rollout")
            if (number := getattr(lost, f"{name}s") - getattr(earlier, f"{name}s"))
        }
        if counts:
            what = " and ".join(f"{number} {name}{'s' if number > 1 else ''}" for name, number in counts.items())
            are = "are" if sum(counts.values()) > 1 else "is"
            log.warning("%s%s %s not in %s: %s", self._run.speaker, what, are, self._writer.path, lost.reason)

    def count_dropped(self, item: Item) -> bool:
        """A record found the queue full: whether it is the first. Called on the training thread."""
        first = not any(self._dropped.values())
        for name, number in count(item).items():
            self._dropped[name] += number
        return first

    def _contained(self, action: Callable[[], None]) -> bool:
        """Whether the action went through.

        A disk that refuses may recover, and a record that cannot be made costs itself alone; any other error is ours,
        and final.
        """
        try:
            action()
        except CaptureError as error:
            self._fail(str(error))
        except OSError as error:
            self._fail(f"cannot write to {self._writer.path}: {error.strerror or error}")
        except Exception as error:
            self.abandon(error)
        else:
            return True
        return False

    def _fail(self, message: str, error: BaseException | None = None) -> None:
        if self.failure is None:
            log.warning("%s%s; what is lost is counted. Training goes on.", self._run.speaker, message, exc_info=error)
        self.failure = self.failure or message

    def _dispatch(self, item: Record) -> None:
        match item:
            case CapturedRollout():
                self._rollout(item)
            case CapturedUpdate():
                self._update(item)
            case TrainerLog() if self._run.rank == 0:  # the trainer logs on every rank, and rank 0's is what it shows
                line = LogLine(
                    kind=item.kind,
                    attempt=self._writer.attempt,
                    update=item.update,
                    step=item.step,
                    scalars=item.scalars,
                )
                self._writer.add_metrics([line])
            case Expected():
                header = self._run.header.model_copy(update={"totalSteps": item.updates})
                self._run = replace(self._run, header=header)
                self._writer.update_manifest(header=header)
            case Missed():
                self._writer.count_lost(**count(item), reason=item.reason)
            case Checkpoint():
                self._contained(self._commit)
        self._contained(self._commit_if_due)

    def _rollout(self, rollout: CapturedRollout) -> None:
        self._rollouts[rollout.kind][rollout.rollout] = rollout
        kept = self._policy.kept_groups(rollout.rollout, rollout.groups)
        if rollout.handed_over is not None:  # of the others there is nothing to keep
            kept = sorted(set(rollout.handed_over).intersection(range(rollout.groups) if kept is None else kept))
        if kept == [] or not self._admits(rollout):
            return
        self._kept[rollout.kind][rollout.rollout] = kept
        line = {
            "kind": rollout.kind,
            "rollout": rollout.rollout,
            "step": rollout.step,
            "time": time.time(),
            "groups": rollout.groups,
            "kept": kept,
            "weight": 1.0 if kept is None else rollout.groups / len(kept),
            "aliases": dict(rollout.aliases),
        }
        rows = rollout_rows(rollout, kept, self._text, self._run.placeholders)
        self._note_channels("ids", "strings", "mask", "reward", "reward_components", *rollout.channels)
        if rollout.mask_reason_BT is not None:
            self._note_channels("mask_reason")
        self._writer.add_rollout(line, rows)

    def _admits(self, rollout: CapturedRollout) -> bool:
        if self._shared is not None:
            admitted = self._shared.admits(rollout, self._run.header.totalSteps)
            # Whatever all ranks agree on: one that has written its share of the bytes keeps no more.
            return admitted and self._writer.manifest.cost.segment_bytes < self._policy.max_bytes / self._run.ranks
        if rollout.kind == "train":
            return self._pacing.admits(rollout.rollout, used_bytes=self._writer.used_bytes, progress=self._progress)
        self._evaluation_bytes += rollout.nbytes
        return self._evaluation_bytes <= EVALUATION_SHARE * self._policy.max_bytes

    def _update(self, update: CapturedUpdate) -> None:
        try:
            self._write_update(update)
        finally:  # a trainer never goes back to an earlier rollout: whatever happened, let go of it
            live, kept = self._rollouts[update.kind], self._kept[update.kind]
            for number in [number for number in live if update.micro_batches and number < max(update.rollouts)]:
                del live[number]
                kept.pop(number, None)
                self._gone[update.kind].discard(number)

    def _write_update(self, update: CapturedUpdate) -> None:
        live, kept = self._rollouts[update.kind], self._kept[update.kind]
        self._hook_seconds += update.hook_seconds
        if not update.micro_batches:
            self._writer.count_lost(**count(update), reason="sampled before this start of training")
            return
        if missing := [number for number in update.rollouts if number not in live]:
            # Without its rollout nothing can be said of an update.
            self._writer.count_lost(**count(update), reason=f"rollout {missing[0]} was dropped")
            return
        captured = any(number in kept for number in update.rollouts)
        head: dict[str, Any] = {
            "kind": update.kind,
            "update": update.update,
            "step": update.step,
            "time": time.time(),
            "rollouts": update.rollouts,
            "is_first_step_after_rollout_phase": update.is_first_step_after_rollout_phase,
        }
        sums = update_sums(update, live, self._run)
        gaps = self._gaps(update, live) if captured else [None] * len(update.micro_batches)
        if known := [abs(gap.loss) for gap in gaps if gap is not None and math.isfinite(gap.loss)]:
            sums["loss_gap"] = (sum(known), float(len(known)), sum(each * each for each in known))
        known_scalars = {"learning_rate": update.learning_rate, "grad_norm": update.grad_norm}
        scalars: dict[str, float | None] = {name: value for name, value in known_scalars.items() if value is not None}
        self._writer.add_metrics(
            [MetricsLine(**head, attempt=self._writer.attempt, captured=captured, sums=sums, scalars=scalars)]
        )
        if not captured and self._gone[update.kind].intersection(update.rollouts):
            self._writer.count_lost(**count(update), reason=self.failure)
        if captured:
            several = len({m.rank for m in update.micro_batches}) > 1
            line = {
                **head,
                "accumulation_steps": update.accumulation_steps,
                "data_parallel_size": update.data_parallel_size,
                "length_constant": update.length_constant,
                "micro_batches": [
                    _micro_batch_line(m, live[m.rollout], gap, m.rank if several else None)
                    for m, gap in zip(update.micro_batches, gaps, strict=True)
                ],
            }
            update = self._with_results(update, live)
            rows = update_rows(update, live, kept)
            if self._shared is not None:
                self._shared.trained(update, {number: live[number] for number in kept if number in live})
            self._note_channels(*(name for m in update.micro_batches for name in m.channels))
            self._writer.add_update(line, rows)
        total = self._run.header.totalSteps
        if update.kind == "train":
            self._progress = (update.update + 1) / total if total else None

    def _gaps(self, update: CapturedUpdate, live: dict[int, CapturedRollout]) -> list[Gap | None]:
        """How far each micro-batch's loss is from the trainer's; None where that cannot be said."""
        unknown: list[Gap | None] = [None] * len(update.micro_batches)
        if self._algorithm is None:
            return unknown
        if self._hurried():
            self._writer.count_lost(reconciliations=1)
            return unknown
        try:
            gaps = [gap_of(self._algorithm, m, live[m.rollout], update) for m in update.micro_batches]
        except Exception as error:  # a part may be the user's own code
            self._give_up(error)
            return unknown
        for gap in gaps:
            if gap is not None and gap.above and not self._told_of_gap:
                self._told_of_gap = True
                self._tell_gap(gap, update)
        return gaps

    def _with_results(self, update: CapturedUpdate, live: dict[int, CapturedRollout]) -> CapturedUpdate:
        """The update with what only the user's own code can compute, where its algorithm has such a part."""
        spec = self._algorithm
        if spec is None or not is_own_code(spec):
            return update
        try:
            parts = [with_results(spec, m, live[m.rollout], update) for m in update.micro_batches]
        except Exception as error:  # the part is the user's own code
            self._give_up(error)
            return update
        return replace(update, micro_batches=parts)

    def _give_up(self, error: Exception) -> None:
        """Go on without the algorithm: what is captured does not need it."""
        self._algorithm = None
        kind = "" if isinstance(error, UnipoError) else f"{type(error).__name__}: "
        self._note(f"the loss cannot be recomputed: {kind}{error}")

    def _tell_gap(self, gap: Gap, update: CapturedUpdate) -> None:
        overriding = self._run.loss_overridden_by
        causes = self._run.algorithm_notes + ((f"{overriding} overrides _compute_loss",) if overriding else ())
        causes = causes or (f"{self._run.trainer.trainer_class} may compute its loss in a way of its own",)
        log.warning(
            "%sat update %d the loss recomputed from the captured tokens is %.1e away from the trainer's "
            "(tolerance %.1e), so what is shown of a token may not be what the trainer did. Likely cause: %s",
            self._run.speaker,
            update.update,
            abs(gap.loss),
            gap.tolerance,
            "; ".join(causes),
        )

    def _note(self, text: str) -> None:
        attempts = self._writer.manifest.attempts
        notes = [*attempts[-1].algorithm_notes, text]
        noted = attempts[-1].model_copy(update={"algorithm_notes": notes})
        self._writer.update_manifest(attempts=[*attempts[:-1], noted])
        log.warning("%s%s", self._run.speaker, text)

    def _commit_if_due(self) -> None:
        if self._writer.segment_is_due:
            self._commit()

    def _commit(self) -> None:
        try:
            self._writer.commit()
        except Exception:
            for line in self._writer.lost_rollouts:  # updates to come cannot be joined with them
                self._kept[line.kind].pop(line.rollout, None)
                self._gone[line.kind].add(line.rollout)
            raise
        finally:
            self._write_manifest()

    def _write_manifest(self) -> None:
        cost = self._writer.manifest.cost
        dropped = dict(self._dropped)
        if dropped != self._reported:
            new = {name: dropped[name] - self._reported[name] for name in dropped}
            self._writer.count_lost(**new, reason="the queue was full")
            self._reported = dropped
        spent = {
            "hook_seconds": self._earlier_cost.hook_seconds + self._hook_seconds,
            "writer_cpu_seconds": self._earlier_cost.writer_cpu_seconds + time.thread_time(),
        }
        self._writer.update_manifest(cost=cost.model_copy(update=spent))
        self._writer.write_manifest()

    def _note_channels(self, *names: str) -> None:
        known = self._writer.manifest.channels
        if any(name not in known for name in names):
            self._writer.update_manifest(channels=[name for name in CHANNELS if name in known or name in names])


def count(item: Item) -> dict[str, int]:
    """A record as the manifest counts what is lost."""
    of = item.of if isinstance(item, Pending) else type(item)
    evaluated = isinstance(item, Pending | CapturedUpdate) and item.kind == "eval"
    missed = item if isinstance(item, Missed) else Missed(0, 0, "")
    return {
        "rollouts": missed.rollouts + (of is CapturedRollout),
        "updates": missed.updates + (of is CapturedUpdate and not evaluated),
        "evaluations": int(of is CapturedUpdate and evaluated),
        "size": item.nbytes,
    }


def _micro_batch_line(
    micro_batch: CapturedMicroBatch, rollout: CapturedRollout, gap: Gap | None, rank: int | None
) -> MicroBatchLine:
    """`rank`: the data-parallel one, where the record holds the passes of several."""
    reconciled = {} if gap is None else {"loss_gap": gap.loss, "loss_tolerance": gap.tolerance, "token_gap": gap.token}
    counts = counts_of(micro_batch, rollout)
    return MicroBatchLine(
        rollout=micro_batch.rollout,
        rows=counts.rows,
        tokens=counts.tokens,
        width=counts.width,
        counted_rows=counts.counted_rows,
        groups=counts.groups,
        loss=micro_batch.loss,
        num_items_in_batch=micro_batch.num_items_in_batch,
        entropy_coef=micro_batch.entropy_coef,
        entropy_bonus=micro_batch.entropy_bonus,
        router_loss=micro_batch.router_loss,
        dtype=micro_batch.dtype,
        update_tokens=micro_batch.update_tokens,
        update_rows=micro_batch.update_rows,
        data_parallel_rank=rank,
        **reconciled,
    )
