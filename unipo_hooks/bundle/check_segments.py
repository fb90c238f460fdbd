"""Checks of segment files: that they are there, are Parquet, and have the columns they should."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.check_lines import TABLES_OF, WrittenLine
from unipo_hooks.bundle.faults import Report
from unipo_hooks.bundle.files import one_line, reason
from unipo_hooks.bundle.tables import COLUMNS, TEXT, is_number, is_text, span_of
from unipo_hooks.schema import Manifest, RolloutLine, UpdateLine

Columns = dict[str, NDArray[Any]]
"""Columns that are compared, as int64 or float64; `kind` as its place in KINDS, -1 for another."""

KINDS = ("train", "eval")
_COMPONENT = layout.component_column(0).removesuffix("0")


class Segments:
    """Reads the segment files of a bundle, and reports what is wrong with them."""

    def __init__(self, root: Path, report: Report, manifest: Manifest | None) -> None:
        self._root = root
        self._report = report
        self._manifest = manifest

    def slices(
        self, entries: Sequence[WrittenLine], of: type[RolloutLine] | type[UpdateLine]
    ) -> Iterator[tuple[WrittenLine, Columns | None, Columns | None]]:
        """Entries of a kind with their rows of both tables, None where they cannot be read.

        One segment is in memory at a time.
        """
        mine = sorted((e for e in entries if isinstance(e.line, of)), key=lambda e: (e.line.segment, e.number))
        for segment, group in groupby(mine, key=lambda e: e.line.segment):
            together = list(group)
            whole = [self._load(segment, table, together) for table in TABLES_OF[of]]
            for entry in together:
                first, second = (self._slice(entry, t, data) for t, data in zip(TABLES_OF[of], whole, strict=True))
                yield entry, first, second

    def _slice(self, entry: WrittenLine, table: str, data: Columns | None) -> Columns | None:
        start, end = span_of(entry.line, table)
        if data is None or start < 0 or end < start:
            return None
        rows = len(data["row"])
        if end > start and end > rows:
            path = layout.segment_path(entry.line.segment, table)
            self._report.fault(entry.file, entry.number, f"rows [{start}, {end}) of {path}, which has {rows}")
            return None
        return {name: values[start:end] for name, values in data.items()}

    def _load(self, segment: str, table: str, entries: list[WrittenLine]) -> Columns | None:
        """A segment's table; None, with the faults reported, where it is not what it should be."""
        path = layout.segment_path(segment, table)
        wanting = [e for e in entries if span_of(e.line, table)[1] > span_of(e.line, table)[0]]
        if not wanting:
            return {name: np.zeros(0, np.int64) for name in layout.REQUIRED_COLUMNS[table]}
        try:
            data = pq.ParquetFile(self._root / path).read()
        except FileNotFoundError:
            self._report.fault(path, None, f"is missing; {wanting[0].file}:{wanting[0].number} has rows in it")
            return None
        except PermissionError as error:
            self._report.fault(path, None, f"cannot be read: {reason(error)}")
            return None
        except Exception as error:  # whatever the bytes make of the Parquet library
            self._report.fault(path, None, f"is truncated or not Parquet: {one_line(error)}")
            return None
        required = layout.REQUIRED_COLUMNS[table]
        sound = [self._column(path, table, data, name) for name in required]
        others = [name for name in data.column_names if name not in required and _type(table, name) is not None]
        usable = [n for n in others if self._column(path, table, data, n) and pa.types.is_floating(data[n].type)]
        if table == layout.RESPONSES:
            self._components(path, data.column_names)
            self._labels(path, data.schema)
        return _numpy(data, table, usable) if all(sound) else None

    def _column(self, path: str, table: str, data: pa.Table, name: str) -> bool:
        if data.column_names.count(name) != 1:
            how = "lacks" if name not in data.column_names else "has more than one of"
            self._report.fault(path, None, f"{how} column {name}")
            return False
        wanted, column = _type(table, name), data[name]
        assert wanted is not None, f"{name} has no type"
        if not _alike(column.type, wanted):
            expected = wanted.value_type if wanted == TEXT else wanted
            self._report.fault(path, None, f"column {name} is {column.type}, not {expected}")
            return False
        if column.null_count and not pa.types.is_floating(wanted) and name not in ("messages", "mask_reason"):
            self._report.fault(path, None, f"column {name} has {column.null_count} nulls")
            return False
        return True

    def _labels(self, path: str, schema: pa.Schema) -> None:
        for field in schema:
            if field.name.startswith(layout.LABEL) and not (is_text(field.type) or is_number(field.type)):
                self._report.fault(path, None, f"column {field.name} is {field.type}, neither text nor a number")

    def _components(self, path: str, names: list[str]) -> None:
        if self._manifest is None:
            return
        there = {name for name in names if name.startswith(_COMPONENT)}
        count = len(self._manifest.reward_names)
        expected = {layout.component_column(n) for n in range(count)}
        if there and there != expected:
            wrong = sorted(there ^ expected)[0]
            how = "lacks" if wrong in expected else "has"
            self._report.fault(
                path, None, f"{how} column {wrong}, and {layout.MANIFEST} names {count} reward functions"
            )


def _type(table: str, name: str) -> pa.DataType | None:
    """The type of a column the format knows; keys are those of the index."""
    if name == "kind":
        return TEXT
    if name in ("rollout", "update") and name in layout.REQUIRED_COLUMNS[table]:
        return pa.int32()
    if table == layout.RESPONSES and name.startswith(_COMPONENT):
        return pa.float32()
    return COLUMNS[table].get(name)


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a type is of the wanted one's family: width and encoding are the writer's choice."""
    if wanted == TEXT:
        return is_text(found)
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(test(found) and test(wanted) for test in tests)


def _numpy(data: pa.Table, table: str, more: list[str]) -> Columns:
    columns: Columns = {}
    for name in (*layout.REQUIRED_COLUMNS[table], *more):
        if name == "kind":
            kinds = pc.index_in(data[name].cast(pa.string()), value_set=pa.array(KINDS))
            columns[name] = kinds.fill_null(-1).to_numpy().astype(np.int64)
        elif (kind := _type(table, name)) != TEXT:
            dtype = np.float64 if pa.types.is_floating(kind) else np.int64
            columns[name] = data[name].to_numpy().astype(dtype)
    return columns
