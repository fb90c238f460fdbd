"""What `unipo-hooks algorithms` knows of an algorithm: as data for scripts, and in few words for a list."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

from unipo_hooks import algorithms
from unipo_hooks.algorithm_spec import HEADINGS, SLOTS, AlgorithmSpec, Parts, PartUse
from unipo_hooks.algorithms import Confirmation
from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.describe import describe, parameters
from unipo_hooks.objective.inputs import INPUTS

CORE = ("log_probs", "old_log_probs", "mask", "reward", "group")
"""Inputs every captured run has, which the list therefore leaves out."""

FAMILIES = (
    "REINFORCE",
    "PPO and GRPO",
    "Sequence ratios",
    "Clip and gate",
    "Masks and filters",
    "Advantage shaping",
    "Off-policy and mixtures",
    "Not a composition",
)
"""Families in reading order; those of registered algorithms follow."""

EVIDENCE = {
    "X": "known from running code of it",
    "C": "known from reading its code",
    "P": "known from the paper",
    "2": "known second hand",
    "U": "unverified",
}
"""How a definition is known, in words."""


def selected(family: str | None, needed: str | None, exact: bool = False) -> list[AlgorithmSpec]:
    """Algorithms of a family, that need an input, or only exact ones; family by family from old to new.

    Raises AlgorithmError where there is no such family or input.
    """
    every = algorithms.every()
    families = sorted({family_of(spec) for spec in every}, key=family_order)
    if family is not None:
        near = [each for each in families if family.lower() in each.lower()]
        if not near:
            raise AlgorithmError(f"no family {family!r}; there are {', '.join(families)}")
        families = near
    if needed is not None and needed not in INPUTS and not any(needed in needs_of(spec) for spec in every):
        close = get_close_matches(needed, INPUTS, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(INPUTS)}"
        raise AlgorithmError(f"no input {needed!r}; {hint}")
    chosen = [spec for spec in every if family_of(spec) in families and (needed is None or needed in needs_of(spec))]
    chosen = [spec for spec in chosen if is_exact(spec) or not exact]
    return sorted(chosen, key=lambda spec: (family_order(family_of(spec)), spec.year or 9999, spec.id))


def facts(spec: AlgorithmSpec) -> dict[str, Any]:
    """An algorithm with what is known of it; JSON-able. `scope` is None for one that is only shown."""
    return {
        "spec": _finite(spec.model_dump(mode="json")),
        "scope": None if spec.display else algorithms.scope(spec),
        "needs": needs_of(spec),
        "exact": is_exact(spec),
        "inexact": inexact(spec),
        "confirmations": [asdict(each) for each in algorithms.confirmations(spec.id)],
        "compared": compared(spec),
        "not_compared": list(algorithms.not_compared(spec)),
    }


def explanation(spec: AlgorithmSpec) -> dict[str, Any]:
    """`facts`, and what is said of the parts, the changes against the parent and the inputs needed; JSON-able."""
    parent = parent_of(spec)
    more: dict[str, Any] = {
        "lineage": lineage_of(spec),
        "children": children_of(spec),
        "against_parent": [asdict(each) for each in algorithms.diff(parent, spec)] if parent else [],
        "slots": [] if spec.display else [fact for slot in SLOTS for fact in _slot_facts(spec.parts, slot)],
        "inputs": [input_facts(name) for name in ("log_probs", "mask", *needs_of(spec))],
    }
    more["slots"] = _finite(more["slots"])
    return facts(spec) | more


def comparison(a: AlgorithmSpec, b: AlgorithmSpec) -> dict[str, Any]:
    """The slots in which two algorithms differ, with both values and the titles of their parts; JSON-able.

    Raises AlgorithmError where one of them is only shown, for its slots are not known.
    """
    for spec in (a, b):
        if spec.display:
            raise AlgorithmError(f"{spec.id} came as UNIPO cards: it is only shown, so its slots are not known")
    found = algorithms.diff(a, b)
    differ = {each.slot for each in found}
    titled = [
        asdict(each) | {f"{side}_titles": titles_of(spec, each.slot) for side, spec in (("a", a), ("b", b))}
        for each in found
    ]
    same = [slot for slot in SLOTS if slot not in differ and used_parts(a.parts, slot)]
    return {
        "a": a.id,
        "b": b.id,
        "identical": not found,
        "differences": titled,
        "same": {slot: written_slot(a.parts, slot) for slot in same},
    }


def _finite(value: Any) -> Any:
    """JSON in which NaN and infinities, which a user's file may hold, are null."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_exact(spec: AlgorithmSpec) -> bool:
    """Whether all of it was compared with running code: what it says of itself is not enough."""
    return spec.exact and bool(algorithms.confirmations(spec.id)) and not algorithms.not_compared(spec)


def compared(spec: AlgorithmSpec) -> list[str]:
    """Parts of an algorithm a comparison would fail without, named as by `algorithms.part_names`."""
    if spec.display:
        return []
    missing = algorithms.not_compared(spec)
    return [name for name in algorithms.part_names(spec) if name not in missing]


def inexact(spec: AlgorithmSpec) -> str:
    """Why an algorithm is not exact; empty for one that is."""
    if is_exact(spec):
        return ""
    if spec.inexact or not algorithms.confirmations(spec.id):
        return spec.inexact or "its numbers were compared with no running code"
    return f"not compared with running code: {', '.join(algorithms.not_compared(spec))}"


def family_of(spec: AlgorithmSpec) -> str:
    """The family of an algorithm; a user's may have none."""
    return spec.family or "Without a family"


def family_order(family: str) -> tuple[int, str]:
    """Where a family stands in the list."""
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), family)


def needs_of(spec: AlgorithmSpec) -> list[str]:
    """Inputs an algorithm needs; none is known of one that is only shown."""
    return [] if spec.display else algorithms.needs(spec)


def beyond_core(spec: AlgorithmSpec) -> list[str]:
    """Inputs it needs that not every captured run has."""
    return [name for name in needs_of(spec) if name not in CORE]


def parent_of(spec: AlgorithmSpec) -> AlgorithmSpec | None:
    """The algorithm it changed, where that is known here."""
    if spec.display or spec.parent is None or spec.parent == spec.id or spec.parent not in algorithms.ids():
        return None
    parent = algorithms.get(spec.parent)
    return None if parent.display else parent


def lineage_of(spec: AlgorithmSpec) -> list[str]:
    """Ids from the first ancestor to the algorithm itself."""
    found, current = [spec.id], parent_of(spec)
    while current is not None and current.id not in found:
        found.insert(0, current.id)
        current = parent_of(current)
    return found


def children_of(spec: AlgorithmSpec) -> list[str]:
    """Ids of the algorithms that changed this one."""
    return [each.id for each in algorithms.every() if each.parent == spec.id != each.id]


def used_parts(parts: Parts, slot: str) -> list[PartUse]:
    """The parts of a slot that do something."""
    value = getattr(parts, slot)
    return value if isinstance(value, list) else [value] if value.part != "none" else []


def written_slot(parts: Parts, slot: str) -> str:
    """A slot on one line, hyper-parameters included."""
    return " then ".join(algorithms.written(slot, use) for use in used_parts(parts, slot)) or "none"


def titles_of(spec: AlgorithmSpec, slot: str) -> list[str]:
    """Titles of the parts in a slot."""
    return [describe(slot, use.part).title for use in used_parts(spec.parts, slot)] if slot in SLOTS else []


def _slot_facts(parts: Parts, slot: str) -> Iterator[dict[str, Any]]:
    for use in used_parts(parts, slot):
        part, values = describe(slot, use.part), parameters(slot, use)
        yield {
            "heading": HEADINGS[SLOTS[slot]],
            "slot": slot,
            "part": use.part,
            "title": part.title,
            "scope": part.scope,
            "hyper_parameters": {
                name: {"value": value, "symbol": part.parameters[name].symbol, "meaning": part.parameters[name].meaning}
                for name, value in values.items()
            },
            "latex": part.latex,
            "explanation": part.explanation,
            "source": part.source,
        }


def input_facts(name: str) -> dict[str, str]:
    """What an input means and how to capture it; empty for one that a user's part asks for."""
    known = INPUTS.get(name)
    return {"name": name, "meaning": known.meaning if known else "", "capture": known.capture if known else ""}


# --- in few words ----------------------------------------------------------------------------------------------------


def evidence(spec: AlgorithmSpec) -> str:
    """What an algorithm was compared with; or that it is not exact, and how its definition is known."""
    # of a repository its name will do here; `show` has the owner and the commit
    libraries = ", ".join(dict.fromkeys(each.split("@")[0].split("/")[-1] for each in libraries_of(spec)))
    if is_exact(spec):
        return f"compared with {libraries}"
    if libraries:
        return f"not exact, in part compared with {libraries}"
    how = EVIDENCE.get(spec.evidence[:1])
    return f"not exact, {how}" if how else "not exact"


def libraries_of(spec: AlgorithmSpec) -> list[str]:
    """Library and version of each comparison, once."""
    return list(dict.fromkeys(library_of(each) for each in algorithms.confirmations(spec.id)))


def library_of(confirmation: Confirmation) -> str:
    """Where the code is from: "trl 1.16.0" of "trl 1.16.0 GRPOTrainer._compute_loss", or "owner/name@commit"."""
    return _origin(confirmation)[0]


def function_of(confirmation: Confirmation) -> str:
    """What was compared: "GRPOTrainer._compute_loss" of "trl 1.16.0 GRPOTrainer._compute_loss"."""
    return _origin(confirmation)[1]


def _origin(confirmation: Confirmation) -> tuple[str, str]:
    words = confirmation.against.split()
    end = 1 if "@" in words[0] else 2  # a commit is part of the name, a version stands after it
    return " ".join(words[:end]), " ".join(words[end:])


def special(spec: AlgorithmSpec) -> str:
    """What an algorithm fills in another way than its parent does, or than an empty slot, in few words."""
    if spec.display:
        return "UNIPO cards, only shown"
    parent = parent_of(spec)
    base = parent.parts if parent else None
    found = [text for slot in SLOTS if (text := _change(slot, base, spec.parts))]
    if spec.mixture and (parent is None or parent.mixture != spec.mixture):
        found.append(f"mixture of {len(spec.mixture)}")
    if found:
        return ", ".join(found)
    return f"the same parts as {parent.id}" if parent else ""


def _change(slot: str, base: Parts | None, parts: Parts) -> str:
    """One slot in few words; empty where it is as before. Of the same parts only the changed hyper-parameters."""
    new = used_parts(parts, slot)
    field = Parts.model_fields[slot]
    if base is None:
        default = field.get_default(call_default_factory=True)
        if getattr(parts, slot) == default and not field.is_required():
            return ""
        return f"{slot} {names_of(new)}" if new else ""
    old = used_parts(base, slot)
    if [use.part for use in old] != [use.part for use in new]:
        return f"{slot} {names_of(new)}" if new else f"no {slot}"
    changed = [
        f"{name} {value_text(value)}"
        for before, after in zip(old, new, strict=True)
        for name, value in parameters(slot, after).items()
        if value != parameters(slot, before).get(name)
    ]
    return f"{slot} {' '.join(changed)}" if changed else ""


def names_of(uses: list[PartUse]) -> str:
    """Names of parts that are applied together."""
    return " + ".join(use.part for use in uses)


def value_text(value: Any) -> str:
    """A hyper-parameter as JSON has it; numbers without needless digits."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
