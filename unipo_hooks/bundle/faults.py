"""What is wrong with a bundle, and the list it is put on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a bundle; `str()` gives `index.r0.jsonl:12: message`."""

    file: str
    """Relative to the bundle; where there is no bundle, the path that was asked for."""
    line: int | None
    message: str
    severity: Literal["fault", "note"] = "fault"

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"


class Report:
    """Faults and notes in the order they were found."""

    def __init__(self) -> None:
        self.found: list[Fault] = []

    def fault(self, file: str, line: int | None, message: str) -> None:
        """Something a reader would trip over or show wrongly."""
        self.found.append(Fault(file, line, message))

    def note(self, file: str, line: int | None, message: str) -> None:
        """Something readers pass over."""
        self.found.append(Fault(file, line, message, "note"))
