"""Parts that users write: whether a function can be one, and whether what it gave back can be used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np

from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.inputs import Array
from unipo_hooks.objective.parts.types import Constraint, Gate, Mask, Ratio, Rewards

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "filter": ("batch",),
    "reward": ("batch", "rewards"),
    "baseline": ("batch", "rewards"),
    "scale": ("batch", "rewards", "advantages"),
    "modulation": ("batch", "advantages"),
    "bounds": ("batch", "advantages"),
    "ratio": ("batch", "advantages", "bounds"),
    "gate": ("batch", "advantages", "ratio", "bounds"),
    "weight": ("batch",),
    "mask": ("batch", "advantages", "ratio"),
    "constraint": ("batch", "advantages", "ratio"),
    "aggregation": ("batch", "counted_BT"),
}
"""Slot → what its functions are called with, in this order; `objective/parts/types.py` says what each is."""

_TYPES: dict[str, type] = {"reward": Rewards, "ratio": Ratio, "gate": Gate, "mask": Mask, "constraint": Constraint}
"""Slots whose functions give back more than an array."""

Shapes = set[tuple[int, ...]]


def name_of(function: Any) -> str:
    """The name a function is a part by. Raises AlgorithmError where it is no function, or has no name."""
    if not callable(function):
        raise AlgorithmError(f"a part is a function, not {type(function).__name__} ({function!r:.60})")
    name = getattr(function, "__name__", "")
    if inspect.isclass(function) or not isinstance(name, str) or not name.isidentifier():
        raise AlgorithmError(f"a part is known by the name of its function, and {function!r:.60} has none: write a def")
    return name


def hyper_parameters(slot: str, name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """Hyper-parameters of a function with their defaults, None where there is none.

    Raises AlgorithmError where its arguments do not begin with those of the slot, or a default cannot be in JSON.
    """
    wanted = ARGUMENTS[slot]
    needed = f"needed are ({', '.join(wanted)}), in this order, and hyper-parameters after *"
    try:
        arguments = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise AlgorithmError(f"{slot} part {name}: its arguments are not known; {needed}") from None
    first = [each for each in arguments if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    open_ended = any(each.kind is each.VAR_POSITIONAL for each in arguments)
    fits = len(first) == len(wanted) or (open_ended and len(first) < len(wanted))
    # Other names will do; those of the slot in another order are a mistake.
    swapped = any(each.name in wanted and each.name != own for each, own in zip(first, wanted, strict=False))
    if not fits or swapped:
        raise AlgorithmError(f"{slot} part {name}: its arguments are ({_listed(first)}); {needed}")
    own = {}
    for each in arguments:
        if each.kind is not each.KEYWORD_ONLY:
            continue
        default = None if each.default is each.empty else each.default
        if each.name == "part":
            raise AlgorithmError(f"{slot} part {name}: a hyper-parameter cannot be called part; rename it")
        if default is not None and not isinstance(default, bool | int | float | str):
            raise AlgorithmError(
                f"{slot} part {name}: the default of {each.name} must be a number, a text, True, False or None, "
                f"not {default!r:.60}"
            )
        own[each.name] = default
    return own


def _listed(arguments: list[inspect.Parameter]) -> str:
    return ", ".join(each.name for each in arguments)


def checked(slot: str, name: str, value: Any, shape: tuple[int, int]) -> Any:
    """What a part gave back for a batch of (B, T), its arrays as float64.

    Raises AlgorithmError naming the slot, the part and what is needed where the type or a shape is wrong.
    """
    who, (rows, width) = f"{slot} part {name}", shape
    two: Shapes = {(rows, 1), (rows, width)}
    if slot == "bounds":
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise AlgorithmError(f"{who}: two arrays are needed, the lowest and the highest ratio, not {_kind(value)}")
        return tuple(_array(who, each, _spread(shape), shape) for each in value)
    if slot not in _TYPES:
        others: dict[str, Shapes] = {"filter": {(rows,)}, "aggregation": {(rows, width)}, "weight": _spread(shape)}
        allowed = others.get(slot, two)
        return _array(who, value, allowed, shape)
    kind = _TYPES[slot]
    if not isinstance(value, kind):
        raise AlgorithmError(
            f"{who}: a {kind.__name__} is needed (unipo_hooks.objective.parts.types), not {_kind(value)}"
        )
    own: dict[str, Shapes] = {"response_B": {(rows,)}, "token_BT": {(rows, width)}, "log": two}
    changes: dict[str, Any] = {}
    for each in fields(cast(Any, value)):
        found = getattr(value, each.name)
        if each.name in _ARRAYS and not (found is None and each.name in _OPTIONAL):
            changes[each.name] = _array(f"{who}: {each.name}", found, own.get(each.name, _spread(shape)), shape)
        elif each.name == "pull" and not callable(found):
            raise AlgorithmError(f"{who}: pull: a function is needed, not {_kind(found)}")
    return replace(cast(Any, value), **changes)


_OPTIONAL = frozenset({"token_BT", "d_log_ratio", "d_log_prob", "clipped", "among"})
_ARRAYS = _OPTIONAL | {"response_B", "log", "objective", "keep", "penalty"}


def _spread(shape: tuple[int, int]) -> Shapes:
    """Shapes that stand for one value a token without a doubt: (T,) and (B,) would be mistaken for each other."""
    rows, width = shape
    return {(), (1,), (1, 1), (rows, 1), (1, width), (rows, width)}


def _array(who: str, value: Any, allowed: Shapes, shape: tuple[int, int]) -> Array:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise AlgorithmError(f"{who}: an array of numbers is needed, not {_kind(value)}") from None
    if array.dtype.kind not in "fiub":
        raise AlgorithmError(f"{who}: an array of numbers is needed, not {_kind(value)}")
    if array.shape not in allowed:
        # Those with a row each are what is meant.
        named = sorted(each for each in allowed if each and each[0] == shape[0]) or sorted(allowed)
        wanted = " or ".join(str(each) for each in dict.fromkeys(named))
        raise AlgorithmError(f"{who}: shape {array.shape} is not {wanted}: {shape[0]} responses, {shape[1]} tokens")
    return array.astype(np.float64)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
