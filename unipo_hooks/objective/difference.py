"""How two algorithms differ: slot by slot, in words."""

from __future__ import annotations

import json
from dataclasses import dataclass

from unipo_hooks.algorithm_spec import HEADINGS, SLOTS, AlgorithmSpec, PartUse
from unipo_hooks.objective.describe import parameters


@dataclass(frozen=True, slots=True)
class Difference:
    """A slot in which two algorithms differ."""

    slot: str
    heading: str
    """UNIPO's level: advantage, objective, constraint, mask or aggregation."""
    a: str
    b: str


def differences(first: AlgorithmSpec, second: AlgorithmSpec) -> list[Difference]:
    """The slots in which two algorithms differ, with both values written out, defaults included."""
    found = []
    for slot, heading in SLOTS.items():
        values = [_written(slot, getattr(spec.parts, slot)) for spec in (first, second)]
        if values[0] != values[1]:
            found.append(Difference(slot, HEADINGS[heading], *values))
    mixtures = [_mixture(spec) for spec in (first, second)]
    if mixtures[0] != mixtures[1]:
        found.append(Difference("mixture", "Mixture", *mixtures))
    return found


def _written(slot: str, value: PartUse | list[PartUse]) -> str:
    every = value if isinstance(value, list) else [value]
    return " then ".join(written(slot, use) for use in every) or "none"


def written(slot: str, use: PartUse) -> str:
    """A part as it is used, on one line: `ppo_clip(dual_clip=3)`; hyper-parameters that are null are left out."""
    values = ", ".join(f"{name}={value}" for name, value in parameters(slot, use).items() if value is not None)
    return f"{use.part}({values})" if values else use.part


def _mixture(spec: AlgorithmSpec) -> str:
    return (
        "; ".join(
            f"{component.coefficient} × rows of source {component.source}, denominator {component.denominator}, "
            f"statistics {component.statistics}, with {json.dumps(component.parts)}"
            for component in spec.mixture
        )
        or "none"
    )
