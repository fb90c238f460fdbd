"""What `unipo-hooks view` shows: a bundle, or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.files import reason
from unipo_hooks.bundle.reader import open_bundle
from unipo_hooks.errors import BundleError
from unipo_hooks.shelf import FolderShelf, GivenShelf, Shelf

NAMED_AT_MOST = 5


def what_to_show(paths: Sequence[Path]) -> Path | Shelf:
    """The bundle at the path, the bundles in the folder there, or those at several paths.

    Raises BundleError where a path holds no bundle this version reads.
    """
    if len(paths) > 1:
        for path in paths:
            open_bundle(path)
        return GivenShelf(paths)
    (path,) = paths
    if path.is_dir() and not (path / layout.MANIFEST).is_file():
        shelf = FolderShelf(path)
        try:
            if shelf.names():
                return shelf
        except OSError as error:
            raise BundleError(f"cannot read {path}: {reason(error)}") from error
    open_bundle(path)
    return path


def named(paths: Sequence[Path], shown: Path | Shelf) -> str:
    """What is shown, in words that end in a verb."""
    if isinstance(shown, Path):
        return f"{shown} is"
    names = shown.names()
    which = ", ".join(names[:NAMED_AT_MOST])
    if len(names) > NAMED_AT_MOST:
        which += f" and {len(names) - NAMED_AT_MOST} more"
    if len(paths) > 1:
        return f"{which} are"
    return f"{paths[0]} ({len(names)} bundle{'s' * (len(names) != 1)}: {which}) is"
