"""What is said about parts: needs, scope, hyper-parameters, formula, explanation. Read from `registry/parts/*.json`."""

from __future__ import annotations

import json
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from unipo_hooks.algorithm_spec import SLOTS, AlgorithmSpec, Parts, PartUse
from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.parts import FUNCTIONS

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
        hint = f"; did you mean {near[0]}?" if near else f" (there are {', '.join(known)})"
        raise AlgorithmError(f"{path or slot}: no part {name!r} for the slot {slot}{hint}")
    return known[name]


def is_code(slot: str, name: str) -> bool:
    """Whether there is a function for the part here."""
    return name in FUNCTIONS.get(slot, {})


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


def given_advantages(spec: AlgorithmSpec) -> AlgorithmSpec:
    """The algorithm taking the batch's own `advantages` instead of computing them from rewards."""
    changes = {"reward": [], "baseline": {"part": "recorded"}, "scale": [], "modulation": []}
    return spec.model_copy(update={"parts": merged(spec.parts, changes)})


def scope(spec: AlgorithmSpec) -> Scope:
    """The widest scope of an algorithm's parts."""
    order: list[Scope] = ["token", "response", "group", "batch", "history"]
    return max((describe(slot, use.part).scope for slot, use in _every_use(spec)), key=order.index)


def check(spec: AlgorithmSpec) -> AlgorithmSpec:
    """The spec itself, once every part and hyper-parameter in it is known.

    Raises AlgorithmError naming the JSON path and what would do.
    """
    if spec.display is not None:
        return spec
    _check_parts(spec.parts, "parts")
    for number, component in enumerate(spec.mixture):
        unknown = set(component.parts) - set(SLOTS)
        if unknown:
            raise AlgorithmError(f"mixture.{number}.parts.{min(unknown)}: no such slot (there are {', '.join(SLOTS)})")
        try:
            own = merged(spec.parts, component.parts)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(str(each) for each in first["loc"])
            raise AlgorithmError(f"mixture.{number}.parts.{path}: {first['msg'].lower()}") from None
        _check_parts(own, f"mixture.{number}.parts")
    return spec


def _check_parts(parts_used: Parts, path: str) -> None:
    for slot, place, use in uses(parts_used):
        part = describe(slot, use.part, f"{path}.{place}.part")
        for name, value in use.parameters.items():
            if name not in part.parameters:
                near = get_close_matches(name, part.parameters, n=1)
                there = ", ".join(part.parameters) or "none"
                hint = f"did you mean {near[0]}?" if near else f"it has {there}"
                raise AlgorithmError(f"{path}.{place}.{name}: {use.part} has no such hyper-parameter; {hint}")
            _check_value(f"{path}.{place}.{name}", part.parameters[name], value)


def _check_value(path: str, parameter: Parameter, value: Any) -> None:
    if parameter.choices is not None:
        if value not in parameter.choices:
            raise AlgorithmError(f"{path}: {value!r} is not one of {', '.join(parameter.choices)}")
    elif isinstance(parameter.default, bool):
        if not isinstance(value, bool):
            raise AlgorithmError(f"{path}: true or false is needed, not {value!r}")
    elif isinstance(parameter.default, str):
        if not isinstance(value, str):
            raise AlgorithmError(f"{path}: a text is needed, not {value!r}")
    elif value is None:
        if parameter.default is not None:
            raise AlgorithmError(f"{path}: a number is needed, not null")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise AlgorithmError(f"{path}: a number is needed, not {value!r}")


def with_hyper_parameters(spec: AlgorithmSpec, changes: dict[str, Any]) -> AlgorithmSpec:
    """The algorithm with other hyper-parameters.

    A name is a hyper-parameter's (`epsilon_high`) where one part alone has it, or a path (`constraint.0.beta`). Raises
    AlgorithmError where no part has it or several do.
    """
    if not changes:
        return spec
    tree = spec.model_dump()
    for name, value in changes.items():
        slot, place, key = _place(spec, name)
        target = tree["parts"][slot]
        target = target[place] if isinstance(target, list) else target
        _check_value(name, describe(slot, target["part"]).parameters[key], value)
        target[key] = value
    return AlgorithmSpec.model_validate(tree)


def _place(spec: AlgorithmSpec, name: str) -> tuple[str, int, str]:
    *where, key = name.split(".")
    path = ".".join(where)
    found = [
        (slot, place)
        for slot, place, use in uses(spec.parts)
        if key in describe(slot, use.part).parameters and path in ("", place, slot)
    ]
    if len(found) != 1:
        every = {
            f"{place}.{key}" for slot, place, use in uses(spec.parts) for key in describe(slot, use.part).parameters
        }
        if not found:
            near = get_close_matches(name, {each.rsplit(".", 1)[1] for each in every} | every, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(every)) or 'none'}"
            raise AlgorithmError(f"{spec.id} has no hyper-parameter {name}; {hint}")
        raise AlgorithmError(
            f"{spec.id} has {key} more than once; say which: {', '.join(f'{place}.{key}' for _, place in found)}"
        )
    slot, place = found[0]
    return slot, int(place.rpartition(".")[2]) if "." in place else 0, key
