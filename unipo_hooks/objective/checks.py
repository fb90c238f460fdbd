"""What is wrong with a definition, in one line: the JSON path, what is needed there, and what was meant."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from unipo_hooks.algorithm_spec import SLOTS, AlgorithmSpec, Component
from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.inputs import INPUTS

if TYPE_CHECKING:
    from unipo_hooks.objective.describe import Parameter

LISTS = frozenset({"filter", "reward", "scale", "modulation", "weight", "mask", "constraint"})
"""Slots that hold a list of parts."""

_EXAMPLES = {
    "filter": "groups_with_signal",
    "reward": "clipped_reward",
    "baseline": "group_mean",
    "scale": "group_std",
    "modulation": "given_weights",
    "ratio": "token",
    "bounds": "around_one",
    "gate": "ppo_clip",
    "weight": "truncated",
    "mask": "truncated_responses",
    "constraint": "kl",
    "aggregation": "token_mean",
}
"""Slot → a part of it, for an example of how one is written."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or ` (there are …)` where nothing is like it."""
    every = list(known)
    near = get_close_matches(name, every, n=1)
    return f"; did you mean {near[0]}?" if near else f" (there are {', '.join(every)})"


# --- values ----------------------------------------------------------------------------------------------------------


def allowed(parameter: Parameter) -> str:
    """The range of a number in words, such as `above 0 and at most 1`; empty where every finite number will do."""
    low, high, above, below = parameter.minimum, parameter.maximum, parameter.above, parameter.below
    words = []
    if low is not None and high is not None:
        words.append(f"from {low:g} to {high:g}")
    elif low is not None:
        words.append(f"{low:g} or more")
    elif high is not None and above is None:
        words.append(f"{high:g} or less")
    if above is not None:
        words.append(f"above {above:g}")
        if high is not None:
            words.append(f"at most {high:g}")
    if below is not None:
        words.append(f"below {below:g}")
    return " and ".join(words)


def check_value(path: str, parameter: Parameter, value: Any) -> None:
    """Raise AlgorithmError, naming the JSON path and what is needed, where a hyper-parameter cannot have a value."""
    if value is None and parameter.nullable:
        return
    if parameter.choices is not None:
        if value not in parameter.choices:
            near = get_close_matches(value, parameter.choices, n=1) if isinstance(value, str) else []
            hint = f"; did you mean {near[0]}?" if near else ""
            raise AlgorithmError(f"{path}: {value!r} is not one of {', '.join(parameter.choices)}{hint}")
    elif isinstance(parameter.default, bool):
        if not isinstance(value, bool):
            raise AlgorithmError(f"{path}: true or false is needed, not {_shown(value)}")
    elif isinstance(parameter.default, str):
        if not isinstance(value, str):
            raise AlgorithmError(f"{path}: a text is needed, not {_shown(value)}")
    else:
        _check_number(path, parameter, value)


def _check_number(path: str, parameter: Parameter, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AlgorithmError(f"{path}: a number is needed, not {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise AlgorithmError(f"{path}: a finite number is needed, not {number}")
    if parameter.integer and number != int(number):
        raise AlgorithmError(f"{path}: an integer is needed, not {value!r}")
    inside = (
        (parameter.minimum is None or number >= parameter.minimum)
        and (parameter.maximum is None or number <= parameter.maximum)
        and (parameter.above is None or number > parameter.above)
        and (parameter.below is None or number < parameter.below)
    )
    if not inside:
        null = ", or null," if parameter.nullable else ","
        raise AlgorithmError(f"{path}: must be {allowed(parameter)}{null} not {value!r}")


def check_channel(path: str, value: Any) -> None:
    """Raise AlgorithmError where a hyper-parameter of a shipped part names no channel of a value a token."""
    if not isinstance(value, str):
        raise AlgorithmError(f"{path}: the name of a channel is needed, not {_shown(value)}")
    per_token = [name for name, each in INPUTS.items() if each.axes == "BT"]
    policies = [name for name in per_token if name.endswith("log_probs")]
    if value in per_token:
        return
    if value in INPUTS:
        raise AlgorithmError(f"{path}: {value} has no value a token; there are {', '.join(policies)}")
    near = get_close_matches(value, per_token, n=1)
    hint = f"; did you mean {near[0]}?" if near else f" (there are {', '.join(policies)})"
    raise AlgorithmError(f"{path}: no channel {value!r}{hint}")


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


# --- form ------------------------------------------------------------------------------------------------------------


def explained(error: ValidationError, path: str = "") -> str:
    """The first thing wrong with the form of a definition, as `JSON path: what is needed`.

    A name that is not known goes first: what is missing may be what it was meant to be. `path` is put before that of
    the error.
    """
    found = error.errors(include_url=False)
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    place = tuple(str(each) for each in ((path,) if path else ()) + first["loc"])
    return f"{'.'.join(place) or 'definition'}: {_needed(first['type'], place, first)}"


def _needed(kind: str, place: tuple[str, ...], error: Mapping[str, Any]) -> str:
    """What is needed at a place; see `explained`."""
    name, value = (place[-1] if place else ""), error.get("input")
    slot = _slot(place)
    if kind == "extra_forbidden":
        if place[-2:-1] == ("parts",):
            return f"no such slot{did_you_mean(name, SLOTS)}"
        known = Component.model_fields if place[:1] == ("mixture",) else AlgorithmSpec.model_fields
        return f"no such field{did_you_mean(name, known)}"
    if kind == "missing":
        if name == "part":
            return f"name the part, as in {_written(slot or 'gate')}"
        if place[:1] == ("mixture",):
            return "every component needs one"
        return f"every algorithm needs {'them' if name == 'parts' else 'one'}"
    if slot and name == slot and slot in LISTS:
        if isinstance(value, Mapping):
            return "write it in [ ]"
        return f"a list is needed, as in [{_written(slot, value)}], or [] for none"
    if slot and (name == slot or name.isdigit()):
        if isinstance(value, str):
            return f"write {_written(slot, value)}"
        if isinstance(value, list):
            return "one part is needed here, not a list"
        return f"an object is needed, as in {_written(slot)}, not {_shown(value)}"
    if kind == "list_type":
        return f"a list is needed, not {_shown(value)}"
    if kind in ("model_type", "dict_type", "model_attributes_type", "mapping_type"):
        return f"an object {{ }} is needed, not {_shown(value)}"
    if kind.startswith("string"):
        return f"a text is needed, not {_shown(value)}"
    if kind.startswith("int"):
        return f"an integer is needed, not {_shown(value)}"
    if kind.startswith("float"):
        return f"a number is needed, not {_shown(value)}"
    if kind.startswith("bool"):
        return f"true or false is needed, not {_shown(value)}"
    if kind == "literal_error":
        return f"{value!r} is not one of {error['ctx']['expected'].replace(' or ', ', ').replace(chr(39), '')}"
    return str(error["msg"]).lower()


def _slot(place: tuple[str, ...]) -> str:
    """The slot a path is in, or nothing."""
    if "parts" not in place:
        return ""
    after = place[place.index("parts") + 1 :]
    return after[0] if after and after[0] in SLOTS else ""


def _written(slot: str, value: Any = None) -> str:
    """A part as JSON: with the name that was written, where it was a text."""
    return json.dumps({"part": value if isinstance(value, str) else _EXAMPLES[slot]})
