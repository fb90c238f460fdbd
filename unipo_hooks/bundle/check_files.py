"""A quick look at a bundle's segment files: which there should be, and which of them cannot be read at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.check_lines import TABLES_OF
from unipo_hooks.bundle.files import check_segment, parse_line, problem, validate_hint
from unipo_hooks.bundle.tables import span_of
from unipo_hooks.errors import BundleError
from unipo_hooks.schema import RolloutLine, UpdateLine


def referred(root: Path, rank: int, size: int | None = None) -> Iterator[str]:
    """Segment files that a rank's index has rows in, by their name in the bundle; one may come many times.

    `size`: the first bytes of the index alone. Raises BundleError where a line cannot be read, OSError where the
    file cannot.
    """
    path = root / layout.index_name(rank)
    with path.open("rb") as file:
        read = 0
        for number, text in enumerate(file, 1):
            read += len(text)
            if not text.endswith(b"\n") or (size is not None and read > size):
                return
            try:
                line = parse_line(text)
                if not isinstance(line, RolloutLine | UpdateLine):  # a newer minor version's entry
                    continue
                check_segment(line.segment, rank)
            except (ValueError, RecursionError) as error:
                raise BundleError(f"{path}:{number}: {problem(error)}; {validate_hint(root)}") from error
            for table in TABLES_OF[type(line)]:
                start, end = span_of(line, table)
                if end > start:
                    yield layout.segment_path(line.segment, table)


def damaged_segments(root: Path, ranks: int) -> list[str]:
    """Segment files the index refers to that are missing or cannot be read, by their name in the bundle.

    Only the end of each file is read: damage to the data before it is for `verify` to find. Raises as `referred`.
    """
    indexes = [rank for rank in range(ranks) if (root / layout.index_name(rank)).exists()]
    names = dict.fromkeys(name for rank in indexes for name in referred(root, rank))
    return [name for name in names if not is_parquet(root / name)]


def is_parquet(path: Path) -> bool:
    """Whether a file is there, can be read, and ends as Parquet does."""
    if not path.is_file():  # a pipe would keep whoever opens it waiting
        return False
    try:
        with path.open("rb") as file:
            pq.read_metadata(file)
    except Exception:  # whatever the bytes make of the Parquet library
        return False
    return True
