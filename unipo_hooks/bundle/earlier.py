"""What earlier attempts left in a bundle: where the numbers of the next one begin."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unipo_hooks.bundle import layout


@dataclass(frozen=True, slots=True)
class Earlier:
    """Numbers that are taken. A new bundle has none."""

    kept_rollouts: int
    """Training rollouts whose tokens were kept."""
    next_rollout: dict[str, int]
    """First rollout number of each kind that is free."""
    next_evaluation: int

    @classmethod
    def read(cls, path: Path, rank: int) -> Earlier:
        """From a rank's index and metrics, whose last lines are whole. Raises ValueError or KeyError on any other."""
        kept = [line for line in _lines(path / layout.index_name(rank)) if line["entry"] == "rollout"]
        updates = [line for line in _lines(path / layout.metrics_name(rank)) if line["entry"] == "metrics"]
        highest = {"train": -1, "eval": -1}
        for line in (*kept, *updates):
            numbers = [line["rollout"]] if line["entry"] == "rollout" else line["rollouts"]
            highest[line["kind"]] = max(highest[line["kind"]], *numbers)
        return cls(
            kept_rollouts=sum(line["kind"] == "train" for line in kept),
            next_rollout={kind: number + 1 for kind, number in highest.items()},
            next_evaluation=1 + max((line["update"] for line in updates if line["kind"] == "eval"), default=-1),
        )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
