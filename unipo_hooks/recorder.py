"""Takes records from the training thread and has them written on another.

Nothing here may harm training: handing over is an append to a queue that is bounded in bytes and drops, counted, when
it is full.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Literal

from unipo_hooks.bundle.attempts import interrupt, open_writer
from unipo_hooks.errors import CaptureError
from unipo_hooks.policy import CapturePolicy
from unipo_hooks.record import CapturedRollout, CapturedUpdate, Pending, RunInfo
from unipo_hooks.schema import Earlier, Joined, Kind
from unipo_hooks.session import Checkpoint, Item, Missed, Session, TrainerLog

QUEUE_BYTES = 512 << 20
"""Host memory that records may take while they wait for the disk."""

EXIT_SECONDS = 5.0
"""Longest that a process which ends waits for the disk: four fifths of it for records, the rest for the last commit."""

_live: set[Recorder] = set()
"""Recorders whose thread has not ended; in a forked process also those of its parent."""

Status = Literal["finished", "interrupted"]

log = logging.getLogger("unipo_hooks")


class Recorder:
    """Writes one run's bundle from a background thread.

    `path`: the bundle's folder; one that holds another run is left alone and the bundle goes beside it (`.path` tells
    where). `on_full`: what a full queue does to the training thread, drop the record or block until there is room.
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
        self._closing = False
        for other in tuple(_live):  # it may write to the bundle that this start goes on with
            if other._closing:
                other.close()
        writer = open_writer(Path(path), run, self.policy, joined)
        self.path = writer.path
        try:
            self.start = writer.start
            """What `joined` is on the other ranks."""
            self._session = Session(run, self.policy, writer, self._hurried)
        except Exception:
            interrupt(writer)
            raise
        self._queue: deque[Item] = deque()
        self._waiting_bytes = 0
        self._busy = False
        self._deadline = math.inf
        """When what is still queued is given up, on the monotonic clock."""
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="unipo-hooks", daemon=True)
        _live.add(self)
        self._thread.start()

    @property
    def earlier(self) -> Earlier:
        """What earlier attempts left, where this start continues a bundle."""
        return self._session.earlier

    @property
    def lost_updates(self) -> int:
        """Updates that are known not to be in the bundle; complete once it is closed."""
        return self._session.lost_updates

    def rollout(self, rollout: CapturedRollout | Pending[CapturedRollout]) -> None:
        """Hand over a rollout; it comes before the updates that train on it."""
        self._put(rollout)

    def update(self, update: CapturedUpdate | Pending[CapturedUpdate]) -> None:
        """Hand over an update."""
        self._put(update)

    def log(self, update: int, step: int, scalars: dict[str, float | None], *, kind: Kind = "train") -> None:
        """Hand over what the trainer itself logged after an update."""
        self._put(TrainerLog(kind, update, step, scalars))

    def missed(self, updates: int, reason: str) -> None:
        """Count updates that were not handed over."""
        self._put(Missed(updates, reason))

    def checkpoint(self) -> None:
        """Make everything so far durable, as soon as the writing thread gets there."""
        self._put(Checkpoint())

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was handed over is durable; False where that failed, or `timeout` seconds passed."""
        self.checkpoint()
        with self._changed:
            done = self._changed.wait_for(lambda: not self._queue and not self._busy, timeout)
        return done and self._session.failure is None

    def end(self, status: Status = "finished", *, within: float = math.inf) -> None:
        """Take no more records: what is queued is written and the attempt ended, without anyone waiting for it.

        `within`: seconds after which what is still queued is counted as lost instead. The first status stays.
        """
        if os.getpid() != self._process:  # a forked worker has the object, not the thread
            return
        with self._changed:
            if not self._closing:
                self._closing = True
                self._session.final_status = status
            self._deadline = min(self._deadline, time.monotonic() + within)
            self._changed.notify_all()

    def close(self, status: Status = "finished") -> None:
        """Write what is queued, end the attempt and stop the thread. A second call waits for the first."""
        if os.getpid() != self._process:
            return
        self.end(status)
        if self._waiting_bytes > 64 << 20:
            log.warning("unipo-hooks: writing the last %d MB to %s", self._waiting_bytes >> 20, self.path)
        self._thread.join()
        if self._strict and self._session.failure is not None:
            raise CaptureError(self._session.failure)

    def _put(self, item: Item) -> None:
        if self._strict and self._session.failure is not None:
            raise CaptureError(self._session.failure)
        with self._changed:
            if self._closing:
                return
            if self._block:
                self._changed.wait_for(lambda: self._closing or self._fits(item))
                if self._closing:
                    return
            elif not self._fits(item):
                self._session.count_dropped(item)
                return
            self._queue.append(item)
            self._waiting_bytes += item.nbytes
            self._changed.notify_all()

    def _hurried(self) -> bool:
        """Whether half of the queue is taken: what can be recomputed later is then left out."""
        return self._waiting_bytes > self._queue_bytes // 2

    def _fits(self, item: Item) -> bool:
        return not self._queue or self._waiting_bytes + item.nbytes <= self._queue_bytes

    def _run(self) -> None:
        try:
            self._write()
        except Exception as error:
            self._session.abandon(error)
            _live.discard(self)

    def _write(self) -> None:
        """Do what comes in, until the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing, timeout=1.0)
                item = self._queue.popleft() if self._queue else None
                self._busy = item is not None
                last = item is None and self._closing
            try:
                if item is not None and time.monotonic() > self._deadline:
                    self._session.lose(item, "the process ended before they were written")
                elif item is not None:
                    self._session.process(item)
                elif last:
                    self._session.finish()
                else:
                    self._session.idle()
            except Exception as error:
                self._session.abandon(error, item)
            with self._changed:
                self._busy = False
                if item is not None:
                    self._waiting_bytes -= item.nbytes
                self._changed.notify_all()
            if last:
                _live.discard(self)
                return


def close_all() -> None:
    """End every recorder of this process as interrupted, in `EXIT_SECONDS` at most: the process is about to end.

    What is not written by then is counted as lost, or where the disk does not answer at all, said to be. Exceptions,
    `strict` or not, are past the point where anyone could act on them.
    """
    recorders = [recorder for recorder in tuple(_live) if recorder._process == os.getpid()]
    deadline = time.monotonic() + EXIT_SECONDS
    for recorder in recorders:
        recorder.end("interrupted", within=0.8 * EXIT_SECONDS)
    for recorder in recorders:
        recorder._thread.join(max(0.0, deadline - time.monotonic()))
        if recorder._thread.is_alive():
            log.warning("unipo-hooks: %s does not take what is left of this run: it is lost", recorder.path)


atexit.register(close_all)
