"""A bundle's files and lines: the one place that reads from the file system."""

from __future__ import annotations

import json
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.tables import DOUBLE, STR, TEXT, is_number, is_text
from unipo_hooks.errors import BundleError
from unipo_hooks.schema import FORMAT, VERSION, LogLine, Manifest, MetricsLine, RolloutLine, UpdateLine

RECENT_BYTES = 256 << 20
"""Memory that tables take which were read and may be asked for again."""

AnyLine = RolloutLine | UpdateLine | MetricsLine | LogLine

_MODELS: dict[str, type[AnyLine]] = {
    "rollout": RolloutLine,
    "update": UpdateLine,
    "metrics": MetricsLine,
    "log": LogLine,
}


class Files:
    """A bundle's files, by their name in it: the one place that reads from the file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._recent = _Recent(RECENT_BYTES)

    def read(self, name: str) -> bytes:
        """The whole of a file. Raises OSError."""
        return (self.root / name).read_bytes()

    def whole_lines(self, name: str) -> list[bytes]:
        """Lines of a file without what follows the last line end, which is half-written; none where it is missing."""
        try:
            return self.read(name).split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BundleError(f"cannot read {self.root / name}: {reason(error)}") from error

    def rows(
        self, segment: str, table: str, spans: Sequence[tuple[int, int]], columns: Mapping[str, pa.DataType]
    ) -> list[pa.Table]:
        """The row ranges `spans` of a segment's table: those of `columns` that it has, in their types.

        `layout.LABEL` among them stands for every label there is, text or a number.
        """
        path = self.root / layout.segment_path(segment, table)
        key = (segment, table, *columns)
        data = self._recent.get(key)
        if data is None:
            data = self._recent[key] = self._table(path, table, columns)
        low, high = min(start for start, _ in spans), max(end for _, end in spans)
        if low < 0 or high > data.num_rows:
            raise BundleError(
                f"{path} has {data.num_rows} rows where the index asks for rows {low} to {high}; "
                f"{validate_hint(self.root)}"
            )
        return [data.slice(start, end - start) for start, end in spans]

    def _table(self, path: Path, table: str, columns: Mapping[str, pa.DataType]) -> pa.Table:
        try:
            metadata = pq.read_metadata(path)
            there = set(metadata.schema.names)
            missing = [c for c in layout.REQUIRED_COLUMNS[table] if c in columns and c not in there]
            if missing:
                raise BundleError(f"{path} lacks the column {missing[0]}; {validate_hint(self.root)}")
            if layout.LABEL in columns:
                columns = {**columns, **_labels(metadata.schema.to_arrow_schema())}
            text = [name for name, kind in columns.items() if kind == TEXT and name in there]
            with pq.ParquetFile(path, metadata=metadata, read_dictionary=text) as file:
                data = file.read([column for column in columns if column in there])
            typed = pa.table({column: _typed(data[column], columns[column]) for column in data.column_names})
            return typed.unify_dictionaries().combine_chunks()
        except FileNotFoundError as error:
            raise BundleError(f"{path} is missing; {validate_hint(self.root)}") from error
        except PermissionError as error:
            raise BundleError(f"cannot read {path}: {reason(error)}") from error
        except (OSError, pa.ArrowException) as error:
            raise BundleError(
                f"{path} is truncated or damaged ({one_line(error)}); {validate_hint(self.root)}"
            ) from error


class _Recent:
    """Tables, as many of those used last as go into `limit` bytes: a segment is immutable and holds many entries."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tables: OrderedDict[tuple[str, ...], pa.Table] = OrderedDict()
        self._lock = Lock()

    def get(self, key: tuple[str, ...]) -> pa.Table | None:
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
            return self._tables.get(key)

    def __setitem__(self, key: tuple[str, ...], table: pa.Table) -> None:
        with self._lock:
            self._tables[key] = table
            while sum(kept.nbytes for kept in self._tables.values()) > self._limit:
                self._tables.popitem(last=False)


def parse_line(text: bytes) -> AnyLine | None:
    """A line of an index or of metrics; None for an entry this version does not know. Raises ValueError."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    model = _MODELS.get(str(data.get("entry")))
    if model is MetricsLine and isinstance(data.get("sums"), dict):
        # JSON has no NaN: the sums of a metric that was not finite hold null.
        for name, parts in data["sums"].items():
            if isinstance(parts, list):
                data["sums"][name] = [math.nan if part is None else part for part in parts]
    return None if model is None else model.model_validate(data)


def check_segment(segment: str, rank: int) -> None:
    """Raise ValueError unless `segment` is a segment of this rank: names come from data, and lead to paths."""
    number = layout.segment_number(rank, segment)
    if number is None or layout.segment_name(rank, number) != segment:
        raise ValueError(f"{segment!r} is not a segment of rank {rank}")


def problem(error: Exception) -> str:
    """What is wrong, in one line: for a schema violation the path in the JSON and the first fault."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{json_path(first['loc'])}: {first['msg']}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (column {error.colno})"
    return one_line(error)


def json_path(location: Sequence[str | int]) -> str:
    """A pydantic location as a path: `attempts[0].started`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def one_line(error: Exception) -> str:
    """The first line of an error's text, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def reason(error: OSError) -> str:
    """What the system says, without the path; Arrow's errors carry the path and a number."""
    return os.strerror(error.errno) if error.errno else one_line(error)


def version_problem(manifest: Mapping[str, Any]) -> str | None:
    """Why this version cannot read a bundle with that manifest, or None where it can."""
    if manifest.get("format") != FORMAT:
        return f"format {manifest.get('format')!r}; expected {FORMAT!r}"
    version, own = str(manifest.get("version")), VERSION.split(".")[0]
    major = version.split(".")[0]
    if not major.isdecimal():
        return f"format {version}; expected {own}.x"
    if int(major) > int(own):
        return f"format {version}; this unipo-hooks reads {own}.x: update it"
    return None


def read_manifest(files: Files) -> Manifest:
    """The manifest. Raises BundleError where there is none, or none that this version reads."""
    root = files.root
    try:
        data = json.loads(files.read(layout.MANIFEST))
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")
        if unreadable := version_problem(data):
            raise BundleError(f"{root} has {unreadable}")
        return Manifest.model_validate(data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{root} {no_bundle(root)}") from error
    except OSError as error:
        raise BundleError(f"cannot read {root / layout.MANIFEST}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{root / layout.MANIFEST}: {problem(error)}; {validate_hint(root)}") from error


def no_bundle(root: Path) -> str:
    """What to say after the name of `root`, which has no manifest: what it is, and what to give instead."""
    advice = "give the folder that a run was captured to"
    if not root.exists():
        return f"does not exist; {advice}"
    if not root.is_dir():
        if root.suffix.lower() in (".html", ".htm"):
            return "is a file; open it in a browser"
        holders = (folder for folder in list(root.parents)[:2] if (folder / layout.MANIFEST).is_file())
        holder = next(holders, None)
        return f"is a file; {advice}" if holder is None else f"is a file; give the folder it is in: {holder}"
    names = sorted(path.parent.name for path in root.glob(f"*/{layout.MANIFEST}"))
    if not names:
        return f"is not a bundle: it has no {layout.MANIFEST}; {advice}"
    if len(names) == 1:
        return f"holds 1 bundle: {names[0]}; open it"
    shown = names if len(names) <= 10 else [*names[:10], "…"]
    return f"holds {len(names)} bundles: {', '.join(shown)}; open one of them, or see all: unipo-hooks view {root}"


def validate_hint(root: Path) -> str:
    """What to do about a damaged bundle."""
    return f"run `{validate_command(root)}` to see all that is wrong"


def validate_command(root: Path | str) -> str:
    """The command that names every fault of a bundle."""
    return f"unipo-hooks validate {root}"


def _labels(schema: pa.Schema) -> dict[str, pa.DataType]:
    """The labels of a file and the types they are given; one that is neither text nor a number is left out."""
    labels = [field for field in schema if field.name.startswith(layout.LABEL)]
    return {
        field.name: TEXT if is_text(field.type) else DOUBLE
        for field in labels
        if is_text(field.type) or is_number(field.type)
    }


def _typed(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if kind == TEXT and not pa.types.is_dictionary(column.type):
        return column.cast(STR).dictionary_encode()
    return column.cast(kind)
