"""One self-contained page: the viewer with every file of a bundle inlined. It opens from a double-click, offline."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.reader import open_bundle
from unipo_hooks.errors import BundleError, ExportError
from unipo_hooks.export import Progress, bundle_file, is_bundle_file, viewer_page, written_whole

MARKER = b"<!--unipo-bundle-->"
"""Where the viewer's page takes the bundle's files; it is there exactly once."""

MAIL_LIMIT = 25_000_000
"""Bytes most mail services carry at most."""

_CHUNK = 3 << 18
"""Bytes read at a time: a multiple of three, so that the base64 of the chunks joins up."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file to inline: its name in the bundle, and how many of its bytes."""

    name: str
    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a page of a bundle would hold."""

    parts: list[Part]
    missing: list[str]
    """Files the index refers to that are not there: the page opens without them."""

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(part.size for part in self.parts)


def contents(bundle_path: Path) -> Contents:
    """The files a page of this bundle holds: manifest, metrics, index, and what the index refers to.

    Lines end where their last newline is, so that a run that is being written is cut between two lines. Raises
    BundleError where `bundle_path` holds no bundle this version knows, or an index that cannot be read.
    """
    open_bundle(bundle_path)
    # The index first: what it names is durable by then, however far the run has come when the rest is read.
    indexes = [_lines(bundle_path, name) for name in _names(bundle_path, "index")]
    wanted = list(dict.fromkeys(name for index in indexes for name in _referred(index)))
    found = {name: bundle_file(bundle_path, name) for name in wanted}
    segments = [Part(name, path, path.stat().st_size) for name, path in found.items() if path]
    metrics = [_lines(bundle_path, name) for name in _names(bundle_path, "metrics")]
    manifest = bundle_file(bundle_path, layout.MANIFEST)
    if manifest is None:
        raise BundleError(f"{layout.MANIFEST} leads outside the bundle")
    return Contents(
        parts=[Part(layout.MANIFEST, manifest, manifest.stat().st_size), *indexes, *metrics, *segments],
        missing=[name for name, path in found.items() if path is None],
    )


def export_html(bundle_path: str | Path, out: str | Path, progress: Progress | None = None) -> Path:
    """Write a bundle as one page to `out`, whole or not at all, and return its path.

    `progress` hears of bytes. Raises BundleError or ExportError with one clear line.
    """
    bundle, target = Path(bundle_path), Path(out)
    before, after = _split(viewer_page(), title=f"{bundle.resolve().name} · unipo-hooks")
    holds = contents(bundle)
    done = 0
    with written_whole(target) as file:
        file.write(before)
        for part in holds.parts:
            file.write(f'<script type="text/plain" data-bundle-file="{html.escape(part.name)}">'.encode())
            for size in _write_base64(part, file):
                done += size
                if progress:
                    progress(done, holds.size)
            file.write(b"</script>\n")
        file.write(after)
    return target


def size_note(page: Path) -> str | None:
    """What to do about a page too large for an e-mail; None where it is not."""
    size = page.stat().st_size
    if size <= MAIL_LIMIT:
        return None
    return (
        f"{page.name} has {size / 1e6:.0f} MB, more than the 25 MB most e-mail carries: zip it (a quarter smaller), "
        "put it on any web server, or capture less, for example CapturePolicy(max_groups=4)"
    )


def _names(bundle: Path, stem: str) -> list[str]:
    """Line files of all ranks, in the order of the ranks."""
    names = [path.name for path in bundle.glob(f"{stem}.r*.jsonl") if is_bundle_file(path.name)]
    return sorted(names, key=lambda name: int(name.split(".r")[1].removesuffix(".jsonl")))


def _lines(bundle: Path, name: str) -> Part:
    """A file of lines, up to its last newline."""
    path = bundle_file(bundle, name)
    if path is None:
        raise BundleError(f"{name} leads outside the bundle")
    size = path.stat().st_size
    with path.open("rb") as file:
        end = size
        while end:
            start = max(0, end - _CHUNK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return Part(name, path, start + newline + 1)
            end = start
    return Part(name, path, 0)


def _referred(index: Part) -> Iterable[str]:
    """Files an index refers to: those of a table it gives a range of rows in."""
    with index.path.open("rb") as file:
        read, number = 0, 0
        while read < index.size:
            line = file.readline()
            read, number = read + len(line), number + 1
            if not line.strip():
                continue
            try:
                yield from _tables(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise BundleError(f"{index.name}:{number}: not an index line; run unipo-hooks validate") from error


def _tables(line: dict[str, Any]) -> Iterable[str]:
    tables = {
        "rollout": (layout.RESPONSES, layout.ROLLOUT_TOKENS),
        "update": (layout.UPDATE_RESPONSES, layout.UPDATE_TOKENS),
    }.get(str(line["entry"]))
    if tables is None:  # a newer minor version's entry
        return
    for table, field in zip(tables, ("responses", "tokens"), strict=True):
        start, end = line[field]
        name = layout.segment_path(str(line["segment"]), table)
        if not is_bundle_file(name):
            raise ValueError(name)
        if end > start:
            yield name


def _split(page: bytes, *, title: str) -> tuple[bytes, bytes]:
    """The page before and after the marker, under a title of its own."""
    before, *after = page.split(MARKER)
    if len(after) != 1:
        raise ExportError("the viewer's page has no one place for a bundle; run make viewer")
    head, opening, rest = before.partition(b"<title>")
    _, closing, rest = rest.partition(b"</title>")
    if closing:
        before = head + opening + html.escape(title).encode("utf-8", "replace") + closing + rest
    return before, after[0]


def _write_base64(part: Part, out: IO[bytes]) -> Iterator[int]:
    """Write the first `size` bytes of a file as base64, yielding how many each chunk had."""
    left = part.size
    with part.path.open("rb") as file:
        while left:
            data = file.read(min(left, _CHUNK))
            if not data:
                raise BundleError(f"{part.name} became shorter while it was read")
            out.write(base64.b64encode(data))
            left -= len(data)
            yield len(data)
