"""Stored rows as tables: read where the index says, joined with what the index and the rollouts say of them.

Tables hold two helper columns that users do not see: `item`, the number of a row's rollout or update among those that
were read, and `superseded`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.entries import Entries
from unipo_hooks.bundle.files import Files, validate_hint
from unipo_hooks.bundle.tables import (
    COLUMNS,
    FLOAT,
    INT,
    Entry,
    Ints,
    Item,
    aliased,
    columns_of,
    facts,
    find,
    ints,
    labels_alike,
    pair_key,
    runs,
    span_of,
    take,
)
from unipo_hooks.channels import CHANNELS, RESPONSE_FLOATS
from unipo_hooks.errors import BundleError
from unipo_hooks.schema import Kind, RolloutLine, UpdateLine


class Rows:
    """Rows of a bundle's segments. Every method raises BundleError where a file it needs is damaged."""

    def __init__(self, files: Files, entries: Entries, reward_functions: int) -> None:
        self._files = files
        self._entries = entries
        self._components = [layout.component_column(number) for number in range(reward_functions)]

    def responses(self, items: Sequence[Item[RolloutLine]], kind: Kind, only: Sequence[str] | None = None) -> pa.Table:
        """Responses of rollouts; `only`: these columns of theirs."""
        rows, owner = self._read(items, layout.RESPONSES, only)
        return pa.table({**facts(items, owner, kind, "rollout"), **columns_of(rows, *rows.column_names)})

    def tokens(self, items: Sequence[Item[RolloutLine]], kind: Kind) -> pa.Table:
        """Tokens of rollouts, with the values of their responses repeated."""
        rows, owner = self._rollout_tokens(items)
        return aliased(
            pa.table({**facts(items, owner, kind, "rollout"), **columns_of(rows, *rows.column_names)}), items
        )

    def update_responses(self, updates: Sequence[Item[UpdateLine]], kind: Kind) -> pa.Table:
        """Responses updates trained on, once for each micro-batch, with what their rollouts know of them."""
        rows, owner = self._read(updates, layout.UPDATE_RESPONSES)
        home, sources = self._homes(updates, owner, ints(rows, "rollout"))
        known, known_owner = self._read(sources, layout.RESPONSES)
        at = find(pair_key(known_owner, ints(known, "row")), pair_key(home, ints(rows, "row")))
        return pa.table(
            {
                **facts(updates, owner, kind, "update"),
                **columns_of(rows, "rollout", "row"),
                **columns_of(take(known, at), *(name for name in known.column_names if name != "row")),
                "micro_batch": rows["micro_batch"],
                "update_counted": rows["counted"],
                **{name: rows[name] for name in ("log_ratio_sum", "token_kl_sum") if name in rows.column_names},
            }
        )

    def update_tokens(self, updates: Sequence[Item[UpdateLine]], kind: Kind) -> pa.Table:
        """Tokens updates trained on, once for each micro-batch, joined with their rollouts' by position."""
        rows, owner = self._read(updates, layout.UPDATE_TOKENS)
        rollout, row = ints(rows, "rollout"), ints(rows, "row")
        home, sources = self._homes(updates, owner, rollout)
        known, known_owner = self._rollout_tokens(sources)
        known_row = ints(known, "row")
        starts, lengths = runs(owner, rollout, row, ints(rows, "micro_batch"))
        first, stored = runs(known_owner, known_row)
        at = find(pair_key(known_owner[first], known_row[first]), pair_key(home[starts], row[starts]))
        wrong = np.flatnonzero((at >= 0) & (np.append(stored, 0)[at] != lengths))
        if wrong.size:
            run = wrong[0]
            root, update = self._files.root, updates[owner[starts[run]]].line.update
            raise BundleError(
                f"{root}: update {update} has {lengths[run]} tokens of row {row[starts[run]]} where its rollout has "
                f"{stored[at[run]]}; {validate_hint(root)}"
            )
        position = _positions(starts, lengths)
        place = np.where(np.repeat(at, lengths) < 0, -1, np.repeat(np.append(first, 0)[at], lengths) + position)
        fixed = take(known, place)
        of_update = set(rows.column_names)
        measured = of_update.union(known.column_names)
        channels = [name for name in CHANNELS if name in measured]
        columns = {
            **facts(updates, owner, kind, "update"),
            "item": pa.array(home, INT),
            **columns_of(rows, "rollout"),
            **columns_of(fixed, "group"),
            **columns_of(rows, "row", "micro_batch"),
            "position": pa.array(position, INT),
            **{name: rows[name] if name in of_update else fixed[name] for name in channels},
        }
        return aliased(pa.table(columns), sources)

    def _rollout_tokens(self, items: Sequence[Item[RolloutLine]]) -> tuple[pa.Table, Ints]:
        """Tokens of rollouts with the values of their responses repeated, and for each the number of its rollout."""
        rows, owner = self._read(items, layout.ROLLOUT_TOKENS)
        responses, responses_owner = self._read(items, layout.RESPONSES, ("row", "group", *RESPONSE_FLOATS))
        row = ints(rows, "row")
        starts, lengths = runs(owner, row)
        at = find(pair_key(responses_owner, ints(responses, "row")), pair_key(owner[starts], row[starts]))
        spread = take(responses, np.repeat(at, lengths))
        channels = columns_of(rows, *(name for name in rows.column_names if name in CHANNELS))
        for name in RESPONSE_FLOATS:
            if name in spread.column_names:
                own = channels.get(name, pa.nulls(len(row), FLOAT))
                channels[name] = pc.if_else(pc.is_null(own, nan_is_null=True), spread[name], own)
        table = pa.table(
            {
                "group": spread["group"],
                "row": rows["row"],
                "position": pa.array(_positions(starts, lengths), INT),
                **{name: channels[name] for name in CHANNELS if name in channels},
            }
        )
        return table, owner

    def _read(
        self, items: Sequence[Item[Entry]], table: str, only: Sequence[str] | None = None
    ) -> tuple[pa.Table, Ints]:
        """Rows of the items in a table, in the order of the items, and for each the number of its item."""
        columns = dict(COLUMNS[table])
        if table == layout.RESPONSES:
            columns.update(dict.fromkeys([*self._components, layout.LABEL], FLOAT))
        if only is not None:
            columns = {name: columns[name] for name in only}
        spans = [span_of(item.line, table) for item in items]
        by_segment: dict[str, list[int]] = {}
        for number, (item, (start, end)) in enumerate(zip(items, spans, strict=True)):
            if end > start:
                by_segment.setdefault(item.line.segment, []).append(number)
        parts: dict[int, pa.Table] = {}
        for segment, numbers in by_segment.items():
            ranges = [spans[number] for number in numbers]
            parts.update(zip(numbers, self._files.rows(segment, table, ranges, columns), strict=True))
        required = [(name, kind) for name, kind in columns.items() if name in layout.REQUIRED_COLUMNS[table]]
        together = [parts[number] for number in sorted(parts)] or [pa.schema(required).empty_table()]
        rows = pa.concat_tables(labels_alike(together), promote_options="default")
        there = set(rows.column_names)
        labels = [name for name in rows.column_names if name.startswith(layout.LABEL)]
        rows = rows.select([name for name in columns if name in there and name not in labels] + labels)
        owner = np.repeat(np.arange(len(items)), [max(end - start, 0) for start, end in spans])
        return rows.unify_dictionaries().combine_chunks(), owner

    def _homes(
        self, updates: Sequence[Item[UpdateLine]], owner: Ints, rollout: Ints
    ) -> tuple[Ints, list[Item[RolloutLine]]]:
        """For rows of updates: the number of the rollout each came from in the list of rollouts, -1 for none."""
        pairs, inverse = np.unique(pair_key(owner, rollout), return_inverse=True)
        sources: list[Item[RolloutLine]] = []
        homes = np.full(len(pairs), -1)
        for number, pair in enumerate(pairs.tolist()):
            source = self._entries.source(updates[pair >> 32], pair & 0xFFFFFFFF)
            if source is not None:
                homes[number] = len(sources)
                sources.append(source)
        return homes[inverse], sources


def _positions(starts: Ints, lengths: Ints) -> Ints:
    """Places in their stretch of everything in it, one stretch after another."""
    positions: Ints = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    return positions
