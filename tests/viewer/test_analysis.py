"""What the viewer makes of a captured update, token by token, is what Python makes of it: the run's own and others.

The viewer's modules run in Node, on bundles of real training runs. The reference computes what-if advantages on whole
rollouts with Python's engine.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from records import rollout, run_info, update
from viewer.pages import VIEWER

from unipo_hooks import CapturePolicy, Recorder, algorithms, evaluate, open_bundle
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.bundle.batches import MicroBatch
from unipo_hooks.bundle.reader import Bundle
from unipo_hooks.objective.describe import given_advantages, inputs, merged, parameters, with_hyper_parameters
from unipo_hooks.objective.evaluate import Evaluation
from unipo_hooks.objective.inputs import Batch
from unipo_hooks.objective.parts import FUNCTIONS
from unipo_hooks.objective.parts.types import Gate
from unipo_hooks.objective.recorded import as_recorded, batch_of

ARRAYS = {
    "advantages": "advantages",
    "ratio": "ratio",
    "tokenObjective": "token_objective",
    "policyWeight": "policy_weight",
    "constraintWeight": "constraint_weight",
    "gradientWeight": "gradient_weight",
    "clipped": "clipped",
    "mask": "mask",
    "aggregation": "aggregation",
}
NO_KL = {"constraint.0.beta": 0.0}
WhatIfs = list[tuple[str | None, dict[str, Any]]]
WHAT_IFS: WhatIfs = [
    ("grpo", NO_KL),
    ("grpo", {**NO_KL, "bounds.epsilon_low": 0.01, "bounds.epsilon_high": 0.005, "scale.0.eps": 0.5}),
    ("dapo", {}),
    ("dr_grpo", {}),
    ("dr_grpo", {"aggregation.length": 7.0}),
    ("gspo", {}),
    ("cispo", {"bounds.ratio_high": 1.01}),
    ("reinforce", {}),
    ("rloo_verl", {}),
    ("opo", {}),
    ("maxrl", {}),
    ("lite_ppo", {}),
    ("gdpo", {}),
    ("gmpo.trl", {}),
    ("sapo_soft", {}),
    ("delta_clip", {}),
    ("gtpo_conflict", {}),
    ("grpo_passk", {}),
    (None, {"bounds.epsilon_low": 0.002, "bounds.epsilon_high": 0.004}),
    (None, {"gate.dual_clip": 1.5}),
    ("d3s", {}),
]
"""Algorithm, or None for the run's own, and its hyper-parameters."""


@pytest.fixture(scope="session")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The viewer's analysis as a program for Node."""
    folder = tmp_path_factory.mktemp("analysis")
    command = [
        "npx",
        "vite",
        "build",
        "--config",
        "tests/vite.config.ts",
        "--logLevel",
        "warn",
        "--outDir",
        str(folder),
    ]
    subprocess.run(command, cwd=VIEWER, check=True)
    return folder / "analysis.js"


def asked(program: Path, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The viewer's answers."""
    done = subprocess.run(
        ["node", str(program)], input=json.dumps(questions), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def question(path: Path, number: int, what_ifs: WhatIfs) -> dict[str, Any]:
    """The run's own algorithm first, then the others."""
    others = [{"id": name, "changes": changes} for name, changes in what_ifs]
    return {"bundle": str(path), "update": number, "algorithms": [None, *others]}


def own_of(bundle: Bundle) -> AlgorithmSpec:
    return algorithms.get(bundle.manifest.algorithm)


def of_own(bundle: Bundle, parts: list[MicroBatch]) -> list[tuple[MicroBatch, Evaluation]]:
    """The run's own algorithm on what the trainer recorded."""
    spec = own_of(bundle)
    return [(part, evaluate(as_recorded(spec, part.batch.arrays), part.batch)) for part in parts]


def of_what_if(
    bundle: Bundle, parts: list[MicroBatch], rollouts: dict[int, pa.Table], spec: AlgorithmSpec
) -> list[tuple[MicroBatch, Evaluation]]:
    """Another algorithm; the advantages it would have made of the rewards of the whole rollout."""
    found = []
    recorded = same_advantages(spec, own_of(bundle))
    weights = bundle.manifest.attempts[-1].reward_weights
    judged: dict[int, Any] = {}
    for part in parts:
        responses = rollouts[part.rollout]
        is_whole = len(set(part.row_B.tolist())) == len(part.row_B) == len(responses)
        # Of equal rewards a filter may keep those that come first: in the order of the rollout, not of the micro-batch.
        if is_whole and not recorded and not spec.parts.filter:
            found.append((part, evaluate(spec, part.batch)))
            continue
        judged[part.rollout] = judged.get(part.rollout) or judge(responses, weights, spec)
        rows = [judged[part.rollout][part_rank_row] for part_rank_row in ((part.rank, row) for row in part.row_B)]
        arrays = dict(part.batch.arrays)
        if not recorded:
            arrays["advantages"] = np.array([row["advantage"] for row in rows])
        often = np.array([row["often"] for row in rows])
        batch = Batch(**arrays, normalisers=part.batch.normalisers)
        found.append((part, evaluated(given_advantages(spec, modulated=recorded), batch, often)))
    return found


def evaluated(spec: AlgorithmSpec, batch: Batch, often: np.ndarray) -> Evaluation:
    """With responses taking part so often, in place of the filter of the algorithm."""
    if not spec.parts.filter:
        return evaluate(spec, batch)
    (name,) = (use.part for use in spec.parts.filter)
    real = FUNCTIONS["filter"][name]
    FUNCTIONS["filter"][name] = lambda *_, **__: often
    try:
        return evaluate(spec, batch)
    finally:
        FUNCTIONS["filter"][name] = real


def same_advantages(a: AlgorithmSpec, b: AlgorithmSpec) -> bool:
    """Whether the trainer's own advantages are those of the other algorithm."""

    def of(spec: AlgorithmSpec, slot: str) -> list[Any]:
        value = getattr(spec.parts, slot)
        return [(use.part, parameters(slot, use)) for use in (value if isinstance(value, list) else [value])]

    return all(of(a, slot) == of(b, slot) for slot in ("reward", "baseline", "scale", "modulation"))


def judge(responses: pa.Table, weights: list[float], spec: AlgorithmSpec) -> dict[tuple[int, int], dict[str, float]]:
    """Advantage of every response of a rollout, by rank and row, and how often it takes part."""
    counted = responses["counted"].to_numpy()
    mask = (np.arange(max(counted.max(), 1)) < counted[:, None]).astype(float)
    arrays = {name: responses[name].to_numpy() for name in ("reward", "group")}
    components = [name for name in responses.column_names if name.startswith("reward_components.")]
    if components:
        arrays["reward_components"] = np.stack([responses[name].to_numpy() for name in components], axis=1)
    if components and len(weights) == len(components):
        arrays["reward_weights"] = np.array(weights)
    batch = Batch(log_probs=np.zeros(mask.shape), mask=mask, **arrays)
    rest = {
        "modulation": [],
        "ratio": {"part": "one"},
        "bounds": {"part": "unbounded"},
        "gate": {"part": "log_prob"},
        "weight": [],
        "mask": [],
        "constraint": [],
        "aggregation": {"part": "token_sum"},
    }
    found = evaluate(spec.model_copy(update={"parts": merged(spec.parts, rest)}), batch)
    first = found.advantages[np.arange(len(mask)), 0]
    often = np.ones(len(mask))
    prepared = batch.prepared(inputs(spec))
    for use in spec.parts.filter:
        often *= FUNCTIONS["filter"][use.part](prepared, **parameters("filter", use))
    keys = zip(responses["rank"].to_pylist(), responses["row"].to_pylist(), strict=True)
    return {key: {"advantage": a, "often": o} for key, a, o in zip(keys, first, often, strict=True)}


def error_of(said: dict[str, Any], found: list[tuple[MicroBatch, Evaluation]]) -> float:
    """Largest error of any number of any token, and of any loss, relative to the largest number of its kind."""
    assert said["missing"] == ""
    passes: dict[tuple[int, int, int, int], dict[str, Any]] = {}
    for each in said["passes"]:
        where, _, key = each["key"].rpartition(":")
        rank = int(key.split(".")[0])
        rollout = int(where) if where else found[0][0].rollout
        assert passes.setdefault((rollout, rank, each["microBatch"], each["row"]), each) is each
    errors = [0.0]
    seen = 0
    for part, evaluation in found:
        for b, (row, length) in enumerate(zip(part.row_B, part.length_B, strict=True)):
            if not length:
                continue
            theirs = passes[part.rollout, part.rank, part.micro_batch, row]
            seen += 1
            counts = part.batch.arrays["mask"][b, :length] > 0
            assert list(counts) == [bool(value) for value in theirs["counts"]]
            # An advantage that is rounding has a sign by chance, and so the side on which it is clipped.
            judged = np.abs(evaluation.advantages[b, :length]) > 1e-12 * np.abs(evaluation.advantages).max()
            for name, own in ARRAYS.items():
                mine = getattr(evaluation, own).astype(float)
                assert len(theirs[name]) == length
                scale = max(np.abs(mine).max(), 1e-300)
                error = np.abs(np.array(theirs[name], float) - mine[b, :length]) * (judged if name == "clipped" else 1)
                errors.append(float(error.max() / scale))
            assert theirs["push"] == [-weight or 0 for weight in theirs["gradientWeight"]]
        (line,) = [m for m in said["microBatches"] if (m["rank"], m["number"]) == (part.rank, part.micro_batch)]
        errors.append(abs(line["recomputed"] - evaluation.loss) / max(1.0, evaluation.magnitude))
        assert line["whole"] == part.whole
        if part.loss is not None:
            assert line["loss"] == pytest.approx(part.loss, abs=1e-15)
    assert seen == len(passes)
    total = sum(evaluation.loss / part.batch.normalisers.data_parallel_size for part, evaluation in found)
    assert said["loss"] == pytest.approx(total, abs=1e-12)
    return max(errors)


def compared(program: Path, path: Path, numbers: list[int], what_ifs: WhatIfs) -> float:
    """Largest error over updates and algorithms; prints that of each algorithm."""
    bundle = open_bundle(path)
    answers = asked(program, [question(path, number, what_ifs) for number in numbers])
    worst: dict[str, float] = {}
    for number, answer in zip(numbers, answers, strict=True):
        own, *others = answer["answers"]
        parts = bundle.micro_batches(number)
        rollouts = {each: bundle.responses(each) for each in {part.rollout for part in parts}}
        worst["own"] = max(worst.get("own", 0.0), error_of(own, of_own(bundle, parts)))
        for (name, changes), said in zip(what_ifs, others, strict=True):
            base = own_of(bundle) if name is None else algorithms.get(name)
            spec = with_hyper_parameters(base, changes)
            key = f"{name or 'own'} {changes or ''}".strip()
            try:
                worst[key] = max(worst.get(key, 0.0), error_of(said, of_what_if(bundle, parts, rollouts, spec)))
            except AssertionError as error:
                raise AssertionError(f"update {number}, {key}: {said['missing']} {error}") from error
    for key, largest in worst.items():
        print(f"{path.parent.name} {key}: {largest:.1e}")
    return max(worst.values())


@pytest.mark.parametrize(("run", "numbers"), [("trained", [1, 16, 29]), ("spread", [0, 1, 2, 3]), ("twice", [0, 1])])
def test_every_token_is_as_in_python(
    run: str, numbers: list[int], analysis: Path, request: pytest.FixtureRequest
) -> None:
    worst = compared(analysis, request.getfixturevalue(run), numbers, WHAT_IFS)
    print(f"largest relative error {worst:.1e}")
    assert worst <= 1e-12


@pytest.mark.skipif("UNIPO_RUN" not in os.environ, reason="UNIPO_RUN names no bundle to compare")
def test_a_bundle_of_your_own_is_as_in_python(analysis: Path) -> None:
    path = Path(os.environ["UNIPO_RUN"])
    numbers = open_bundle(path).updates()["update"].to_pylist()
    further: WhatIfs = [("grpo", {}), ("rloo_trl", {}), ("reinforce_pp", {})]
    reference = "ref_log_probs" in open_bundle(path).manifest.channels
    worst = compared(analysis, path, [*numbers[:4], *numbers[-2:]], WHAT_IFS + (further if reference else []))
    print(f"largest relative error {worst:.1e}")
    assert worst <= 1e-12


SPEC = with_hyper_parameters(algorithms.get("grpo"), NO_KL)
"""What the updates of made-up records are said to have been trained with."""


def recorded_run(path: Path, spec: AlgorithmSpec, *, error: float = 0.0, policy: Any = None, **info: Any) -> Path:
    """Two updates on random numbers, in two forward passes each; their losses are the algorithm's, plus an error."""
    first = rollout(rows=16, width=6)
    recorder = Recorder(path, run_info(algorithm=spec, **info), policy, strict=True)
    recorder.rollout(first)
    for number in range(2):
        made = update(number, first, micro_batches=2)
        parts = []
        for part in made.micro_batches:
            batch = batch_of(part, first, made)
            loss = evaluate(as_recorded(spec, batch.arrays), batch).loss
            parts.append(replace(part, loss=loss + error))
        recorder.update(replace(made, micro_batches=parts))
    recorder.close()
    return recorder.path


def test_of_a_sample_every_stored_token_is_as_in_python(analysis: Path, tmp_path: Path) -> None:
    path = recorded_run(tmp_path / "run", SPEC, policy=CapturePolicy(max_groups=2))
    what_ifs: WhatIfs = [
        ("dr_grpo", {}),
        ("reinforce", {}),
        ("rloo_verl", {}),
        ("lite_ppo", {}),
        ("opo", {}),
        ("dapo", {}),
        ("d3s", {}),
        ("pf_ppo", {}),
        ("entropy_top_q", {}),
    ]
    computed = what_ifs[:-2]
    worst = compared(analysis, path, [0, 1], computed)
    print(f"largest relative error {worst:.1e}")
    assert worst <= 1e-12
    (answer,) = asked(analysis, [question(path, 0, what_ifs)])
    own, *others = answer["answers"]
    assert own["whole"] is False and own["approximate"] == []
    assert [m["whole"] for m in own["microBatches"]] == [False, False]
    # Rewards are known of every response: only what looks at tokens is approximate.
    by_name = {name: said for (name, _), said in zip(what_ifs, others, strict=True)}
    assert by_name["lite_ppo"]["approximate"] == []
    (said,) = by_name["entropy_top_q"]["approximate"]
    stored = len(own["passes"])
    assert said == f"high_entropy looks at the whole forward pass, of which {stored} of 16 responses are stored."
    assert "values" in by_name["pf_ppo"]["missing"] and "critic" in by_name["pf_ppo"]["missing"]
    assert "\n" not in by_name["pf_ppo"]["missing"]
    # The loss cannot be added up from a sample; what was found while training counts.
    found = answer["reconciled"]
    assert found["status"] == "reproduced" and found["gap"] is None and abs(found["storedGap"]) < 1e-12
    assert "Compared while training" in found["why"]


def test_groups_over_ranks_and_updates_over_rollouts_are_as_in_python(analysis: Path, tmp_path: Path) -> None:
    """Every group has half of its responses on either rank, and an update trains on two rollouts."""
    recorders: list[Recorder] = []
    for rank in range(2):
        info = run_info(rank=rank, ranks=2, algorithm=SPEC)
        joined = recorders[0].start if recorders else None
        recorders.append(Recorder(tmp_path / "run", info, strict=True, joined=joined))
    for rank, recorder in enumerate(recorders):
        rollouts = [rollout(number, seed=10 * rank + number, group_B=np.arange(8) % 4, groups=4) for number in range(2)]
        for each in rollouts:
            recorder.rollout(each)
        one, other = (update(0, each, micro_batches=2, data_parallel_size=2) for each in rollouts)
        recorder.update(replace(one, micro_batches=[*one.micro_batches, *other.micro_batches], accumulation_steps=4))
    for recorder in recorders:
        recorder.close()
    what_ifs: WhatIfs = [(name, {}) for name in ("dr_grpo", "rloo_verl", "lite_ppo", "dapo", "d3s", "gspo")]
    worst = compared(analysis, recorder.path, [0], what_ifs)
    print(f"largest relative error {worst:.1e}")
    assert worst <= 1e-12
    (answer,) = asked(analysis, [question(recorder.path, 0, [])])
    assert answer["answers"][0]["whole"] is True
    assert len(answer["answers"][0]["passes"]) == 32
    assert [row["name"] for row in answer["reconciled"]["rows"]][::4] == [
        "rank 0, forward pass 1",
        "rank 1, forward pass 1",
    ]


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
