"""Names every fault of a bundle with file and line: `verify(path)`. It never raises, whatever it is given.

A *fault* is something a reader would trip over or show wrongly; a *note* is what a killed run leaves behind and readers
pass over. What concerns one entry is reported at its index line, what concerns a whole segment file at that file. A
check that fails for many rows of an entry is reported once, with their number.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.check_lines import TABLES_OF, LineChecks
from unipo_hooks.bundle.check_rows import check_rows
from unipo_hooks.bundle.check_segments import Segments
from unipo_hooks.bundle.faults import Fault, Report
from unipo_hooks.bundle.files import Files, one_line

_SEGMENT_FILE = re.compile(rf"(r\d+-\d+)\.({'|'.join(layout.TABLES)})\.parquet")


def verify(path: str | os.PathLike[str]) -> list[Fault]:
    """Every fault and note of the bundle at `path`; empty for a sound one."""
    root, report = Path(path), Report()
    try:
        if root.is_dir():
            _check(root, report)
        else:
            report.fault(str(root), None, "is a file, not a folder" if root.exists() else "does not exist")
    except Exception as error:
        # The promise is to name what is wrong, not to be right about every way in which bytes can be wrong.
        report.fault(str(root), None, f"cannot be checked any further: {type(error).__name__}: {one_line(error)}")
    return report.found


def _check(root: Path, report: Report) -> None:
    lines = LineChecks(Files(root), report)
    if not lines.manifest_is_ours():
        return
    referred: set[tuple[str, str]] = set()
    for rank in lines.ranks():
        entries = list(lines.entries(rank))
        lines.overlaps(entries)
        check_rows(entries, Segments(root, report, lines.manifest), report)
        lines.metrics(rank)
        referred.update((entry.line.segment, table) for entry in entries for table in TABLES_OF[type(entry.line)])
    _left_over(root, referred, report)


def _left_over(root: Path, referred: set[tuple[str, str]], report: Report) -> None:
    """What a crash leaves."""
    segments = root / layout.SEGMENTS
    folders = [root, *([segments] if segments.is_dir() else [])]
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        name = path.relative_to(root).as_posix()
        match = _SEGMENT_FILE.fullmatch(path.name)
        if path.name.endswith(".tmp"):
            report.note(name, None, "was being written when the run was killed, or is now; harmless")
        elif match and path.parent == segments and match.groups() not in referred:
            report.note(name, None, "no index line refers to it: lost when the run was killed; harmless")


__all__ = ["Fault", "verify"]
