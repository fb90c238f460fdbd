"""The engine passes every test vector, and the registry says of each algorithm what vectors say."""

import json
import math

import pytest
from vectors import from_random
from vectors.confirm import confirmed, fails_without, not_compared
from vectors.format import CONFIRMED, decoded, errors, evaluated, sections

from unipo_hooks import algorithm_spec, algorithms, evaluate
from unipo_hooks.objective.inputs import Batch, Normalisers

CASES = [(section, number, case) for section, cases in sections().items() for number, case in enumerate(cases)]


@pytest.mark.parametrize("case", [case for *_, case in CASES], ids=[f"{s}-{n}-{c['name']}" for s, n, c in CASES])
def test_a_vector_gives_what_its_own_code_gave(case):
    if "error" in case["expected"]:
        with pytest.raises(Exception, match=case["expected"]["error"]):
            evaluated(case)
        return
    for name, error in errors(case, evaluated(case)).items():
        assert not math.isnan(error), name
        assert error <= case["tolerance"], f"{name}: {error:.1e}"


def test_the_objectives_the_viewers_engine_is_held_to_are_this_engines():
    file = json.loads(from_random.FILE.read_text(encoding="utf-8"))
    arrays = {name: decoded(values) for name, values in file["batch"].items()}
    batch = Batch(normalisers=Normalisers(**file["normalisers"]), **arrays)
    for case in file["cases"]:
        found = from_random.expected(evaluate(case["spec"], batch))
        written = case["expected"]
        assert found.pop("notes") == written.pop("notes"), case["spec"]["id"]
        for name, value in found.items():
            assert float(written[name]) == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), case["spec"]["id"]


def test_the_registry_reports_the_comparisons_the_vectors_hold():
    measured = confirmed()
    written = json.loads(CONFIRMED.read_text(encoding="utf-8"))
    assert written.keys() == measured.keys()
    worst = 0.0
    for algorithm, entry in measured.items():
        assert entry["not_compared"] == written[algorithm]["not_compared"], algorithm
        for own, stated in zip(entry["comparisons"], written[algorithm]["comparisons"], strict=True):
            assert {**own, "error": 0} == {**stated, "error": 0}
            assert own["error"] <= max(2 * stated["error"], 1e-12)
            worst = max(worst, own["error"])
    print(f"{len(CASES)} vectors, {len(measured)} algorithms, largest error {worst:.1e}")


@pytest.mark.parametrize("spec", algorithms.every(), ids=lambda spec: spec.id)
def test_all_of_an_algorithm_called_exact_was_compared(spec):
    if spec.exact:
        assert algorithms.confirmations(spec.id), "compare it with running code"
        assert not algorithms.not_compared(spec), "set exact to false and say why, or compare it"
    else:
        assert spec.inexact, "say why"


CASE = {
    "algorithm": "tis",
    "hyper_parameters": {"cap": 2.0},
    "given_advantages": True,
    "batch": {
        "log_probs": [[-1.0, -1.0]],
        "old_log_probs": [[-1.0, -1.0]],
        "mask": [[1, 1]],
        "advantages": [[1, 1]],
    },
    "normalisers": {},
    "tolerance": 1e-6,
}


@pytest.mark.parametrize(("sampled", "missed"), [(-1.0, []), (-1.5, ["weight.0 truncated"])])
def test_a_part_counts_as_compared_only_where_a_case_fails_without_it(sampled, missed):
    batch = CASE["batch"] | {"rollout_log_probs": [[-1.0, sampled]]}
    case = CASE | {"batch": batch, "expected": {}}
    case["expected"] = {"loss": evaluated(case).loss}
    spec = algorithms.get("tis")
    names = [name for name in algorithms.part_names(spec) if "." in name]
    assert [name for name in names if fails_without(name, spec, case)] == missed
    unseen = {name for name in algorithms.part_names(spec) if name not in missed and "advantage" in owner(name)}
    assert unseen <= set(not_compared(spec, [case], {"objective"}))


def owner(name):
    """What of an algorithm a part belongs to."""
    return algorithm_spec.SLOTS[name.split()[0].split(".")[0]]
