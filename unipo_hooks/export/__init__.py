"""What leaves a bundle: which of its files may, the viewer's page that draws them, and writing a result whole.

`export.html` makes one self-contained page, `export.canonical` UNIPO's canonical run. The server hands out files by
the same rules: a name is either one of the bundle's own or does not exist.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html import escape
from importlib import resources
from pathlib import Path
from typing import IO

from unipo_hooks.bundle import layout
from unipo_hooks.errors import ExportError

Progress = Callable[[int, int], None]
"""Called with the part done and the whole, in one unit, as the work goes on."""

_FILE = re.compile(
    r"manifest\.json|rank\.r[0-9]+\.json|(?:index|metrics)\.r[0-9]+\.jsonl"
    rf"|{layout.SEGMENTS}/r[0-9]+-[0-9]{{6,}}\.(?:{'|'.join(layout.TABLES)})\.parquet"
)


def is_bundle_file(name: str) -> bool:
    """Whether `name`, relative to a bundle, is the name of a file that bundles have."""
    return _FILE.fullmatch(name) is not None


def bundle_file(bundle: Path, name: str) -> Path | None:
    """The file called `name` in a bundle; None where it is not there or is not the bundle's own.

    Links are followed only where they stay inside the bundle.
    """
    if not is_bundle_file(name):
        return None
    try:
        root = bundle.resolve(strict=True)
        path = (root / name).resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    return path if path.is_relative_to(root) and path.is_file() else None


def viewer_page() -> bytes:
    """The built viewer, as the package ships it. Raises ExportError where it was never built."""
    try:
        return resources.files("unipo_hooks.viewer_static").joinpath("dist", layout.VIEWER).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError, NotADirectoryError) as error:
        raise ExportError("the viewer is not built; run make viewer") from error


def titled(page: bytes, name: str) -> bytes:
    """The viewer's page under the name of what it shows, so that tabs and bookmarks can be told apart."""
    before, opening, rest = page.partition(b"<title>")
    _, closing, after = rest.partition(b"</title>")
    if not closing:
        return page
    title = escape(f"{name} · unipo-hooks")
    return before + opening + title.encode("utf-8", "replace") + closing + after


def refuse_own_files(bundle: Path, out: Path) -> None:
    """Raise ExportError where `out` lies in the bundle, or is the manifest of another one."""
    folder = out.parent.resolve()
    if (folder / out.name).is_relative_to(bundle.resolve()):
        raise ExportError(f"{out} is inside the bundle {bundle}: name a file outside it")
    if out.name == layout.MANIFEST and out.exists():
        raise ExportError(f"{out} belongs to another bundle: name another file")


@contextmanager
def written_whole(out: Path) -> Iterator[IO[bytes]]:
    """A file to write to that becomes `out` when the block ends, and vanishes where it fails.

    Folders on the way are made. Raises ExportError where `out` is something else than a file, or cannot be written.
    """
    if out.exists() and not out.is_file():
        raise ExportError(f"{out} is {'a folder' if out.is_dir() else 'no file'}: name a file to write")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        ours = (None, str(temporary), *map(str, temporary.parents))
        if isinstance(error, OSError) and error.filename in ours:  # others are of files that are read
            raise ExportError(f"cannot write {out}: {error.strerror or error}") from error
        raise
