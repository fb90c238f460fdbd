"""The registry of algorithms: what is shipped, what a user adds, and how two of them differ.

from unipo_hooks import algorithms, evaluate

algorithms.ids()                                  # what there is
algorithms.get("gspo").parts.ratio.part           # "sequence_mean"
algorithms.diff("grpo", "dapo")                   # the slots that differ, with both values
algorithms.register("my_algorithm.json")          # one more
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from unipo_hooks.algorithm_spec import SLOTS, AlgorithmSpec
from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.checks import did_you_mean
from unipo_hooks.objective.comparisons import Compared, Confirmation, compared
from unipo_hooks.objective.definitions import from_unipo, parsed, read
from unipo_hooks.objective.describe import (
    Parameter,
    Part,
    Scope,
    add_part,
    check,
    describe,
    given_advantages,
    is_own,
    merged,
    needs,
    parts,
    scope,
    uses,
)
from unipo_hooks.objective.difference import Difference, differences, written
from unipo_hooks.objective.own import hyper_parameters, name_of
from unipo_hooks.objective.parts.types import FUNCTIONS
from unipo_hooks.objective.recorded import as_recorded

ENVIRONMENT = "UNIPO_ALGORITHMS"
"""Environment variable: directories of JSON files, separated as in PATH, whose algorithms are known too."""

log = logging.getLogger("unipo_hooks")


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


def _every() -> dict[str, AlgorithmSpec]:
    return _shipped() | _environment().specs | _OWN


@dataclass(frozen=True, slots=True)
class _Environment:
    """What the directories of the environment hold."""

    specs: dict[str, AlgorithmSpec]
    faults: tuple[str, ...]
    """A line for each file or directory that could not be read."""


def _environment() -> _Environment:
    return _read_environment(os.environ.get(ENVIRONMENT, ""))


@cache
def _read_environment(value: str) -> _Environment:
    """The algorithms of directories separated as in PATH, read once. Of two files with one id the first counts.

    A directory or file that cannot be read is left out and logged: nobody's run may end for it.
    """
    files: dict[str, Path] = {}
    specs: dict[str, AlgorithmSpec] = {}
    faults = []
    for folder in filter(None, value.split(os.pathsep)):
        try:
            found = _files(Path(folder))
        except (AlgorithmError, OSError) as error:
            faults.append(str(error))
            continue
        for file in found:
            try:
                _, spec = _definition(file)
                _refuse_shipped(spec, str(file))
                if spec.id in specs:
                    raise AlgorithmError(f"{file}: id: {spec.id!r} is that of {files[spec.id]} too; rename one of them")
                files[spec.id], specs[spec.id] = file, spec
            except AlgorithmError as error:
                faults.append(str(error))
            except Exception as error:  # whatever a file holds, it costs no more than itself
                faults.append(f"{file}: cannot be read ({type(error).__name__}: {error})")
    for file, spec in ((files[each.id], each) for each in specs.values()):
        try:
            _refuse_unknown_parent(spec, str(file), _shipped() | specs)
        except AlgorithmError as error:
            # It can be computed all the same.
            _warn(f"{ENVIRONMENT}: {error}")
    for fault in faults:
        _warn(f"{ENVIRONMENT}: {fault}; it is left out")
    return _Environment(specs, tuple(faults))


@cache
def _warn(message: str) -> None:
    """Log a warning once."""
    log.warning("%s", message)


def ids() -> list[str]:
    """Ids of every algorithm, shipped and registered."""
    return list(_every())


def every() -> list[AlgorithmSpec]:
    """Every algorithm, shipped and registered."""
    return list(_every().values())


def own() -> list[AlgorithmSpec]:
    """The algorithms users registered, those of the environment's directories included."""
    return list((_environment().specs | _OWN).values())


def get(algorithm: AlgorithmSpec | Mapping[str, Any] | str) -> AlgorithmSpec:
    """An algorithm by id, from its JSON, or itself; upper and lower case of an id are the same.

    Raises AlgorithmError: for an unknown id the nearest known one is named, for a wrong definition its JSON path.
    """
    if isinstance(algorithm, AlgorithmSpec):
        return check(algorithm, values=False)
    if isinstance(algorithm, Mapping):
        return check(parsed(dict(algorithm), "the definition"))
    if not isinstance(algorithm, str):
        raise AlgorithmError(f"an algorithm is an id, a spec or its JSON, not {type(algorithm).__name__}")
    known = _every()
    if algorithm in known:
        return known[algorithm]
    same = [name for name in known if name.casefold() == algorithm.casefold()]
    if len(same) == 1:
        return known[same[0]]
    near = same or _near(algorithm, known)
    hint = f"did you mean {' or '.join(near)}?" if near else "`unipo-hooks algorithms` lists them"
    if faults := _environment().faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        hint += f" (of {ENVIRONMENT}, not read: {faults[0]}{more})"
    raise AlgorithmError(f"no algorithm {algorithm!r}; {hint}")


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
    return () if algorithm in _OWN else compared().get(algorithm, Compared()).confirmations


def part_names(algorithm: AlgorithmSpec | str) -> list[str]:
    """The parts an algorithm is made of, each as `slot part` or, in a slot that holds several, `slot.number part`.

    The components of a mixture follow (`mixture.1 source 1`), with the parts of such slots that are their own.
    """
    spec = get(algorithm)
    found = [f"{place} {use.part}" for _, place, use in uses(spec.parts) if use.part != "none"]
    for number, component in enumerate(spec.mixture):
        found.append(f"mixture.{number} source {component.source}")
        own = uses(merged(spec.parts, component.parts))
        found += [
            f"mixture.{number}.{place} {use.part}"
            for slot, place, use in own
            if slot in component.parts and isinstance(component.parts[slot], list)
        ]
    return found


def not_compared(algorithm: AlgorithmSpec | str) -> tuple[str, ...]:
    """Parts of an algorithm that no comparison would have missed, named as by `part_names`.

    Empty for one of which all was compared; every part of one that was compared with nothing.
    """
    spec = get(algorithm)
    if spec.display:
        return ()
    return compared()[spec.id].missing if confirmations(spec.id) else tuple(part_names(spec))


def register(algorithm: AlgorithmSpec | Mapping[str, Any] | str | Path, *, replace: bool = False) -> AlgorithmSpec:
    """Add an algorithm: its spec, its JSON, or a path to a JSON file. Returns the spec.

    A file of UNIPO's own format (`bindings` and `cards`) becomes an algorithm that is shown and not computed. Only data
    is read from a file, never code.

    Raises AlgorithmError naming the file and the JSON path, or the id that is taken.
    """
    where, spec = _definition(algorithm)
    if not replace:
        _refuse_shipped(spec, where)
    _refuse_unknown_parent(spec, where, _every())
    _OWN[spec.id] = spec
    return spec


def _definition(algorithm: AlgorithmSpec | Mapping[str, Any] | str | Path) -> tuple[str, AlgorithmSpec]:
    """Where a definition stands, and the checked spec; see `register`."""
    if isinstance(algorithm, AlgorithmSpec):
        return "the definition", check(algorithm)
    if isinstance(algorithm, str | os.PathLike):
        where, definition = str(algorithm), read(Path(algorithm))
    elif isinstance(algorithm, Mapping):
        where, definition = "the definition", dict(algorithm)
    else:
        raise AlgorithmError(f"a spec, its JSON or a path to a JSON file is needed, not {type(algorithm).__name__}")
    if "cards" in definition and "parts" not in definition:
        definition = from_unipo(definition, where)
    spec = parsed(definition, where)
    try:
        return where, check(spec)
    except AlgorithmError as error:
        raise AlgorithmError(f"{where}: {error}") from None


def _refuse_shipped(spec: AlgorithmSpec, where: str) -> None:
    if spec.id in _shipped():
        raise AlgorithmError(f"{where}: id: {spec.id!r} is an algorithm that is shipped; choose another id")


def _refuse_unknown_parent(spec: AlgorithmSpec, where: str, known: Mapping[str, AlgorithmSpec]) -> None:
    if spec.parent is None or spec.parent in known or spec.parent == spec.id:
        return
    near = _near(spec.parent, known)
    hint = f"did you mean {' or '.join(near)}?" if near else "name the algorithm it changed, or leave it out"
    raise AlgorithmError(f"{where}: parent: no algorithm {spec.parent!r}; {hint}")


def register_folder(folder: str | Path) -> list[AlgorithmSpec]:
    """Register every `*.json` of a directory; a parent may stand in another file of it.

    Raises AlgorithmError where there is no such directory, a file is wrong, or two have one id; none is registered
    then.
    """
    found: dict[str, tuple[Path, AlgorithmSpec]] = {}
    for file in _files(Path(folder)):
        _, spec = _definition(file)
        _refuse_shipped(spec, str(file))
        if spec.id in found:
            raise AlgorithmError(f"{file}: id: {spec.id!r} is that of {found[spec.id][0]} too; rename one of them")
        found[spec.id] = file, spec
    specs = {name: spec for name, (_, spec) in found.items()}
    for file, spec in found.values():
        _refuse_unknown_parent(spec, str(file), _every() | specs)
    _OWN.update(specs)
    return list(specs.values())


def _files(folder: Path) -> list[Path]:
    """The JSON files of a directory, by name."""
    if not folder.is_dir():
        raise AlgorithmError(f"{folder}: no such directory of algorithms")
    return sorted(folder.glob("*.json"))


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

    Raises AlgorithmError where the slot is unknown, the function has no name or other arguments than the slot gives it,
    or the name is taken by a part that is shipped.
    """
    if not isinstance(slot, str) or slot not in SLOTS:
        raise AlgorithmError(f"no slot {slot!r}{did_you_mean(str(slot), SLOTS)}")
    name = name_of(function)
    if name in parts(slot) and not is_own(slot, name):
        raise AlgorithmError(f"{slot} already has a part {name}; rename the function")
    if scope not in get_args(Scope):
        raise AlgorithmError(f"{slot} part {name}: scope: {scope!r} is not one of {', '.join(get_args(Scope))}")
    own = {
        each: Parameter(default=default, meaning=each, nullable=default is None)
        for each, default in hyper_parameters(slot, name, function).items()
    }
    text = (inspect.getdoc(function) or name).strip()
    part = Part(
        title=title or name.replace("_", " "),
        scope=scope,
        needs=[needs] if isinstance(needs, str) else list(needs),
        parameters=own,
        latex=latex or rf"\mathrm{{{name}}}",
        explanation=explanation or text,
        source=source or "registered by the user",
    )
    add_part(slot, name, part)
    FUNCTIONS.setdefault(slot, {})[name] = function
    # A file of the environment may have waited for it.
    _read_environment.cache_clear()


def is_own_code(spec: AlgorithmSpec) -> bool:
    """Whether an algorithm uses a part a user registered, which no viewer can compute."""
    every = [spec.parts, *(merged(spec.parts, component.parts) for component in spec.mixture)]
    return any(is_own(slot, use.part) for each in every for slot, _, use in uses(each))


def diff(a: AlgorithmSpec | str, b: AlgorithmSpec | str) -> list[Difference]:
    """The slots in which two algorithms differ, with both values written out, defaults included."""
    return differences(get(a), get(b))


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
    "not_compared",
    "own",
    "part_names",
    "register",
    "register_folder",
    "register_part",
    "registered",
    "scope",
    "written",
]
