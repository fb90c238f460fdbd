"""UNIPO's canonical run (arXiv 2605.11549) from a bundle: JSON that UNIPO's own tool takes.

One entry an update, under the update's number: metrics for every update, prompts for the captured ones. An entry's
prompts hold the responses this update trained on, grouped by prompt, as far as their tokens were kept. What was never
computed is null, and so are NaN and infinities, which JSON does not have. Floats are written with as many digits as
float32 carries. `token_objective` is left out: it follows from the other channels and the algorithm's definition.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.reader import Bundle, open_bundle
from unipo_hooks.export import Progress, written_whole
from unipo_hooks.schema import CanonicalRun, Entry, Header, Prompt, Response, Tokens

UNIPO_ALGORITHMS = ("reinforce", "ppo", "grpo", "dapo", "drgrpo")
"""Algorithms UNIPO's tool has a page for."""

UNIPO_MIN_ENTRIES = 22
"""Entries UNIPO's page needs to draw a run at all."""

REQUIRED_METRICS = ("policy_objective", "reward")

_CHANNELS = [name for name in Tokens.model_fields if name not in ("ids", "strings", "token_objective")]
_NOT_METRICS = {
    *("kind", "attempt", "update", "step", "time", "rollouts", "is_first_step_after_rollout_phase", "captured"),
    *("ranks", "superseded"),
}
_Key = tuple[int, int, int]


def canonical_run(bundle: Bundle) -> CanonicalRun:
    """The whole run in memory. For a long run `export_canonical` writes the same, one entry at a time."""
    entries = list(_entries(bundle))
    return CanonicalRun(header=_header(bundle, len(entries)), entries=entries)


def export_canonical(bundle_path: str | Path, out: str | Path, progress: Progress | None = None) -> list[str]:
    """Write a bundle's canonical run to `out`, whole or not at all.

    Returns what UNIPO's own tool would object to, and what the bundle did not have, a line each. `progress` hears of
    updates. Raises BundleError or ExportError with one clear line.
    """
    bundle = open_bundle(bundle_path)
    total = len(_metrics_by_update(bundle))
    header = _header(bundle, total)
    unknown = dict.fromkeys(REQUIRED_METRICS, 0)
    with written_whole(Path(out)) as file:
        file.write(b'{"header": ' + header.model_dump_json().encode() + b', "entries": [')
        for number, entry in enumerate(_entries(bundle)):
            file.write((",\n" if number else "\n").encode() + entry.model_dump_json(exclude_unset=True).encode())
            for name in REQUIRED_METRICS:
                unknown[name] += entry.metrics[name] is None
            if progress:
                progress(number + 1, total)
        file.write(b"\n]}\n")
    return [*_objections(header, total), *_gaps(bundle, unknown, total)]


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
    rows = {row["update"]: row for row in (*bundle.updates().to_pylist(), *bundle.metrics().to_pylist())}
    return dict(sorted(rows.items()))


def _entries(bundle: Bundle) -> Iterator[Entry]:
    captured = set(bundle.updates().column("update").to_pylist())
    names = [name for name in bundle.metrics().column_names if name not in _NOT_METRICS]
    for update, row in _metrics_by_update(bundle).items():
        metrics = {name: _finite(row.get(name)) for name in dict.fromkeys((*REQUIRED_METRICS, *names))}
        fields: dict[str, Any] = {
            "step": update,
            "is_first_step_after_rollout_phase": row["is_first_step_after_rollout_phase"],
            # A metric this update has no value for is left out; the required ones are there as null.
            "metrics": {n: value for n, value in metrics.items() if value is not None or n in REQUIRED_METRICS},
        }
        if update in captured:
            fields["prompts"] = _prompts(bundle, update)
        yield Entry(**fields)


def _prompts(bundle: Bundle, update: int) -> list[Prompt]:
    """The prompts of an update, by rollout and group; the responses of each by row."""
    tokens = _tokens_by_response(bundle.tokens(update=update))
    groups: dict[tuple[int, int], list[tuple[_Key, Response]]] = defaultdict(list)
    texts: dict[tuple[int, int], str] = {}
    for row in bundle.responses(update=update).to_pylist():
        key = (row["rollout"], row["rank"], row["row"])
        if tokens[key]:
            own = tokens[key].pop(0)
        elif row["kept"] and not row["length"]:
            own = Tokens(ids=[], strings=[])
        else:
            continue
        group = (row["rollout"], row["group"])
        groups[group].append((key, _response(bundle, row, own)))
        texts[group] = row["prompt"]
    return [
        Prompt(prompt=texts[group], responses=[response for _, response in sorted(found, key=lambda pair: pair[0])])
        for group, found in sorted(groups.items())
    ]


def _response(bundle: Bundle, row: dict[str, Any], tokens: Tokens) -> Response:
    fields: dict[str, Any] = {
        "id": f"rollout{row['rollout']}-rank{row['rank']}-row{row['row']}",
        "reward": _single(row["reward"]),
        "response_text": "".join(tokens.strings),
        "response_length": row["length"],
        "tokens": tokens,
    }
    if row.get("advantages") is not None:
        fields["advantage"] = _single(row["advantages"])
    if names := bundle.manifest.reward_names:
        values = {number: row.get(layout.component_column(number)) for number in range(len(names))}
        # Two reward functions may have one name.
        fields["reward_components"] = {
            name if names.count(name) == 1 else f"{name} ({number})": _single(values[number])
            for number, name in enumerate(names)
        }
    return Response(**fields)


def _tokens_by_response(table: pa.Table) -> defaultdict[_Key, list[Tokens]]:
    """(rollout, rank, row) → its tokens, once for each time the update trained on it."""
    found: defaultdict[_Key, list[Tokens]] = defaultdict(list)
    position = table.column("position").to_numpy()
    starts = np.flatnonzero(position == 0)
    known = table.column("group").is_valid().to_numpy()
    keys = [table.column(name).to_numpy()[starts].tolist() for name in ("rollout", "rank", "row")]
    columns = {name: _column(table.column(name)) for name in _CHANNELS if name in table.column_names}
    ids, strings = table.column("ids").to_pylist(), table.column("strings").to_pylist()
    for key, start, stop in zip(zip(*keys, strict=True), starts, [*starts[1:], len(position)], strict=True):
        if not known[start]:  # a response of a rollout that was not captured
            continue
        own = {name: values[start:stop] for name, values in columns.items()}
        present = {name: values for name, values in own.items() if any(value is not None for value in values)}
        found[key].append(Tokens(ids=ids[start:stop], strings=strings[start:stop], **present))
    return found


def _column(column: pa.ChunkedArray) -> list[Any]:
    """Values of a channel: numbers as short as float32 allows, None where there is no number."""
    if not pa.types.is_floating(column.type):
        return list(column.fill_null(0).to_pylist())
    values = column.to_numpy()
    return [float(text) if ok else None for text, ok in zip(values.astype(str), np.isfinite(values), strict=True)]


def _single(value: float | None) -> float | None:
    """One float32 value, as short as it can be written."""
    return None if value is None or not math.isfinite(value) else float(str(np.float32(value)))


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
