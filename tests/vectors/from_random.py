"""Writes tests/random_objectives.json: objectives of random parts by this engine; the viewer's has to agree.

python tests/vectors/from_random.py
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from objective.batches import full_arrays

from unipo_hooks import algorithms, evaluate
from unipo_hooks.algorithm_spec import SLOTS
from unipo_hooks.objective.checks import LISTS
from unipo_hooks.objective.describe import Parameter, parts
from unipo_hooks.objective.evaluate import Evaluation
from unipo_hooks.objective.inputs import Batch, Normalisers
from vectors.format import encoded

FILE = Path(__file__).parents[1] / "random_objectives.json"
CASES = 54
NORMALISERS = {"accumulation_steps": 2, "data_parallel_size": 2}
_RANDOM = random.Random(5)
_USED: Counter[tuple[str, str]] = Counter()


def arrays() -> dict[str, Any]:
    """Every input, with a NaN, an infinity, a response without a reward and one without a token."""
    found = full_arrays(3, 7, 5)
    del found["rewards"]
    found = {name: np.round(values, 4) for name, values in found.items()}
    found["log_probs"][1, 0] = np.nan
    found["old_log_probs"][4, 0] = -np.inf
    found["log_probs"][0, 0] += 4
    found["reward"][2] = np.nan
    found["mask"][6] = 0
    return found


def value_of(parameter: Parameter) -> Any:
    """A value a hyper-parameter may have."""
    if parameter.choices:
        return _RANDOM.choice(parameter.choices)
    if isinstance(parameter.default, bool):
        return _RANDOM.random() < 0.5
    if isinstance(parameter.default, str) or parameter.integer:
        return parameter.default
    given = 2.0 if parameter.default is None else parameter.default
    value = round(given * _RANDOM.choice([0.6, 1, 1.5]), 6)
    outside = (parameter.maximum is not None and value > parameter.maximum) or (
        parameter.above is not None and value <= parameter.above
    )
    return given if outside else value


def use_of(slot: str) -> dict[str, Any]:
    """A random part of a slot, of those that came least often."""
    every = [(slot, name) for name in parts(slot)]
    fewest = min(_USED[each] for each in every)
    name = _RANDOM.choice([each[1] for each in every if _USED[each] == fewest])
    _USED[slot, name] += 1
    given = {key: value_of(each) for key, each in parts(slot)[name].parameters.items() if _RANDOM.random() < 0.8}
    return {"part": name} | given


def spec_of(number: int) -> dict[str, Any]:
    """A random algorithm."""
    chosen: dict[str, Any] = {
        slot: [use_of(slot) for _ in range(_RANDOM.choice([0, 1]))] if slot in LISTS else use_of(slot) for slot in SLOTS
    }
    return {"id": f"random{number}", "name": "", "parts": {slot: use for slot, use in chosen.items() if use}}


def expected(found: Evaluation) -> dict[str, Any]:
    """What is compared of an evaluation: its arrays as sums, in which places tell numbers apart."""
    places = np.cos(np.arange(found.mask.size)).reshape(found.mask.shape)
    sums = {
        name: float((getattr(found, name) * places).sum())
        for name in ("advantages", "token_objective", "gradient_weight", "clipped")
    }
    return {"loss": found.loss, **sums, "notes": list(found.notes)}


def main() -> None:
    """Write the file."""
    given = arrays()
    cases: list[dict[str, Any]] = []
    batch = Batch(normalisers=Normalisers(**NORMALISERS), **given)
    while len(cases) < CASES:
        spec = spec_of(len(cases))
        try:
            found = evaluate(algorithms.get(spec), batch)
        except (ValueError, KeyError):  # parts that do not go together
            continue
        cases.append({"spec": spec, "expected": encoded(expected(found))})
    lines = ",\n".join(json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in cases)
    head = json.dumps({"batch": encoded(given), "normalisers": NORMALISERS}, separators=(",", ":"))
    FILE.write_text(f'{head[:-1]},\n"cases":[\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
