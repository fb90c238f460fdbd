"""What each shipped algorithm was compared with, read from `registry/confirmed.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A comparison of an algorithm with running code: a trainer's, its authors' or another library's."""

    against: str
    """Library, version and function."""
    covers: tuple[str, ...]
    """`objective`, `advantages`, or both."""
    error: float
    """Largest error of anything compared; of the loss, divided by max(1, Σ |aggregation × objective|)."""
    cases: int


@dataclass(frozen=True, slots=True)
class Compared:
    """What is known of an algorithm's numbers."""

    confirmations: tuple[Confirmation, ...] = ()
    missing: tuple[str, ...] = ()
    """Parts that no comparison would have missed."""


@cache
def compared() -> dict[str, Compared]:
    """Algorithm → what it was compared with."""
    file = resources.files("unipo_hooks.objective.registry") / "confirmed.json"
    return {
        name: Compared(
            tuple(Confirmation(**each | {"covers": tuple(each["covers"])}) for each in entry["comparisons"]),
            tuple(entry["not_compared"]),
        )
        for name, entry in json.loads(file.read_text(encoding="utf-8")).items()
    }
