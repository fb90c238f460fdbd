"""polgrad's losses, objectives, flags and advantages, on larger batches than those of tests/vectors.json."""

from __future__ import annotations

import math

import pytest
from vectors.format import errors, evaluated
from vectors.from_polgrad import cases

TOLERANCE = 1e-9


@pytest.mark.parametrize("seed", [100, 200])
def test_every_algorithm_polgrad_knows_gives_the_same_numbers(seed):
    worst = {}
    for case in cases(seed, groups=6, size=8, T=40):
        for name, error in errors(case, evaluated(case)).items():
            assert not math.isnan(error), (case["name"], name)
            assert error <= TOLERANCE, f"{case['name']}: {name} is off by {error:.1e}"
            worst[name] = max(worst.get(name, 0.0), error)
    print(f"largest errors: {', '.join(f'{name} {error:.1e}' for name, error in worst.items())}")
