"""What is said about parts: needs, scope, hyper-parameters, formula, explanation. Read from `registry/parts/*.json`."""

from __future__ import annotations

import json
import math
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from unipo_hooks.algorithm_spec import SLOTS, AlgorithmSpec, Parts, PartUse
from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.checks import check_channel, check_value, explained

Scope = Literal["token", "response", "group", "batch", "history"]


class Parameter(BaseModel):
    """A hyper-parameter of a part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default: Any = None
    meaning: str
    symbol: str = ""
    """LaTeX."""
    choices: list[str] | None = None
    """What a text may be."""
    nullable: bool = False
    """Whether it may be null."""
    minimum: float | None = None
    """Lowest number."""
    maximum: float | None = None
    """Highest number."""
    above: float | None = None
    """The number has to be above this."""
    below: float | None = None
    """The number has to be below this."""
    integer: bool = False
    """Whether it is a whole number."""


class Part(BaseModel):
    """What a reader and a caller should know of a part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    scope: Scope
    """What has to be known at once: a token, its response, its group, the whole batch, or history."""
    needs: list[str] = []
    """Inputs without which it cannot be computed; `$reference` is the input that hyper-parameter names."""
    uses: list[str] = []
    """Inputs it takes into account where they are there."""
    parameters: dict[str, Parameter] = {}
    latex: str
    explanation: str
    source: str


@cache
def _shipped() -> dict[str, dict[str, Part]]:
    folder = resources.files("unipo_hooks.objective.registry") / "parts"
    return {
        slot: {
            name: Part.model_validate(part)
            for name, part in json.loads((folder / f"{slot}.json").read_text(encoding="utf-8")).items()
        }
        for slot in SLOTS
    }


_OWN: dict[str, dict[str, Part]] = {}
"""Parts users registered."""


def parts(slot: str) -> dict[str, Part]:
    """Every part of a slot by name, the user's own included."""
    return _shipped()[slot] | _OWN.get(slot, {})


def add_part(slot: str, name: str, part: Part) -> None:
    """Make a user's part known."""
    _OWN.setdefault(slot, {})[name] = part


def describe(slot: str, name: str, path: str = "") -> Part:
    """The description of a part. Raises AlgorithmError, naming the JSON path, where there is none of that name."""
    known = parts(slot)
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}? A" if near else f" (there are {', '.join(known)}); a"
        own = "part of your own must be registered in Python first (algorithms.register_part)"
        raise AlgorithmError(f"{path or slot}: no part {name!r} for the slot {slot}{hint} {own}")
    return known[name]


def is_own(slot: str, name: str) -> bool:
    """Whether a user registered the part."""
    return name in _OWN.get(slot, {})


def parameters(slot: str, use: PartUse) -> dict[str, Any]:
    """Every hyper-parameter of a part as it is used: defaults, then what the algorithm says."""
    part = describe(slot, use.part)
    return {name: parameter.default for name, parameter in part.parameters.items()} | use.parameters


def uses(parts_used: Parts) -> list[tuple[str, str, PartUse]]:
    """Every part used, as (slot, JSON path, use), in the order of the slots."""
    found = []
    for slot in SLOTS:
        value = getattr(parts_used, slot)
        if isinstance(value, list):
            found += [(slot, f"{slot}.{number}", use) for number, use in enumerate(value)]
        else:
            found.append((slot, slot, value))
    return found


def needs(spec: AlgorithmSpec) -> list[str]:
    """Inputs an algorithm cannot be computed without, `log_probs` and `mask` aside."""
    found: dict[str, None] = {}
    for slot, use in _every_use(spec):
        for need in describe(slot, use.part).needs:
            found[_resolved(need, slot, use)] = None
    if spec.mixture:
        found["source"] = None
    return [name for name in found if name not in ("log_probs", "mask", "none")]


def inputs(spec: AlgorithmSpec) -> list[str]:
    """Inputs an algorithm looks at where they are there."""
    further = [_resolved(name, slot, use) for slot, use in _every_use(spec) for name in describe(slot, use.part).uses]
    return list(dict.fromkeys([*needs(spec), *further]))


def _every_use(spec: AlgorithmSpec) -> list[tuple[str, PartUse]]:
    every = [spec.parts, *(merged(spec.parts, component.parts) for component in spec.mixture)]
    chosen = every[1:] if spec.mixture else every
    return [(slot, use) for each in chosen for slot, _, use in uses(each) if not (slot == "constraint" and is_off(use))]


def is_off(use: PartUse) -> bool:
    """Whether a constraint has the coefficient 0: it then does nothing, and needs nothing."""
    values = parameters("constraint", use)
    return values.get("beta", values.get("coefficient")) == 0


def _resolved(need: str, slot: str, use: PartUse) -> str:
    return str(parameters(slot, use)[need[1:]]) if need.startswith("$") else need


def merged(base: Parts, changes: dict[str, Any]) -> Parts:
    """Parts with some slots replaced."""
    return Parts.model_validate(base.model_dump() | changes)


def given_advantages(spec: AlgorithmSpec, *, modulated: bool = False) -> AlgorithmSpec:
    """The algorithm taking the batch's own `advantages` instead of computing them from rewards.

    What it makes of an advantage from token to token stays and acts on the given ones, unless they are `modulated`:
    then they hold it already. Of a run's own algorithm they always do (`as_recorded`).
    """
    changes = {"reward": [], "baseline": {"part": "recorded"}, "scale": []} | ({"modulation": []} if modulated else {})
    return spec.model_copy(update={"parts": merged(spec.parts, changes)})


def scope(spec: AlgorithmSpec) -> Scope:
    """The widest scope of an algorithm's parts."""
    order: list[Scope] = ["token", "response", "group", "batch", "history"]
    return max((describe(slot, use.part).scope for slot, use in _every_use(spec)), key=order.index)


def check(spec: AlgorithmSpec, *, values: bool = True) -> AlgorithmSpec:
    """The spec itself, once every part and hyper-parameter in it is known and every value is inside its range.

    With `values=False` names alone are looked at: what a trainer was set to is computed as far as it can be.

    Raises AlgorithmError naming the JSON path and what would do.
    """
    if spec.display is not None:
        return spec
    if not spec.id.strip():
        raise AlgorithmError("id: a text is needed that is not empty")
    _check_parts(spec.parts, "parts", values)
    for number, component in enumerate(spec.mixture):
        path = f"mixture.{number}"
        if component.source < 0:
            raise AlgorithmError(f"{path}.source: 0 (sampled by the policy) or above is needed, not {component.source}")
        if values and not math.isfinite(component.coefficient):
            raise AlgorithmError(f"{path}.coefficient: a finite number is needed, not {component.coefficient}")
        try:
            own = merged(spec.parts, component.parts)
        except ValidationError as error:
            raise AlgorithmError(f"{path}.{explained(error, 'parts')}") from None
        _check_parts(own, f"{path}.parts", values)
    return spec


def _check_parts(parts_used: Parts, path: str, values: bool) -> None:
    for slot, place, use in uses(parts_used):
        part = describe(slot, use.part, f"{path}.{place}.part")
        for name, value in use.parameters.items():
            _check_name(f"{path}.{place}", use.part, part, name)
            if values:
                _check_value(f"{path}.{place}.{name}", slot, use.part, name, value)


def _check_name(path: str, part_name: str, part: Part, name: str) -> None:
    if name not in part.parameters:
        near = get_close_matches(name, part.parameters, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(part.parameters) or 'none'}"
        raise AlgorithmError(f"{path}.{name}: {part_name} has no such hyper-parameter; {hint}")


def _check_value(path: str, slot: str, part_name: str, name: str, value: Any) -> None:
    part, own = describe(slot, part_name), is_own(slot, part_name)
    if f"${name}" in (*part.needs, *part.uses) and part.parameters[name].choices is None and not own:
        check_channel(path, value)
    elif own and part.parameters[name].default is None and isinstance(value, str | bool):
        # None says nothing of what else a user's part takes.
        return
    else:
        check_value(path, part.parameters[name], value)


def with_hyper_parameters(spec: AlgorithmSpec, changes: dict[str, Any]) -> AlgorithmSpec:
    """The algorithm with other hyper-parameters.

    A name is a hyper-parameter's (`epsilon_high`) where one part alone has it, those of a mixture's components
    included, or a path (`constraint.0.beta`, `mixture.1.gate.gamma`). Raises AlgorithmError where no part has it or
    several do.
    """
    if not changes:
        return spec
    tree = spec.model_dump()
    for name, value in changes.items():
        component, slot, place, key = _place(spec, name)
        target = tree["parts"][slot] if component is None else tree["mixture"][component]["parts"][slot]
        target = target[place] if isinstance(target, list) else target
        # one of NumPy's numbers is as good as Python's
        value = value.item() if isinstance(value, np.generic) else value
        _check_value(name, slot, target["part"], key, value)
        target[key] = value
    return AlgorithmSpec.model_validate(tree)


def _place(spec: AlgorithmSpec, name: str) -> tuple[int | None, str, int, str]:
    """Where the hyper-parameter of a name is: number of the mixture's component or None, slot, place in it, key."""
    *where, key = name.split(".")
    path = ".".join(where)
    there = [each for each in _changeable(spec) if key in describe(each[2], each[4].part).parameters]
    found = [
        (component, slot, place) for component, prefix, slot, place, _ in there if _means(path, prefix, slot, place)
    ]
    if len(found) != 1:
        every = {
            f"{prefix}{place}.{each}"
            for _, prefix, slot, place, use in _changeable(spec)
            for each in describe(slot, use.part).parameters
        }
        if not found:
            near = get_close_matches(name, {each.rsplit(".", 1)[1] for each in every} | every, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(every)) or 'none'}"
            raise AlgorithmError(f"{spec.id} has no hyper-parameter {name}; {hint}")
        which = ", ".join(
            f"{'' if number is None else f'mixture.{number}.'}{place}.{key}" for number, _, place in found
        )
        raise AlgorithmError(f"{spec.id} has {key} more than once; say which: {which}")
    component, slot, place = found[0]
    return component, slot, int(place.rpartition(".")[2]) if "." in place else 0, key


def _means(path: str, prefix: str, slot: str, place: str) -> bool:
    """Whether a path of a hyper-parameter, without its name, is that of a part; an empty one is that of any."""
    return path in ("", f"{prefix}{place}", f"{prefix}{slot}")


def _changeable(spec: AlgorithmSpec) -> list[tuple[int | None, str, str, str, PartUse]]:
    """Parts that are used: component of the mixture or None, prefix of the path, slot, place, use.

    A slot of the algorithm's own in which every component of its mixture differs is used by none.
    """
    replaced = set.intersection(*(set(each.parts) for each in spec.mixture)) if spec.mixture else set()
    found: list[tuple[int | None, str, str, str, PartUse]] = [
        (None, "", slot, place, use) for slot, place, use in uses(spec.parts) if slot not in replaced
    ]
    for number, component in enumerate(spec.mixture):
        own = uses(merged(spec.parts, component.parts))
        found += [(number, f"mixture.{number}.", *each) for each in own if each[0] in component.parts]
    return found
