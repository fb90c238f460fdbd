"""The form of tests/vectors.json: cases of objectives, and what they should give.

A section is what one generator wrote (`from_trl.py`, `from_verl.py`, ...); running a generator again replaces its
section. Numbers are JSON numbers; NaN and infinities are the strings "NaN", "Infinity" and "-Infinity".

A case:
    name                what is special about it
    algorithm           id of a registered algorithm, or an algorithm's JSON
    hyper_parameters    changes to it, by name or path
    given_advantages    true: the batch's `advantages` are taken as they are, none are computed and none modulated
    against             library, version and function that computed what is expected
    batch               inputs by name; `normalisers` beside it, where there are any
    expected            any of loss, policy_loss, gradient_weight, advantages, token_objective, ratio, aggregation,
                        clipped: compared where present; `error` instead: the words an error must contain
    tolerance           largest error allowed of arrays; of the loss, times max(1, Σ |aggregation × objective|)
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from unipo_hooks.algorithms import get
from unipo_hooks.objective.describe import given_advantages
from unipo_hooks.objective.evaluate import Evaluation, evaluate
from unipo_hooks.objective.inputs import Batch, Normalisers

FILE = Path(__file__).parents[1] / "vectors.json"
CONFIRMED = Path(__file__).parents[2] / "unipo_hooks" / "objective" / "registry" / "confirmed.json"


def encoded(value: Any) -> Any:
    """A value as JSON holds it: arrays and tensors as lists, what is not finite as text."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: encoded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, float) and value == int(value) and abs(value) < 2**53:
        return int(value)
    return value


def decoded(values: Any) -> np.ndarray:
    """A list of `encoded` as an array of float64."""
    return np.array(values, dtype=object).astype(np.float64)


def case(
    name: str,
    algorithm: str | dict[str, Any],
    against: str,
    batch: dict[str, Any],
    expected: dict[str, Any],
    *,
    hyper_parameters: dict[str, Any] | None = None,
    normalisers: dict[str, Any] | None = None,
    given: bool = False,
    tolerance: float = 1e-6,
) -> dict[str, Any]:
    """A case, ready to be written."""
    return {
        "name": name,
        "algorithm": algorithm,
        "hyper_parameters": encoded(hyper_parameters or {}),
        "given_advantages": given,
        "against": against,
        "batch": encoded(batch),
        "normalisers": encoded(normalisers or {}),
        "expected": encoded(expected),
        "tolerance": tolerance,
    }


def sections() -> dict[str, list[dict[str, Any]]]:
    """Every section of the file."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def write_section(name: str, cases: list[dict[str, Any]]) -> None:
    """Replace one section; a case is one line, so that a change is seen in a diff."""
    every = sections() | {name: cases}
    parts = []
    for section, entries in sorted(every.items()):
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries)
        parts.append(f"{json.dumps(section)}: [\n{lines}\n]")
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    print(f"{len(cases)} cases in section {name} of {FILE.name}")


def evaluated(case: dict[str, Any]) -> Evaluation:
    """What the engine makes of a case."""
    spec = get(case["algorithm"])
    spec = given_advantages(spec, modulated=True) if case["given_advantages"] else spec
    arrays = {name: decoded(values) for name, values in case["batch"].items()}
    batch = Batch(normalisers=Normalisers(**case["normalisers"]), **arrays)
    return evaluate(spec, batch, **case["hyper_parameters"])


def errors(case: dict[str, Any], evaluation: Evaluation) -> dict[str, float]:
    """Largest error of everything a case expects; that of a loss divided by max(1, Σ |aggregation × objective|).

    NaN where one of the two is NaN and the other is not.
    """
    found = {}
    for name, value in case["expected"].items():
        mine, theirs = np.asarray(getattr(evaluation, name), np.float64), decoded(value)
        scale = max(1.0, evaluation.magnitude) if name.endswith("loss") else 1.0
        difference = np.where(mine == theirs, 0.0, np.abs(mine - theirs)) / scale
        found[name] = float(difference.max(initial=0.0)) if not np.isnan(difference).any() else math.nan
    return found
