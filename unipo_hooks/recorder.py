"""Takes records from the training thread and has them written on another.

Nothing here may harm training: handing over is an append to a queue that is bounded in bytes and drops, counted, when
it is full.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from pathlib import Path
from typing import Literal

from unipo_hooks.bundle.attempts import open_writer
from unipo_hooks.bundle.earlier import Earlier
from unipo_hooks.errors import CaptureError
from unipo_hooks.policy import CapturePolicy
from unipo_hooks.record import CapturedRollout, CapturedUpdate, Pending, RunInfo
from unipo_hooks.schema import Kind
from unipo_hooks.session import Checkpoint, Item, Session, TrainerLog

QUEUE_BYTES = 512 << 20
"""Host memory that records may take while they wait for the disk."""

log = logging.getLogger("unipo_hooks")


class Recorder:
    """Writes one run's bundle from a background thread.

    `path`: the bundle's folder; one that holds another run is left alone and the bundle goes beside it (`.path` tells
    where). `on_full`: what a full queue does to the training thread, drop the record or block until there is room.
    `strict`: raise CaptureError on the training thread for what is otherwise said once in the log.

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
    ) -> None:
        self.policy = policy or CapturePolicy()
        self._strict, self._block, self._queue_bytes = strict, on_full == "block", queue_bytes
        writer = open_writer(Path(path), run, self.policy)
        self.path = writer.path
        self._session = Session(run, self.policy, writer, self._hurried)
        self._queue: deque[Item] = deque()
        self._waiting_bytes = 0
        self._busy = False
        self._closing = False
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="unipo-hooks", daemon=True)
        self._thread.start()
        atexit.register(self._interrupted)

    @property
    def earlier(self) -> Earlier:
        """What earlier attempts left, where this start continues a bundle."""
        return self._session.earlier

    def rollout(self, rollout: CapturedRollout | Pending[CapturedRollout]) -> None:
        """Hand over a rollout; it comes before the updates that train on it."""
        self._put(rollout)

    def update(self, update: CapturedUpdate | Pending[CapturedUpdate]) -> None:
        """Hand over an update."""
        self._put(update)

    def log(self, update: int, step: int, scalars: dict[str, float | None], *, kind: Kind = "train") -> None:
        """Hand over what the trainer itself logged after an update."""
        self._put(TrainerLog(kind, update, step, scalars))

    def checkpoint(self) -> None:
        """Make everything so far durable, as soon as the writing thread gets there."""
        self._put(Checkpoint())

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was handed over is durable; False where that failed, or `timeout` seconds passed."""
        self.checkpoint()
        with self._changed:
            done = self._changed.wait_for(lambda: not self._queue and not self._busy, timeout)
        return done and self._session.failure is None

    def close(self, status: Literal["finished", "interrupted"] = "finished") -> None:
        """Write what is queued, end the attempt and stop the thread. A second call waits for the first."""
        if os.getpid() != self._process:  # a forked worker has the object, not the thread
            return
        with self._changed:
            if not self._closing:
                self._closing = True
                self._session.final_status = status
            waiting = self._waiting_bytes
            self._changed.notify_all()
        if waiting > 64 << 20:
            log.warning("unipo-hooks: writing the last %d MB to %s", waiting >> 20, self.path)
        self._thread.join()
        atexit.unregister(self._interrupted)
        if self._strict and self._session.failure is not None:
            raise CaptureError(self._session.failure)

    def _interrupted(self) -> None:
        """The interpreter ends without a word from the trainer: write what is queued."""
        self.close("interrupted")

    def _put(self, item: Item) -> None:
        if self._strict and self._session.failure is not None:
            raise CaptureError(self._session.failure)
        with self._changed:
            if self._closing:
                return
            if self._block:
                self._changed.wait_for(lambda: self._fits(item))
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
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing, timeout=1.0)
                item = self._queue.popleft() if self._queue else None
                self._busy = item is not None
                last = item is None and self._closing
            if item is not None:
                self._session.process(item)
            elif last:
                self._session.finish()
            else:
                self._session.idle()
            with self._changed:
                self._busy = False
                if item is not None:
                    self._waiting_bytes -= item.nbytes
                self._changed.notify_all()
            if last:
                return
