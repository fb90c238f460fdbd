"""UNIPO's canonical run: against the schema, and against the rules of UNIPO's own tool, checked apart from it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle.builder import Builder, attempt, log_prob, response, simple, token

from unipo_hooks import algorithms, open_bundle
from unipo_hooks.errors import BundleError, ExportError
from unipo_hooks.export.canonical import canonical_run, export_canonical
from unipo_hooks.schema import CanonicalRun

NASTY = '</script> "quoted" \\ back \u2028 \x00 \U0001f600'


def run_of(path: Path, updates: int = 22, **header: Any) -> Path:
    """A bundle of `updates` updates, every second one captured."""
    built = Builder(
        path,
        header={
            "algorithm": "GRPO",
            "task": NASTY,
            "hparams": {"clip_eps": [0.2, 0.28], "kl_coef": 0.04, "group_size": 2, "odd": [math.nan, {"x": math.inf}]},
            **header,
        },
        reward_names=("format", "right", "right"),
    )
    for update in range(updates):
        sums = {"reward": [1.5, 2.0, 2.0], "policy_objective": [0.25, 1.0, 0.0625], "kl": [0.0, 0.0, 0.0]}
        built.metrics(update, sums, captured=update % 2 == 0)
        if update % 2:
            continue
        rows = [
            response(
                row,
                [token(row, old_log_probs=-0.1), token(9, mask=0, old_log_probs=math.nan, strings=NASTY)],
                prompt=NASTY,
                reward=row / 3,
                advantages=row - 0.5,
                **{"reward_components.0": row / 3, "reward_components.1": math.nan, "reward_components.2": 0.5},
            )
            for row in range(2)
        ]
        built.rollout(update, rows).update(update, [(update, row) for row in reversed(rows)], values={"token_kl": 0.5})
    return built.write()


def exported(bundle: Path, out: Path) -> tuple[dict[str, Any], list[str]]:
    """The JSON as a strict parser sees it, and the notes."""
    notes = export_canonical(bundle, out)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(out.read_text("utf-8"), parse_constant=refuse), notes


def check_rules(run: dict[str, Any]) -> None:
    """What UNIPO's tool requires of a file, written from its documentation."""
    assert set(run) == {"header", "entries"}
    assert run["header"]["algorithm"] in {"reinforce", "ppo", "grpo", "dapo", "drgrpo"}
    assert isinstance(run["header"]["hparams"], dict)
    assert isinstance(run["header"]["totalSteps"], int)
    for name in ("task", "dataset", "reward_strategy", "model_name"):
        assert isinstance(run["header"][name], str)
    entries = run["entries"]
    assert isinstance(entries, list) and len(entries) >= 22
    steps = [entry["step"] for entry in entries]
    assert len(set(steps)) == len(steps) and all(isinstance(step, int) for step in steps)
    for entry in entries:
        assert isinstance(entry["is_first_step_after_rollout_phase"], bool)
        assert {"policy_objective", "reward"} <= set(entry["metrics"])
        assert all(value is None or isinstance(value, int | float) for value in entry["metrics"].values())
        for prompt in entry.get("prompts", []):
            assert isinstance(prompt["prompt"], str) and prompt["responses"]
            for answer in prompt["responses"]:
                assert {"id", "reward", "response_text", "response_length", "tokens"} <= set(answer)
                tokens = answer["tokens"]
                assert {"ids", "strings"} <= set(tokens)
                assert {len(values) for values in tokens.values()} == {answer["response_length"]}
                assert "".join(tokens["strings"]) == answer["response_text"]


def test_a_run_keeps_to_unipos_rules(tmp_path: Path) -> None:
    run, notes = exported(run_of(tmp_path / "run"), tmp_path / "run.json")
    check_rules(run)
    assert notes == [
        "token_objective is left out of 11 of 11 forward passes: the bundle does not say which algorithm ran"
    ]
    assert run["header"]["hparams"] == {
        "clip_eps": [0.2, 0.28],
        "kl_coef": 0.04,
        "group_size": 2,
        "odd": [None, {"x": None}],
    }


def test_the_file_and_the_run_in_memory_are_one(tmp_path: Path) -> None:
    bundle = run_of(tmp_path / "run")
    run, _ = exported(bundle, tmp_path / "run.json")
    assert CanonicalRun.model_validate(run) == canonical_run(open_bundle(bundle))


def test_every_update_has_metrics_and_captured_ones_have_prompts(tmp_path: Path) -> None:
    run, _ = exported(run_of(tmp_path / "run"), tmp_path / "run.json")
    assert [entry["step"] for entry in run["entries"]] == list(range(22))
    assert ["prompts" in entry for entry in run["entries"]] == [True, False] * 11
    expected = {"policy_objective": 0.25, "reward": 0.75, "reward_std": 0.9354143466934853}
    assert all(entry["metrics"] == expected for entry in run["entries"])


def test_the_numbers_of_a_response(tmp_path: Path) -> None:
    run, _ = exported(run_of(tmp_path / "run"), tmp_path / "run.json")
    (prompt,) = run["entries"][2]["prompts"]
    assert prompt["prompt"] == NASTY
    first, second = prompt["responses"]  # by row, though the update took them the other way round
    assert second == {
        "id": "rollout2-rank0-row1",
        "reward": 0.33333334,
        "advantage": 0.5,
        "response_text": f"t1{NASTY}",
        "response_length": 2,
        "reward_components": {"format": 0.33333334, "right (1)": None, "right (2)": 0.5},
        "tokens": {
            "ids": [1, 9],
            "strings": ["t1", NASTY],
            "log_probs": [-1.0079346, -1.0080566],
            "old_log_probs": [-0.1, None],
            "advantages": [0.5, 0.5],
            "token_kl": [0.5, 0.5],
            "mask": [1, 0],
        },
    }
    assert np.array_equal(np.float32(second["tokens"]["log_probs"]), np.float32([log_prob(2, 1, 0), log_prob(2, 1, 1)]))
    assert np.float32(first["tokens"]["log_probs"][1]) == np.float32(log_prob(2, 0, 1))


def test_only_what_an_update_trained_on_is_in_its_entry(tmp_path: Path) -> None:
    run, notes = exported(simple(tmp_path / "run").write(), tmp_path / "run.json")
    found = [
        {prompt["prompt"]: [r["id"] for r in prompt["responses"]] for prompt in entry["prompts"]}
        for entry in run["entries"]
    ]
    assert found == [
        {"prompt 0": ["rollout0-rank0-row0"], "prompt 1": ["rollout0-rank0-row3"]},
        {"prompt 0": ["rollout0-rank0-row1"], "prompt 1": ["rollout0-rank0-row2"]},
        {"prompt 0": ["rollout1-rank0-row0"]},
    ]
    firsts = [entry["is_first_step_after_rollout_phase"] for entry in run["entries"]]
    assert firsts == [True, True, True]  # the builder's metrics lines say so, and they cover every update
    empty = run["entries"][1]["prompts"][1]["responses"][0]
    assert (empty["response_text"], empty["response_length"]) == ("", 0)
    assert empty["tokens"] == {"ids": [], "strings": []}
    aliased = run["entries"][0]["prompts"][0]["responses"][0]["tokens"]
    assert aliased["old_log_probs"] == aliased["log_probs"]
    assert aliased["mask_reason"] == [0, 1, 0]
    assert any("needs at least 22 updates; this run has 3" in note for note in notes)
    assert any("policy_objective is null in 3 of 3" in note for note in notes)
    assert any("only some prompt groups were captured" in note for note in notes)


def test_responses_of_two_ranks_are_told_apart(tmp_path: Path) -> None:
    built = Builder(tmp_path / "run", ranks=2)
    for rank in range(2):
        rows = [response(0, [token(rank)], group=rank), response(1, [token(rank)], group=1)]
        built.rollout(0, rows, rank=rank).update(0, [(0, row) for row in rows], rank=rank).metrics(0, {}, rank=rank)
    run, _ = exported(built.write(), tmp_path / "run.json")
    (entry,) = run["entries"]
    assert [[r["id"] for r in prompt["responses"]] for prompt in entry["prompts"]] == [
        ["rollout0-rank0-row0"],
        ["rollout0-rank0-row1", "rollout0-rank1-row0", "rollout0-rank1-row1"],
    ]


def test_passes_over_one_response_are_told_apart(tmp_path: Path) -> None:
    built = Builder(tmp_path / "run")
    rows = [response(row, [token(row)]) for row in range(2)]
    built.rollout(0, rows).update(0, [(0, rows[0]), (0, rows[1]), (0, rows[0])], micro_batches=3)
    run, _ = exported(built.write(), tmp_path / "run.json")
    (prompt,) = run["entries"][0]["prompts"]
    found = {r["id"]: r["tokens"]["log_probs"] for r in prompt["responses"]}
    assert found == {
        "rollout0-rank0-row0-pass1": [pytest.approx(log_prob(0, 0, 0), rel=1e-6)],
        "rollout0-rank0-row0-pass2": [pytest.approx(log_prob(0, 0, 0) - 0.5, rel=1e-6)],
        "rollout0-rank0-row1": [pytest.approx(log_prob(0, 1, 0) - 0.25, rel=1e-6)],
    }


def test_the_bundle_is_not_written_over(tmp_path: Path) -> None:
    bundle = run_of(tmp_path / "run", 1)
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(ExportError, match="is inside the bundle"):
        export_canonical(bundle, bundle / "manifest.json")
    assert (bundle / "manifest.json").read_bytes() == before


def test_an_update_without_a_metrics_line_has_an_entry(tmp_path: Path) -> None:
    bundle = simple(tmp_path / "run").write()
    (bundle / "metrics.r0.jsonl").unlink()
    run, _ = exported(bundle, tmp_path / "run.json")
    assert [entry["step"] for entry in run["entries"]] == [0, 1, 2]
    assert run["entries"][1]["is_first_step_after_rollout_phase"] is False
    assert run["entries"][0]["metrics"] == {"policy_objective": None, "reward": None}


def test_floats_are_as_short_as_float32_allows_and_come_back_exactly(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=500).astype(np.float32) * np.logspace(-20, 20, 500, dtype=np.float32)
    built = Builder(tmp_path / "run")
    rows = [response(0, [token(n, old_log_probs=float(value)) for n, value in enumerate(values)])]
    built.rollout(0, rows).update(0, [(0, rows[0])])
    run, _ = exported(built.write(), tmp_path / "run.json")
    (written,) = [r["tokens"]["old_log_probs"] for p in run["entries"][0]["prompts"] for r in p["responses"]]
    assert np.array_equal(np.array(written, np.float32), values)
    assert max(len(repr(abs(value)).replace(".", "").split("e")[0].strip("0")) for value in written) <= 9


@pytest.mark.parametrize("algorithm", ["gspo", "", NASTY])
def test_an_algorithm_unipo_does_not_know_is_said(tmp_path: Path, algorithm: str) -> None:
    run, notes = exported(run_of(tmp_path / "run", algorithm=algorithm), tmp_path / "run.json")
    assert run["header"]["algorithm"] == algorithm.strip().lower()
    assert len(notes) == 2 and "reinforce, ppo, grpo, dapo, drgrpo" in notes[0]


def test_a_run_without_updates_is_still_a_run(tmp_path: Path) -> None:
    run, notes = exported(Builder(tmp_path / "run").write(), tmp_path / "run.json")
    assert run["entries"] == []
    assert "this run has 0" in notes[0]


def test_progress_is_told_by_update(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    export_canonical(run_of(tmp_path / "run", 5), tmp_path / "x.json", lambda done, total: heard.append((done, total)))
    assert heard == [(n + 1, 5) for n in range(5)]


def test_a_damaged_bundle_leaves_no_file(tmp_path: Path) -> None:
    bundle = run_of(tmp_path / "run", 3)
    (bundle / "segments" / "r0-000000.update_tokens.parquet").write_bytes(b"PAR1")
    with pytest.raises(BundleError):
        export_canonical(bundle, tmp_path / "run.json")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(ExportError, match="is a folder"):
        export_canonical(bundle, tmp_path)


def test_token_objective_is_that_of_the_runs_own_algorithm(tmp_path):
    # ratio e^0.3 with advantage 0.5 is clipped at 1.2; with −0.5 it is not
    built = Builder(tmp_path / "run", algorithm=algorithms.get("dr_grpo").model_dump(exclude_defaults=True))
    for update in range(2):
        rows = [
            response(row, [token(row, old_log_probs=-0.8), token(9, mask=0)], reward=row, advantages=row - 0.5)
            for row in range(2)
        ]
        built.rollout(update, rows).update(update, [(update, row) for row in rows], values={"log_probs": -0.5})
    run, _ = exported(built.write(), tmp_path / "run.json")
    found = [
        r["tokens"]["token_objective"] for entry in run["entries"] for p in entry["prompts"] for r in p["responses"]
    ]
    assert found == [[pytest.approx(-0.5 * math.exp(0.3)), None], [pytest.approx(0.6), None]] * 2


DR_GRPO = algorithms.get("dr_grpo").model_dump(exclude_defaults=True)
NEWER = {"id": "x", "name": "x", "parts": {"gate": {"part": "new"}, "aggregation": {"part": "token_mean"}}}


def objectives(run: dict[str, Any]) -> list[list[Any]]:
    """The token objectives of each entry's responses; None for a response without."""
    return [
        [r["tokens"].get("token_objective") for p in entry.get("prompts", []) for r in p["responses"]]
        for entry in run["entries"]
    ]


@pytest.mark.parametrize(
    ("algorithm", "why"),
    [
        (None, "the bundle does not say which algorithm ran"),
        (NEWER, "the algorithm that ran is not known to this version of unipo-hooks: .*new"),
        ({**NEWER, "novel": 1}, "the algorithm that ran is not known to this version of unipo-hooks: .*novel"),
        ({**DR_GRPO, "parts": {**DR_GRPO["parts"], "novel": {"part": "x"}}}, "not known to this version.*novel"),
    ],
)
def test_without_a_known_algorithm_there_is_no_token_objective_and_it_is_said(tmp_path, algorithm, why):
    built = Builder(tmp_path / "run", algorithm=algorithm)
    rows = [response(0, [token(0)], advantages=1.0)]
    run, notes = exported(built.rollout(0, rows).update(0, [(0, rows[0])]).write(), tmp_path / "run.json")
    assert objectives(run) == [[None]]
    assert re.fullmatch(f"token_objective is left out of 1 of 1 forward passes: (.*)?{why}.*", notes[-1]), notes[-1]
    assert len(notes[-1].splitlines()) == 1


def test_what_the_trainer_noted_of_its_algorithm_is_in_the_reason(tmp_path):
    built = Builder(tmp_path / "run", attempts=[{**attempt(0), "algorithm_notes": ["loss_type 'odd' is not known"]}])
    rows = [response(0, [token(0)], advantages=1.0)]
    _, notes = exported(built.rollout(0, rows).update(0, [(0, rows[0])]).write(), tmp_path / "run.json")
    assert notes[-1].endswith("the bundle does not say which algorithm ran; loss_type 'odd' is not known")


def test_a_micro_batch_without_a_token_that_counts_costs_no_other(tmp_path):
    built = Builder(tmp_path / "run", algorithm=DR_GRPO)
    rows = [
        response(0, [token(0, old_log_probs=-0.8)], advantages=0.5),
        response(1, [token(1, mask=0, old_log_probs=math.nan)], advantages=0.5),
        response(2, [], advantages=0.5),
    ]
    built.rollout(0, rows).update(0, [(0, row) for row in rows], micro_batches=3, values={"log_probs": -0.5})
    run, notes = exported(built.write(), tmp_path / "run.json")
    assert objectives(run) == [[[pytest.approx(0.6)], None, None]]
    assert not any("token_objective" in note for note in notes)


def test_what_cannot_be_computed_is_said_and_costs_nothing_else(tmp_path):
    built = Builder(tmp_path / "run", algorithm=DR_GRPO)
    for update in range(3):
        known = {"old_log_probs": -0.8} if update != 1 else {}
        rows = [response(row, [token(row, **known)], advantages=0.5) for row in range(2)]
        built.rollout(update, rows, segment=update)
        built.update(update, [(update, r) for r in rows], segment=update, micro_batches=2, values={"log_probs": -0.5})
    run, notes = exported(built.write(), tmp_path / "run.json")
    assert objectives(run) == [[[pytest.approx(0.6)]] * 2, [None] * 2, [[pytest.approx(0.6)]] * 2]
    (note,) = [note for note in notes if "token_objective" in note]
    assert note.startswith("token_objective is left out of 2 of 6 forward passes: dr_grpo needs old_log_probs")


def breaking(batch, advantages, ratio, bounds):
    """Divides by zero."""
    raise ZeroDivisionError("division by zero")


def test_a_defect_in_the_users_own_part_is_said_and_costs_nothing_else(tmp_path):
    algorithms.register_part("gate", breaking)
    built = Builder(tmp_path / "run", algorithm={**NEWER, "parts": {**NEWER["parts"], "gate": {"part": "breaking"}}})
    rows = [response(0, [token(0, old_log_probs=-0.5)], advantages=1.0)]
    run, notes = exported(built.rollout(0, rows).update(0, [(0, rows[0])]).write(), tmp_path / "run.json")
    assert objectives(run) == [[None]] and "x fails with ZeroDivisionError: division by zero" in notes[-1]


@pytest.mark.parametrize("algorithm", [None, DR_GRPO, NEWER])
def test_a_stored_token_objective_is_taken_as_it_is(tmp_path, algorithm):
    built = Builder(tmp_path / "run", algorithm=algorithm)
    for update in range(2):
        rows = [response(row, [token(row, old_log_probs=-0.8)], advantages=0.5) for row in range(2)]
        built.rollout(update, rows, segment=update)
        stored = {"token_objective": 0.125} if update else {}
        values = {"log_probs": -0.5, **stored}
        built.update(update, [(update, r) for r in rows], segment=update, values=values)
    run, notes = exported(built.write(), tmp_path / "run.json")
    assert objectives(run)[1] == [[0.125], [0.125]]
    computed = algorithm is DR_GRPO
    assert objectives(run)[0] == ([[pytest.approx(0.6)]] * 2 if computed else [None] * 2)
    assert any("left out of 1 of 2 forward passes" in note for note in notes) is not computed


def test_each_attempt_has_the_objective_of_its_own_algorithm(tmp_path):
    ungated = {**DR_GRPO, "parts": {**DR_GRPO["parts"], "gate": {"part": "plain_ratio"}}}
    attempts = [
        {**attempt(0, status="interrupted"), "algorithm": DR_GRPO},
        {**attempt(1, first_update=1), "algorithm": ungated},
    ]
    built = Builder(tmp_path / "run", attempts=attempts)
    for number in range(2):
        row = response(0, [token(0, old_log_probs=-0.8)], advantages=0.5)
        built.rollout(number, [row], segment=number, attempt=number)
        built.update(number, [(number, row)], segment=number, attempt=number, values={"log_probs": -0.5})
    run, _ = exported(built.write(), tmp_path / "run.json")
    assert objectives(run) == [[[pytest.approx(0.6)]], [[pytest.approx(0.5 * math.exp(0.3))]]]
