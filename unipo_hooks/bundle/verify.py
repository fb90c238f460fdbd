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
from unipo_hooks.bundle.check_lines import TABLES_OF, LineChecks, WrittenLine
from unipo_hooks.bundle.check_rows import check_rows
from unipo_hooks.bundle.check_segments import Segments
from unipo_hooks.bundle.faults import Fault, Report
from unipo_hooks.bundle.files import Files, no_bundle, one_line, reason

_LINE_FILE = re.compile(r"(?:index|metrics)\.r\d+\.jsonl")
_SEGMENT_FILE = re.compile(rf"(r(\d+)-\d+)\.({'|'.join(layout.TABLES)})\.parquet")


def verify(path: str | os.PathLike[str]) -> list[Fault]:
    """Every fault and note of the bundle at `path`; empty for a sound one."""
    root, report = Path(path), Report()
    try:
        if has_traces(root):
            _check(root, report)
        else:
            report.fault(str(root), None, no_bundle(root))
    except OSError as error:
        report.fault(str(root), None, f"cannot be read: {reason(error)}")
    except Exception as error:
        # The promise is to name what is wrong, not to be right about every way in which bytes can be wrong.
        report.fault(str(root), None, f"cannot be checked any further: {type(error).__name__}: {one_line(error)}")
    return report.found


def _check(root: Path, report: Report) -> None:
    lines = LineChecks(Files(root), report)
    if not lines.manifest_is_ours():
        return
    referred: set[tuple[str, str]] = set()
    every: dict[int, list[WrittenLine]] = {}
    for rank in lines.ranks():
        lines.rank_file(rank)
        entries = every[rank] = list(lines.entries(rank))
        lines.overlaps(entries)
        check_rows(entries, Segments(root, report, lines.manifest), report)
        lines.metrics(rank)
        referred.update((entry.line.segment, table) for entry in entries for table in TABLES_OF[type(entry.line)])
    lines.missing(every)
    _left_over(root, referred, lines.unclear, report)


def has_traces(root: Path) -> bool:
    """Whether `root` is a bundle, or what damage has left of one. Raises OSError where it cannot be looked into."""
    if not root.is_dir():
        return False
    names = {path.name for path in root.iterdir()}
    return not names.isdisjoint((layout.MANIFEST, layout.SEGMENTS)) or any(map(_LINE_FILE.fullmatch, names))


def _left_over(root: Path, referred: set[tuple[str, str]], unclear: set[str], report: Report) -> None:
    """What a crash leaves. An index in `unclear` might refer to any of its rank's segments."""
    segments = root / layout.SEGMENTS
    folders = [root, *([segments] if segments.is_dir() else [])]
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        name = path.relative_to(root).as_posix()
        match = _SEGMENT_FILE.fullmatch(path.name)
        if path.name.endswith(".tmp"):
            report.note(name, None, "was being written when the run was killed, or is now; harmless")
        elif match is None or path.parent != segments or layout.index_name(int(match[2])) in unclear:
            continue
        elif (match[1], match[3]) not in referred:
            report.note(name, None, "no index line refers to it: lost when the run was killed; harmless")


__all__ = ["Fault", "has_traces", "verify"]
