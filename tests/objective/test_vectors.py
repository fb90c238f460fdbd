"""The engine passes every test vector, and the registry says of each algorithm what vectors say."""

import json
import math

import pytest
from vectors.confirm import confirmed
from vectors.format import CONFIRMED, errors, evaluated, sections

from unipo_hooks import algorithms

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


def test_the_registry_reports_the_comparisons_the_vectors_hold():
    measured = confirmed()
    written = json.loads(CONFIRMED.read_text(encoding="utf-8"))
    assert written.keys() == measured.keys()
    for algorithm, entries in measured.items():
        for entry, stated in zip(entries, written[algorithm], strict=True):
            assert {**entry, "error": 0} == {**stated, "error": 0}
            assert entry["error"] <= max(2 * stated["error"], 1e-12)
    worst = max((entry["error"] for entries in measured.values() for entry in entries), default=0.0)
    print(f"{len(CASES)} vectors, {len(measured)} algorithms, largest error {worst:.1e}")


@pytest.mark.parametrize("spec", algorithms.every(), ids=lambda spec: spec.id)
def test_an_algorithm_is_exact_only_where_objective_and_advantages_were_compared(spec):
    covered = {what for entry in algorithms.confirmations(spec.id) for what in entry.covers}
    if spec.exact:
        assert covered >= {"objective", "advantages"}, "set exact to false and say why, or compare it"
    else:
        assert spec.inexact, "say why"
