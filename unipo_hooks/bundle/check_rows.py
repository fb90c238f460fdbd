"""Checks of rows: that those of an entry are its own, and that updates fit the rollouts they trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.check_lines import WrittenLine
from unipo_hooks.bundle.check_segments import KINDS, Columns, Segments
from unipo_hooks.bundle.faults import Report
from unipo_hooks.bundle.tables import Ints, find, pair_key, runs, span_of
from unipo_hooks.schema import RolloutLine, UpdateLine

Bools = NDArray[np.bool_]

HIGHEST_LOG_PROB = 1e-3
"""A log-prob may lie above 0 by rounding, up to here."""


class _Rows(NamedTuple):
    """What updates need to know of a rollout: its rows, ascending, and how many tokens of each were stored."""

    row: Ints
    tokens: Ints


def check_rows(entries: Sequence[WrittenLine], segments: Segments, report: Report) -> None:
    """Check the rows of a rank's entries, rollouts first."""
    stored: dict[tuple[str, int, int], _Rows | None] = {}
    for entry, responses, tokens in segments.slices(entries, RolloutLine):
        line = entry.line
        assert isinstance(line, RolloutLine), "slices of rollouts"
        rows = None
        if responses is not None and tokens is not None:
            rows = _rollout(_Rules(entry, report), line, responses, tokens)
        stored.setdefault((line.kind, line.attempt, line.rollout), rows)
    for entry, responses, tokens in segments.slices(entries, UpdateLine):
        line = entry.line
        assert isinstance(line, UpdateLine), "slices of updates"
        if responses is not None and tokens is not None:
            rollouts = {r: stored[key] for r in line.rollouts if (key := (line.kind, line.attempt, r)) in stored}
            _update(_Rules(entry, report), line, responses, tokens, rollouts)


class _Rules:
    """What holds for rows of any entry, and how a row that breaks a rule is reported."""

    def __init__(self, entry: WrittenLine, report: Report) -> None:
        self._entry = entry
        self._report = report

    def broken(self, table: str, wrong: Bools, what: str, rows: Ints | None = None) -> None:
        """Report the rows for which `wrong` is true; `rows` are their places in the entry."""
        places = np.flatnonzero(wrong)
        if places.size:
            line = self._entry.line
            first = span_of(line, table)[0] + int(places[0] if rows is None else rows[places[0]])
            more = f" and {places.size - 1} more" if places.size > 1 else ""
            path = layout.segment_path(line.segment, table)
            self._report.fault(self._entry.file, self._entry.number, f"{what} (row {first}{more} of {path})")

    def keys(self, table: str, rows: Columns, **numbers: int) -> None:
        """The rows are of the entry's kind, and have these numbers."""
        kind = self._entry.line.kind
        self.broken(table, rows["kind"] != KINDS.index(kind), f"kind is not {kind}")
        for name, number in numbers.items():
            self.broken(table, rows[name] != number, f"{name} is not {number}")

    def log_probs(self, table: str, rows: Columns) -> None:
        """Log-probs are finite or NaN, and not positive."""
        for name, values in rows.items():
            if name.endswith("log_probs"):
                wrong = np.isinf(values) | (values > HIGHEST_LOG_PROB)
                self.broken(table, wrong, f"{name} is positive or infinite")


def _rollout(rules: _Rules, line: RolloutLine, responses: Columns, tokens: Columns) -> _Rows:
    rules.keys(layout.RESPONSES, responses, rollout=line.rollout)
    rules.keys(layout.ROLLOUT_TOKENS, tokens, rollout=line.rollout)
    rules.log_probs(layout.ROLLOUT_TOKENS, tokens)
    row = responses["row"]
    rules.broken(layout.RESPONSES, _repeated(row), "a row appears twice")
    starts, _ = runs(tokens["row"])
    rules.broken(layout.ROLLOUT_TOKENS, _repeated(tokens["row"][starts]), "tokens of a row are apart", starts)
    homeless = find(row, tokens["row"][starts]) < 0
    rules.broken(layout.ROLLOUT_TOKENS, homeless, "a token's row is no response of the rollout", starts)

    count = _sums(row, tokens["row"], np.ones(len(tokens["row"])))
    counted = _sums(row, tokens["row"], tokens["mask"])
    kept = responses["kept"].astype(bool)
    differs = kept & (count != responses["length"])
    rules.broken(layout.RESPONSES, differs, "length is not the number of its tokens")
    rules.broken(layout.RESPONSES, ~kept & (count > 0), "a response that was not kept has tokens")
    mask = tokens["mask"]
    rules.broken(layout.ROLLOUT_TOKENS, (mask != 0) & (mask != 1), "mask is neither 0 nor 1")
    differs = kept & (counted != responses["counted"])
    rules.broken(layout.RESPONSES, differs, "counted is not the sum of its mask")
    if line.kept is not None:
        differs = kept != np.isin(responses["group"], line.kept)
        rules.broken(layout.RESPONSES, differs, "kept disagrees with the groups the line says were kept")
    order = np.argsort(row, kind="stable")
    return _Rows(row[order], count[order].astype(np.int64))


def _update(
    rules: _Rules, line: UpdateLine, responses: Columns, tokens: Columns, rollouts: dict[int, _Rows | None]
) -> None:
    """`rollouts`: those of the update that have an index line, None where their rows cannot be read."""
    for table, data in ((layout.UPDATE_RESPONSES, responses), (layout.UPDATE_TOKENS, tokens)):
        rules.keys(table, data, update=line.update)
        rules.broken(table, ~np.isin(data["rollout"], line.rollouts), "rollout is none of those the line names")
    rules.log_probs(layout.UPDATE_TOKENS, tokens)
    # The line also names rollouts the sampling policy did not keep: they have no index line, and no rows here.
    for rollout in sorted(set(line.rollouts) - rollouts.keys()):
        what = f"rollout {rollout}, which it trains on, has no index line"
        rules.broken(layout.UPDATE_RESPONSES, responses["rollout"] == rollout, what)
    if line.micro_batches:
        numbers = responses["micro_batch"]
        outside = (numbers < 0) | (numbers >= len(line.micro_batches))
        rules.broken(layout.UPDATE_RESPONSES, outside, "micro_batch is none of those the line lists")

    place = ("rollout", "row", "micro_batch")
    starts, lengths = runs(*(tokens[name] for name in place))
    keys = _numbered(*(np.concatenate([responses[name], tokens[name][starts]]) for name in place))
    trained, of_tokens = np.split(keys, [len(responses["row"])])
    rules.broken(layout.UPDATE_RESPONSES, _repeated(trained), "a row appears twice in a micro-batch")
    rules.broken(layout.UPDATE_TOKENS, _repeated(of_tokens), "tokens of a row are apart", starts)
    homeless = find(trained, of_tokens) < 0
    rules.broken(layout.UPDATE_TOKENS, homeless, "a token's row is no response of its micro-batch", starts)

    readable = {number: rows for number, rows in rollouts.items() if rows is not None}
    none = np.zeros(0, np.int64)
    known = np.concatenate([none, *(pair_key(np.full(len(x.row), r), x.row) for r, x in readable.items())])
    count = np.concatenate([none, *(x.tokens for x in readable.values())])
    at = find(known, pair_key(responses["rollout"], responses["row"]))
    here = np.isin(responses["rollout"], list(readable))
    rules.broken(layout.UPDATE_RESPONSES, here & (at < 0), "a row is no response of its rollout")
    if len(starts):
        differs = (at >= 0) & (_sums(trained, of_tokens, lengths) != np.append(count, 0)[at])
        rules.broken(layout.UPDATE_RESPONSES, differs, "a row has another number of tokens than in its rollout")


def _numbered(*keys: Ints) -> Ints:
    """A number for each combination of the keys' values, the same for the same one."""
    numbers = np.zeros(len(keys[0]), np.int64)
    for key in keys:
        values, place = np.unique(key, return_inverse=True)
        numbers = np.unique(numbers * len(values) + place, return_inverse=True)[1]
    return numbers


def _repeated(values: Ints) -> Bools:
    """True where a value was there before."""
    repeated = np.ones(len(values), bool)
    repeated[np.unique(values, return_index=True)[1]] = False
    return repeated


def _sums(of: Ints, keys: Ints, values: NDArray[Any]) -> NDArray[np.float64]:
    """For each of `of`, the sum of the values that have it as their key."""
    at = find(of, keys)
    total = np.bincount(at[at >= 0], values[at >= 0], len(of)).astype(np.float64)
    # Where `of` repeats itself, `find` gives the first: let the others have its sum.
    return total[find(of, of)] if len(of) else total
