"""Writes bundles by hand, from the format alone: what the reader's tests read owes nothing to the product's writer.

Everything is plain Python: a response is a dict, its tokens a list of dicts, and nothing is checked, so that a test can
write what is wrong as easily as what is right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]

TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(("kind", "prompt", "messages", "strings"), pa.string()),
    **dict.fromkeys(("rollout", "update", "row", "group", "length", "counted", "micro_batch", "ids"), pa.int32()),
    **dict.fromkeys(("mask", "mask_reason"), pa.uint8()),
    "kept": pa.bool_(),
}
"""Column types; every other column is float32."""


class Builder:
    """A bundle in the making; `write()` puts it on disk."""

    def __init__(self, path: Path, *, ranks: int = 1, reward_names: tuple[str, ...] = (), **manifest: Any) -> None:
        self.path = path
        self.ranks = ranks
        self.manifest: Row = {
            "format": "unipo-bundle",
            "version": "1.0",
            "created": "2026-01-01T00:00:00Z",
            "status": "finished",
            "header": {"algorithm": "grpo", "task": "adding digits"},
            "trainer": {"library": "trl", "version": "1.16.0", "trainer_class": "GRPOTrainer"},
            "ranks": ranks,
            "reward_names": list(reward_names),
            "attempts": [attempt(0)],
            **manifest,
        }
        if "algorithm" in self.manifest:
            self.manifest["attempts"][0]["algorithm"] = self.manifest.pop("algorithm")
        self.index: dict[int, list[Row]] = {rank: [] for rank in range(ranks)}
        self.metric_lines: dict[int, list[Row]] = {rank: [] for rank in range(ranks)}
        self.tables: dict[tuple[str, str], list[Row]] = {}

    def rollout(
        self, number: int, responses: list[Row], *, rank: int = 0, segment: int = 0, kind: str = "train", **line: Any
    ) -> Builder:
        """Add a rollout: `responses` as `response()` makes them."""
        keys = {"kind": kind, "rollout": number}
        rows = [{**keys, **{k: v for k, v in r.items() if k != "tokens"}} for r in responses]
        tokens = [{**keys, "row": r["row"], **t} for r in responses if r["kept"] for t in r["tokens"]]
        name = f"r{rank}-{segment:06d}"
        self.index[rank].append(
            {
                "entry": "rollout",
                "kind": kind,
                "attempt": 0,
                "rollout": number,
                "step": number + 1,
                "time": 100.0 + number,
                "segment": name,
                "responses": self._append(name, "responses", rows),
                "tokens": self._append(name, "rollout_tokens", tokens),
                "groups": len({r["group"] for r in responses}),
                **line,
            }
        )
        return self

    def update(
        self,
        number: int,
        rows: list[tuple[int, Row]],
        *,
        rank: int = 0,
        segment: int = 0,
        kind: str = "train",
        micro_batches: int = 1,
        values: Row | None = None,
        **line: Any,
    ) -> Builder:
        """Add an update on `rows`, pairs of a rollout's number and one of its responses.

        They are dealt out to the micro-batches in order. Every token gets as its log_probs the value of
        `log_prob(...)`, less a quarter for each micro-batch before its own, and the constants in `values`.
        """
        keys = {"kind": kind, "update": number}
        responses, tokens = [], []
        for order, (rollout, response) in enumerate(rows):
            micro_batch = order * micro_batches // len(rows)
            place = {**keys, "rollout": rollout, "row": response["row"], "micro_batch": micro_batch}
            responses.append(
                {
                    **place,
                    "counted": response["counted"],
                    "log_ratio_sum": 0.5 + order,
                }
            )
            if response["kept"]:
                for position in range(len(response["tokens"])):
                    value = log_prob(number, response["row"], position) - micro_batch / 4
                    tokens.append({**place, "log_probs": value, **(values or {})})
        name = f"r{rank}-{segment:06d}"
        self.index[rank].append(
            {
                "entry": "update",
                "kind": kind,
                "attempt": 0,
                "update": number,
                "step": number + 1,
                "time": 200.0 + number,
                "rollouts": sorted({rollout for rollout, _ in rows}),
                "is_first_step_after_rollout_phase": True,
                "segment": name,
                "responses": self._append(name, "update_responses", responses),
                "tokens": self._append(name, "update_tokens", tokens),
                "micro_batches": [{"rollout": 0, "rows": 1, "tokens": 1, "loss": 0.25}] * micro_batches,
                **line,
            }
        )
        return self

    def metrics(self, number: int, sums: Row, *, rank: int = 0, **line: Any) -> Builder:
        """Add an update's metrics line; `sums` holds `[sum, count, sum of squares]`."""
        self.metric_lines[rank].append(
            {
                "entry": "metrics",
                "kind": "train",
                "attempt": 0,
                "update": number,
                "step": number + 1,
                "time": 200.0 + number,
                "rollouts": [number],
                "is_first_step_after_rollout_phase": True,
                "captured": True,
                "sums": sums,
                **line,
            }
        )
        return self

    def log(self, number: int, scalars: Row, **line: Any) -> Builder:
        """Add a line of what the trainer logged."""
        self.metric_lines[0].append(
            {
                "entry": "log",
                "kind": "train",
                "attempt": 0,
                "update": number,
                "step": number + 1,
                "scalars": scalars,
                **line,
            }
        )
        return self

    def write(self) -> Path:
        """Write all files; tables without rows have none."""
        (self.path / "segments").mkdir(parents=True, exist_ok=True)
        (self.path / "manifest.json").write_text(json.dumps(self.manifest, indent=1), encoding="utf-8")
        for stem, lines in (("index", self.index), ("metrics", self.metric_lines)):
            for rank, of_rank in lines.items():
                text = "".join(json.dumps(line) + "\n" for line in of_rank)
                (self.path / f"{stem}.r{rank}.jsonl").write_text(text, encoding="utf-8")
        for (segment, table), rows in self.tables.items():
            if rows:
                write_rows(self.path / "segments" / f"{segment}.{table}.parquet", rows)
        return self.path

    def _append(self, segment: str, table: str, rows: list[Row]) -> list[int]:
        there = self.tables.setdefault((segment, table), [])
        there.extend(rows)
        return [len(there) - len(rows), len(there)]


def write_rows(path: Path, rows: list[Row], *, row_group_size: int = 7) -> None:
    """Write rows as Parquet, in row groups small enough for a test to cross their borders."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: pa.array([row.get(name) for row in rows], TYPES.get(name, pa.float32())) for name in names}
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)


def attempt(number: int, first_update: int = 0, status: str = "finished") -> Row:
    """A start of the trainer, for the manifest."""
    return {
        "attempt": number,
        "started": "2026-01-01T00:00:00Z",
        "first_update": first_update,
        "ended": None,
        "status": status,
    }


def token(number: int, **values: Any) -> Row:
    """A token: id `number`, its text, counted, with values of further channels."""
    return {"ids": number, "strings": f"t{number}", "mask": 1, **values}


def response(
    row: int, tokens: list[Row], *, group: int = 0, kept: bool = True, reward: float = 0.0, **more: Any
) -> Row:
    """A response of a rollout with its tokens."""
    return {
        "row": row,
        "group": group,
        "prompt": f"prompt {group}",
        "length": len(tokens),
        "counted": sum(t["mask"] for t in tokens),
        "kept": kept,
        "reward": reward,
        "tokens": tokens,
        **more,
    }


def log_prob(update: int, row: int, position: int) -> float:
    """The log-prob a built update has there: different everywhere, exact as float32."""
    return -(update * 4096 + row * 64 + position + 1) / 8192


def simple(path: Path) -> Builder:
    """A sound bundle: two rollouts of two groups each (the second group of the second was not kept), three updates."""
    first = [
        response(0, [token(1), token(2, mask=0, mask_reason=1), token(3)], group=0, reward=1.0, advantages=0.5),
        response(1, [token(4)], group=0, reward=0.0, advantages=-0.5),
        response(2, [], group=1, reward=1.0, advantages=0.0),
        response(3, [token(5), token(6)], group=1, reward=1.0, advantages=0.0),
    ]
    second = [
        response(0, [token(7), token(8)], group=0, reward=0.25, advantages=1.0),
        response(1, [token(9)], group=1, kept=False, reward=0.75, advantages=-1.0),
    ]
    built = Builder(path)
    built.rollout(0, first, aliases={"old_log_probs": "log_probs"})
    built.update(0, [(0, first[3]), (0, first[0])], micro_batches=2)
    built.update(1, [(0, first[1]), (0, first[2])], is_first_step_after_rollout_phase=False)
    built.rollout(1, second, segment=1, kept=[0], weight=2.0)
    built.update(2, [(1, second[1]), (1, second[0])], segment=1, values={"entropies": 0.5})
    for number in range(3):
        built.metrics(number, {"reward": [2.0, 4.0, 2.0]}, rollouts=[number // 2])
    return built
