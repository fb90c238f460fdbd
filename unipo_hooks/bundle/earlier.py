"""What earlier attempts left in a bundle: where the numbers of the next one begin."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unipo_hooks.bundle import layout
from unipo_hooks.schema import Attempt, Earlier


def read_earlier(path: Path, ranks: Iterable[int]) -> Earlier:
    """From the index and metrics of these ranks, of which one may have come further than another before it was killed.

    Numbers are free where no rank has them. Raises ValueError or KeyError on a line that cannot be read.
    """
    index = [line for rank in ranks for line in _lines(path / layout.index_name(rank))]
    kept = [line for line in index if line["entry"] == "rollout"]
    metrics = [line for rank in ranks for line in _lines(path / layout.metrics_name(rank))]
    updates = [line for line in metrics if line["entry"] == "metrics"]
    highest = {"train": -1, "eval": -1}
    for line in (*kept, *updates):
        numbers = [line["rollout"]] if line["entry"] == "rollout" else line["rollouts"]
        highest[line["kind"]] = max(highest[line["kind"]], *numbers)
    return Earlier(
        kept_rollouts=len({(line["attempt"], line["rollout"]) for line in kept if line["kind"] == "train"}),
        next_rollout={kind: number + 1 for kind, number in highest.items()},
        next_evaluation=1 + max((line["update"] for line in updates if line["kind"] == "eval"), default=-1),
        segment_bytes=sum(file.stat().st_size for file in (path / layout.SEGMENTS).glob("*.parquet")),
    )


def updates_until(path: Path, attempts: Sequence[Attempt], step: int) -> int:
    """Updates rank 0 knows of up to a step of the trainer's, without those that a later attempt took back.

    Raises ValueError or KeyError on a line that cannot be read.
    """
    lines = [line for line in _lines(path / layout.metrics_name(0)) if line["entry"] == "metrics"]
    until = [line for line in lines if line["kind"] == "train" and line["step"] <= step]
    stand = [
        line["update"]
        for line in until
        if all(line["update"] < b.first_update for b in attempts if b.attempt > line["attempt"])
    ]
    return 1 + max(stand, default=-1)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; what follows the last line end is half-written. None where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
