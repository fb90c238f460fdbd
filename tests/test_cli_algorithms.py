"""`unipo-hooks algorithms`: the list, one explained, two compared; for people, for scripts, and what goes wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from unipo_hooks import algorithms, cli
from unipo_hooks.algorithm_spec import HEADINGS, SLOTS
from unipo_hooks.cli import algorithm_facts, algorithm_tables, terminal
from unipo_hooks.cli.words import WORDS

ROOT = Path(__file__).parents[1]
MINE = ROOT / "examples" / "my_algorithm.json"
CONFIRMATION = algorithms.Confirmation("trl 1.16.0 GRPOTrainer._compute_loss", ("advantages", "objective"), 2e-16, 12)
FACTS = ("spec", "scope", "needs", "exact", "inexact", "confirmations", "compared", "not_compared")
OWN: dict[str, Any] = {
    "id": "mine",
    "name": "Mine",
    "family": "Sequence ratios",
    "parent": "grpo",
    "parts": {
        "baseline": {"part": "group_mean"},
        "ratio": {"part": "sequence_mean"},
        "bounds": {"part": "around_one", "epsilon_high": 0.3},
        "gate": {"part": "ppo_clip"},
        "constraint": [{"part": "kl", "beta": 0.5}],
        "aggregation": {"part": "token_mean"},
    },
}


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it; the environment of the machine is not looked at."""
    monkeypatch.setattr(algorithms, "_OWN", {})
    monkeypatch.delenv(algorithms.ENVIRONMENT, raising=False)
    algorithms._read_environment.cache_clear()


def written(folder: Path, name: str = "mine.json", **changes: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(OWN | changes))
    return path


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.app, ["algorithms", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def output(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def data(*arguments: object) -> Any:
    return json.loads(output(*arguments, "--json"))


def fails(*arguments: object) -> str:
    """The one line a call that fails says."""
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("unipo-hooks: ")
    return line.removeprefix("unipo-hooks: ")


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, *arguments: object) -> list[str]:
    """What a person sees on a terminal of so many columns."""
    screen = Console(width=columns, force_terminal=True, color_system=None, markup=False, highlight=False, emoji=False)

    def console(*, stderr: bool = False) -> Console:
        return screen

    for module in (terminal, algorithm_tables):
        monkeypatch.setattr(module, "console", console)
    with screen.capture() as shown:
        call(*arguments)
    return shown.get().splitlines()


# --- the list --------------------------------------------------------------------------------------------------------


def compared_with(
    monkeypatch: pytest.MonkeyPatch,
    *ids: str,
    confirmations: tuple[algorithms.Confirmation, ...] = (CONFIRMATION,),
    missing: tuple[str, ...] = (),
) -> None:
    """As if these algorithms alone had been compared."""
    compared = {id: algorithms.Compared(confirmations, missing) for id in ids}
    monkeypatch.setattr(algorithms, "compared", lambda: compared)


def test_the_list_has_every_algorithm_under_its_family() -> None:
    lines = output().splitlines()
    families = [line for line in lines if line in algorithm_facts.FAMILIES]
    assert families == [each for each in algorithm_facts.FAMILIES if each in families]
    first = [line.split()[0] for line in lines if line]
    for spec in algorithms.every():
        assert spec.id in first
        assert spec.family in algorithm_facts.FAMILIES, spec.id


def test_in_a_pipe_an_algorithm_is_one_whole_line() -> None:
    (line,) = [line for line in output("--family", "ppo and grpo").splitlines() if line.startswith("grpo ")]
    assert all(word in line for word in ("GRPO", "2024", "baseline group_mean", "constraint kl", "ref_log_probs"))
    assert line == line.rstrip()


@pytest.mark.parametrize("columns", [80, 140])
def test_on_a_terminal_nothing_of_the_list_is_cut_off(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    lines = on_a_terminal(monkeypatch, columns)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= columns
    assert "…" not in text
    ids = {line.split()[0] for line in lines if line.strip()}
    assert set(algorithms.ids()) <= ids


@pytest.mark.parametrize("columns", [80, 140])
def test_on_a_terminal_nothing_of_any_explanation_is_cut_off(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    for name in ("grpo", "ppo", "gspo", "dapo"):
        lines = on_a_terminal(monkeypatch, columns, "show", name)
        assert max(map(len, lines)) <= columns
        assert "…" not in "\n".join(lines)


def test_the_list_says_what_changed_against_the_parent(tmp_path: Path) -> None:
    path = written(tmp_path)
    line = next(line for line in output("--add", path).splitlines() if line.startswith("mine "))
    for words in ("no scale", "ratio sequence_mean", "bounds epsilon_high 0.3", "constraint beta 0.5", "token_mean"):
        assert words in line
    assert "gate" not in line
    assert "not exact" in line


def test_a_family_is_found_by_a_part_of_its_name() -> None:
    chosen = data("--family", "CLIP")
    assert chosen and {each["spec"]["family"] for each in chosen.values()} == {"Clip and gate"}


def test_algorithms_that_need_an_input_are_found() -> None:
    chosen = data("--needs", "values")
    assert "ppo" in chosen
    assert all("values" in each["needs"] for each in chosen.values())
    assert output("--needs", "dpo_log_probs", "--family", "clip").strip() == "no algorithm is like that"


def test_only_exact_ones_are_listed_where_asked() -> None:
    chosen = data("--exact")
    assert set(chosen) == {name for name, facts in data().items() if facts["exact"]} != set()
    assert set(data("--exact", "--family", "clip")) == set(chosen) & set(data("--family", "clip"))
    assert "show has none" in fails("--exact", "show", "grpo")


def test_json_has_everything_of_every_algorithm() -> None:
    every = data()
    assert list(every) != [] and set(every) == set(algorithms.ids())
    for name, facts in every.items():
        assert set(facts) == {*FACTS}
        spec = algorithms.get(name)
        assert algorithms.get(facts["spec"]) == spec
        assert facts["needs"] == algorithms.needs(spec)
        assert facts["scope"] == algorithms.scope(spec)
        assert bool(facts["inexact"]) == (not facts["exact"])
        assert facts["exact"] <= (bool(facts["confirmations"]) and not facts["not_compared"])
        assert bool(facts["compared"]) == bool(facts["confirmations"])
        assert sorted(facts["compared"] + facts["not_compared"]) == sorted(algorithms.part_names(spec))
        for each in facts["confirmations"]:
            assert set(each) == {"against", "covers", "error", "cases"}


def test_exact_is_what_was_compared_and_not_what_a_file_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = data("show", written(tmp_path, exact=True))
    assert mine["exact"] is False
    assert "compared with no running code" in mine["inexact"]
    assert mine["compared"] == [] and mine["not_compared"] == algorithms.part_names(algorithms.get(mine["spec"]))
    compared_with(monkeypatch, "grpo", "mine")
    assert data("show", tmp_path / "mine.json")["exact"] is False  # what was compared went by that name before
    facts = data("show", "grpo")
    assert facts["exact"] is True
    assert facts["confirmations"] == [
        {
            "against": CONFIRMATION.against,
            "covers": ["advantages", "objective"],
            "error": CONFIRMATION.error,
            "cases": CONFIRMATION.cases,
        }
    ]
    assert "compared with trl 1.16.0" in output()
    page = output("show", "grpo")
    assert "compared with trl 1.16.0" in page
    assert "NOT EXACT" not in page
    assert "advantages and objective in 12 cases, largest error 2.0e-16" in page
    assert "constraint.0 kl" in page.partition("not compared: nothing")[0].partition("compared: ")[2]


def test_what_was_not_compared_makes_an_algorithm_not_exact_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    compared_with(monkeypatch, "grpo", missing=("scale.0 group_std", "constraint.0 kl"))
    facts = data("show", "grpo")
    assert facts["exact"] is False
    assert facts["inexact"] == "not compared with running code: scale.0 group_std, constraint.0 kl"
    assert facts["not_compared"] == ["scale.0 group_std", "constraint.0 kl"]
    assert "gate ppo_clip" in facts["compared"]
    page = output("show", "grpo")
    assert "NOT EXACT: not compared with running code" in page
    assert "; not compared: scale.0 group_std, constraint.0 kl" in page
    assert "not exact, in part compared with trl 1.16.0" in output()


def test_what_was_compared_is_named_by_version_or_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    released = algorithms.Confirmation("WooooDyy/BAPO@72870444 compute_policy_loss", ("objective",), 1e-17, 1)
    compared_with(monkeypatch, "grpo", confirmations=(CONFIRMATION, released))
    assert "compared with trl 1.16.0, BAPO" in output()
    assert "compared with trl 1.16.0, WooooDyy/BAPO@72870444" in output("show", "grpo")
    assert "compute_policy_loss: objective in 1 case, largest error 1.0e-17" in output("show", "grpo")


# --- one explained ---------------------------------------------------------------------------------------------------


def test_an_explanation_has_every_part_under_its_heading() -> None:
    lines = output("show", "grpo").splitlines()
    headings = [heading for line in lines if (heading := line.partition(": ")[0]) in HEADINGS.values()]
    assert headings == list(HEADINGS.values())
    assert "Mask: every token counts that the trainer counts" in lines
    text = "\n".join(lines)
    spec = algorithms.get("grpo")
    for slot in SLOTS:
        for use in algorithm_facts.used_parts(spec.parts, slot):
            part = algorithms.describe(slot, use.part)
            assert all(each in text for each in (part.title, use.part, part.explanation, part.latex))
            assert all(f"{name} = " in text for name in part.parameters)
    assert spec.story in text and spec.changed in text and spec.source in text


def test_an_explanation_says_how_to_capture_what_is_needed() -> None:
    assert "To have it: train with a reference policy (TRL: beta > 0" in output("show", "grpo")
    needed = {each["name"]: each["capture"] for each in data("show", "grpo")["inputs"]}
    assert needed["ref_log_probs"].startswith("train with a reference policy")


def test_an_explanation_says_where_an_algorithm_comes_from(tmp_path: Path) -> None:
    page = output("show", written(tmp_path))
    assert "→ grpo → mine" in page
    assert "ratio: token → sequence_mean" in page
    assert "bounds: epsilon_high 0.2 → 0.3" in page
    assert "scale: group_std → none" in page
    assert "mine" in data("--add", tmp_path / "mine.json")
    assert "mine" in data("show", "grpo", "--add", tmp_path / "mine.json")["children"]
    assert "parent: no algorithm 'elsewhere'" in fails("show", written(tmp_path, parent="elsewhere"))


def test_a_parent_a_folder_of_the_environment_names_in_vain_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written(tmp_path, parent="elsewhere")
    monkeypatch.setenv(algorithms.ENVIRONMENT, str(tmp_path))
    assert "elsewhere (not known here) → mine" in output("show", "mine")


def test_a_circle_of_parents_ends(tmp_path: Path) -> None:
    written(tmp_path, "a.json", id="a", parent="b")
    written(tmp_path, "b.json", id="b", parent="a")
    assert data("show", "a", "--add", tmp_path)["lineage"] == ["b", "a"]
    own = data("show", written(tmp_path, parent="mine"))
    assert (own["lineage"], own["children"]) == (["mine"], [])


def test_why_an_algorithm_is_not_exact_comes_before_everything_else(tmp_path: Path) -> None:
    lines = output("show", written(tmp_path, inexact="the code was lost", story="A story.")).splitlines()
    assert lines.index("NOT EXACT: the code was lost") < next(n for n, line in enumerate(lines) if "A story." in line)


def test_hyper_parameters_are_shown_with_value_symbol_and_meaning(tmp_path: Path) -> None:
    slots = data("show", written(tmp_path))["slots"]
    bounds = next(each for each in slots if each["slot"] == "bounds")
    assert bounds["heading"] == "Per-token objective"
    high = bounds["hyper_parameters"]["epsilon_high"]
    assert high["value"] == 0.3 and high["symbol"] and high["meaning"]
    assert bounds["hyper_parameters"]["epsilon_low"]["value"] == 0.2  # the default


def test_settings_that_are_not_defaults_come_first(tmp_path: Path) -> None:
    bounds = {"part": "around_one", "epsilon_high": 0.3}
    lines = output("show", written(tmp_path, parts=OWN["parts"] | {"bounds": bounds})).splitlines()
    high, low = (
        next(n for n, line in enumerate(lines) if f"{name} = " in line) for name in ("epsilon_high", "epsilon_low")
    )
    assert high < low


def test_a_mixture_is_shown_component_by_component(tmp_path: Path) -> None:
    other = {"source": 1, "coefficient": 0.5, "parts": {"gate": {"part": "log_prob"}}}
    path = written(tmp_path, mixture=[{"source": 0}, other])
    page = output("show", path)
    assert "source 1" in page and "times 0.5" in page and "log_prob" in page
    assert "mixture of 2" in output("--add", path)
    found = data("diff", "grpo", path)["differences"]
    assert found[-1]["slot"] == "mixture"
    assert "source 1: times 0.5" in output("diff", "grpo", path)


def test_of_rows_that_are_imitated_nothing_is_said_about_their_rewards() -> None:
    own, imitated = [
        line for line in output("show", "chord").splitlines() if line.startswith("source ") and "times" in line
    ]
    assert "rewards compared with those of its own rows" in own
    assert imitated.endswith("times 0.1, averaged over its own rows")


def test_unipo_cards_are_shown_and_nothing_is_made_up_about_their_slots(tmp_path: Path) -> None:
    path = tmp_path / "cards.json"
    cards = [
        {"title": "Advantage", "description": "what it does", "sections": [{"label": "mean", "katex": "\\mu"}, 3]},
        4,
    ]
    path.write_text(json.dumps({"id": "cardy", "name": "Cardy", "bindings": {}, "cards": cards}))
    page = output("show", path)
    assert "NOT EXACT" in page and "what it does" in page and "\\mu" in page
    assert "Aggregation" not in page
    facts = data("--add", path)["unipo.cardy"]
    assert (facts["scope"], facts["needs"]) == (None, [])
    assert data("show", path)["slots"] == []
    assert "only shown" in fails("diff", "grpo", path)


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = written(tmp_path, name="\x1b[31mred", story="bell\x07", family="\x1b[2J", inexact="\x1b]0;title")
    for arguments in (("--add", path), ("show", path), ("diff", path, "grpo")):
        assert "\x1b" not in output(*arguments) and "\x07" not in output(*arguments)


def test_infinities_of_a_file_are_refused(tmp_path: Path) -> None:
    parts = OWN["parts"] | {"bounds": {"part": "around_one", "epsilon_high": math.inf}}
    said = fails("show", written(tmp_path, parts=parts))
    assert "mine.json: parts.bounds.epsilon_high: a finite number is needed, not inf" in said


# --- two compared ----------------------------------------------------------------------------------------------------


def test_a_comparison_has_the_slots_that_differ_and_those_that_do_not(tmp_path: Path) -> None:
    found = data("diff", "grpo", written(tmp_path))
    assert (found["a"], found["b"], found["identical"]) == ("grpo", "mine", False)
    differences = {each["slot"]: each for each in found["differences"]}
    assert set(differences) == {"scale", "ratio", "bounds", "constraint", "aggregation"}
    assert set(found["same"]) == {"baseline", "gate"}
    ratio = differences["ratio"]
    assert ratio["a"].startswith("token(") and ratio["b"].startswith("sequence_mean")
    assert ratio["a_titles"] == [algorithms.describe("ratio", "token").title]
    assert (differences["scale"]["b"], differences["scale"]["b_titles"]) == ("none", [])


@pytest.mark.parametrize("columns", [80, 140])
def test_a_comparison_is_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, columns: int) -> None:
    lines = on_a_terminal(monkeypatch, columns, "diff", "grpo", written(tmp_path))
    assert max(map(len, lines)) <= columns and "…" not in "\n".join(lines)
    (line,) = [line for line in lines if "epsilon_high" in line]
    assert line.split() == ["epsilon_high", "=", "0.2", "epsilon_high", "=", "0.3"]
    assert [line.strip() for line in lines if line.strip() in HEADINGS.values()] == [
        "Advantage",
        "Per-token objective",
        "Constraint",
        "Aggregation",
    ]


def test_of_two_mixtures_only_what_differs_is_shown(tmp_path: Path) -> None:
    gate = {"gate": {"part": "log_prob"}}
    sides = [
        [{"source": 0}, {"source": 1, "parts": gate}],
        [{"source": 0}, {"source": 1, "parts": gate | {"ratio": {"part": "one"}}}],
        [{"source": 0}, {"source": 1, "coefficient": 0.5, "parts": gate}],
        [{"source": 0}],
    ]
    plain, ratio, half, single = (
        written(tmp_path, f"{n}.json", id=f"mine{n}", mixture=mixture) for n, mixture in enumerate(sides)
    )
    lines = [line.split() for line in output("diff", plain, ratio).splitlines()]
    at = lines.index(["Mixture"])
    assert lines[at + 1] == ["source", "1"]
    assert (lines[at + 2][0], lines[at + 2][-1]) == ("ratio", "one")
    assert "Log-probability" not in output("diff", plain, ratio)
    page = output("diff", plain, half)
    assert "times 1," in page and "times 0.5," in page and "source 0" not in page
    assert "source 0" in output("diff", plain, single)


def test_identical_algorithms_are_said_to_be(tmp_path: Path) -> None:
    copy = algorithms.get("grpo").model_dump(exclude_none=True) | {"id": "copy", "name": "Copy"}
    (tmp_path / "copy.json").write_text(json.dumps(copy))
    assert "grpo and copy are identical" in output("diff", "grpo", tmp_path / "copy.json")
    found = data("diff", "grpo", tmp_path / "copy.json")
    assert found["identical"] is True and found["differences"] == []


# --- algorithms of one's own -----------------------------------------------------------------------------------------


def test_a_folder_and_the_environment_register_algorithms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        written(folder, id=folder.name)
    monkeypatch.setenv(algorithms.ENVIRONMENT, str(first))
    every = data("--add", second)
    assert {"first", "second"} <= set(every)
    assert data("diff", "first", "second")["identical"] is True


def test_options_may_stand_before_the_command(tmp_path: Path) -> None:
    found = json.loads(output("--add", written(tmp_path), "--json", "show", "mine"))
    assert found["spec"]["id"] == "mine"


def test_the_algorithm_of_the_example_is_what_it_says() -> None:
    found = data("diff", "grpo", MINE)
    assert {each["slot"] for each in found["differences"]} == {"scale", "bounds", "constraint", "aggregation"}


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "meant"), [("grop", "grpo"), ("Dr. GRPO", "dr_grpo"), ("REINFORCE++", "reinforce_pp")]
)
def test_an_unknown_id_names_near_ones(asked: str, meant: str) -> None:
    said = fails("show", asked)
    assert f"no algorithm {asked!r}" in said
    assert meant in said.split("did you mean ")[1].rstrip("?").split(" or ")


def test_upper_and_lower_case_of_an_id_are_the_same() -> None:
    assert data("show", "GRPO")["spec"]["id"] == "grpo"
    assert data("diff", "GRPO", "Dapo")["b"] == "dapo"


def test_an_id_like_no_other_says_where_they_are_listed() -> None:
    assert "`unipo-hooks algorithms` lists them" in fails("diff", "grpo", "zzzzzz")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parts": {"gate": {"part": "ppo_clp"}, "aggregation": {"part": "token_mean"}}}, "did you mean ppo_clip?"),
        ({"parts": {"gate": {"part": "ppo_clip"}}}, "parts.aggregation: every algorithm needs one"),
        ({"id": "grpo"}, "choose another id"),
    ],
)
def test_a_wrong_file_is_told_with_its_name_and_place(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = written(tmp_path, **changes)
    for arguments in (("--add", path), ("show", path), ("diff", "grpo", path)):
        said = fails(*arguments)
        assert words in said and path.name in said


def test_what_is_no_file_of_algorithms_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "cannot be read" in fails("show", tmp_path / "none.json")
    assert "no *.json in this folder" in fails("--add", tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert "not JSON" in fails("diff", broken, "grpo")
    monkeypatch.setenv(algorithms.ENVIRONMENT, str(tmp_path / "nowhere"))
    assert "grpo" in data()
    said = fails("show", "zzzzzz")
    assert "`unipo-hooks algorithms` lists them (of UNIPO_ALGORITHMS, not read: " in said
    assert "no such directory" in said


def test_a_family_or_input_that_is_none_names_those_there_are() -> None:
    assert "PPO and GRPO" in fails("--family", "nope")
    assert "did you mean" in fails("--needs", "ref_log_prob")
    assert "show has none" in fails("--family", "clip", "show", "grpo")


@pytest.mark.parametrize("columns", [80, 140])
def test_words_are_explained(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    assert data("words") == WORDS == json.loads(output("--json", "words"))
    lines = on_a_terminal(monkeypatch, columns, "words")
    assert max(map(len, lines)) <= columns and "…" not in "\n".join(lines)
    assert all(any(line.startswith(word) for line in lines) for word in WORDS)


def test_help_teaches() -> None:
    text = " ".join(call("--help").stdout.split())
    assert "unipo-hooks algorithms diff grpo dapo" in text and "UNIPO_ALGORITHMS" in text
    for command in ("show", "diff"):
        assert f"unipo-hooks algorithms {command}" in " ".join(call(command, "--help").stdout.split())
