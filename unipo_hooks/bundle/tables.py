"""What the reader's tables are made of: column types, and vectorised joins on plain arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unipo_hooks.bundle import layout
from unipo_hooks.channels import CHANNELS, DEVIATIONS, RESPONSE_FLOATS, ROLLOUT_TOKEN_FLOATS, UPDATE_TOKEN_FLOATS
from unipo_hooks.schema import Kind, LogLine, MetricsLine, RolloutLine, UpdateLine

Ints = NDArray[np.int64]
Entry = TypeVar("Entry", RolloutLine, UpdateLine)

INT, LONG, FLOAT, DOUBLE, BOOL, STR = pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_(), pa.string()
TEXT = pa.dictionary(INT, STR)


def is_text(kind: pa.DataType) -> bool:
    """Whether a stored type is text, in whatever encoding."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(plain) or pa.types.is_large_string(plain))


def is_number(kind: pa.DataType) -> bool:
    """Whether a stored type is a number, of whatever width."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _fields(*groups: tuple[str, pa.DataType]) -> dict[str, pa.DataType]:
    return {name: kind for names, kind in groups for name in names.split()}


COLUMNS: dict[str, dict[str, pa.DataType]] = {
    layout.RESPONSES: _fields(
        ("row group", INT),
        ("prompt messages", TEXT),
        ("length counted", INT),
        ("kept", BOOL),
        ("reward", FLOAT),
        (" ".join(RESPONSE_FLOATS), FLOAT),
    ),
    layout.ROLLOUT_TOKENS: _fields(
        ("row ids", INT),
        ("strings", TEXT),
        ("mask mask_reason", pa.uint8()),
        (" ".join(ROLLOUT_TOKEN_FLOATS), FLOAT),
    ),
    layout.UPDATE_RESPONSES: _fields(("rollout row micro_batch counted", INT), ("log_ratio_sum token_kl_sum", FLOAT)),
    layout.UPDATE_TOKENS: _fields(("rollout row micro_batch", INT), (" ".join(UPDATE_TOKEN_FLOATS), FLOAT)),
}
"""What the reader takes from a table's files, and the types it gives it; what index lines say is not read again."""

_MICRO_BATCH = _fields(
    ("rank micro_batch rollout rows", INT),
    ("tokens", LONG),
    ("loss num_items_in_batch entropy_coef entropy_bonus router_loss", DOUBLE),
    ("dtype", STR),
    ("width counted_rows groups data_parallel_rank", INT),
    ("update_tokens update_rows loss_gap loss_tolerance token_gap", DOUBLE),
)
ATTEMPTS = _fields(("attempt", INT), ("started ended status", STR), ("first_update", INT))
ROLLOUTS = _fields(
    ("kind", STR),
    ("attempt rollout step", INT),
    ("time", DOUBLE),
    ("ranks", INT),
    ("responses tokens", LONG),
    ("groups", INT),
    ("kept", pa.list_(INT)),
    ("weight", DOUBLE),
    ("aliases", pa.map_(STR, STR)),
    ("superseded", BOOL),
)
UPDATES = _fields(
    ("kind", STR),
    ("attempt update step", INT),
    ("time", DOUBLE),
    ("rollouts", pa.list_(INT)),
    ("is_first_step_after_rollout_phase", BOOL),
    ("ranks", INT),
    ("responses tokens", LONG),
    ("accumulation_steps data_parallel_size length_constant", INT),
    ("micro_batches", pa.list_(pa.struct(list(_MICRO_BATCH.items())))),
    ("superseded", BOOL),
)
METRICS_COLUMNS = _fields(
    ("kind", STR),
    ("attempt update step", INT),
    ("time", DOUBLE),
    ("rollouts", pa.list_(INT)),
    ("is_first_step_after_rollout_phase captured", BOOL),
    ("ranks", INT),
    ("superseded", BOOL),
)


class Item(NamedTuple, Generic[Entry]):
    """An index line, the rank that wrote it, and whether a later attempt took its place."""

    rank: int
    line: Entry
    superseded: bool


@dataclass
class UpdateMetrics:
    """Metrics lines of one update, added up over ranks."""

    superseded: bool
    captured: bool
    facts: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    scalars: dict[str, float | None] = field(default_factory=dict)
    logged: dict[str, float | None] = field(default_factory=dict)

    def add(self, line: MetricsLine | LogLine) -> None:
        """Add a rank's line, or what the trainer logged."""
        first = self.facts or {
            "superseded": self.superseded,
            "captured": self.captured,
            "ranks": 0,
            "rollouts": [],
        }
        self.facts = {**line.model_dump(include=set(METRICS_COLUMNS) - {"captured", "rollouts"}), **first}
        if isinstance(line, LogLine):
            self.logged.update(line.scalars)
            return
        self.facts["is_first_step_after_rollout_phase"] = line.is_first_step_after_rollout_phase
        self.facts["ranks"] += 1
        self.facts["rollouts"] = sorted({*self.facts["rollouts"], *line.rollouts})
        self.scalars = {**line.scalars, **self.scalars}
        for name, (total, count, squares) in line.sums.items():
            before = self.sums.get(name, (0.0, 0.0, 0.0))
            self.sums[name] = (before[0] + total, before[1] + count, before[2] + squares)

    def values(self) -> dict[str, float | None]:
        """Mean of every metric, and the deviations, which are stored as sums alone."""
        means = {name: total / count if count else None for name, (total, count, _) in self.sums.items()}
        return means | {
            name: _deviation(*self.sums[source]) for name, source in DEVIATIONS.items() if source in self.sums
        }


def _deviation(total: float, count: float, squares: float) -> float | None:
    """Unbiased standard deviation; None for fewer than two values. Rounding may take equal ones below zero."""
    return math.sqrt(max((squares - total * total / count) / (count - 1), 0.0)) if count > 1 else None


def number_of(line: RolloutLine | UpdateLine) -> int:
    """The rollout's or update's number."""
    return line.rollout if isinstance(line, RolloutLine) else line.update


def span_of(line: RolloutLine | UpdateLine, table: str) -> tuple[int, int]:
    """Row range of an entry in a table, `[start, end)`."""
    return line.responses if table in (layout.RESPONSES, layout.UPDATE_RESPONSES) else line.tokens


def merged(items: Iterable[Item[Entry]]) -> list[list[Item[Entry]]]:
    """Items of one rollout or update together: the ranks of an attempt."""
    together: dict[tuple[int, int], list[Item[Entry]]] = {}
    for item in items:
        together.setdefault((number_of(item.line), item.line.attempt), []).append(item)
    return list(together.values())


def totals(items: Sequence[Item[Entry]]) -> dict[str, Any]:
    """What is counted over the ranks of one rollout or update."""
    return {
        "ranks": len(items),
        "responses": sum(item.line.responses[1] - item.line.responses[0] for item in items),
        "tokens": sum(item.line.tokens[1] - item.line.tokens[0] for item in items),
        "superseded": items[0].superseded,
    }


def column_name(name: str, taken: Iterable[str]) -> str:
    """Column of something the trainer logged: marked as the trainer's where the name is taken."""
    return f"trainer/{name}" if name in METRICS_COLUMNS or name in taken else name


def ints(table: pa.Table, column: str) -> Ints:
    """A column of integers as int64, -1 for null."""
    values = table[column]
    numbers: Ints = (values.fill_null(-1) if values.null_count else values).to_numpy().astype(np.int64)
    return numbers


def pair_key(high: Ints, low: Ints) -> Ints:
    """Two numbers as one. -1 as the high one makes a key that no other pair has."""
    return (high << 32) | (low & 0xFFFFFFFF)


def runs(*keys: Ints) -> tuple[Ints, Ints]:
    """Start and length of the stretches in which all keys stay the same."""
    change = np.ones(len(keys[0]), bool)
    change[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    starts = np.flatnonzero(change)
    return starts, np.diff(starts, append=len(change))


def find(have: Ints, want: Ints) -> Ints:
    """Where each of `want` is in `have`, -1 where it is not."""
    if not len(have):
        return np.full(len(want), -1)
    order = np.argsort(have, kind="stable")
    at = order[np.minimum(np.searchsorted(have, want, sorter=order), len(have) - 1)]
    return np.where(have[at] == want, at, -1)


def take(table: pa.Table, at: Ints) -> pa.Table:
    """Rows `at` of a table; nulls where `at` is -1."""
    return table.take(pa.array(at, mask=at < 0))


def facts(items: Sequence[Item[Entry]], owner: Ints, kind: Kind, number: str) -> dict[str, pa.Array]:
    """What the index says of every row, given the number of its item."""

    def repeated(values: list[Any], dtype: type) -> pa.Array:
        return pa.array(np.array(values, dtype)[owner])

    return {
        "item": pa.array(owner, INT),
        "rank": repeated([item.rank for item in items], np.int32),
        "attempt": repeated([item.line.attempt for item in items], np.int32),
        "kind": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(owner), np.int32)), pa.array([kind], STR)),
        number: repeated([number_of(item.line) for item in items], np.int32),
        "step": repeated([item.line.step for item in items], np.int32),
        "superseded": repeated([item.superseded for item in items], np.bool_),
    }


def labels_alike(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """The tables, a label that is text in one and a number in another being text in all."""
    texts = {
        column.name
        for table in tables
        for column in table.schema
        if column.name.startswith(layout.LABEL) and column.type == TEXT
    }
    changed = []
    for table in tables:
        for number, column in enumerate(table.schema):
            if column.name in texts and column.type != TEXT:
                known = pc.if_else(pc.is_finite(table[number]), table[number], None)
                table = table.set_column(number, column.name, known.cast(STR).dictionary_encode())
        changed.append(table)
    return changed


def columns_of(table: pa.Table, *names: str) -> dict[str, pa.ChunkedArray]:
    """Columns of a table by name."""
    return {name: table[name] for name in names}


def aliased(tokens: pa.Table, rollouts: Sequence[Item[RolloutLine]]) -> pa.Table:
    """Tokens with the channels that equal another filled in; channels in the order of the vocabulary."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for number, rollout in enumerate(rollouts):
        for pair in rollout.line.aliases.items():
            numbers.setdefault(pair, []).append(number)
    columns = columns_of(tokens, *tokens.column_names)
    for (name, source), of in numbers.items():
        if source in columns:
            own = columns.get(name, pa.nulls(tokens.num_rows, columns[source].type))
            columns[name] = pc.if_else(pa.array(np.isin(ints(tokens, "item"), of)), columns[source], own)
    order = sorted(columns, key=lambda name: list(CHANNELS).index(name) if name in CHANNELS else -1)
    return pa.table({name: columns[name] for name in order})


def where(table: pa.Table, **numbers: int | None) -> pa.Table:
    """The rows in which each column given has its number; None is any."""
    for name, number in numbers.items():
        if number is not None:
            table = table.filter(pc.equal(table[name], number))
    return table


def finished(table: pa.Table, superseded: bool) -> pa.Table:
    """A table as users get it: NaN for floats that are missing, no helper columns."""
    names = [name for name in table.column_names if name not in ("item", "superseded")]
    columns = columns_of(table, *names, *(["superseded"] if superseded else []))
    return pa.table(
        {n: c.fill_null(math.nan) if c.type in (FLOAT, DOUBLE) and c.null_count else c for n, c in columns.items()}
    )


def table_of(rows: list[dict[str, Any]], columns: Mapping[str, pa.DataType], superseded: bool = False) -> pa.Table:
    """Rows as a table of these columns; `superseded` only where asked for."""
    kept = {name: kind for name, kind in columns.items() if name != "superseded"}
    ends = {"superseded": BOOL} if superseded else {}
    return pa.Table.from_pylist(rows, pa.schema(list({**kept, **ends}.items())))
