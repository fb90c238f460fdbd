"""A bundle's lines: which rollouts and updates there are, and which of them a later attempt did again.

A rollout belongs to the attempt that sampled it. When a later attempt starts at update F, updates of earlier attempts
from F on are *superseded*, and so are rollouts that none but superseded updates used. Evaluations count apart: they go
by the trainer's step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.files import AnyLine, Files, check_segment, parse_line, problem, validate_hint
from unipo_hooks.bundle.tables import Entry, Item, number_of
from unipo_hooks.errors import BundleError
from unipo_hooks.schema import Kind, LogLine, Manifest, MetricsLine, RolloutLine, UpdateLine

_Numbered = dict[tuple[Kind, int], list[Item[Entry]]]


class Entries:
    """The lines of all ranks, each file read once. Every method raises BundleError where a line cannot be read."""

    def __init__(self, files: Files, manifest: Manifest) -> None:
        self._files = files
        self._manifest = manifest

    def rollouts(self, kind: Kind, superseded: bool, number: int | None = None) -> list[Item[RolloutLine]]:
        """Captured rollouts by number, attempt and rank; `number`: that one alone."""
        return _select(self._rollouts, kind, superseded, number)

    def updates(
        self, kind: Kind, superseded: bool, number: int | Iterable[int] | None = None
    ) -> list[Item[UpdateLine]]:
        """Captured updates by number, attempt and rank; `number`: that one alone, or those in their order."""
        return _select(self._updates, kind, superseded, number)

    def metrics(self, kind: Kind, superseded: bool) -> Iterator[tuple[MetricsLine | LogLine, bool]]:
        """Metrics lines, and whether each is superseded, as they were written."""
        for line in self._metrics_lines:
            hidden = self._is_superseded(line)
            if line.kind == kind and (superseded or not hidden):
                yield line, hidden

    def source(self, update: Item[UpdateLine], rollout: int) -> Item[RolloutLine] | None:
        """The rollout of that number that an update trained on; None where it was not captured."""
        same = (
            item
            for item in self._rollouts.get((update.line.kind, rollout), [])
            if (item.rank, item.line.attempt) == (update.rank, update.line.attempt)
        )
        return next(same, None)

    # --- reading ---------------------------------------------------------------------------------------------------

    @cached_property
    def _index_lines(self) -> list[tuple[int, RolloutLine | UpdateLine]]:
        return [(r, x) for r, x in self._lines(layout.index_name) if isinstance(x, RolloutLine | UpdateLine)]

    @cached_property
    def _metrics_lines(self) -> list[MetricsLine | LogLine]:
        return [x for _, x in self._lines(layout.metrics_name) if isinstance(x, MetricsLine | LogLine)]

    def _lines(self, name_of: Callable[[int], str]) -> Iterator[tuple[int, AnyLine]]:
        for rank in range(self._manifest.ranks):
            name = name_of(rank)
            for number, text in enumerate(self._files.whole_lines(name), 1):
                try:
                    line = parse_line(text)
                    if isinstance(line, RolloutLine | UpdateLine):
                        check_segment(line.segment, rank)
                except (ValueError, RecursionError) as error:
                    place, hint = f"{self._files.root / name}:{number}", validate_hint(self._files.root)
                    raise BundleError(f"{place}: {problem(error)}; {hint}") from error
                if line is not None:
                    yield rank, line

    # --- attempts --------------------------------------------------------------------------------------------------

    @cached_property
    def _updates(self) -> _Numbered[UpdateLine]:
        lines = [(rank, line) for rank, line in self._index_lines if isinstance(line, UpdateLine)]
        return _numbered(Item(rank, line, self._is_superseded(line)) for rank, line in lines)

    @cached_property
    def _rollouts(self) -> _Numbered[RolloutLine]:
        used: dict[tuple[str, int, int], bool] = {}
        for line in (*(line for _, line in self._index_lines), *self._metrics_lines):
            if isinstance(line, UpdateLine | MetricsLine):
                visible = not self._is_superseded(line)
                for rollout in line.rollouts:
                    key = (line.kind, line.attempt, rollout)
                    used[key] = used.get(key, False) or visible
        last = max((attempt.attempt for attempt in self._manifest.attempts), default=0)
        lines = [(rank, line) for rank, line in self._index_lines if isinstance(line, RolloutLine)]
        return _numbered(
            Item(rank, x, not used.get((x.kind, x.attempt, x.rollout), x.attempt >= last)) for rank, x in lines
        )

    @cached_property
    def _first_updates(self) -> dict[int, int]:
        """Attempt → the first update of it that a later attempt did again."""
        starts = self._manifest.attempts
        return {
            a.attempt: min(later)
            for a in starts
            if (later := [b.first_update for b in starts if b.attempt > a.attempt])
        }

    @cached_property
    def _last_steps(self) -> dict[int, int]:
        """Attempt → the trainer's step at its last update that no later attempt did again."""
        lines = [line for line in self._metrics_lines if line.kind == "train"]
        return {
            attempt: max((x.step for x in lines if x.attempt <= attempt and x.update < first), default=-1)
            for attempt, first in self._first_updates.items()
        }

    def _is_superseded(self, line: UpdateLine | MetricsLine | LogLine) -> bool:
        if line.attempt not in self._first_updates:
            return False
        if line.kind == "train":
            return line.update >= self._first_updates[line.attempt]
        return line.step > self._last_steps[line.attempt]


def _numbered(items: Iterable[Item[Entry]]) -> _Numbered[Entry]:
    """Items by kind and number, the numbers ascending."""
    found: _Numbered[Entry] = {}
    for item in sorted(items, key=lambda item: (number_of(item.line), item.line.attempt, item.rank)):
        found.setdefault((item.line.kind, number_of(item.line)), []).append(item)
    return found


def _select(
    entries: _Numbered[Entry], kind: Kind, superseded: bool, number: int | Iterable[int] | None
) -> list[Item[Entry]]:
    if number is None:
        keys = [key for key in entries if key[0] == kind]
    else:
        keys = [(kind, one) for one in (number if isinstance(number, Iterable) else [number])]
    return [item for key in keys for item in entries.get(key, []) if superseded or not item.superseded]
