"""A segment being filled: rows of consecutive entries in memory, written as Parquet in one go.

Floats are byte-stream-split, everything else dictionary-encoded, all under zstd 3: 18.7 bytes a token with five float
channels, a third less than Parquet's defaults and an eighth of JSON. No statistics: they would repeat text, and readers
go by row ranges.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.rows import Columns, Tables, row_count, stack_column
from unipo_hooks.schema import Span

MAX_TOKENS = 64 * 1024
"""A segment closes once one of its token tables has this many rows."""
MAX_SECONDS = 10.0
"""A segment closes this long after its first entry."""


class Segment:
    """Rows waiting to be written together."""

    def __init__(self) -> None:
        self._entries: dict[str, list[Columns]] = {table: [] for table in layout.TABLES}
        self._rows: dict[str, int] = dict.fromkeys(layout.TABLES, 0)
        self._started = time.monotonic()
        self.nbytes = 0
        """Bytes of its rows in memory."""

    def add(self, tables: Tables) -> dict[str, Span]:
        """Append an entry's rows; the row range it takes in each table."""
        spans: dict[str, Span] = {}
        for table, columns in tables.items():
            start, rows = self._rows[table], row_count(columns)
            spans[table] = (start, start + rows)
            if rows:
                self._entries[table].append(columns)
                self._rows[table] = start + rows
                self.nbytes += sum(int(column.nbytes) for column in columns.values())
        return spans

    @property
    def tokens(self) -> int:
        """Rows of its two token tables together."""
        return self._rows[layout.ROLLOUT_TOKENS] + self._rows[layout.UPDATE_TOKENS]

    @property
    def due(self) -> bool:
        """Whether it is large or old enough to be closed."""
        fullest = max(self._rows[layout.ROLLOUT_TOKENS], self._rows[layout.UPDATE_TOKENS])
        return fullest >= MAX_TOKENS or time.monotonic() - self._started >= MAX_SECONDS

    def write(self, bundle: Path, name: str) -> int:
        """Write its tables durably (temporary file, fsync, rename) and return their bytes.

        On an `OSError` nothing of it is left behind.
        """
        size = 0
        try:
            for table, entries in self._entries.items():
                if entries:
                    size += _write_durably(_arrow(entries), bundle / layout.segment_path(name, table))
            _sync_folder(bundle / layout.SEGMENTS)
        except BaseException:
            self.remove(bundle, name)
            raise
        return size

    def remove(self, bundle: Path, name: str) -> None:
        """Take back what `write` left, whole or half."""
        for table in self._entries:
            path = bundle / layout.segment_path(name, table)
            for file in (path, _temporary(path)):
                with suppress(OSError):
                    file.unlink()


def _arrow(entries: list[Columns]) -> pa.Table:
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    rows = [row_count(entry) for entry in entries]
    return pa.table({name: stack_column([entry.get(name) for entry in entries], rows) for name in names})


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _write_durably(table: pa.Table, path: Path) -> int:
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    temporary = _temporary(path)
    with temporary.open("wb") as file:
        pq.write_table(
            table,
            file,
            row_group_size=max(1, table.num_rows),
            compression="zstd",
            compression_level=3,
            use_byte_stream_split=floats,
            use_dictionary=[name for name in table.column_names if name not in floats],
            write_statistics=False,
            store_schema=False,
        )
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    temporary.replace(path)
    return size


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["MAX_SECONDS", "MAX_TOKENS", "Segment"]
