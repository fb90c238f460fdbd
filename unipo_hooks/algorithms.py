"""The registry of algorithms: what is shipped, what a user adds, and how two of them differ.

from unipo_hooks import algorithms, evaluate

algorithms.ids()                                  # what there is
algorithms.get("gspo").parts.ratio.part           # "sequence_mean"
algorithms.diff("grpo", "dapo")                   # the slots that differ, with both values
algorithms.register("my_algorithm.json")          # one more
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unipo_hooks.algorithm_spec import HEADINGS, SLOTS, AlgorithmSpec, PartUse
from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.describe import (
    Parameter,
    Part,
    Scope,
    add_part,
    check,
    describe,
    given_advantages,
    needs,
    parameters,
    parts,
    scope,
    uses,
)
from unipo_hooks.objective.parts.types import FUNCTIONS
from unipo_hooks.objective.recorded import as_recorded

ENVIRONMENT = "UNIPO_ALGORITHMS"
"""Environment variable: directories of JSON files, separated as in PATH, whose algorithms are registered too."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A comparison of an algorithm with the code that defines it."""

    against: str
    """Library, version and function."""
    covers: tuple[str, ...]
    """`objective`, `advantages`, or both."""
    error: float
    """Largest error of anything compared; of the loss, divided by max(1, Σ |aggregation × objective|)."""
    cases: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A slot in which two algorithms differ."""

    slot: str
    heading: str
    """UNIPO's level: advantage, objective, constraint, mask or aggregation."""
    a: str
    b: str


_OWN: dict[str, AlgorithmSpec] = {}


@cache
def _shipped() -> dict[str, AlgorithmSpec]:
    folder = resources.files("unipo_hooks.objective.registry") / "algorithms"
    specs = (
        AlgorithmSpec.model_validate_json(file.read_text(encoding="utf-8"))
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".json")
    )
    return {spec.id: spec for spec in specs}


@cache
def _confirmed() -> dict[str, tuple[Confirmation, ...]]:
    file = resources.files("unipo_hooks.objective.registry") / "confirmed.json"
    return {
        name: tuple(Confirmation(**entry | {"covers": tuple(entry["covers"])}) for entry in entries)
        for name, entries in json.loads(file.read_text(encoding="utf-8")).items()
    }


def _every() -> dict[str, AlgorithmSpec]:
    _read_environment(os.environ.get(ENVIRONMENT, ""))
    return _shipped() | _OWN


@cache
def _read_environment(value: str) -> None:
    for folder in filter(None, value.split(os.pathsep)):
        register_folder(folder)


def ids() -> list[str]:
    """Ids of every algorithm, shipped and registered."""
    return list(_every())


def every() -> list[AlgorithmSpec]:
    """Every algorithm, shipped and registered."""
    return list(_every().values())


def own() -> list[AlgorithmSpec]:
    """The algorithms users registered, those of the environment's directories included."""
    _every()
    return list(_OWN.values())


def get(algorithm: AlgorithmSpec | Mapping[str, Any] | str) -> AlgorithmSpec:
    """An algorithm by id, from its JSON, or itself.

    Raises AlgorithmError: for an unknown id the nearest known one is named, for a wrong definition its JSON path.
    """
    if isinstance(algorithm, AlgorithmSpec):
        return algorithm
    if isinstance(algorithm, Mapping):
        return check(_parsed(dict(algorithm), "the definition"))
    known = _every()
    if algorithm not in known:
        near = _near(algorithm, known)
        hint = f"did you mean {' or '.join(near)}?" if near else "`unipo-hooks algorithms` lists them"
        raise AlgorithmError(f"no algorithm {algorithm!r}; {hint}")
    return known[algorithm]


def _near(name: str, known: Mapping[str, AlgorithmSpec]) -> list[str]:
    """Up to three ids somebody who wrote `name` may mean: by name, by how they begin, by spelling."""
    plain = re.sub(r"[^a-z0-9.]+", "_", name.lower().replace("+", "p")).strip("_")
    begin = [each for each in known if plain and each.startswith(plain)]
    names = {spec.name.lower(): each for each, spec in known.items()}
    called = [names[each] for each in get_close_matches(name.lower(), names, n=1, cutoff=0.8)]
    return list(dict.fromkeys([*called, *begin, *get_close_matches(plain, known, n=3)]))[:3]


def confirmations(algorithm: str) -> tuple[Confirmation, ...]:
    """What an algorithm was compared with, and with what error; empty for one that was compared with nothing.

    Nor has one a user registered in the place of a shipped one been compared.
    """
    return () if algorithm in _OWN else _confirmed().get(algorithm, ())


def register(algorithm: AlgorithmSpec | Mapping[str, Any] | str | Path, *, replace: bool = False) -> AlgorithmSpec:
    """Add an algorithm: its spec, its JSON, or a path to a JSON file. Returns the spec.

    A file of UNIPO's own format (`bindings` and `cards`) becomes an algorithm that is shown and not computed. Only data
    is read from a file, never code.

    Raises AlgorithmError naming the file and the JSON path, or the id that is taken.
    """
    where = "the definition"
    if isinstance(algorithm, AlgorithmSpec):
        spec = check(algorithm)
    else:
        if isinstance(algorithm, str | Path):
            where, definition = str(algorithm), _read(Path(algorithm))
        else:
            definition = dict(algorithm)
        if "cards" in definition and "parts" not in definition:
            definition = from_unipo(definition, where)
        spec = _parsed(definition, where)
        try:
            check(spec)
        except AlgorithmError as error:
            raise AlgorithmError(f"{where}: {error}") from None
    if not replace and spec.id in _shipped():
        raise AlgorithmError(f"{where}: id: {spec.id!r} is an algorithm that is shipped; choose another id")
    _OWN[spec.id] = spec
    return spec


def register_folder(folder: str | Path) -> list[AlgorithmSpec]:
    """Register every `*.json` of a directory. Raises AlgorithmError where there is none, or a file is wrong."""
    path = Path(folder)
    if not path.is_dir():
        raise AlgorithmError(f"{folder}: no such directory of algorithms")
    return [register(file) for file in sorted(path.glob("*.json"))]


def registered(algorithms: Any) -> list[AlgorithmSpec]:
    """Register whatever is given: a directory, a file, a spec, its JSON, or several of these."""
    if isinstance(algorithms, str | Path | os.PathLike):
        path = Path(algorithms)
        return register_folder(path) if path.is_dir() else [register(path)]
    if isinstance(algorithms, AlgorithmSpec | Mapping):
        return [register(algorithms)]
    return [spec for each in algorithms for spec in registered(each)]


def chosen(algorithm: AlgorithmSpec | Mapping[str, Any] | str | os.PathLike[str]) -> AlgorithmSpec:
    """An algorithm by id, spec or JSON, or from a path to a JSON file, which is registered."""
    if isinstance(algorithm, os.PathLike) or (isinstance(algorithm, str) and algorithm.endswith(".json")):
        return register(Path(algorithm))
    return get(algorithm)


def register_part(
    slot: str,
    function: Callable[..., Any],
    *,
    scope: Scope = "token",
    needs: Iterable[str] = (),
    title: str = "",
    latex: str = "",
    explanation: str = "",
    source: str = "",
) -> None:
    """Add a part: a function like those of `unipo_hooks.objective.parts` in its slot, under its own name.

    Its keyword-only arguments are its hyper-parameters, their defaults the defaults. The function stays here: a bundle
    carries the JSON of an algorithm, never code, so for such a part objective and gradient weight are stored instead.

    Raises AlgorithmError where the slot is unknown or the name is taken by a part that is shipped.
    """
    if slot not in SLOTS:
        raise AlgorithmError(f"no slot {slot!r} (there are {', '.join(SLOTS)})")
    name = function.__name__
    if name in parts(slot) and name not in _OWN_PARTS:
        raise AlgorithmError(f"{slot} already has a part {name}; rename the function")
    own = {
        each.name: Parameter(default=None if each.default is each.empty else each.default, meaning=each.name)
        for each in inspect.signature(function).parameters.values()
        if each.kind is each.KEYWORD_ONLY
    }
    text = (inspect.getdoc(function) or name).strip()
    part = Part(
        title=title or name.replace("_", " "),
        scope=scope,
        needs=list(needs),
        parameters=own,
        latex=latex or rf"\mathrm{{{name}}}",
        explanation=explanation or text,
        source=source or "registered by the user",
    )
    add_part(slot, name, part)
    FUNCTIONS.setdefault(slot, {})[name] = function
    _OWN_PARTS.add(name)


_OWN_PARTS: set[str] = set()


def is_own_code(spec: AlgorithmSpec) -> bool:
    """Whether an algorithm uses a part a user registered, which no viewer can compute."""
    return any(use.part in _OWN_PARTS for _, _, use in uses(spec.parts))


def diff(a: AlgorithmSpec | str, b: AlgorithmSpec | str) -> list[Difference]:
    """The slots in which two algorithms differ, with both values written out, defaults included."""
    first, second = get(a), get(b)
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
            f"{component.coefficient} × rows of source {component.source} with {json.dumps(component.parts)}"
            for component in spec.mixture
        )
        or "none"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        definition = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AlgorithmError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise AlgorithmError(f"{path}: not JSON ({error})") from None
    if not isinstance(definition, dict):
        raise AlgorithmError(
            f"{path}: an object is needed, with id, name and parts; found a {type(definition).__name__}"
        )
    return definition


def _parsed(definition: dict[str, Any], where: str) -> AlgorithmSpec:
    try:
        return AlgorithmSpec.model_validate(definition)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(each) for each in first["loc"])
        raise AlgorithmError(f"{where}: {path or 'definition'}: {first['msg'].lower()}") from None


def from_unipo(definition: Mapping[str, Any], where: str = "the definition") -> dict[str, Any]:
    """An algorithm of UNIPO's own format (`id, name, title, bindings, cards`) as one that is shown and not computed."""
    for name in ("id", "name", "cards"):
        if name not in definition:
            raise AlgorithmError(f"{where}: {name}: UNIPO's format needs it")
    return {
        "id": definition["id"],
        "name": definition["name"],
        "title": definition.get("title", ""),
        "source": "UNIPO cards",
        "family": "shown only",
        "exact": False,
        "inexact": "it came as UNIPO cards, which are shown and cannot be computed",
        "parts": {"gate": {"part": "log_prob"}, "aggregation": {"part": "token_mean"}},
        "display": {key: definition[key] for key in ("bindings", "cards", "defaultVisibleCards") if key in definition},
    }


__all__ = [
    "Confirmation",
    "Difference",
    "as_recorded",
    "chosen",
    "confirmations",
    "describe",
    "diff",
    "every",
    "from_unipo",
    "get",
    "given_advantages",
    "ids",
    "is_own_code",
    "needs",
    "own",
    "register",
    "register_folder",
    "register_part",
    "registered",
    "scope",
    "written",
]
