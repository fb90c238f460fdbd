"""Prints what held with each TRL, from the reports that `make compat` leaves: a file a version, of `pytest --junitxml`.

python tests/compat/table.py .venv-compat-*/report.xml
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

COLUMNS = ("TRL", "transformers", "torch", "Python", "tests", "skipped", "channels", "largest gap", "weights")


def row(path: Path, all_channels: set[str]) -> list[str]:
    """One version: what it ran with, what passed, what was captured, how far the loss was at most."""
    if not path.exists():
        return [path.parent.name, *["did not start"] * (len(COLUMNS) - 1)]
    suite = suite_of(path)
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    ran = {name: " ".join(dict.fromkeys(values(suite, name))) for name in ("trl", "transformers", "torch", "python")}
    channels, gaps = channels_of(path), [float(gap) for gap in values(suite, "gap")]
    absent = f" (no {', '.join(sorted(all_channels - channels))})" if all_channels - channels else ""
    identical = set(values(suite, "identical"))
    return [
        ran["trl"] or path.parent.name,
        ran["transformers"],
        ran["torch"],
        ran["python"],
        f"{total - skipped - failed} passed" + (f", {failed} FAILED" if failed else ""),
        str(skipped),
        f"{len(channels)}{absent}",
        f"{max(gaps):.1%} of the tolerance" if gaps else "not compared",
        "bit-identical" if identical == {"True"} else "NOT bit-identical",
    ]


def suite_of(path: Path) -> ElementTree.Element:
    """The tests of a report."""
    return next(ElementTree.parse(path).iter("testsuite"))


def channels_of(path: Path) -> set[str]:
    """Channels that were captured in any of a version's runs."""
    found = values(suite_of(path), "channels") if path.exists() else ()
    return {channel for each in found for channel in each.split()}


def values(suite: ElementTree.Element, name: str) -> Iterator[str]:
    """What the tests recorded under a name."""
    return (each.get("value", "") for each in suite.iter("property") if each.get("name") == name)


def main(paths: list[str]) -> None:
    """Print the table, oldest TRL first."""
    reports = [Path(path) for path in paths]
    all_channels = set().union(*map(channels_of, reports))
    rows = [row(report, all_channels) for report in reports]
    rows.sort(key=lambda each: [int(part) for part in each[0].split(".") if part.isdigit()])
    for cells in [list(COLUMNS), ["---"] * len(COLUMNS), *rows]:
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
