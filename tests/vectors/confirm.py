"""Writes registry/confirmed.json: what each registered algorithm was compared with, with what error, and what was not.

    python tests/vectors/confirm.py

Everything in it follows from tests/vectors.json; tests/objective/test_vectors.py compares the two.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from unipo_hooks.algorithm_spec import SLOTS, AlgorithmSpec
from unipo_hooks.algorithms import get, part_names
from unipo_hooks.objective.describe import given_advantages, with_hyper_parameters
from unipo_hooks.objective.evaluate import evaluate
from unipo_hooks.objective.inputs import Batch, Normalisers
from vectors.format import CONFIRMED, decoded, errors, evaluated, sections

COVERS = {
    "objective": ("loss", "policy_loss", "gradient_weight", "token_objective", "policy_weight"),
    "advantages": ("advantages",),
}
"""What of an algorithm a comparison covers → the expected values that show it."""

Case = dict[str, Any]
Tree = dict[str, Any]


def confirmed() -> dict[str, dict[str, Any]]:
    """Algorithm → `comparisons` and `not_compared`, of every algorithm a case is of.

    A comparison says what the algorithm was compared with, what that covers, the largest error and the number of cases;
    a case that computes the advantages as well as the objective covers both.
    """
    cases: dict[str, list[Case]] = defaultdict(list)
    for section in sections().values():
        for case in section:
            if isinstance(case["algorithm"], str) and "error" not in case["expected"] and case["against"]:
                cases[case["algorithm"]].append(case)
    found = {}
    for algorithm, own in sorted(cases.items()):
        compared = comparisons(own)
        covered = {what for each in compared for what in each["covers"]}
        found[algorithm] = {"comparisons": compared, "not_compared": not_compared(get(algorithm), own, covered)}
    return found


def comparisons(cases: list[Case]) -> list[dict[str, Any]]:
    """Cases of an algorithm by what they were compared with."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        own = found.setdefault(case["against"], {"covers": set(), "error": 0.0, "cases": 0})
        measured = errors(case, evaluated(case))
        own["covers"] |= {what for what, names in COVERS.items() if any(name in measured for name in names)}
        own["error"] = max(own["error"], *measured.values())
        own["cases"] += 1
    return [
        {
            "against": against,
            "covers": sorted(own["covers"]),
            "error": float(f"{own['error']:.1e}"),
            "cases": own["cases"],
        }
        for against, own in sorted(found.items())
    ]


def not_compared(spec: AlgorithmSpec, cases: list[Case], covered: set[str]) -> list[str]:
    """Parts no case would have missed, by their names of `algorithms.part_names`.

    A part in a slot that may be empty counts as compared if some case fails without it; one in a slot that may not, if
    objective or advantages are covered; a component of a mixture, if the objective of its rows was compared.
    """
    return [
        name
        for name in part_names(spec)
        if not any(fails_without(name, spec, case) for case in cases)
        and not (_may_not_be_empty(name) and SLOTS_COVERED[name.split()[0]] in covered)
    ]


SLOTS_COVERED = {slot: "advantages" if heading == "advantage" else "objective" for slot, heading in SLOTS.items()}
"""Slot → what has to be covered for its part to be compared."""


def _may_not_be_empty(name: str) -> bool:
    return name.split()[0] in SLOTS_COVERED


def fails_without(name: str, spec: AlgorithmSpec, case: Case) -> bool:
    """Whether a case shows that a part is left out; of a component of a mixture, whether it has rows of it."""
    batch = {key: decoded(values) for key, values in case["batch"].items()}
    place = name.split()[0].split(".")
    if place[0] == "mixture" and len(place) == 2:
        own = batch.get("source", np.zeros(0)) == spec.mixture[int(place[1])].source
        return bool(own.any()) and any(each in case["expected"] for each in COVERS["objective"])
    # as the case changes it: what it sets of other parts stays as it is
    changed = with_hyper_parameters(spec, case["hyper_parameters"])
    tree = (given_advantages(changed, modulated=True) if case["given_advantages"] else changed).model_dump()
    if not _left_out(tree, place):
        return False
    without = evaluate(
        AlgorithmSpec.model_validate(tree), Batch(normalisers=Normalisers(**case["normalisers"]), **batch)
    )
    return any(not error <= case["tolerance"] for error in errors(case, without).values())


def _left_out(tree: Tree, place: list[str]) -> bool:
    """Remove the part at a place; False where there is none, or where its slot cannot be empty."""
    if place[0] == "mixture":
        tree, place = tree["mixture"][int(place[1])], place[2:]
    if len(place) < 2 or len(tree["parts"].get(place[0], [])) <= int(place[1]):
        return False
    del tree["parts"][place[0]][int(place[1])]
    return True


def summary(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What is compared in part, in words."""
    for algorithm, entry in found.items():
        if entry["not_compared"]:
            yield f"{algorithm}{'' if get(algorithm).exact else ' (not exact)'}: not {', '.join(entry['not_compared'])}"


if __name__ == "__main__":
    written = confirmed()
    CONFIRMED.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(summary(written)))
