"""Takes records from the training thread and has them written on another.

Nothing here may harm training: handing over is an append to a queue that is bounded in bytes and drops, counted, when
it is full.

Ctrl-C reaches the training thread between any two instructions, inside `Condition.__enter__` too, whose lock then stays
taken. So the two threads share no lock that either waits for without end: what they share are a deque and attributes
that one of them writes.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from unipo_hooks.aside import Aside
from unipo_hooks.bundle.attempts import interrupt, open_writer
from unipo_hooks.errors import CaptureError
from unipo_hooks.policy import CapturePolicy
from unipo_hooks.record import CapturedRollout, CapturedUpdate, Pending, RunInfo
from unipo_hooks.schema import Earlier, Joined, Kind
from unipo_hooks.session import Checkpoint, Expected, Item, Missed, Session, TrainerLog, count

QUEUE_BYTES = 512 << 20
"""Host memory that records may take while they wait for the disk."""

EXIT_SECONDS = 5.0
"""Longest that a process which ends waits for the disk: four fifths of it for records, the rest for the last commit."""

NOTICE_SECONDS = 5.0
"""How long the end of training waits for the disk before it says so: until then it is a pause like any other."""

STUCK_SECONDS = 60.0
"""How long the end of training waits for a disk that takes nothing: network disks that fail over answer within it."""

HAND_OVER_SECONDS = 1.0
"""How long the end of a bundle waits for a thread that is just handing something over."""

POLL_SECONDS = 0.005
"""How often a thread that waits for the disk looks: far less than writing a record takes."""

_live: set[Recorder] = set()
"""Recorders whose thread has not ended; in a forked process also those of its parent."""

Status = Literal["finished", "interrupted"]

log = logging.getLogger("unipo_hooks")


class Recorder:
    """Writes one run's bundle from a background thread.

    `path`: the bundle's folder; one that holds another run is left alone and the bundle goes beside it (`.path` tells
    where). `on_full`: what a full queue does to the training thread, drop the record or block until there is room.
    Records are handed over by one thread at a time; any may end the bundle.
    `strict`: raise CaptureError on the training thread for what is otherwise said once in the log. `joined`: on a rank
    above 0, the `start` of rank 0's recorder.

    Raises BundleError where the folder cannot be written to.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        run: RunInfo,
        policy: CapturePolicy | None = None,
        *,
        strict: bool = False,
        on_full: Literal["drop", "block"] = "drop",
        queue_bytes: int = QUEUE_BYTES,
        joined: Joined | None = None,
    ) -> None:
        self.policy = policy or CapturePolicy()
        self._strict, self._block, self._queue_bytes = strict, on_full == "block", queue_bytes
        self._speaker, self._closing = run.speaker, False
        if run.first_update:  # the start before may still write to the bundle that this one goes on with
            _hurry([other for other in tuple(_live) if other._closing and other._is_at(path)])
        writer = open_writer(Path(path), run, self.policy, joined)
        self.path = writer.path
        try:
            self._folder = Path(os.path.realpath(self.path))
            self.start = writer.start
            """What `joined` is on the other ranks."""
            self._session = Session(run, self.policy, writer, self._hurried)
        except BaseException:  # what this imports first takes a while, and Ctrl-C may end it
            interrupt(writer)
            raise
        self._queue: deque[Item] = deque()
        """What waits, the record that is being written included, until it is dealt with."""
        self._given_bytes = 0
        """Of all that was ever queued; the training thread counts."""
        self._done_bytes = self._done = 0
        """Of all that was dealt with, and how many records these are; the writing thread counts."""
        self._handing_over = False
        """Whether the training thread is between looking whether this has ended and queueing."""
        self._bell = threading.Lock()
        """Released for the writing thread to look at the queue, which it does every second anyway."""
        self._given_up = self._ended = False
        self._deadline = math.inf
        """When what is still queued is given up, on the monotonic clock."""
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="unipo-hooks", daemon=True)
        _live.add(self)
        try:
            self._thread.start()
        except BaseException:  # Ctrl-C while this waits for a thread that begins
            self.end("interrupted")
            raise

    @property
    def earlier(self) -> Earlier:
        """What earlier attempts left, where this start continues a bundle."""
        return self._session.earlier

    @property
    def first_update(self) -> int:
        """The update this start begins with: see `RunInfo.steps_before`."""
        return self._session.first_update

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The bundle's, which the components of every rollout follow: see `RunInfo.reward_names_found`."""
        return self._session.reward_names

    @property
    def lost_updates(self) -> int:
        """Updates that are known not to be in the bundle; complete once it is closed."""
        return self._session.lost_updates + (self._waiting_updates() if self._given_up else 0)

    def rollout(self, rollout: CapturedRollout | Pending[CapturedRollout]) -> None:
        """Hand over a rollout; it comes before the updates that train on it."""
        self._put(rollout)

    def update(self, update: CapturedUpdate | Pending[CapturedUpdate]) -> None:
        """Hand over an update."""
        self._put(update)

    def log(self, update: int, step: int, scalars: dict[str, float | None], *, kind: Kind = "train") -> None:
        """Hand over what the trainer itself logged after an update."""
        self._put(TrainerLog(kind, update, step, scalars))

    def expect(self, updates: int) -> None:
        """Say how many updates the run will have, where that was not known at the start."""
        self._put(Expected(updates))

    def missed(self, updates: int, rollouts: int, reason: str) -> None:
        """Count what was not handed over."""
        self._put(Missed(updates, rollouts, reason))

    def checkpoint(self) -> None:
        """Make everything so far durable, as soon as the writing thread gets there."""
        self._put(Checkpoint())

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was handed over is durable; False where that failed, or `timeout` seconds passed."""
        if self._forked:  # there is no thread to wait for
            return False
        self.checkpoint()  # once this is closing its end is one
        durable = self._wait(
            lambda: self._ended or not (self._queue or self._closing), math.inf if timeout is None else timeout
        )
        return durable and self._session.failure is None

    def end(self, status: Status = "finished", *, within: float = math.inf) -> None:
        """Take no more records: what is queued is written and the attempt ended, without anyone waiting for it.

        `within`: seconds after which what is still queued is counted as lost instead. The first status stays.
        """
        if self._forked:
            return
        if within < math.inf:
            self._deadline = min(self._deadline, time.monotonic() + within)
        if not self._closing:
            self._session.final_status = status
            self._closing = True
        with suppress(RuntimeError):
            self._bell.release()

    def close(self, status: Status = "finished") -> bool:
        """Write what is queued, end the attempt and stop the thread. A second call waits for the first.

        False where the disk took nothing for `STUCK_SECONDS`: it is not waited for any longer, only until the process
        ends.
        """
        if self._forked:
            return True
        self.end(status)
        if not self._ends(NOTICE_SECONDS):
            log.warning("%swriting the last %d MB to %s", self._speaker, self._waiting_megabytes(), self.path)
        done = -1
        while not self._ended and done != self._done:
            done = self._done
            self._ends(STUCK_SECONDS)
        self._given_up = not self._ended
        failure = self._session.failure
        if self._given_up:
            failure = (
                f"{self.path} has taken nothing for {STUCK_SECONDS:.0f} s. What waits for it is lost "
                f"({self._waiting_updates()} updates, {self._waiting_megabytes()} MB), unless it answers before the "
                "process ends"
            )
            log.warning("%s%s.", self._speaker, failure)
        if self._strict and failure is not None:
            raise CaptureError(failure)
        return not self._given_up

    @property
    def _forked(self) -> bool:
        """Whether this is a forked worker's copy, which has the object and not the thread."""
        return os.getpid() != self._process

    def _is_at(self, path: str | os.PathLike[str]) -> bool:
        """Whether this writes to `path`, or to one of the names beside it that are taken where it is."""
        wanted = Path(os.path.realpath(path))
        names = re.escape(wanted.name) + r"(-\d+)?"
        return self._folder.parent == wanted.parent and re.fullmatch(names, self._folder.name) is not None

    def _waiting_updates(self) -> int:
        return sum(count(item)["updates"] for item in self._queue.copy())

    def _waiting_bytes(self) -> int:
        return self._given_bytes - self._done_bytes

    def _waiting_megabytes(self) -> int:
        return (self._waiting_bytes() >> 20) + 1

    def _put(self, item: Item) -> None:
        if self._forked:
            return
        if self._strict and self._session.failure is not None:
            raise CaptureError(self._session.failure)
        if self._block:
            self._wait(lambda: self._closing or self._fits(item))
        first_dropped = False
        self._handing_over = True
        try:
            if self._closing:
                return
            if self._fits(item):
                self._given_bytes += item.nbytes  # first: an interrupt may cost room, never the bound
                self._queue.append(item)
            else:
                first_dropped = self._session.count_dropped(item)
        finally:
            self._handing_over = False
        with suppress(RuntimeError):  # it is released already
            self._bell.release()
        if first_dropped:
            slow = "%swriting to %s is slower than the run. Records are dropped and counted; training goes on."
            log.warning(slow, self._speaker, self.path)

    def _hurried(self) -> bool:
        """Whether half of the queue is taken: what can be recomputed later is then left out."""
        return self._waiting_bytes() > self._queue_bytes // 2

    def _fits(self, item: Item) -> bool:
        """Whether there is room; beside the record that is being written there is for one, whatever its size, and
        always for what has no bytes.
        """
        return not item.nbytes or len(self._queue) < 2 or self._waiting_bytes() + item.nbytes <= self._queue_bytes

    def _ends(self, within: float) -> bool:
        """Whether the thread has done its last within these seconds. `Thread.join` forgets how to wait once Ctrl-C
        has hit it (Python 3.11 and 3.12): it takes the thread for ended.
        """
        return self._wait(lambda: self._ended, within)

    def _wait(self, until: Callable[[], bool], seconds: float = math.inf) -> bool:
        """Whether it has come true within `seconds`."""
        deadline = time.monotonic() + seconds
        while not until():
            if (left := deadline - time.monotonic()) <= 0:
                return False
            time.sleep(min(left, POLL_SECONDS))
        return True

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self._collapse(error)
        finally:
            _live.discard(self)
            self._ended = True

    def _write(self) -> None:
        """Do what comes in, until the end."""
        while True:
            if not (self._queue or self._closing):
                self._bell.acquire(timeout=1.0)
            closing = self._closing
            if closing and not self._queue:
                self._let_hand_over()
            item = self._queue[0] if self._queue else None
            last = item is None and closing
            try:
                if item is not None and time.monotonic() > self._deadline:
                    self._session.lose(item, "the process ended before they were written")
                elif item is not None:
                    self._session.process(item)
                elif last:
                    self._session.finish()
                else:
                    self._session.idle()
            except BaseException as error:  # a part of the user's own may even exit
                self._session.abandon(error, item)
            if item is not None:
                self._queue.popleft()
                self._done_bytes += item.nbytes
                self._done += 1
            if last:
                return

    def _let_hand_over(self) -> None:
        """Wait a moment for what may be on its way into the queue."""
        deadline = time.monotonic() + HAND_OVER_SECONDS
        while self._handing_over and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _collapse(self, error: BaseException) -> None:
        """Nothing more can be written: let nobody wait for it, and count what is queued."""
        if not self._closing:
            self._session.final_status = "interrupted"
            self._closing = True
        self._session.abandon(error)
        while self._queue:
            item = self._queue.popleft()
            self._session.lose(item, self._session.failure or "they could not be written")
        self._session.finish()


def close_all() -> None:
    """End every recorder of this process as interrupted, in `EXIT_SECONDS` at most: the process is about to end.

    What is not written by then is counted as lost, or where the disk does not answer at all, said to be. Exceptions,
    `strict` or not, are past the point where anyone could act on them.
    """
    _hurry([recorder for recorder in tuple(_live) if not recorder._forked])


def _hurry(recorders: list[Recorder]) -> None:
    """End recorders, in `EXIT_SECONDS` at most."""
    deadline = time.monotonic() + EXIT_SECONDS
    for recorder in recorders:
        recorder.end("interrupted", within=0.8 * EXIT_SECONDS)
    for recorder in recorders:
        if not recorder._ends(deadline - time.monotonic()):
            lost = "%s%s does not take what is left of this run: it is lost"
            Aside(log).warning(lost, recorder._speaker, recorder.path)


atexit.register(close_all)
