"""The parts objectives are made of: pure functions on arrays, by slot and name.

What a part is called, needs and means stands in `objective/registry/parts/{slot}.json`; what it computes stands here,
in a module a slot. A part's keyword arguments are its hyper-parameters.
"""

from __future__ import annotations

from unipo_hooks.objective.parts import (
    aggregation,
    baseline,
    bounds,
    constraint,
    credit,
    filter,
    gate,
    mask,
    modulation,
    ratio,
    reward,
    scale,
    weight,
)
from unipo_hooks.objective.parts.types import FUNCTIONS

__all__ = [
    "FUNCTIONS",
    "aggregation",
    "baseline",
    "bounds",
    "constraint",
    "credit",
    "filter",
    "gate",
    "mask",
    "modulation",
    "ratio",
    "reward",
    "scale",
    "weight",
]
