"""The registry: ids, files and folders of one's own, those the environment names, and how two algorithms differ."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import pytest
from objective.registries import GOOD, clean_registry, edited
from objective.test_edges import arrays_for, every_algorithm

from unipo_hooks import algorithms, evaluate
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.errors import AlgorithmError

pytestmark = pytest.mark.usefixtures(clean_registry.__name__)


# --- ids -------------------------------------------------------------------------------------------------------------


def test_a_registered_file_is_an_algorithm_like_any_other(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(GOOD))
    assert algorithms.register(tmp_path / "mine.json").id == "mine"
    assert "mine" in algorithms.ids()
    batch = arrays_for(algorithms.get("mine"))
    assert evaluate("mine", batch).loss == evaluate(GOOD, batch).loss


def test_upper_and_lower_case_of_an_id_are_the_same_where_one_algorithm_is_meant():
    assert algorithms.get("GRPO") is algorithms.get("grpo")
    assert algorithms.get("Dapo.TRL").id == "dapo.trl"
    for name in ("Mine", "MINE"):
        algorithms.register(edited("id", name))
    assert algorithms.get("MINE").id == "MINE"
    with pytest.raises(AlgorithmError, match="no algorithm 'mine'; did you mean Mine or MINE?"):
        algorithms.get("mine")


def test_an_unknown_id_names_the_nearest():
    with pytest.raises(AlgorithmError, match="no algorithm 'grppo'; did you mean"):
        algorithms.get("grppo")
    with pytest.raises(AlgorithmError, match="`unipo-hooks algorithms` lists them"):
        algorithms.get("?")


def test_a_shipped_algorithm_is_replaced_on_request_alone():
    with pytest.raises(AlgorithmError, match="shipped"):
        algorithms.register(edited("id", "grpo"))
    algorithms.register(edited("id", "grpo"), replace=True)
    assert algorithms.get("grpo").name == "Mine"


def test_a_parent_may_be_shipped_or_registered_before():
    algorithms.register(edited("parent", "grpo"))
    assert algorithms.register(edited("parent", "mine") | {"id": "child"}).parent == "mine"


# --- folders ---------------------------------------------------------------------------------------------------------


def written(folder, name, definition):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(definition if isinstance(definition, str) else json.dumps(definition))


def test_a_folder_is_registered_as_a_whole_or_not_at_all(tmp_path):
    written(tmp_path, "a.json", edited("id", "child") | {"parent": "mine"})
    written(tmp_path, "b.json", GOOD)
    assert [spec.id for spec in algorithms.register_folder(tmp_path)] == ["child", "mine"]
    written(tmp_path, "a.json", edited("id", "third"))
    written(tmp_path, "c.json", "{")
    with pytest.raises(AlgorithmError, match=r"c\.json: not JSON"):
        algorithms.register_folder(tmp_path)
    assert "third" not in algorithms.ids()


def test_two_files_of_a_folder_with_one_id_are_both_named(tmp_path):
    written(tmp_path, "a.json", GOOD)
    written(tmp_path, "b.json", GOOD)
    with pytest.raises(AlgorithmError) as raised:
        algorithms.register_folder(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path / 'b.json'}: id: 'mine' is that of {tmp_path / 'a.json'} too; rename one of them"
    )


def test_a_folder_that_is_none_is_told(tmp_path):
    with pytest.raises(AlgorithmError, match="none: no such directory of algorithms"):
        algorithms.register_folder(tmp_path / "none")


def test_folders_named_by_the_environment_are_known_and_a_change_of_it_is_seen(tmp_path, monkeypatch):
    for name in ("a", "b"):
        written(tmp_path / name, f"{name}.json", edited("id", name))
    monkeypatch.setenv(algorithms.ENVIRONMENT, f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert {"a", "b"} <= set(algorithms.ids())
    assert [spec.id for spec in algorithms.own()] == ["a", "b"]
    monkeypatch.setenv(algorithms.ENVIRONMENT, str(tmp_path / "b"))
    assert [spec.id for spec in algorithms.own()] == ["b"]
    algorithms.register(edited("id", "b") | {"name": "Mine instead"})
    assert algorithms.get("b").name == "Mine instead"


BROKEN: dict[str, Any] = {
    "half.json": "{",
    "part.json": edited("parts.gate.part", "ppo_klip") | {"id": "klip"},
    "shipped.json": edited("id", "grpo") | {"name": "Not GRPO"},
    "twice.json": edited("id", "fine"),
}


def test_a_broken_file_of_the_environment_costs_itself_alone_and_is_told_once(tmp_path, monkeypatch, caplog):
    written(tmp_path, "fine.json", edited("id", "fine"))
    for name, definition in BROKEN.items():
        written(tmp_path, name, definition)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.json").mkdir()
    monkeypatch.setenv(algorithms.ENVIRONMENT, f"{tmp_path / 'none'}:{tmp_path}")
    with caplog.at_level(logging.WARNING, "unipo_hooks"):
        assert algorithms.get("fine").name == "Mine"
        assert algorithms.get("grpo").name == "GRPO"
        assert algorithms.ids() and algorithms.every() and algorithms.own()
        assert math.isfinite(evaluate("dapo", arrays_for(algorithms.get("dapo"))).loss)
        monkeypatch.setenv(algorithms.ENVIRONMENT, str(tmp_path))
        assert algorithms.get("fine").name == "Mine"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(set(said)) == len(BROKEN) + 3
    assert all(line.startswith(f"{algorithms.ENVIRONMENT}: {tmp_path}") for line in said)
    for name in (*BROKEN, "binary.json", "folder.json", "none"):
        assert sum(str(tmp_path / name) + ": " in line for line in said) == 1, name
    with pytest.raises(AlgorithmError) as raised:
        algorithms.get("klip")
    assert f"(of {algorithms.ENVIRONMENT}, not read: {tmp_path}" in str(raised.value)
    assert str(raised.value).endswith(" and 5 more)")


def test_files_of_the_environment_are_read_once(tmp_path, monkeypatch):
    written(tmp_path, "a.json", edited("id", "a"))
    written(tmp_path, "b.json", "{")
    monkeypatch.setenv(algorithms.ENVIRONMENT, str(tmp_path))
    read = []
    monkeypatch.setattr(algorithms, "read", lambda path, known=algorithms.read: read.append(path) or known(path))
    for _ in range(3):
        algorithms.ids()
        with pytest.raises(AlgorithmError):
            algorithms.get("zzz")
    assert read == [tmp_path / "a.json", tmp_path / "b.json"]


def test_a_file_of_the_environment_may_name_a_part_that_is_registered_later(tmp_path, monkeypatch):
    written(tmp_path, "late.json", edited("parts.weight", [{"part": "late"}]) | {"id": "later"})
    monkeypatch.setenv(algorithms.ENVIRONMENT, str(tmp_path))
    assert "later" not in algorithms.ids()

    def late(batch):
        return 1.0

    algorithms.register_part("weight", late)
    assert "later" in algorithms.ids()


def test_an_unknown_parent_in_the_environment_is_told_and_costs_nothing(tmp_path, monkeypatch, caplog):
    written(tmp_path, "a.json", edited("id", "a") | {"parent": "grppo"})
    written(tmp_path, "b.json", edited("id", "b") | {"parent": "a"})
    monkeypatch.setenv(algorithms.ENVIRONMENT, str(tmp_path))
    assert {"a", "b"} <= set(algorithms.ids())
    (record,) = caplog.records
    assert f"{tmp_path / 'a.json'}: parent: no algorithm 'grppo'; did you mean grpo" in record.getMessage()


# --- UNIPO's own format ----------------------------------------------------------------------------------------------


def test_unipo_cards_are_shown_and_not_computed(tmp_path):
    cards = {
        "id": "cards",
        "name": "Cards",
        "title": "A title",
        "bindings": {"A": "advantages"},
        "cards": [{"id": "loss"}],
    }
    (tmp_path / "cards.json").write_text(json.dumps(cards))
    spec = algorithms.register(tmp_path / "cards.json")
    assert spec.display == {"bindings": cards["bindings"], "cards": cards["cards"]}
    assert not spec.exact and "cannot be computed" in spec.inexact
    with pytest.raises(AlgorithmError, match="only shown"):
        evaluate("unipo.cards", arrays_for(algorithms.get("grpo")))
    with pytest.raises(AlgorithmError, match="name: UNIPO's format needs it"):
        algorithms.register({"id": "cards", "cards": []})


# --- differences -----------------------------------------------------------------------------------------------------


def test_a_difference_names_slot_heading_and_both_values():
    changed = edited("parts.bounds.epsilon_low", 0.1) | {"id": "other"}
    (found,) = algorithms.diff(algorithms.get(GOOD), algorithms.get(changed))
    assert (found.slot, found.heading) == ("bounds", "Per-token objective")
    assert found.a == "around_one(epsilon_low=0.2, epsilon_high=0.3)"
    assert found.b == "around_one(epsilon_low=0.1, epsilon_high=0.3)"


@every_algorithm
def test_an_algorithm_does_not_differ_from_itself_and_writes_out_what_does(spec: AlgorithmSpec):
    assert algorithms.diff(spec, spec) == []
    there = algorithms.diff("grpo", spec)
    back = algorithms.diff(spec, "grpo")
    assert [(each.slot, each.a, each.b) for each in there] == [(each.slot, each.b, each.a) for each in back]
