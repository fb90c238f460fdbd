"""Writes a bundle: folder, manifest, metrics, and segments whose index lines are the commit point.

Order is everything: a segment's files are durable before the index lines that name them are appended, so that a
process killed at any moment leaves a bundle that is whole up to its last index line.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.rows import Tables
from unipo_hooks.bundle.segment import Segment
from unipo_hooks.errors import BundleError
from unipo_hooks.schema import Attempt, Header, LogLine, Lost, Manifest, MetricsLine, RolloutLine, UpdateLine


class BundleWriter:
    """One rank's hand on a bundle. Not thread-safe: one thread writes."""

    def __init__(self, path: Path, manifest: Manifest, *, rank: int = 0) -> None:
        """Take over `path` (see `claim_folder`); `manifest` carries this start as its last attempt.

        Raises BundleError where the folder cannot be written to.
        """
        self.path = path
        self._root = path.absolute()  # training may change the working directory
        self.manifest = manifest
        self.rank = rank
        self.attempt = manifest.attempts[-1].attempt
        try:
            (self._root / layout.SEGMENTS).mkdir(parents=True, exist_ok=True)
            self._index = _LineFile(self._root / layout.index_name(rank))
            self._metrics = _LineFile(self._root / layout.metrics_name(rank))
            self._number = self._next_segment_number()
            self.earlier = Earlier.read(self._root, rank)
            self.write_manifest()
        except OSError as error:
            raise BundleError(f"cannot write to {path}: {_reason(error)}") from error
        except (ValueError, KeyError) as error:
            raise BundleError(f"cannot continue {path}: it is damaged (see unipo-hooks validate {path})") from error
        self._segment: Segment | None = None
        self._pending: list[RolloutLine | UpdateLine] = []
        self.lost_rollouts: list[RolloutLine] = []
        """Rollouts of the last segment that could not be committed."""

    @property
    def segment_is_due(self) -> bool:
        """Whether the open segment wants to be closed."""
        return self._segment is not None and self._segment.due

    @property
    def open_tokens(self) -> int:
        """Token rows of the open segment."""
        return 0 if self._segment is None else self._segment.tokens

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
            self._index.append(lines, durable=True)
            self._metrics.sync()
        except Exception as error:
            self.lost_rollouts = [line for line in lines if isinstance(line, RolloutLine)]
            self.count_lost(
                rollouts=len(self.lost_rollouts),
                updates=sum(isinstance(line, UpdateLine) for line in lines),
                tokens=segment.tokens,
                reason=_reason(error),
            )
            raise
        finally:
            self._number += 1
        cost = self.manifest.cost
        self.update_manifest(cost=cost.model_copy(update={"segment_bytes": cost.segment_bytes + size}))

    def count_lost(
        self, *, rollouts: int = 0, updates: int = 0, tokens: int = 0, size: int = 0, reason: str | None = None
    ) -> None:
        """Add to what the manifest says was captured and could not be kept."""
        lost = self.manifest.lost
        self.update_manifest(
            lost=Lost(
                rollouts=lost.rollouts + rollouts,
                updates=lost.updates + updates,
                tokens=lost.tokens + tokens,
                bytes=lost.bytes + size,
                reason=lost.reason or reason,
            )
        )

    def update_manifest(self, **changes: Any) -> None:
        """Change fields of the manifest in memory; `write_manifest` makes them durable."""
        self.manifest = self.manifest.model_copy(update=changes)

    def write_manifest(self) -> None:
        """Replace `manifest.json` atomically (rank 0 alone). Raises OSError."""
        if self.rank == 0:
            temporary = self._root / (layout.MANIFEST + ".tmp")
            with temporary.open("w", encoding="utf-8") as file:
                file.write(self.manifest.model_dump_json(indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._root / layout.MANIFEST)

    def close(self) -> None:
        """Give the files back. Commit first."""
        self._index.close()
        self._metrics.close()

    def _open(self) -> Segment:
        if self._segment is None:
            self._segment = Segment()
        return self._segment

    def _next_segment_number(self) -> int:
        names = os.listdir(self._root / layout.SEGMENTS)
        return max((n + 1 for name in names if (n := layout.segment_number(self.rank, name)) is not None), default=0)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What earlier attempts left in a bundle: where this one's numbers begin."""

    kept_rollouts: int
    next_rollout: dict[str, int]
    """First rollout number of each kind that is free."""
    next_evaluation: int

    @classmethod
    def read(cls, path: Path, rank: int) -> Earlier:
        """From a rank's index and metrics, whose last lines are whole."""
        index = (path / layout.index_name(rank)).read_text(encoding="utf-8")
        metrics = (path / layout.metrics_name(rank)).read_text(encoding="utf-8")
        updates = [line for line in map(json.loads, metrics.splitlines()) if line["entry"] == "metrics"]
        highest = {"train": -1, "eval": -1}
        for line in updates:
            highest[line["kind"]] = max(highest[line["kind"]], *line["rollouts"])
        return cls(
            kept_rollouts=index.count('{"entry":"rollout"'),
            next_rollout={kind: number + 1 for kind, number in highest.items()},
            next_evaluation=1 + max((line["update"] for line in updates if line["kind"] == "eval"), default=-1),
        )


class _LineFile:
    """A file of JSON lines that only grows, and never by half a line as long as the process lives."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._end_at_whole_line()

    def append(self, lines: Iterable[BaseModel], *, durable: bool) -> None:
        """Append whole lines; `durable` waits for the disk, without it they survive the process, not a power cut."""
        data = "".join(line.model_dump_json(exclude_none=True) + "\n" for line in lines).encode()
        size = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                self.sync()
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _end_at_whole_line(self) -> None:
        """Drop what a killed process left of its last line."""
        size = os.fstat(self._descriptor).st_size
        tail = os.pread(self._descriptor, min(size, 1 << 20), max(0, size - (1 << 20)))
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(self._descriptor, size - len(tail) + tail.rfind(b"\n") + 1)


def claim_folder(path: Path) -> Path:
    """A folder a new run may write to: `path`, or the first of `path-2`, `path-3`, … that holds no other run.

    A path that is a file is left alone too.
    """
    candidate, number = path, 1
    while candidate.is_file() or (candidate / layout.MANIFEST).exists() or (candidate / layout.SEGMENTS).exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def resumable(path: Path, header: Header) -> Manifest | None:
    """The manifest at `path` where it is of the same run (model, dataset and algorithm agree), else None."""
    try:
        manifest = Manifest.model_validate_json((path / layout.MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = ("algorithm", "dataset", "model_name")
    return manifest if all(getattr(manifest.header, f) == getattr(header, f) for f in same) else None


def end_attempt(attempts: list[Attempt], *, status: Any, ended: str) -> list[Attempt]:
    """The attempts with the last one ended."""
    return [*attempts[:-1], attempts[-1].model_copy(update={"status": status, "ended": ended})]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
