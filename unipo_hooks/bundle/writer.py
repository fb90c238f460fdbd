"""Writes a bundle: folder, manifest, metrics, and segments whose index lines are the commit point.

Order is everything: a segment's files are durable before the index lines that name them are appended, so that a
process killed at any moment leaves a bundle that is whole up to its last index line.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.earlier import read_earlier
from unipo_hooks.bundle.rows import Tables
from unipo_hooks.bundle.segment import Segment
from unipo_hooks.schema import (
    Earlier,
    Joined,
    LogLine,
    Lost,
    Manifest,
    MetricsLine,
    RankFile,
    RolloutLine,
    UpdateLine,
)

UNKNOWN_COMPRESSION = 0.6
"""Bytes of a segment file to bytes in memory, before one was written: text that hardly compresses."""


RESERVE_BYTES = 64 << 10
"""Room on the disk that is kept until the end: where it is full, the manifest can still say what was lost."""


class BundleWriter:
    """One rank's hand on a bundle. Not thread-safe: one thread writes."""

    def __init__(self, path: Path, manifest: Manifest, *, rank: int = 0, earlier: Earlier | None = None) -> None:
        """Write to the folder `path` (see `attempts.open_writer`); `manifest` carries this start as its last attempt.

        `earlier`: where the numbers begin, as rank 0 says; without it, as the folder's files of all ranks say.
        Raises OSError where it cannot be written to, ValueError or KeyError where it holds lines that cannot be read.
        """
        self.path = path
        self._root = path.absolute()  # training may change the working directory
        self.manifest = manifest
        self.rank = rank
        self.attempt = manifest.attempts[-1].attempt
        (self._root / layout.SEGMENTS).mkdir(parents=True, exist_ok=True)
        self._reserve = self._root / layout.reserve_name(rank)
        self._segment: Segment | None = None
        self._pending: list[RolloutLine | UpdateLine] = []
        self._compression = UNKNOWN_COMPRESSION
        self.lost_rollouts: list[RolloutLine] = []
        """Rollouts of the last segment that could not be committed."""
        with contextlib.ExitStack() as opened:
            self._index = _LineFile(self._root / layout.index_name(rank))
            opened.callback(self._index.close)
            self._metrics = _LineFile(self._root / layout.metrics_name(rank))
            opened.callback(self._metrics.close)
            self._number = self._next_segment_number()
            self.earlier = earlier or read_earlier(self._root, range(manifest.ranks))
            self._keep_room()
            self.write_manifest()
            opened.pop_all()

    @property
    def start(self) -> Joined:
        """What another rank needs to write to the same bundle."""
        return Joined(folder=self.path.name, created=self.manifest.created, attempt=self.attempt, earlier=self.earlier)

    @property
    def segment_is_due(self) -> bool:
        """Whether the open segment wants to be closed."""
        return self._segment is not None and self._segment.due

    @property
    def used_bytes(self) -> float:
        """Bytes of all segments; of the open one what it will come to, by how well the last one was compressed."""
        open_bytes = 0 if self._segment is None else self._segment.nbytes
        return self.manifest.cost.segment_bytes + self._compression * open_bytes

    def add_rollout(self, line: dict[str, Any], tables: Tables) -> None:
        """Put a rollout's rows into the open segment; its index line follows when the segment is durable."""
        spans = self._open().add(tables)
        self._pending.append(
            RolloutLine(
                **line,
                attempt=self.attempt,
                segment=layout.segment_name(self.rank, self._number),
                responses=spans[layout.RESPONSES],
                tokens=spans[layout.ROLLOUT_TOKENS],
            )
        )

    def add_update(self, line: dict[str, Any], tables: Tables) -> None:
        """Put an update's rows into the open segment; its index line follows when the segment is durable."""
        spans = self._open().add(tables)
        self._pending.append(
            UpdateLine(
                **line,
                attempt=self.attempt,
                segment=layout.segment_name(self.rank, self._number),
                responses=spans[layout.UPDATE_RESPONSES],
                tokens=spans[layout.UPDATE_TOKENS],
            )
        )

    def add_metrics(self, lines: Iterable[MetricsLine | LogLine]) -> None:
        """Append metrics lines at once; they need no segment. Raises OSError, with nothing half-written."""
        self._metrics.append(lines, durable=False)

    def commit(self) -> None:
        """Close the open segment: its files, then its index lines.

        Raises OSError where the disk refuses; the segment is then lost, counted in the manifest's `lost`, and the
        bundle stays whole. So it does for any other error.
        """
        segment, lines = self._segment, self._pending
        if segment is None:
            return
        self._segment, self._pending = None, []
        try:
            size = segment.write(self._root, layout.segment_name(self.rank, self._number))
            self._metrics.sync()
            self._index.append(lines, durable=True)
        except Exception as error:
            self._lose(segment, lines, _reason(error))
            segment.remove(self._root, layout.segment_name(self.rank, self._number))
            raise
        finally:
            self._number += 1
        self._compression = size / segment.nbytes
        cost = self.manifest.cost
        self.update_manifest(cost=cost.model_copy(update={"segment_bytes": cost.segment_bytes + size}))

    def give_up(self, reason: str) -> None:
        """Count what was never committed as lost."""
        if self._segment is not None:
            segment, lines = self._segment, self._pending
            self._segment, self._pending = None, []
            self._lose(segment, lines, reason)

    def _lose(self, segment: Segment, lines: list[RolloutLine | UpdateLine], reason: str) -> None:
        self.lost_rollouts = [line for line in lines if isinstance(line, RolloutLine)]
        self.count_lost(
            rollouts=len(self.lost_rollouts),
            updates=sum(isinstance(line, UpdateLine) and line.kind == "train" for line in lines),
            evaluations=sum(isinstance(line, UpdateLine) and line.kind == "eval" for line in lines),
            tokens=segment.tokens,
            reason=reason,
        )

    def count_lost(
        self,
        *,
        rollouts: int = 0,
        updates: int = 0,
        evaluations: int = 0,
        tokens: int = 0,
        size: int = 0,
        reconciliations: int = 0,
        reason: str | None = None,
    ) -> None:
        """Add to what the manifest says was captured and could not be kept."""
        lost = self.manifest.lost
        self.update_manifest(
            lost=Lost(
                rollouts=lost.rollouts + rollouts,
                updates=lost.updates + updates,
                evaluations=lost.evaluations + evaluations,
                tokens=lost.tokens + tokens,
                bytes=lost.bytes + size,
                reconciliations=lost.reconciliations + reconciliations,
                reason=lost.reason or reason,
            )
        )

    def update_manifest(self, **changes: Any) -> None:
        """Change fields of the manifest in memory; `write_manifest` makes them durable."""
        self.manifest = self.manifest.model_copy(update=changes)

    def write_manifest(self) -> None:
        """Replace `manifest.json` atomically; a rank above 0 its own file with its share. Raises OSError."""
        manifest = self.manifest
        if self.rank == 0:
            return self._replace(layout.MANIFEST, manifest)
        own = manifest.model_dump(include={"created", "status", "channels", "lost", "cost"})
        notes = manifest.attempts[-1].algorithm_notes
        file = RankFile(**own, rank=self.rank, attempt=self.attempt, algorithm_notes=notes)
        self._replace(layout.rank_name(self.rank), file)

    def _replace(self, name: str, content: BaseModel) -> None:
        temporary, text = self._root / f"{name}.tmp", content.model_dump_json(indent=1) + "\n"
        try:
            _write_durably(temporary, text)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._reserve.exists():
                raise
            self._reserve.unlink()
            _write_durably(temporary, text)
        temporary.replace(self._root / name)
        with contextlib.suppress(OSError):
            self._keep_room()

    def _keep_room(self) -> None:
        if not self._reserve.exists():
            self._reserve.write_bytes(os.urandom(RESERVE_BYTES))

    def close(self) -> None:
        """Give the files back. Commit first."""
        self._index.close()
        self._metrics.close()
        self._reserve.unlink(missing_ok=True)

    def _open(self) -> Segment:
        if self._segment is None:
            self._segment = Segment()
        return self._segment

    def _next_segment_number(self) -> int:
        names = os.listdir(self._root / layout.SEGMENTS)
        return max((n + 1 for name in names if (n := layout.segment_number(self.rank, name)) is not None), default=0)


class _LineFile:
    """A file of JSON lines that only grows, and never by half a line as long as the process lives."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._end_at_whole_line()
        except OSError:
            self.close()
            raise

    def append(self, lines: Iterable[BaseModel], *, durable: bool) -> None:
        """Append whole lines; `durable` waits for the disk, without it they survive the process, not a power cut."""
        data = "".join(line.model_dump_json(exclude_none=True) + "\n" for line in lines).encode()
        size = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                self.sync()
        except Exception:
            os.ftruncate(self._descriptor, size)
            raise

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _end_at_whole_line(self) -> None:
        """Drop what a killed process left of its last line."""
        end = os.fstat(self._descriptor).st_size
        while end:
            start = max(0, end - (1 << 20))
            newline = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            end = start if newline < 0 else start + newline + 1
            if newline >= 0:
                break
        os.ftruncate(self._descriptor, end)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
