"""Several bundles that are looked at side by side: those in a folder, or those that were named.

Each has a name in addresses. Only what is a bundle has one: a folder without a manifest is not there, nor is one whose
name an address cannot hold.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from unipo_hooks.bundle import layout

_UNFIT = re.compile(r"[/\\\x00-\x1f\x7f\ud800-\udfff]")
"""What no name in an address has: separators, control characters, and bytes that are no text."""


class Shelf(Protocol):
    """Bundles by their names; looked up anew each time, since runs begin while one looks."""

    title: str
    """What the page is called."""

    def names(self) -> list[str]:
        """The names of all bundles, sorted as they are shown."""

    def bundle(self, name: str) -> Path | None:
        """The bundle of that name; None where there is none. Any text may be asked for."""


class FolderShelf:
    """The bundles directly inside a folder, by the names of their folders. No link leads out of it."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self.root = folder.resolve()
        self.title = self.root.name

    def names(self) -> list[str]:
        """Sorted. Raises OSError where the folder cannot be read."""
        return sorted(name for name in os.listdir(self.root) if self.bundle(name))

    def bundle(self, name: str) -> Path | None:
        """The bundle in the folder of that name."""
        if name in ("", os.curdir, os.pardir) or _UNFIT.search(name):
            return None
        try:
            folder = (self.root / name).resolve(strict=True)
            there = folder.is_relative_to(self.root) and (folder / layout.MANIFEST).is_file()
        except (OSError, RuntimeError):
            return None
        return folder if there else None


class GivenShelf:
    """The bundles one named, by the names of their folders; of two alike the second is called `name-2`."""

    def __init__(self, bundles: Sequence[Path]) -> None:
        """The same bundle twice is one."""
        self._bundles: dict[str, Path] = {}
        folders = list(dict.fromkeys(path.resolve() for path in bundles))
        for folder in folders:
            plain = _UNFIT.sub("_", folder.name) or "run"
            name, number = plain, 2
            while name in self._bundles:
                name, number = f"{plain}-{number}", number + 1
            self._bundles[name] = folder
        self.title = " and ".join(self._bundles) if len(folders) <= 2 else f"{len(folders)} runs"

    def names(self) -> list[str]:
        """In the order they were named."""
        return list(self._bundles)

    def bundle(self, name: str) -> Path | None:
        """The bundle of that name."""
        return self._bundles.get(name)


__all__ = ["FolderShelf", "GivenShelf", "Shelf"]
