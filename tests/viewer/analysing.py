"""The viewer's analysis in Node beside Python's: asking it, and what is right by Python's engine on whole rollouts."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from records import rollout, run_info, update

from unipo_hooks import Recorder, algorithms, evaluate, open_bundle
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.bundle.batches import MicroBatch
from unipo_hooks.bundle.reader import Bundle
from unipo_hooks.objective.describe import given_advantages, inputs, merged, parameters, with_hyper_parameters
from unipo_hooks.objective.evaluate import Evaluation
from unipo_hooks.objective.inputs import Batch
from unipo_hooks.objective.parts import FUNCTIONS
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
SPEC = with_hyper_parameters(algorithms.get("grpo"), NO_KL)
"""What the updates of made-up records are said to have been trained with."""


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
