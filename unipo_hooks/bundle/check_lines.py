"""Checks of a bundle's manifest and lines: what can be said of them without opening a segment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from pydantic import ValidationError

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.faults import Report
from unipo_hooks.bundle.files import (
    AnyLine,
    Files,
    check_segment,
    json_path,
    parse_line,
    problem,
    reason,
    version_problem,
)
from unipo_hooks.bundle.tables import number_of, span_of
from unipo_hooks.schema import VERSION, LogLine, Manifest, MetricsLine, RankFile, RolloutLine, UpdateLine

TABLES_OF = {
    RolloutLine: (layout.RESPONSES, layout.ROLLOUT_TOKENS),
    UpdateLine: (layout.UPDATE_RESPONSES, layout.UPDATE_TOKENS),
}
"""Model of an index line → the tables it has rows in: responses, then tokens."""

_LINE_FILE = re.compile(r"(?:index|metrics)\.r(\d+)\.jsonl")


class WrittenLine(NamedTuple):
    """An index line and where it is written."""

    file: str
    number: int
    line: RolloutLine | UpdateLine


class LineChecks:
    """Goes through a bundle's manifest and lines, and reports what is wrong with them."""

    def __init__(self, files: Files, report: Report) -> None:
        self._files = files
        self._report = report
        self.manifest: Manifest | None = None
        """The manifest, once `manifest_is_ours` has read it and found it sound."""
        self.unclear: set[str] = set()
        """Files of which a line, or all, could not be read: what they do not say proves nothing."""

    def manifest_is_ours(self) -> bool:
        """Check the manifest; whether the rest is in a format this version knows."""
        try:
            data = json.loads(self._files.read(layout.MANIFEST), parse_constant=_not_json)
            if not isinstance(data, dict):
                raise ValueError("not a JSON object")
            if unreadable := version_problem(data):
                self._report.fault(layout.MANIFEST, None, unreadable)
                return False
            self.manifest = Manifest.model_validate(data)
        except FileNotFoundError:
            self._report.fault(layout.MANIFEST, None, "is missing: without it this folder is not a bundle")
        except (OSError, ValueError, RecursionError) as error:
            line = error.lineno if isinstance(error, json.JSONDecodeError) else None
            for message in _problems(error):
                self._report.fault(layout.MANIFEST, line, message)
        return True

    def ranks(self) -> list[int]:
        """Ranks that wrote a file, whether the manifest counts them or not."""
        names = sorted(path.name for path in self._files.root.iterdir())
        of = {name: int(match.group(1)) for name in names if (match := _LINE_FILE.fullmatch(name))}
        if self.manifest is not None:
            count = self.manifest.ranks
            for name, rank in of.items():
                if rank >= count:
                    what = f"is of rank {rank}, and {layout.MANIFEST} counts {count}: it is not read"
                    self._report.fault(name, None, what)
            silent = count - len({rank for name, rank in of.items() if rank < count and name.startswith("index")})
            if count > 1 and silent:
                self._report.note(layout.MANIFEST, None, f"{silent} of {count} ranks have written no index")
        return sorted(set(of.values()))

    def rank_file(self, rank: int) -> None:
        """Check what a rank above 0 says of itself, where it says anything."""
        name = layout.rank_name(rank)
        try:
            said = RankFile.model_validate(json.loads(self._files.read(name), parse_constant=_not_json))
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            for message in _problems(error):
                self._report.fault(name, None, message)
            return
        if said.rank != rank:
            self._report.fault(name, None, f"is of rank {said.rank}")
        if self.manifest is not None and said.created != self.manifest.created:
            self._report.fault(name, None, f"is of another run than {layout.MANIFEST}: it is not read")

    def missing(self, entries: Mapping[int, Sequence[WrittenLine]]) -> None:
        """Note what a rank lacks that another has, where both trained: it was killed earlier, or is behind."""
        if self.manifest is None:
            return
        for rank, own in entries.items():
            name = layout.index_name(rank)
            if not own or name in self.unclear:
                continue
            have = {_key(entry.line) for entry in own}
            others = (entry.line for each in entries.values() for entry in each)
            lacks = {_key(line) for line in others if rank < self.manifest.ranks_of(line.attempt)} - have
            for entry_kind in ("rollout", "update"):
                numbers = sorted(number for entry, *_, number in lacks if entry == entry_kind)
                if numbers:
                    what = f"{len(numbers)} {entry_kind}{'' if len(numbers) == 1 else 's'}"
                    first = f"(first: {entry_kind} {numbers[0]})"
                    self._report.note(name, None, f"lacks {what} that other ranks have {first}")

    def entries(self, rank: int) -> Iterator[WrittenLine]:
        """The lines of a rank's index whose segments can be looked at."""
        name = layout.index_name(rank)
        seen: dict[Any, int] = {}
        for number, line in self._lines(name):
            if not isinstance(line, RolloutLine | UpdateLine):
                self._report.fault(name, number, f"entry {line.entry!r} belongs in {layout.metrics_name(rank)}")
                continue
            self._attempt(name, number, line.attempt)
            what = line.rollout if isinstance(line, RolloutLine) else line.update
            self._once(name, number, seen, (line.entry, line.kind, line.attempt, what), f"{line.entry} {what}")
            try:
                check_segment(line.segment, rank)
            except ValueError as error:
                self._report.fault(name, number, str(error))
                continue
            yield WrittenLine(name, number, line)

    def overlaps(self, entries: Sequence[WrittenLine]) -> None:
        """Row ranges that are none, or that reach into another entry's."""
        for tables in TABLES_OF.values():
            for table in tables:
                self._overlaps_in(table, [entry for entry in entries if table in TABLES_OF[type(entry.line)]])

    def metrics(self, rank: int) -> None:
        """Check the lines of a rank's metrics."""
        name = layout.metrics_name(rank)
        seen: dict[Any, int] = {}
        for number, line in self._lines(name):
            if not isinstance(line, MetricsLine | LogLine):
                self._report.fault(name, number, f"entry {line.entry!r} belongs in {layout.index_name(rank)}")
                continue
            self._attempt(name, number, line.attempt)
            if isinstance(line, MetricsLine):
                for metric, (_, count, _) in line.sums.items():
                    if count < 0:
                        self._report.fault(name, number, f"the count of {metric} is negative: {count:g}")
                self._once(name, number, seen, (line.kind, line.attempt, line.update), f"update {line.update}")

    def _lines(self, name: str) -> Iterator[tuple[int, AnyLine]]:
        try:
            *lines, rest = self._files.read(name).split(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            self.unclear.add(name)
            return self._report.fault(name, None, f"cannot be read: {reason(error)}")
        for number, text in enumerate(lines, 1):
            try:
                data = json.loads(text, parse_constant=_not_json)
                line = parse_line(text)
                if line is not None:
                    yield number, line
                elif self._is_newer():
                    what = f"entry {data.get('entry')!r} is of a newer version and is passed over"
                    self._report.note(name, number, what)
                else:
                    self._report.fault(name, number, f"entry {data.get('entry')!r} is not one of the format's")
            except (ValueError, RecursionError) as error:
                self.unclear.add(name)
                for message in _problems(error):
                    self._report.fault(name, number, message)
        if rest:
            self._report.note(name, len(lines) + 1, "the last line is half-written; readers pass over it")

    def _is_newer(self) -> bool:
        return self.manifest is not None and _minor(self.manifest.version) > _minor(VERSION)

    def _attempt(self, name: str, number: int, attempt: int) -> None:
        if self.manifest is not None and attempt not in {a.attempt for a in self.manifest.attempts}:
            self._report.fault(name, number, f"attempt {attempt} is not one of the attempts in {layout.MANIFEST}")

    def _once(self, name: str, number: int, seen: dict[Any, int], key: Any, what: str) -> None:
        first = seen.setdefault(key, number)
        if first != number:
            self._report.fault(name, number, f"{what} is already on line {first}")

    def _overlaps_in(self, table: str, entries: list[WrittenLine]) -> None:
        spans = sorted((e.line.segment, *span_of(e.line, table), e.number, e.file) for e in entries)
        before = ("", 0, 0)
        for segment, start, end, number, file in spans:
            if start < 0 or end < start:
                self._report.fault(file, number, f"[{start}, {end}) is not a row range")
                continue
            if segment == before[0] and start < before[1] and end > start:
                path = layout.segment_path(segment, table)
                what = f"rows [{start}, {end}) of {path} overlap those of line {before[2]}"
                self._report.fault(file, number, what)
            if segment != before[0] or end > before[1]:
                before = (segment, end, number)


def _key(line: RolloutLine | UpdateLine) -> tuple[str, str, int, int]:
    return line.entry, line.kind, line.attempt, number_of(line)


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"not JSON: {constant}")


def _minor(version: str) -> int:
    minor = version.partition(".")[2]
    return int(minor) if minor.isdecimal() else 0


def _problems(error: Exception) -> list[str]:
    if isinstance(error, ValidationError):
        return [f"{json_path(e['loc'])}: {e['msg']}" for e in error.errors(include_url=False)]
    return [f"cannot be read: {reason(error)}" if isinstance(error, OSError) else problem(error)]
