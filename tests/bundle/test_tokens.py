"""Tokens of rollouts and updates, against joins done in plain Python."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from bundle.builder import Builder, response, simple, token
from hypothesis import given, settings
from hypothesis import strategies as st

from unipo_hooks.bundle.reader import open_bundle

Row = dict[str, Any]


def naive_tokens(built: Builder, update: int, kind: str = "train") -> list[Row]:
    """The tokens of an update, joined one by one."""
    joined = []
    for rank in range(built.ranks):
        rollouts = {x["rollout"]: x for x in built.index[rank] if x["entry"] == "rollout" and x["kind"] == kind}
        for line in built.index[rank]:
            if line["entry"] != "update" or line["update"] != update or line["kind"] != kind:
                continue
            seen: dict[tuple[int, ...], int] = {}
            for row in built.tables[line["segment"], "update_tokens"][slice(*line["tokens"])]:
                place = (row["rollout"], row["row"], row["micro_batch"])
                position = seen[place] = seen.get(place, -1) + 1
                home = rollouts[row["rollout"]]
                tokens = built.tables[home["segment"], "rollout_tokens"][slice(*home["tokens"])]
                fixed = [t for t in tokens if t["row"] == row["row"]][position]
                responses = built.tables[home["segment"], "responses"][slice(*home["responses"])]
                of = next(r for r in responses if r["row"] == row["row"])
                spread = {name: of[name] for name in ("advantages",) if name in of}
                aliased = {a: row[b] for a, b in home.get("aliases", {}).items() if b in row}
                place_of = {"rank": rank, "attempt": line["attempt"], "step": line["step"], "position": position}
                joined.append({**place_of, "group": of["group"], **spread, **fixed, **row, **aliased})
    return joined


def same(table: pa.Table, rows: list[Row]) -> None:
    """The table holds just these rows and, where a row names a value, that value; a column no row has is missing."""
    assert table.num_rows == len(rows)
    names = {name for row in rows for name in row}
    assert names <= {*table.column_names, "superseded"}
    for name in names:
        for found, row in zip(table[name].to_pylist(), rows, strict=True):
            value = row.get(name)
            if isinstance(found, float) and (value is None or isinstance(value, float)):
                assert math.isnan(found) if value is None or math.isnan(value) else found == np.float32(value)
            else:
                assert found == value, name


@st.composite
def built_bundles(draw: st.DrawFn) -> Builder:
    """Any number of ranks, rollouts, segments, shapes and samples; rows of tokens in an order of their own."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    ranks = draw(st.integers(1, 2))
    built = Builder(Path(), ranks=ranks)
    per_token = draw(st.booleans())
    update = 0
    for number in range(draw(st.integers(0, 3))):
        shapes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=6))
        kept_groups = {g for g in range(3) if rng.random() < 0.7}
        parts: dict[int, list[Row]] = {}
        for rank in range(ranks):
            rows = []
            for row, length in enumerate(shapes):
                values = {"advantages": rng.random()} if per_token else {}
                tokens = [token(rng.randrange(99), mask=rng.randrange(2), **values) for _ in range(length)]
                of = {} if per_token else {"advantages": rng.random()}
                group = rng.randrange(3)
                rows.append(response(row, tokens, group=group, kept=group in kept_groups, reward=rng.random(), **of))
            rng.shuffle(rows)
            parts[rank] = rows
            line = {"aliases": {"old_log_probs": "log_probs"}} if rng.random() < 0.5 else {}
            built.rollout(number, rows, rank=rank, segment=rng.randrange(2), **line)
        for _ in range(rng.randrange(3)):
            for rank in range(ranks):
                chosen = rng.sample(parts[rank], rng.randrange(1, len(shapes) + 1))
                values = {"entropies": rng.random()} if rng.random() < 0.5 else {}
                batches = rng.randrange(1, 3)  # two: every response is trained on twice
                rows = [(number, r) for _ in range(batches) for r in rng.sample(chosen, len(chosen))]
                where = {"rank": rank, "segment": rng.randrange(3)}
                built.update(update, rows, micro_batches=batches, values=values, **where)
            update += 1
    return built


@settings(max_examples=60, deadline=None)
@given(built_bundles())
def test_tokens_of_an_update_are_those_a_naive_join_gives(tmp_path_factory: pytest.TempPathFactory, built: Builder):
    built.path = tmp_path_factory.mktemp("bundle")
    bundle = open_bundle(built.write())
    for update in bundle.updates()["update"].to_pylist():
        rows = naive_tokens(built, update)
        same(bundle.tokens(update=update), rows)
        if rows:
            rollout, group = rows[0]["rollout"], rows[0]["group"]
            same(bundle.tokens(update, rollout, group), [r for r in rows if r["group"] == group])
            same(bundle.tokens(update, rollout + 1), [])
    stored = [t for (_, table), rows in built.tables.items() if table == "rollout_tokens" for t in rows]
    assert sorted(bundle.tokens()["ids"].to_pylist()) == sorted(t["ids"] for t in stored)


def test_tokens_without_an_update_are_the_rollouts_alone(tmp_path: Path):
    tokens = open_bundle(simple(tmp_path).write()).tokens()
    assert tokens["ids"].to_pylist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert tokens["strings"].to_pylist() == [f"t{n}" for n in range(1, 9)]
    assert tokens["rollout"].to_pylist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert tokens["row"].to_pylist() == [0, 0, 0, 1, 3, 3, 0, 0]
    assert tokens["position"].to_pylist() == [0, 1, 2, 0, 0, 1, 0, 1]
    assert tokens["group"].to_pylist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert tokens["advantages"].to_pylist() == [0.5, 0.5, 0.5, -0.5, 0, 0, 1, 1]
    assert tokens["mask_reason"].to_pylist()[:3] == [None, 1, None]
    assert "log_probs" not in tokens.column_names
    assert "old_log_probs" not in tokens.column_names, "an alias needs the channel it equals"
    assert "superseded" not in tokens.column_names


def test_tokens_of_one_rollout_or_group(tmp_path: Path):
    bundle = open_bundle(simple(tmp_path).write())
    assert bundle.tokens(rollout=1)["ids"].to_pylist() == [7, 8]
    assert bundle.tokens(rollout=0, group=1)["ids"].to_pylist() == [5, 6]
    assert bundle.tokens(rollout=5).num_rows == 0
    assert bundle.tokens(update=99).num_rows == 0


def test_columns_come_in_the_order_of_the_vocabulary_with_plain_types(tmp_path: Path):
    tokens = open_bundle(simple(tmp_path).write()).tokens(update=0)
    keys = ["rank", "attempt", "kind", "update", "step", "rollout", "group", "row", "micro_batch", "position"]
    channels = ["ids", "strings", "mask", "mask_reason", "old_log_probs", "advantages", "log_probs"]
    assert tokens.column_names == [*keys, *channels]
    for name in ("old_log_probs", "advantages", "log_probs"):
        assert tokens.schema.field(name).type == pa.float32()
    assert tokens.schema.field("strings").type == pa.dictionary(pa.int32(), pa.string())
    assert tokens["kind"].to_pylist() == ["train"] * 5


def test_an_alias_replaces_the_nan_that_another_rollout_of_the_segment_left(tmp_path: Path):
    own = [response(0, [token(1, old_log_probs=-1.5)])]
    alias = [response(0, [token(2, old_log_probs=math.nan)])]
    built = Builder(tmp_path).rollout(0, own).rollout(1, alias, aliases={"old_log_probs": "log_probs"})
    built.update(0, [(0, own[0]), (1, alias[0])])
    tokens = open_bundle(built.write()).tokens(update=0)
    assert tokens["old_log_probs"].to_pylist() == [-1.5, tokens["log_probs"][1].as_py()]


def test_a_channel_is_per_token_in_one_rollout_and_per_response_in_another(tmp_path: Path):
    built = Builder(tmp_path)
    built.rollout(0, [response(0, [token(1, advantages=0.5), token(2, advantages=0.25)])])
    built.rollout(1, [response(0, [token(3), token(4)], advantages=2.0, is_weights=0.75)])
    tokens = open_bundle(built.write()).tokens()
    assert tokens["advantages"].to_pylist() == [0.5, 0.25, 2.0, 2.0]
    assert tokens["is_weights"].to_pylist()[2:] == [0.75, 0.75]
    assert np.isnan(tokens["is_weights"].to_numpy()[:2]).all(), "missing is NaN, not null"
    assert tokens["is_weights"].null_count == 0


def test_missing_and_unknown_columns_of_segments_that_differ(tmp_path: Path):
    first, second = [response(0, [token(1, ref_log_probs=-1.0)])], [response(0, [token(2, novelty=3.0)], fancy=1.0)]
    built = Builder(tmp_path).rollout(0, first, segment=0).rollout(1, second, segment=1, whatever=[1])
    tokens = open_bundle(built.write()).tokens()
    assert tokens["ref_log_probs"][0].as_py() == -1.0
    assert math.isnan(tokens["ref_log_probs"][1].as_py())
    assert "novelty" not in tokens.column_names
    assert "fancy" not in open_bundle(tmp_path).responses().column_names


def test_wider_types_and_dictionaries_in_the_files_read_the_same(tmp_path: Path):
    import pyarrow.parquet as pq

    built = simple(tmp_path)
    want = open_bundle(built.write()).tokens(update=0)
    for path in (tmp_path / "segments").glob("*.parquet"):
        table = pq.read_table(path)
        wide = {
            name: table[name].dictionary_encode()
            if table.schema.field(name).type == pa.string()
            else table[name].cast(
                {pa.int32(): pa.int64(), pa.float32(): pa.float64()}.get(table[name].type, table[name].type)
            )
            for name in table.column_names
        }
        pq.write_table(pa.table(wide), path)
    assert open_bundle(tmp_path).tokens(update=0).equals(want)


def test_an_update_that_trains_twice_on_a_response_has_its_tokens_twice(tmp_path: Path):
    rows = [response(0, [token(1), token(2)], reward=0.5), response(1, [token(3)])]
    built = Builder(tmp_path).rollout(0, rows, aliases={"old_log_probs": "log_probs"})
    built.update(0, [(0, rows[1]), (0, rows[0]), (0, rows[0]), (0, rows[1])], micro_batches=2)
    bundle = open_bundle(built.write())
    tokens = bundle.tokens(update=0)
    assert tokens["row"].to_pylist() == [1, 0, 0, 0, 0, 1]
    assert tokens["micro_batch"].to_pylist() == [0, 0, 0, 1, 1, 1]
    assert tokens["position"].to_pylist() == [0, 0, 1, 0, 1, 0], "two passes over row 0 lie side by side"
    assert tokens["ids"].to_pylist() == [3, 1, 2, 1, 2, 3], "what was fixed at the rollout repeats"
    first, second = tokens["log_probs"].to_numpy()[1:3], tokens["log_probs"].to_numpy()[3:5]
    assert np.array_equal(second, first - 0.25)
    assert tokens["old_log_probs"].equals(tokens["log_probs"])
    responses = bundle.responses(update=0)
    assert responses["row"].to_pylist() == [1, 0, 0, 1]
    assert responses["micro_batch"].to_pylist() == [0, 0, 1, 1]
    assert responses["log_ratio_sum"].to_pylist() == [0.5, 1.5, 2.5, 3.5]
    assert responses["reward"].to_pylist() == [0, 0.5, 0.5, 0]
    assert "micro_batch" not in bundle.tokens().column_names


def test_several_updates_at_once_are_one_after_another(tmp_path: Path):
    bundle = open_bundle(simple(tmp_path).write())
    for read in (bundle.tokens, bundle.responses):
        together = read(update=[2, 0, 7])
        parts = [read(update=2), read(update=0)]
        common = [name for name in parts[0].column_names if name in parts[1].column_names]
        assert together.select(common).to_pylist() == [row for part in parts for row in part.select(common).to_pylist()]
    assert bundle.tokens(update=range(3)).num_rows == 8
    assert bundle.tokens(update=[]).num_rows == 0


def test_an_update_names_rollouts_that_were_not_captured(tmp_path: Path):
    rows = [response(0, [token(1)])]
    built = Builder(tmp_path).rollout(1, rows).update(0, [(1, rows[0])], rollouts=[0, 1, 2])
    built.metrics(0, {"reward": [1.0, 2.0, 1.0]}, rollouts=[0, 1, 2])
    bundle = open_bundle(built.write())
    assert bundle.updates()["rollouts"].to_pylist() == [[0, 1, 2]]
    assert bundle.rollouts()["rollout"].to_pylist() == [1]
    assert bundle.tokens(update=0)["rollout"].to_pylist() == [1]
    assert bundle.responses(update=0)["rollout"].to_pylist() == [1]
    assert bundle.tokens(update=0, rollout=2).num_rows == bundle.responses(update=0, rollout=0).num_rows == 0
    assert bundle.metrics()["rollouts"].to_pylist() == [[0, 1, 2]]
