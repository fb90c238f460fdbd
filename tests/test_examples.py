"""`examples/what_if.py`: whose advantages an algorithm takes, what the table counts, and what goes wrong."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle.builder import Builder, log_prob, response, simple, token

from unipo_hooks import algorithms, evaluate, open_bundle

ROOT = Path(__file__).parents[1]
MINE = ROOT / "examples" / "my_algorithm.json"
REWARDS = (1.0, 0.0, 0.5, 0.25)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it; the environment of the machine is not looked at."""
    monkeypatch.setattr(algorithms, "_OWN", {})
    monkeypatch.delenv(algorithms.ENVIRONMENT, raising=False)
    algorithms._read_environment.cache_clear()


def old(row: int, position: int) -> float:
    """An old log-prob from which the policy has moved by up to 3/8 of a nat either way."""
    return log_prob(0, row, position) + ((row + position) % 4 - 1.5) / 4


def bundle(path: Path, *, micro_batches: int = 1, rows: int = 4, group_size: int | None = 2, **manifest: Any) -> Path:
    """An update of two groups of two, in order; the trainer's advantages are unlike any algorithm's."""
    hparams = {} if group_size is None else {"group_size": group_size}
    built = Builder(path, header={"algorithm": "grpo", "hparams": hparams}, **manifest)
    there = [
        response(
            number,
            [token(place, old_log_probs=old(number, place)) for place in range(3)],
            group=number // 2,
            reward=reward,
            advantages=0.125 * (number + 1) * (-1) ** number,
        )
        for number, reward in enumerate(REWARDS)
    ]
    built.rollout(0, there)
    lines = [{"rollout": 0, "rows": 4 // micro_batches, "tokens": 12 // micro_batches, "loss": 0.25}] * micro_batches
    built.update(0, [(0, each) for each in there[:rows]], micro_batches=micro_batches)
    built.index[0][-1]["micro_batches"] = lines
    for order, each in enumerate(built.tables["r0-000000", "update_tokens"]):
        each["entropies"] = (order * 5 % 7) / 4
    return built.write()


def what_if(monkeypatch: pytest.MonkeyPatch, columns: int, *arguments: object) -> None:
    """Run the example as a script would be, but in this process, which is faster."""
    path = str(ROOT / "examples" / "what_if.py")
    monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", str(columns))
    runpy.run_path(path, run_name="__main__")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What the example prints: its rows by algorithm, then its lines by algorithm."""

    def run(*arguments: object, columns: int = 300) -> tuple[dict[str, list[str]], dict[str, str], str]:
        what_if(monkeypatch, columns, *arguments)
        text = capsys.readouterr().out
        printed = text.splitlines()
        rows = {cells[0]: cells[1:] for line in printed if "%" in (cells := line.split())}
        sentences = [line.partition(": ") for line in printed[1:] if ": " in line]
        lines = {name: sentence for name, _, sentence in sentences}
        return rows, lines, text

    return run


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The one line the example ends with."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            what_if(monkeypatch, 80, *arguments)
        line = str(ended.value.code)
        assert capsys.readouterr().out == "" and "\n" not in line
        return line.removeprefix("what_if: ")

    return run


def test_the_runs_algorithm_is_compared_with_others(said: Any, tmp_path: Path) -> None:
    grpo = algorithms.get("grpo").model_dump()
    grpo["parts"]["constraint"] = []
    rows, lines, _ = said(bundle(tmp_path / "run", algorithm=grpo), 0, "gspo", "grpo", MINE)
    assert list(rows) == ["grpo", "gspo", "my_grpo"]
    assert rows["grpo"][0] == "(run)" and rows["grpo"][-1] == "1.000"
    assert list(lines) == ["grpo (run)", "gspo", "grpo", "my_grpo"]
    assert lines["grpo"].startswith("needs ref_log_probs (train with a reference policy")


def test_of_whole_groups_an_algorithm_judges_by_itself(said: Any, tmp_path: Path) -> None:
    path = bundle(tmp_path / "run", micro_batches=2)
    rows, lines, _ = said(path, 0, "gspo")
    assert lines["gspo"] == "its own advantages"
    own = [evaluate("gspo", each.batch) for each in open_bundle(path).micro_batches(0)]
    assert float(rows["gspo"][0]) == pytest.approx(sum(each.loss for each in own), abs=1e-5)


@pytest.mark.parametrize(
    "changes", [{"micro_batches": 4}, {"group_size": 4}, {"group_size": None}, {"rows": 3}], ids=lambda each: str(each)
)
def test_of_parts_of_groups_it_takes_the_trainers_advantages_and_says_so(
    said: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = bundle(tmp_path / "run", **changes)
    rows, lines, _ = said(path, 0, "gspo")
    assert lines["gspo"] == "the trainer's advantages in place of baseline group_mean, scale group_std"
    given = algorithms.given_advantages(algorithms.get("gspo"))
    loss = sum(evaluate(given, each.batch).loss for each in open_bundle(path).micro_batches(0))
    assert float(rows["gspo"][0]) == pytest.approx(loss, abs=1e-5)


def test_what_compares_with_the_whole_batch_takes_the_trainers_advantages(said: Any, tmp_path: Path) -> None:
    lines = said(bundle(tmp_path / "run"), 0, "reinforce_pp_baseline", "hapo")[1]
    assert all(each.startswith("the trainer's advantages in place of") for each in lines.values())
    assert "within each micro-batch: modulation by_entropy_and_ratio" in lines["hapo"]


def test_what_an_algorithm_makes_of_given_advantages_stays(said: Any, tmp_path: Path) -> None:
    path = bundle(tmp_path / "run", group_size=4)
    rows = said(path, 0, "dapo", "hapo", "gtpo_conflict")[0]
    assert len({tuple(cells) for cells in rows.values()}) == 3
    (part, *_) = open_bundle(path).micro_batches(0)
    hapo = algorithms.get("hapo")
    modulated, plain = (
        evaluate(algorithms.given_advantages(hapo, modulated=each), part.batch).advantages for each in (False, True)
    )
    given = part.batch.arrays["advantages"].reshape(len(part.row_B), -1)
    assert np.array_equal(plain, np.broadcast_to(given, plain.shape))
    assert not np.array_equal(modulated, plain)
    recorded = algorithms.as_recorded(hapo, part.batch.arrays)
    assert recorded.parts.modulation == []


def test_clipped_counts_silent_tokens_and_capped_those_that_still_push(said: Any, tmp_path: Path) -> None:
    path = bundle(tmp_path / "run")
    rows = said(path, 0, "gspo", "cispo.trl", "ce_gppo")[0]
    for name, cells in rows.items():
        codes = np.concatenate([evaluate(name, p.batch).clipped.ravel() for p in open_bundle(path).micro_batches(0)])
        shares = [100 * ((codes > 0) & (codes <= 5)).mean(), 100 * (codes > 5).mean()]
        assert [float(cells[1]), float(cells[3])] == pytest.approx(shares, abs=0.05), name
    assert any(float(cells[3]) > 0 for cells in rows.values())


def test_at_80_columns_nothing_is_cut_off(said: Any, tmp_path: Path) -> None:
    path = bundle(tmp_path / "run", micro_batches=4)
    text = said(path, 0, "reinforce_pp_baseline.verl", "gtpo_conflict", "grpo", "hapo", columns=80)[2]
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in text
    assert "grpo: needs ref_log_probs" in text


def test_without_an_update_it_is_the_last_captured(said: Any, tmp_path: Path) -> None:
    path = simple(tmp_path / "run").write()
    assert "update 2" in said(path)[2]
    assert "update 1" in said(path, 1, "gspo")[2]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("no sum", 0.0),
        ("3 + 6 = 9, so Tom has 9 books.", 1.0),
        ("12 - 4 = 6 and then 2*3=6", 0.5),
        ("3 x 7 = 21. 20 ÷ 20 = 1; 8/3 = 2; 4/0 = 0", 0.5),
        ("3 / 7 = 0.33 is no whole number", 0.0),
    ],
)
def test_smollm2_is_rewarded_for_the_share_of_its_sums_that_are_right(text: str, share: float) -> None:
    from unipo_hooks.examples.trl_smollm2 import sums_hold

    assert sums_hold([[{"role": "assistant", "content": text}]]) == [share / 2]


def test_what_goes_wrong_is_one_line(fails: Any, tmp_path: Path) -> None:
    path = bundle(tmp_path / "run")
    assert "did you mean gspo" in fails(path, 0, "gsppo")
    assert "does not exist" in fails(tmp_path / "none")
    assert fails(path, 9).endswith("has no update 9; captured are 0")
    assert fails(path, -1) == "updates are counted from 0: there is no update -1"
    assert "cannot be read" in fails(path, 0, tmp_path / "none.json")
    assert "has no update" in fails(Builder(tmp_path / "empty").write())
