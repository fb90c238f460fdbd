"""What the viewer's analysis says of a run: whether the loss is the trainer's, what is missing, which pushes change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from viewer.analysing import ARRAYS, SPEC, asked, of_own, question, recorded_run

from unipo_hooks import algorithms, open_bundle
from unipo_hooks.objective.parts.types import Gate


@pytest.mark.parametrize(
    ("error", "status", "words"), [(0.0, "reproduced", "rounding"), (1e-3, "off", "loss_type 'new' is not known")]
)
def test_the_badge_says_whether_the_loss_is_the_trainers(
    error: float, status: str, words: str, analysis: Path, tmp_path: Path
) -> None:
    path = recorded_run(tmp_path / "run", SPEC, error=error, algorithm_notes=("loss_type 'new' is not known",))
    (answer,) = asked(analysis, [question(path, 1, [])])
    found = answer["reconciled"]
    assert found["status"] == status and words in found["why"], found
    assert found["gap"] == pytest.approx(found["storedGap"], abs=1e-8) and abs(found["gap"]) == pytest.approx(
        error, abs=1e-7
    )
    parts = open_bundle(path).updates().to_pylist()[1]["micro_batches"]
    assert any(found["tolerance"] == pytest.approx(part["loss_tolerance"], rel=1e-6) for part in parts)
    assert [row["gap"] == pytest.approx(-error, abs=1e-7) for row in found["rows"]] == [True, True]


def cubed(batch: Any, advantages: Any, ratio: Any, bounds: Any, *, power: float = 3.0) -> Gate:
    """A · ratio^power."""
    objective = advantages * ratio.value**power
    return Gate(objective, d_log_ratio=power * objective)


def test_of_a_part_this_page_has_no_code_for_the_stored_results_are_taken(analysis: Path, tmp_path: Path) -> None:
    algorithms.register_part("gate", cubed)
    parts = {"gate": {"part": "cubed"}, "aggregation": {"part": "token_mean"}}
    path = recorded_run(tmp_path / "run", algorithms.get({"id": "cubed_ratio", "name": "Cubed", "parts": parts}))
    (answer,) = asked(analysis, [question(path, 0, [(None, {})])])
    own, what_if = answer["answers"]
    assert own["missing"] == "" and "stored while training" in own["notes"][0] and "gate cubed" in own["notes"][0]
    bundle = open_bundle(path)
    found = of_own(bundle, bundle.micro_batches(0))
    for part, evaluation in found:
        for b, row in enumerate(part.row_B):
            (theirs,) = [p for p in own["passes"] if (p["row"], p["microBatch"]) == (row, part.micro_batch)]
            length = part.length_B[b]
            for name in ("tokenObjective", "gradientWeight", "ratio", "advantages", "aggregation"):
                mine = getattr(evaluation, ARRAYS[name])[b, :length]
                assert theirs[name] == pytest.approx(mine, rel=1e-6, abs=1e-9), name
            assert theirs["low"] == [None] * length  # not known: −∞ is null in JSON, as NaN is
    assert own["loss"] == pytest.approx(sum(evaluation.loss for _, evaluation in found), abs=1e-6)
    assert answer["reconciled"]["status"] == "reproduced"
    assert "gate cubed" in what_if["missing"]


def test_what_is_missing_is_said_in_one_line_for_every_algorithm(analysis: Path, trained: Path) -> None:
    (answer,) = asked(analysis, [question(trained, 0, [("grpo", {}), ("ppo", {}), ("tis", {})])])
    grpo, ppo, tis = answer["answers"][1:]
    for said, channel, how in [
        (grpo, "ref_log_probs", "set kl's beta to 0"),
        (ppo, "values", "train with a critic"),
        (tis, "rollout_log_probs", "use_vllm=True"),
    ]:
        assert channel in said["missing"] and how in said["missing"], said["missing"]
        assert said["available"]["missing"] == said["missing"]
        assert said["passes"] == []
    can = [name for name, missing in answer["available"].items() if not missing]
    lacking = {name: missing for name, missing in answer["available"].items() if missing}
    assert all("\n" not in missing and len(missing) < 400 for missing in lacking.values())
    print(f"{len(can)} of {len(answer['available'])} algorithms can be computed on the digits run")
    print(
        f"own analysis {answer['milliseconds']['own']:.0f} ms, whole list {answer['milliseconds']['available']:.0f} ms"
    )
    assert {"dapo", "gspo", "reinforce"} <= set(can) and len(can) > 50
    (all_of_them,) = asked(analysis, [question(trained, 2, [(name, {}) for name in answer["available"]])])
    said = dict(zip(answer["available"], all_of_them["answers"][1:], strict=True))
    assert [name for name in can if said[name]["missing"]] == []
    assert [name for name in lacking if not said[name]["missing"]] == []


def test_tokens_whose_push_changes_are_listed_by_size(analysis: Path, trained: Path) -> None:
    changes = {"bounds.epsilon_low": 0.0, "bounds.epsilon_high": 0.0}
    (answer,) = asked(analysis, [question(trained, 1, [(None, changes)])])
    own, other = ({p["key"]: p["push"] for p in said["passes"]} for said in answer["answers"])
    floor = 1e-6 * max(abs(value) for said in (own, other) for push in said.values() for value in push)

    def sign(value: float) -> int:
        return int(np.sign(value)) if abs(value) > floor else 0

    expected = {
        (key, t)
        for key, push in own.items()
        for t, (before, after) in enumerate(zip(push, other[key], strict=True))
        if sign(before) != sign(after)
    }
    listed = answer["changed"][1]
    assert expected and {(each["pass"], each["token"]) for each in listed} == expected
    sizes = [abs(each["after"] - each["before"]) for each in listed]
    assert sizes == sorted(sizes, reverse=True)
    assert {each["what"] for each in listed} <= {"sign", "vanishes", "appears"}
    print(f"{len(listed)} tokens change")
