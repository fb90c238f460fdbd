"""What a trainer says of a response beside its reward: as it was handed over, text or a number."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from records import rollout, run_info, update

from unipo_hooks import Recorder, open_bundle
from unipo_hooks.bundle.reader import Bundle
from unipo_hooks.bundle.verify import verify

RESPONSES = "segments/r0-000000.responses.parquet"
HOSTILE = "<img src=x onerror=alert(1)>"


def recorded(path: Path, *rollouts: object, **info: object) -> Bundle:
    recorder = Recorder(path, run_info(**info), strict=True)
    for number, each in enumerate(rollouts):
        recorder.rollout(each)
        recorder.update(update(number, each))
        recorder.checkpoint()  # a segment each
    recorder.close()
    return open_bundle(recorder.path)


def test_a_label_comes_back_as_it_was_handed_over(tmp_path: Path) -> None:
    labels = {
        "uid": [f"{HOSTILE}{row // 4}" for row in range(8)],
        "min_global_steps": [3, 3, 4, None, 2**40, 6, 7, 8],
        "score": [0.1, None, *[float(n) for n in range(6)]],
        "data_source": ["gsm8k", None, *["math"] * 6],
        "said nothing": [None] * 8,
    }
    bundle = recorded(tmp_path / "run", rollout(labels=labels))
    table = bundle.responses()
    assert table["labels.uid"].to_pylist() == labels["uid"]
    assert table["labels.data_source"].to_pylist() == labels["data_source"]
    for name in ("min_global_steps", "score"):
        assert table.schema.field(f"labels.{name}").type == pa.float64()
        found = [None if math.isnan(value) else value for value in table[f"labels.{name}"].to_pylist()]
        assert found == labels[name]
    assert "labels.said nothing" not in table.column_names
    assert pq.read_schema(bundle.path / RESPONSES).field("labels.uid").type == pa.string()
    pages = pq.read_metadata(bundle.path / RESPONSES).row_group(0)
    column = next(c for c in map(pages.column, range(pages.num_columns)) if c.path_in_schema == "labels.uid")
    assert any("DICTIONARY" in encoding for encoding in column.encodings)
    assert [str(fault) for fault in verify(bundle.path)] == []


def test_responses_of_an_update_have_their_labels(tmp_path: Path) -> None:
    bundle = recorded(tmp_path / "run", rollout(labels={"uid": [f"u{row}" for row in range(8)]}))
    rows = bundle.responses(update=0)
    assert rows["labels.uid"].to_pylist() == [f"u{row}" for row in rows["row"].to_pylist()]
    assert not any(name.startswith("labels.") for name in bundle.tokens(0).column_names)


def test_a_label_that_is_a_number_here_and_text_there_is_text(tmp_path: Path) -> None:
    """In one segment, and over several."""
    numbers, texts = rollout(0, labels={"turns": [2] * 7 + [None]}), rollout(1, labels={"turns": ["few"] * 8})
    apart = recorded(tmp_path / "apart", numbers, texts, rollout(2))
    recorder = Recorder(tmp_path / "together", run_info(), strict=True)
    for each in (numbers, texts, rollout(2)):
        recorder.rollout(each)
    recorder.close()
    for bundle in (apart, open_bundle(recorder.path)):
        found = bundle.responses()["labels.turns"].to_pylist()
        assert found == ["2"] * 7 + [None] + ["few"] * 8 + [None] * 8
        assert [str(fault) for fault in verify(bundle.path)] == []
    assert [n if n == 2 else None for n in apart.responses(0)["labels.turns"].to_pylist()] == [2] * 7 + [None]


def test_a_label_that_no_float_or_no_text_can_hold_is_text_and_costs_nothing(tmp_path: Path) -> None:
    labels = {
        "answer": [10**400, 2, None, 0.5, *[1] * 4],
        "digits": [16**5000, *["few"] * 7],
        "source": ["\ud800math", *[7] * 7],
    }
    bundle = recorded(tmp_path / "run", rollout(0, labels=labels), rollout(1, labels={"answer": [3] * 8}))
    rows = bundle.responses(0)
    assert rows["labels.answer"].to_pylist() == ["1" + "0" * 400, "2", None, "0.5", *["1"] * 4]
    assert rows["labels.digits"].to_pylist() == ["0x1" + "0" * 5000, *["few"] * 7]
    assert rows["labels.source"].to_pylist() == ["?math", *["7"] * 7]
    assert bundle.responses()["labels.answer"].to_pylist()[8:] == ["3"] * 8
    assert [str(fault) for fault in verify(bundle.path)] == []


def test_rollouts_without_a_label_have_none_in_its_place(tmp_path: Path) -> None:
    bundle = recorded(tmp_path / "run", rollout(0), rollout(1, labels={"uid": ["a"] * 8, "turns": [1] * 8}))
    rows = bundle.responses()
    assert rows["labels.uid"].to_pylist() == [None] * 8 + ["a"] * 8
    turns = rows["labels.turns"].to_pylist()
    assert all(math.isnan(value) for value in turns[:8]) and turns[8:] == [1.0] * 8


@pytest.mark.parametrize("name", ["", "a.b", "kind", "__proto__", "reward", "labels.uid", "ü🙂 \t", "../x"])
def test_any_name_will_do(tmp_path: Path, name: str) -> None:
    labels = {name: ["x"] * 8, f"{name}.y": list(range(8))}
    bundle = recorded(tmp_path / "run", rollout(labels=labels))
    assert bundle.responses()[f"labels.{name}"].to_pylist() == ["x"] * 8
    assert bundle.responses()[f"labels.{name}.y"].to_pylist() == list(range(8))
    assert [str(fault) for fault in verify(bundle.path)] == []


def test_a_label_that_is_neither_text_nor_a_number_is_a_fault_and_left_out(tmp_path: Path) -> None:
    bundle = recorded(tmp_path / "run", rollout(labels={"uid": ["a"] * 8}))
    path = bundle.path / RESPONSES
    table = pq.read_table(path).append_column("labels.list", pa.array([[1]] * 8))
    pq.write_table(table, path)
    said = [str(fault) for fault in verify(bundle.path)]
    assert len(said) == 1 and "column labels.list is list" in said[0] and "neither text nor a number" in said[0]
    assert "labels.list" not in open_bundle(bundle.path).responses().column_names


def test_labels_count_as_memory() -> None:
    plain, labelled = rollout(), rollout(labels={"uid": ["1234"] * 8, "turns": [1] * 8})
    assert labelled.nbytes - plain.nbytes == 8 * 4 + 8 * 8
