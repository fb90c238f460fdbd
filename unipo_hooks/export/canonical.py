"""UNIPO's canonical run (arXiv 2605.11549) from a bundle: JSON that UNIPO's own tool takes.

One entry an update, under the update's number: metrics for every update, prompts for the captured ones. An entry's
prompts hold the responses this update trained on, grouped by prompt, as far as their tokens were kept. What was never
computed is null, and so are NaN and infinities, which JSON does not have. Floats are written with as many digits as
float32 carries. `token_objective` is the stored one where the bundle has it, and else computed by the algorithm
of the attempt the update belongs to, where that is known.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import to_json

from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.algorithms import get
from unipo_hooks.bundle import layout
from unipo_hooks.bundle.batches import MicroBatch, micro_batches
from unipo_hooks.bundle.reader import Bundle, open_bundle
from unipo_hooks.errors import UnipoError
from unipo_hooks.export import Progress, refuse_own_files, written_whole
from unipo_hooks.objective.evaluate import evaluate
from unipo_hooks.objective.recorded import as_recorded
from unipo_hooks.schema import CanonicalRun, Entry, Header, Tokens

UNIPO_ALGORITHMS = ("reinforce", "ppo", "grpo", "dapo", "drgrpo")
"""Algorithms UNIPO's tool has a page for."""

UNIPO_MIN_ENTRIES = 22
"""Entries UNIPO's page needs to draw a run at all."""

ROWS_TOGETHER = 1 << 14
"""Responses and tokens to read at once: many small updates then cost little more than one."""

REQUIRED_METRICS = ("policy_objective", "reward")

_CHANNELS = [name for name in Tokens.model_fields if name not in ("ids", "strings")]
_NOT_METRICS = {
    *("kind", "attempt", "update", "step", "time", "rollouts", "is_first_step_after_rollout_phase", "captured"),
    *("ranks", "superseded"),
}
_KEY = ("update", "rollout", "rank", "row", "micro_batch")
_Key = tuple[int, int, int, int, int]
_TEXT = ("ids", "strings")
_NOT_WRITTEN = {"attempt", "kind", "step", "messages", "counted", "update_counted"}


def canonical_run(bundle: Bundle) -> CanonicalRun:
    """The whole run in memory. For a long run `export_canonical` writes the same, one entry at a time."""
    entries = [
        Entry.model_validate(entry) for entry in _entries(bundle, _metrics_by_update(bundle), _Objectives(bundle))
    ]
    return CanonicalRun(header=_header(bundle, len(entries)), entries=entries)


def export_canonical(bundle_path: str | Path, out: str | Path, progress: Progress | None = None) -> list[str]:
    """Write a bundle's canonical run to `out`, whole or not at all.

    Returns what UNIPO's own tool would object to, and what the bundle did not have, a line each. `progress` hears of
    updates. Raises BundleError or ExportError with one clear line.
    """
    bundle = open_bundle(bundle_path)
    refuse_own_files(bundle.path, Path(out))
    rows = _metrics_by_update(bundle)
    total = len(rows)
    header = _header(bundle, total)
    unknown = dict.fromkeys(REQUIRED_METRICS, 0)
    objectives = _Objectives(bundle)
    with written_whole(Path(out)) as file:
        file.write(b'{"header": ' + header.model_dump_json().encode() + b', "entries": [')
        for number, entry in enumerate(_entries(bundle, rows, objectives)):
            file.write((",\n" if number else "\n").encode() + to_json(entry))
            for name in REQUIRED_METRICS:
                unknown[name] += entry["metrics"][name] is None
            if progress:
                progress(number + 1, total)
        file.write(b"\n]}\n")
    return [*_objections(header, total), *_gaps(bundle, unknown, total), *objectives.notes()]


def _header(bundle: Bundle, entries: int) -> Header:
    header = bundle.header
    return header.model_copy(
        update={
            "algorithm": header.algorithm.strip().lower(),
            "totalSteps": header.totalSteps or entries,
            "hparams": _finite(header.hparams),
        }
    )


def _metrics_by_update(bundle: Bundle) -> dict[int, dict[str, Any]]:
    """Update → its row of metrics; a captured update without one has its place too."""
    updates = bundle.updates().select(["update", "is_first_step_after_rollout_phase"])
    rows = {row["update"]: row for row in (*updates.to_pylist(), *bundle.metrics().to_pylist())}
    return dict(sorted(rows.items()))


def _entries(bundle: Bundle, rows: dict[int, dict[str, Any]], objectives: _Objectives) -> Iterator[dict[str, Any]]:
    """Entries as they are written: the shape of `schema.Entry`, which is not put to the test for each number."""
    names = dict.fromkeys(name for row in rows.values() for name in row if name not in _NOT_METRICS)
    prompts: dict[int, list[dict[str, Any]]] = {}
    together = _together(bundle)
    for update, row in rows.items():
        if update in together:
            prompts = _prompts(bundle, together[update], objectives)
        metrics = {name: _finite(row.get(name)) for name in (*REQUIRED_METRICS, *names)}
        fields: dict[str, Any] = {
            "step": update,
            "is_first_step_after_rollout_phase": bool(row["is_first_step_after_rollout_phase"]),
            # A metric this update has no value for is left out; the required ones are there as null.
            "metrics": {n: value for n, value in metrics.items() if value is not None or n in REQUIRED_METRICS},
        }
        if update in prompts:
            fields["prompts"] = prompts[update]
        yield fields


def _together(bundle: Bundle) -> dict[int, list[int]]:
    """Captured updates in parts of about ROWS_TOGETHER rows, each under its first update."""
    table = bundle.updates()
    rows = np.cumsum(table.column("responses").to_numpy() + table.column("tokens").to_numpy())
    parts = np.split(table.column("update").to_numpy(), np.flatnonzero(np.diff(rows // ROWS_TOGETHER)) + 1)
    return {int(part[0]): part.tolist() for part in parts if len(part)}


def _prompts(bundle: Bundle, updates: list[int], objectives: _Objectives) -> dict[int, list[dict[str, Any]]]:
    """The prompts of updates, by rollout and group; the responses of each by rank, row and micro-batch."""
    table, rows = bundle.tokens(update=updates), bundle.responses(update=updates)
    tokens = _tokens_by_response(table)
    for key, objective in objectives.of(updates, table, rows).items():
        if key in tokens:
            tokens[key]["token_objective"] = objective
    groups: dict[tuple[int, int, int], list[tuple[_Key, dict[str, Any]]]] = defaultdict(list)
    texts: dict[tuple[int, int, int], str] = {}
    for row in _rows(rows):
        key = (row["update"], row["rollout"], row["rank"], row["row"], row["micro_batch"])
        if key in tokens:
            own = tokens[key]
        elif row["kept"] and not row["length"]:
            own = {"ids": [], "strings": []}
        else:
            continue
        group = (row["update"], row["rollout"], row["group"])
        groups[group].append((key, _response(bundle, row, own)))
        texts[group] = row["prompt"]
    prompts: dict[int, list[dict[str, Any]]] = {update: [] for update in updates}
    for group, found in sorted(groups.items()):
        responses = _told_apart([response for _, response in sorted(found, key=lambda pair: pair[0])])
        prompts[group[0]].append({"prompt": texts[group], "responses": responses})
    return prompts


def _told_apart(responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Responses an update trained on more than once, with the number of the pass in their id; the others as they are.

    They come in the order of their passes.
    """
    passes = Counter(response["id"] for response in responses)
    seen: Counter[str] = Counter()
    for response in responses:
        name = response["id"]
        if passes[name] > 1:
            seen[name] += 1
            response["id"] = f"{name}-pass{seen[name]}"
    return responses


def _rows(responses: pa.Table) -> Iterator[dict[str, Any]]:
    """Responses, a dict each; floats as they are written, and only what is."""
    names = [n for n in responses.column_names if n not in _NOT_WRITTEN and not n.startswith(layout.LABEL)]
    columns = [_column(responses.column(name)) for name in names]
    return (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))


def _response(bundle: Bundle, row: dict[str, Any], tokens: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": f"rollout{row['rollout']}-rank{row['rank']}-row{row['row']}",
        "reward": row["reward"],
        "response_text": "".join(tokens["strings"]),
        "response_length": row["length"],
        "tokens": tokens,
    }
    if "advantages" in row:
        fields["advantage"] = row["advantages"]
    if names := bundle.manifest.reward_names:
        # Two reward functions may have one name.
        fields["reward_components"] = {
            name if names.count(name) == 1 else f"{name} ({number})": row.get(layout.component_column(number))
            for number, name in enumerate(names)
        }
    return fields


def _tokens_by_response(table: pa.Table) -> dict[_Key, dict[str, Any]]:
    """Response → its tokens; those of rollouts that were not captured have no text and are left out."""
    starts = np.flatnonzero(table.column("position").to_numpy() == 0)
    stops = np.append(starts[1:], table.num_rows)
    known = table.column("group").is_valid().to_numpy()[starts]
    keys = zip(*(table.column(name).to_numpy()[starts].tolist() for name in _KEY), strict=True)
    columns = {name: _column(table.column(name)) for name in (*_TEXT, *_CHANNELS) if name in table.column_names}
    # A channel is left out of a response that has no value of it at all.
    there = {name: _any(table.column(name), starts) for name in columns if name not in _TEXT}
    return {
        key: {name: values[start:stop] for name, values in columns.items() if name in _TEXT or there[name][number]}
        for number, (key, start, stop) in enumerate(zip(keys, starts.tolist(), stops.tolist(), strict=True))
        if known[number]
    }


class _Objectives:
    """What each token adds to the run's objective, where no part of the user's own has stored it."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._specs: dict[int, AlgorithmSpec | str] = {}
        """Attempt → its algorithm, or why it is not known."""
        self._passes = 0
        self._left_out: Counter[str] = Counter()

    def of(self, updates: list[int], tokens: pa.Table, responses: pa.Table) -> dict[_Key, list[float | None]]:
        """Response → what each of its tokens adds; null where the token does not count.

        Without those of updates that have it stored, and of forward passes it cannot be computed for: `notes` says so.
        """
        found: dict[_Key, list[float | None]] = {}
        lines = self._bundle.updates()
        for update in lines.filter(pc.is_in(lines["update"], pa.array(updates))).to_pylist():
            own = tokens.filter(pc.equal(tokens["update"], update["update"]))
            rows = responses.filter(pc.equal(responses["update"], update["update"]))
            stored = _stored(own)
            for part in micro_batches(update, own, rows):
                # Nothing is computed of a pass in which no token counts, so nothing is missing either.
                if not part.batch["mask"].any():
                    continue
                self._passes += 1
                if (part.rank, part.micro_batch) not in stored:
                    found |= self._computed(part)
        return found

    def notes(self) -> Iterator[str]:
        """What was left out and why, a line a reason."""
        for reason, passes in self._left_out.items():
            yield f"token_objective is left out of {passes} of {self._passes} forward passes: {reason}"

    def _computed(self, part: MicroBatch) -> dict[_Key, list[float | None]]:
        if part.attempt not in self._specs:
            self._specs[part.attempt] = self._algorithm(part.attempt)
        spec = self._specs[part.attempt]
        if isinstance(spec, str):
            self._left_out[spec] += 1
            return {}
        try:
            evaluation = evaluate(as_recorded(spec, part.batch.arrays), part.batch)
        except UnipoError as error:
            self._left_out[str(error)] += 1
            return {}
        except Exception as error:  # a part may be the user's own code
            self._left_out[f"{spec.id} fails with {type(error).__name__}: {error}"] += 1
            return {}
        shown = np.where(evaluation.aggregation > 0, evaluation.token_objective, np.nan)
        return {
            (part.update, part.rollout, part.rank, int(row), part.micro_batch): [
                _rounded(value) for value in values[:length].tolist()
            ]
            for row, length, values in zip(part.row_B, part.length_B, shown, strict=True)
            if np.isfinite(values).any()
        }

    def _algorithm(self, attempt: int) -> AlgorithmSpec | str:
        """The algorithm an attempt ran, or why it is not known."""
        of = next((each for each in self._bundle.manifest.attempts if each.attempt == attempt), None)
        if of is None or of.algorithm is None:
            notes = [] if of is None else of.algorithm_notes
            return "; ".join(["the bundle does not say which algorithm ran", *notes])
        try:
            return get(of.algorithm)
        except UnipoError as error:
            return f"the algorithm that ran is not known to this version of unipo-hooks: {error}"


def _stored(tokens: pa.Table) -> set[tuple[int, int]]:
    """Rank and number of the forward passes whose objective the bundle has."""
    if "token_objective" not in tokens.column_names:
        return set()
    there = tokens.filter(pc.is_finite(tokens["token_objective"]))
    return set(zip(there["rank"].to_pylist(), there["micro_batch"].to_pylist(), strict=True))


def _rounded(value: float) -> float | None:
    return float(f"{value:.9g}") if math.isfinite(value) else None


def _any(column: pa.ChunkedArray, starts: np.ndarray[Any, Any]) -> list[bool]:
    """Whether the stretch from each of `starts` to the next has a value that will be written."""
    if not len(starts) or not pa.types.is_floating(column.type):
        return [True] * len(starts)
    there: list[bool] = np.logical_or.reduceat(np.isfinite(column.to_numpy()), starts).tolist()
    return there


def _column(column: pa.ChunkedArray) -> list[Any]:
    """Values of a column: numbers as short as float32 allows, None where there is no number."""
    if pa.types.is_floating(column.type):
        # By way of text: float32's shortest, which reads as another float64 than the float32 itself.
        finite = pc.if_else(pc.is_finite(column), column, None)
        return list(finite.cast(pa.string()).cast(pa.float64()).to_pylist())
    if pa.types.is_dictionary(column.type):
        return list(column.cast(pa.string()).to_pylist())  # much faster than out of the dictionary one by one
    return list((column.fill_null(0) if pa.types.is_integer(column.type) else column).to_pylist())


def _finite(value: Any) -> Any:
    """The value with every NaN and infinity in it replaced by None."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _objections(header: Header, entries: int) -> Iterator[str]:
    if entries < UNIPO_MIN_ENTRIES:
        yield f"UNIPO's own page needs at least {UNIPO_MIN_ENTRIES} updates; this run has {entries}"
    if header.algorithm not in UNIPO_ALGORITHMS:
        name = json.dumps(header.algorithm, ensure_ascii=False)
        yield f"UNIPO's own page has no algorithm {name}; it knows {', '.join(UNIPO_ALGORITHMS)}"


def _gaps(bundle: Bundle, unknown: dict[str, int], entries: int) -> Iterator[str]:
    for name, updates in unknown.items():
        if updates:
            yield f"{name} is null in {updates} of {entries} entries: the trainer did not give it"
    sampled = sum(kept is not None for kept in bundle.rollouts().column("kept").to_pylist())
    if sampled:
        yield f"of {sampled} rollouts only some prompt groups were captured; the others are left out"
