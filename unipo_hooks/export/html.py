"""One self-contained page: the viewer with every file of a bundle inlined. It opens from a double-click, offline."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.check_files import is_parquet, referred
from unipo_hooks.bundle.files import reason
from unipo_hooks.bundle.reader import open_bundle
from unipo_hooks.errors import BundleError, ExportError
from unipo_hooks.export import (
    Progress,
    bundle_file,
    is_bundle_file,
    refuse_own_files,
    titled,
    viewer_page,
    written_whole,
)

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
    """Files the index refers to that are not there or may not be read: the page opens without them."""
    damaged: list[str]
    """Files that are in the page though they are truncated, empty or no Parquet: it cannot show what they held."""

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
    indexes = {rank: _lines(bundle_path, layout.index_name(rank)) for rank in _ranks(bundle_path, "index")}
    wanted = dict.fromkeys(name for rank, index in indexes.items() for name in referred(bundle_path, rank, index.size))
    found = {name: _readable(bundle_file(bundle_path, name)) for name in wanted}
    segments = [Part(name, path, path.stat().st_size) for name, path in found.items() if path]
    metrics = [_lines(bundle_path, layout.metrics_name(rank)) for rank in _ranks(bundle_path, "metrics")]
    manifest = bundle_file(bundle_path, layout.MANIFEST)
    if manifest is None:
        raise BundleError(f"{layout.MANIFEST} leads outside the bundle")
    said = {name: bundle_file(bundle_path, name) for name in map(layout.rank_name, indexes)}
    others = [Part(name, path, path.stat().st_size) for name, path in said.items() if path]
    return Contents(
        parts=[
            Part(layout.MANIFEST, manifest, manifest.stat().st_size),
            *others,
            *indexes.values(),
            *metrics,
            *segments,
        ],
        missing=[name for name, path in found.items() if path is None],
        damaged=[part.name for part in segments if not is_parquet(part.path)],
    )


def export_html(bundle_path: str | Path, out: str | Path, progress: Progress | None = None) -> Path:
    """Write a bundle as one page to `out`, whole or not at all, and return its path.

    `progress` hears of bytes. Raises BundleError or ExportError with one clear line.
    """
    bundle, target = Path(bundle_path), Path(out)
    before, after = _split(titled(viewer_page(), bundle.resolve().name))
    holds = contents(bundle)
    refuse_own_files(bundle, target)
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


def _ranks(bundle: Path, stem: str) -> list[int]:
    """Ranks that have a file of lines, in their order."""
    names = (path.name for path in bundle.glob(f"{stem}.r*.jsonl") if is_bundle_file(path.name))
    return sorted(int(name.split(".r")[1].removesuffix(".jsonl")) for name in names)


def _readable(path: Path | None) -> Path | None:
    """The path where the file may be read, else None."""
    try:
        if path is not None:
            path.open("rb").close()
    except OSError:
        return None
    return path


def _lines(bundle: Path, name: str) -> Part:
    """A file of lines, up to its last newline."""
    path = bundle_file(bundle, name)
    if path is None:
        raise BundleError(f"{name} leads outside the bundle")
    try:
        file = path.open("rb")
    except OSError as error:
        raise BundleError(f"cannot read {bundle / name}: {reason(error)}") from error
    with file:
        end = path.stat().st_size
        while end:
            start = max(0, end - _CHUNK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return Part(name, path, start + newline + 1)
            end = start
    return Part(name, path, 0)


def _split(page: bytes) -> tuple[bytes, bytes]:
    """The page before and after the marker."""
    before, *after = page.split(MARKER)
    if len(after) != 1:
        raise ExportError("the viewer's page has no one place for a bundle; run make viewer")
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
