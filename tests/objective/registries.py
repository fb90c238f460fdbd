"""A registry a test may add to: what was known before is known again after it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from unipo_hooks import algorithms
from unipo_hooks.objective import describe
from unipo_hooks.objective.parts.types import FUNCTIONS

GOOD: dict[str, Any] = {
    "id": "mine",
    "name": "Mine",
    "parts": {
        "baseline": {"part": "group_mean"},
        "bounds": {"part": "around_one", "epsilon_high": 0.3},
        "gate": {"part": "ppo_clip"},
        "aggregation": {"part": "token_mean"},
    },
}
"""A definition nothing is wrong with."""


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is registered; what the test registers is gone after it."""
    monkeypatch.delenv(algorithms.ENVIRONMENT, raising=False)
    monkeypatch.setattr(algorithms, "_OWN", {})
    monkeypatch.setattr(describe, "_OWN", {})
    known = {slot: dict(functions) for slot, functions in FUNCTIONS.items()}
    forget()
    yield
    for slot, functions in known.items():
        FUNCTIONS[slot].clear()
        FUNCTIONS[slot].update(functions)
    forget()


def forget() -> None:
    """What the environment held, and which warnings were given, is forgotten."""
    algorithms._read_environment.cache_clear()
    algorithms._warn.cache_clear()


def edited(path: str, value: Any, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """A definition with something else at a path, such as `parts.gate.part`."""
    tree: dict[str, Any] = json.loads(json.dumps(GOOD if base is None else base))
    at = tree
    *way, last = path.split(".")
    for step in way:
        at = at.setdefault(step, {})
    at[last] = value
    return tree


def without(path: str) -> dict[str, Any]:
    """A definition that lacks what stands at a path."""
    tree = edited(path, None)
    *way, last = path.split(".")
    at = tree
    for step in way:
        at = at[step]
    del at[last]
    return tree
