"""The shipped registry is complete, consistent and computable."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from objective.batches import full_batch

import unipo_hooks.objective.registry
from unipo_hooks import algorithms
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.objective.describe import check
from unipo_hooks.objective.evaluate import evaluate

FILES = sorted((Path(unipo_hooks.objective.registry.__file__).parent / "algorithms").glob("*.json"))
SPECS = [AlgorithmSpec.model_validate_json(file.read_text(encoding="utf-8")) for file in FILES]
BY_ID = {spec.id: spec for spec in SPECS}

FAMILIES = {
    "REINFORCE",
    "PPO and GRPO",
    "Sequence ratios",
    "Clip and gate",
    "Masks and filters",
    "Advantage shaping",
    "Off-policy and mixtures",
    "Not a composition",
}
UNIPO = {"reinforce", "ppo", "grpo", "dapo", "dr_grpo"}
SHARED_NAMES = {
    *("aepo", "apo", "arpo", "bapo", "bnpo", "dcpo", "gcpo", "gtpo", "igpo", "ipo", "mpo", "sapo"),
    *("spo", "vpo"),
}
"""Names that more than one paper or library uses: an id says which one is meant."""
LIBRARIES = (
    "areal",
    "nemo",
    "openrlhf",
    "prime_rl",
    "released",
    "roll",
    "skyrl",
    "slime",
    "swift",
    "trinity",
    "trl",
    "verl",
)

every = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)


def test_the_registry_holds_every_file_once_under_the_name_of_its_id():
    assert [spec.id for spec in SPECS] == [file.name.removesuffix(".json") for file in FILES]
    assert BY_ID.keys() <= set(algorithms.ids())
    print(f"{len(SPECS)} algorithms, {sum(spec.exact for spec in SPECS)} of them exact")


def test_a_file_says_nothing_twice():
    def once(pairs):
        names = [name for name, _ in pairs]
        assert len(names) == len(set(names)), names
        return dict(pairs)

    for file in FILES:
        json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=once)


def test_the_five_algorithms_of_unipo_are_there():
    assert BY_ID.keys() >= UNIPO


@pytest.mark.parametrize("name", sorted(SHARED_NAMES))
def test_a_name_that_several_papers_use_is_no_id(name):
    assert name not in BY_ID


def test_every_family_is_one_of_those_a_reader_is_shown():
    assert {spec.family for spec in SPECS} <= FAMILIES


@every
def test_an_id_is_lower_case_and_names_at_most_a_library_behind_a_dot(spec):
    assert re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", spec.id)
    if "." in spec.id:
        assert spec.id.partition(".")[2].startswith(LIBRARIES)


@every
def test_the_way_to_the_root_leads_over_known_parents_without_a_circle(spec):
    met = [spec.id]
    while spec.parent is not None:
        assert spec.parent in BY_ID, f"{spec.id} has the unknown parent {spec.parent}"
        assert spec.parent not in met, f"{' → '.join(met)} leads back to {spec.parent}"
        met.append(spec.parent)
        spec = BY_ID[spec.parent]


@every
def test_an_algorithm_tells_a_reader_what_it_is(spec):
    for name, shortest, longest in (
        ("name", 2, 60),
        ("title", 4, 110),
        ("source", 5, 200),
        ("story", 120, 1200),
        ("changed", 20, 300),
    ):
        text = getattr(spec, name)
        assert shortest <= len(text) <= longest, f"{name} has {len(text)} characters"
        assert text == " ".join(text.split()), f"{name} has stray spaces"
    assert spec.story.endswith(".") and "\n" not in spec.story
    assert spec.changed.endswith(".")
    assert spec.changed.count(". ") == 0, "one sentence"
    assert spec.year is not None and 1992 <= spec.year <= 2026
    assert spec.evidence in ("X", "C", "P", "2", "U")


@every
def test_what_is_not_exact_says_why(spec):
    assert bool(spec.inexact) != spec.exact
    if spec.evidence in ("P", "2", "U"):
        assert not spec.exact, "a definition that was never run or read in code is not exact"


@every
def test_every_part_and_hyper_parameter_is_known(spec):
    assert check(spec) is spec


@every
def test_a_child_differs_from_its_parent_in_its_parts(spec):
    if spec.parent is not None:
        assert algorithms.diff(BY_ID[spec.parent], spec)


@every
def test_an_algorithm_evaluates_to_finite_numbers_on_a_batch_that_has_everything(spec):
    for seed, (rows, width) in enumerate([(8, 7), (5, 4), (12, 3)]):
        batch = full_batch(seed, rows, width)
        evaluation = evaluate(spec, batch)
        for name in ("advantages", "ratio", "policy_objective", "constraint", "gradient_weight", "aggregation", "mask"):
            values = getattr(evaluation, name)
            assert values.shape == batch.shape, name
            assert np.isfinite(values).all(), name
        assert np.isfinite(evaluation.loss)
        assert not evaluation.invalid.any()
        assert not evaluation.notes
        assert (evaluation.gradient_weight[batch["mask"] == 0] == 0).all()
        assert np.abs(evaluation.gradient_weight).max() > 0, "nothing is pushed"


@every
def test_an_algorithm_evaluates_with_token_rewards_too(spec):
    evaluation = evaluate(spec, full_batch(3, without=()))
    assert np.isfinite(evaluation.gradient_weight).all()


def test_a_group_that_is_dropped_as_a_whole_changes_nothing_for_the_others():
    batch = full_batch(2, reward=np.array([1.0, 0, 1, 0, 1, 1, 1, 1]), truncated=np.zeros(8))
    alone = full_batch(2, reward=np.array([1.0, 0, 1, 0, 0, 1, 1, 0]), truncated=np.zeros(8))
    per_row = {name: values[:4] for name, values in alone.arrays.items() if name != "reward_weights"}
    for name in ("dapo", "dler"):
        both, first = evaluate(name, batch), evaluate(name, per_row)
        assert abs(both.loss - first.loss) <= 1e-15
        assert np.abs(both.gradient_weight[:4] - first.gradient_weight).max() <= 1e-15
        assert not both.gradient_weight[4:].any()
