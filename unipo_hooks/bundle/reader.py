"""Opens a bundle and gives it as Arrow tables: `open_bundle(path)`.

Everything is lazy: opening reads the manifest, the methods read index lines, and only those that return groups,
responses or tokens read Parquet, of the segments they need. A `Bundle` is a snapshot of a running one: open it again to
see what has come since.

Missing values are NaN in the float columns of groups, responses and tokens, and null everywhere else.

What a later attempt did again is *superseded* and hidden; `superseded=True` shows everything, with a column
`superseded`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unipo_hooks.bundle.batches import MicroBatch, micro_batches
from unipo_hooks.bundle.entries import Entries
from unipo_hooks.bundle.files import Files, read_manifest
from unipo_hooks.bundle.join import Rows
from unipo_hooks.bundle.ranks import of_all_ranks, read_ranks
from unipo_hooks.bundle.tables import (
    ATTEMPTS,
    DOUBLE,
    INT,
    METRICS_COLUMNS,
    ROLLOUTS,
    UPDATES,
    UpdateMetrics,
    column_name,
    finished,
    merged,
    table_of,
    totals,
    where,
)
from unipo_hooks.channels import METRICS
from unipo_hooks.errors import BundleError
from unipo_hooks.schema import Header, Kind, Manifest, MetricsLine


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open the bundle in the folder `path`, which may belong to a run that still writes it.

    Raises BundleError where there is no bundle, or one of a newer major version.
    """
    files = Files(Path(path))
    manifest = read_manifest(files)
    return Bundle(files, of_all_ranks(manifest, read_ranks(files, manifest)))


class Bundle:
    """A bundle, read as Arrow tables. Every method raises BundleError where a file it needs is damaged.

    `kind` is `train` or `eval`: evaluations count their rollouts and updates apart. Counters are int32, `kind` is text.
    """

    def __init__(self, files: Files, manifest: Manifest) -> None:
        """Use `open_bundle`."""
        self.path: Path = files.root
        self.manifest = manifest
        self._entries = Entries(files, manifest)
        self._rows = Rows(files, self._entries, len(manifest.reward_names))

    def __repr__(self) -> str:
        header = self.header
        what = f"{header.algorithm} on {header.model_name}" if header.model_name else header.algorithm
        return f"<Bundle {self.path}: {what}, {self._progress()}, {self.manifest.status}>"

    def _repr_html_(self) -> str:
        """The viewer, in notebooks."""
        from unipo_hooks.notebook import notebook_html

        return notebook_html(self.path)

    def show(self, height: int | None = None) -> None:
        """Show the viewer in the notebook this is called from, `height` pixels high.

        A bundle that is the last expression of a cell shows itself. Raises UnipoError where IPython is not installed.
        """
        from unipo_hooks import notebook

        notebook.show(self.path, notebook.HEIGHT if height is None else height)

    @property
    def header(self) -> Header:
        """What was trained, on what, and how."""
        return self.manifest.header

    def attempts(self) -> pa.Table:
        """A row a start of the trainer: attempt, started, ended, status, first_update."""
        return table_of([attempt.model_dump() for attempt in self.manifest.attempts], ATTEMPTS)

    def rollouts(self, *, kind: Kind = "train", superseded: bool = False) -> pa.Table:
        """A row a captured rollout, ranks merged.

        `ranks` counts those that wrote it, fewer than `manifest.ranks_of(attempt)` where one was killed or is behind:
        groups then lack the responses of the others. `responses` and `tokens` count the rows stored; `groups` those
        sampled, of which `kept` had their tokens stored (null: all), each standing for `weight`; `aliases` maps a
        channel to the one it equals by construction.
        """
        rows = []
        for items in merged(self._entries.rollouts(kind, superseded)):
            lines = [item.line for item in items]
            kept = [line.kept for line in lines]
            rows.append(
                {
                    **lines[0].model_dump(include={"kind", "attempt", "rollout", "step", "groups", "weight"}),
                    **totals(items),
                    "kept": None if None in kept else sorted({group for groups in kept for group in groups or ()}),
                    "aliases": list({name: to for line in lines for name, to in line.aliases.items()}.items()),
                }
            )
        return table_of(rows, ROLLOUTS, superseded)

    def updates(self, *, kind: Kind = "train", superseded: bool = False) -> pa.Table:
        """A row a captured update, ranks merged; reads no Parquet.

        `responses` and `tokens` count the rows stored over all ranks; `micro_batches` lists the forward passes of every
        rank with what their loss was divided by, `micro_batch` being the number in `responses(update=...)`.
        """
        rows = []
        for items in merged(self._entries.updates(kind, superseded)):
            passes = [(item.rank, n, part) for item in items for n, part in enumerate(item.line.micro_batches)]
            rows.append(
                {
                    **items[0].line.model_dump(exclude={"micro_batches", "rollouts", "responses", "tokens"}),
                    **totals(items),
                    "rollouts": sorted({rollout for item in items for rollout in item.line.rollouts}),
                    "micro_batches": [{"rank": r, "micro_batch": n, **part.model_dump()} for r, n, part in passes],
                }
            )
        return table_of(rows, UPDATES, superseded)

    def metrics(self, *, kind: Kind = "train", superseded: bool = False) -> pa.Table:
        """A row an update, captured or not, ranks merged: every metric as a float64 column.

        A metric is its mean over all ranks, a standard deviation the unbiased one. What the trainer logged itself
        follows under its own names, `trainer/NAME` where a metric or column has that name already. Null where nothing
        was measured, and for a deviation of fewer than two values. `captured`: whether the bundle has the update.
        """
        items = self._entries.updates(kind, superseded=True)
        captured = {(item.line.update, item.line.attempt) for item in items}
        by_update: dict[tuple[int, int], UpdateMetrics] = {}
        for line, hidden in self._entries.metrics(kind, superseded):
            key = (line.update, line.attempt)
            by_update.setdefault(key, UpdateMetrics(hidden, key in captured)).add(line)
        updates = [by_update[key] for key in sorted(by_update)]
        measured = {name: None for update in updates for name in update.values()}
        scalars = {name: column_name(name, measured) for update in updates for name in update.scalars}
        taken = {*measured, *scalars.values()}
        logged = {name: column_name(name, taken) for update in updates for name in update.logged}
        rows = [
            {
                **update.facts,
                **update.values(),
                **{scalars[name]: value for name, value in update.scalars.items()},
                **{logged[name]: value for name, value in update.logged.items()},
            }
            for update in updates
        ]
        names = dict.fromkeys((*measured, *scalars.values(), *logged.values()))
        ordered = [*(name for name in METRICS if name in names), *(name for name in names if name not in METRICS)]
        return table_of(rows, {**METRICS_COLUMNS, **dict.fromkeys(ordered, DOUBLE)}, superseded)

    def groups(self, rollout: int | None = None, *, kind: Kind = "train", superseded: bool = False) -> pa.Table:
        """A row a prompt group of the captured rollouts, ranks merged.

        Columns kind, attempt, rollout, group, prompt, size (responses), kept (whether their tokens were stored), weight
        (groups it stands for; 0 where not kept), reward_mean and reward_std (unbiased) over the responses with a finite
        reward, NaN for too few of them.
        """
        items = self._entries.rollouts(kind, superseded, rollout)
        rows = self._rows.responses(items, kind, ("group", "prompt", "kept", "reward"))
        reward = rows["reward"].cast(DOUBLE)
        keys = ["attempt", "rollout", "group"]
        data = {
            **{name: rows[name] for name in (*keys, "kept")},
            "reward": pc.if_else(pc.is_finite(reward), reward, pa.scalar(None, DOUBLE)),
            "number": np.arange(rows.num_rows),
        }
        spread = pc.VarianceOptions(ddof=1)
        found = pa.table(data).group_by(keys, use_threads=False)
        stats = found.aggregate(
            [("number", "min"), ("number", "count"), ("kept", "all"), ("reward", "mean"), ("reward", "stddev", spread)]
        ).sort_by([("rollout", "ascending"), ("attempt", "ascending"), ("group", "ascending")])
        first = rows.take(stats["number_min"])
        weights = {(item.line.attempt, item.line.rollout): item.line.weight for item in items}
        places = zip(first["attempt"].to_pylist(), first["rollout"].to_pylist(), strict=True)
        weight = np.where(stats["kept_all"].to_numpy(), [weights[place] for place in places], 0.0)
        result = pa.table(
            {
                **{name: first[name] for name in ("kind", *keys, "prompt")},
                "size": stats["number_count"].cast(INT),
                "kept": stats["kept_all"],
                "weight": pa.array(weight, DOUBLE),
                "reward_mean": pc.fill_null(stats["reward_mean"], math.nan),
                "reward_std": pc.fill_null(stats["reward_stddev"], math.nan),
                "superseded": first["superseded"],
            }
        )
        return finished(result, superseded)

    def responses(
        self,
        rollout: int | None = None,
        update: int | Iterable[int] | None = None,
        *,
        kind: Kind = "train",
        superseded: bool = False,
    ) -> pa.Table:
        """A row a response of the captured rollouts, whether its tokens were stored or not.

        Columns rank, attempt, kind, rollout, step, row, group, prompt, length and counted (tokens), kept, reward, and
        where known messages (JSON), reward_components.N (of `manifest.reward_names[N]`), advantages, is_weights, and
        labels.NAME: what the trainer says of the response under that name, text or a float64.

        With `update` (one number or several): those it trained on, once for each of its micro-batches, in their order,
        with update, its step, micro_batch, update_counted (tokens), log_ratio_sum and token_kl_sum (nats, over the
        tokens that count).
        """
        if update is None:
            items = self._entries.rollouts(kind, superseded, rollout)
            return finished(self._rows.responses(items, kind), superseded)
        updates = self._entries.updates(kind, superseded, update)
        return finished(where(self._rows.update_responses(updates, kind), rollout=rollout), superseded)

    def tokens(
        self,
        update: int | Iterable[int] | None = None,
        rollout: int | None = None,
        group: int | None = None,
        *,
        kind: Kind = "train",
        superseded: bool = False,
    ) -> pa.Table:
        """A row a stored token, rows of one response together and in token order.

        Columns rank, attempt, kind, rollout, step, group, row, position (from 0 in the response), then every channel
        the run has, under its canonical name: those fixed at the rollout, and with `update` (one number or several)
        those measured at that update, with its number and step. A channel with one value a response is repeated for
        each of its tokens; an alias holds the values of the channel it equals, where that one is there.

        An update may train on a response in two micro-batches: its tokens then come twice, told apart by `micro_batch`,
        which is there with `update` alone.
        """
        if update is None:
            items = self._entries.rollouts(kind, superseded, rollout)
            return finished(where(self._rows.tokens(items, kind), group=group), superseded)
        updates = self._entries.updates(kind, superseded, update)
        table = self._rows.update_tokens(updates, kind)
        return finished(where(table, rollout=rollout, group=group), superseded)

    def micro_batches(self, update: int, *, kind: Kind = "train", superseded: bool = False) -> list[MicroBatch]:
        """The stored responses of an update as batches for `evaluate`, one for each forward pass of each rank.

        What another algorithm would have made of them: `evaluate("gspo", bundle.micro_batches(3)[0].batch)`. Under the
        run's own (`manifest.attempt(...)` has it) and the trainer's advantages, the loss is the trainer's where the
        micro-batch is `whole`. With `superseded` those of every attempt that did the update, one attempt after another;
        each has its number as `attempt`. Raises BundleError for an update the bundle does not have.
        """
        rows = [row for row in self.updates(kind=kind, superseded=superseded).to_pylist() if row["update"] == update]
        if not rows:
            raise BundleError(f"{self.path} has no update {update}")
        tokens = self.tokens(update, kind=kind, superseded=superseded)
        responses = self.responses(update=update, kind=kind, superseded=superseded)
        weights = {attempt.attempt: attempt.reward_weights for attempt in self.manifest.attempts}
        channels = set(self.manifest.channels)
        channels.update(*(item.line.aliases for item in self._entries.rollouts(kind, superseded)))
        return [
            micro_batch
            for row in rows
            for micro_batch in micro_batches(row, tokens, responses, weights.get(row["attempt"], ()), channels)
        ]

    def _progress(self) -> str:
        """How many of the updates the run has done were captured."""
        try:
            captured = {item.line.update for item in self._entries.updates("train", False)}
            lines = (line for line, _ in self._entries.metrics("train", False))
            done = captured | {line.update for line in lines if isinstance(line, MetricsLine)}
        except BundleError:  # whoever looks at a bundle is told by what they do next
            return "damaged"
        return f"{len(captured)} updates captured of {len(done)}"


__all__ = ["Bundle", "open_bundle"]
