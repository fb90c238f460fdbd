"""What `unipo-hooks algorithms` tells: algorithms as data for scripts, and as tables for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from unipo_hooks import algorithms
from unipo_hooks.algorithm_spec import HEADINGS, SLOTS, AlgorithmSpec, Component, Parts, PartUse
from unipo_hooks.cli.terminal import console, printable
from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.describe import describe, merged, parameters
from unipo_hooks.objective.inputs import INPUTS

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from unipo_hooks.algorithms import Confirmation
    from unipo_hooks.objective.describe import Part

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
    "X": "known from running its code",
    "C": "known from reading its code",
    "P": "known from the paper alone",
    "2": "known second hand",
    "U": "unverified",
}
"""How a definition is known, in words."""

_WIDE = 120
"""Columns from which the list is one line an algorithm."""

_PROSE = 96
"""Columns of a paragraph: longer lines are hard to follow."""

NOT_EXACT, CONFIRMED = "bold yellow", "green"


# --- facts -----------------------------------------------------------------------------------------------------------


def selected(family: str | None, needed: str | None) -> list[AlgorithmSpec]:
    """Algorithms of a family, that need an input, family by family from old to new.

    Raises AlgorithmError where there is no such family or input.
    """
    every = algorithms.every()
    families = sorted({_family(spec) for spec in every}, key=_family_order)
    if family is not None:
        near = [each for each in families if family.lower() in each.lower()]
        if not near:
            raise AlgorithmError(f"no family {family!r}; there are {', '.join(families)}")
        families = near
    if needed is not None and needed not in INPUTS and not any(needed in _needs(spec) for spec in every):
        close = get_close_matches(needed, INPUTS, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(INPUTS)}"
        raise AlgorithmError(f"no input {needed!r}; {hint}")
    chosen = [spec for spec in every if _family(spec) in families and (needed is None or needed in _needs(spec))]
    return sorted(chosen, key=lambda spec: (_family_order(_family(spec)), spec.year or 9999, spec.id))


def facts(spec: AlgorithmSpec) -> dict[str, Any]:
    """An algorithm with what is known of it; JSON-able. `scope` is None for one that is only shown."""
    return {
        "spec": _finite(spec.model_dump(mode="json")),
        "scope": None if spec.display else algorithms.scope(spec),
        "needs": _needs(spec),
        "exact": is_exact(spec),
        "inexact": inexact(spec),
        "confirmations": [asdict(each) for each in algorithms.confirmations(spec.id)],
    }


def explanation(spec: AlgorithmSpec) -> dict[str, Any]:
    """`facts`, and what is said of the parts, the changes against the parent and the inputs needed; JSON-able."""
    parent = _parent(spec)
    return facts(spec) | _finite(
        {
            "lineage": _lineage(spec),
            "children": _children(spec),
            "against_parent": [asdict(each) for each in algorithms.diff(parent, spec)] if parent else [],
            "slots": [] if spec.display else [fact for slot in SLOTS for fact in _slot_facts(spec.parts, slot)],
            "inputs": [_input_facts(name) for name in ("log_probs", "mask", *_needs(spec))],
        }
    )


def comparison(a: AlgorithmSpec, b: AlgorithmSpec) -> dict[str, Any]:
    """The slots in which two algorithms differ, with both values and the titles of their parts; JSON-able.

    Raises AlgorithmError where one of them is only shown, for its slots are not known.
    """
    for spec in (a, b):
        if spec.display:
            raise AlgorithmError(f"{spec.id} came as UNIPO cards: it is only shown, so its slots are not known")
    found = algorithms.diff(a, b)
    slots = {each.slot for each in found}
    return {
        "a": a.id,
        "b": b.id,
        "identical": not found,
        "differences": [
            asdict(each) | {"a_titles": _titles(a, each.slot), "b_titles": _titles(b, each.slot)} for each in found
        ],
        "same": {slot: _written(a.parts, slot) for slot in SLOTS if slot not in slots and _used(a.parts, slot)},
    }


def _finite(value: Any) -> Any:
    """JSON in which NaN and infinities, which a user's file may hold, are null."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_exact(spec: AlgorithmSpec) -> bool:
    """Whether its numbers were compared with the code that defines it: what it says of itself is not enough."""
    return spec.exact and bool(algorithms.confirmations(spec.id))


def inexact(spec: AlgorithmSpec) -> str:
    """Why an algorithm is not exact; empty for one that is."""
    if is_exact(spec):
        return ""
    return spec.inexact or "its numbers were compared with no code that defines it"


def _family(spec: AlgorithmSpec) -> str:
    return spec.family or "Without a family"


def _family_order(family: str) -> tuple[int, str]:
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), family)


def _needs(spec: AlgorithmSpec) -> list[str]:
    return [] if spec.display else algorithms.needs(spec)


def _beyond_core(spec: AlgorithmSpec) -> list[str]:
    return [name for name in _needs(spec) if name not in CORE]


def _parent(spec: AlgorithmSpec) -> AlgorithmSpec | None:
    """The algorithm it changed, where that is known here."""
    if spec.display or spec.parent is None or spec.parent == spec.id or spec.parent not in algorithms.ids():
        return None
    parent = algorithms.get(spec.parent)
    return None if parent.display else parent


def _lineage(spec: AlgorithmSpec) -> list[str]:
    """Ids from the first ancestor to the algorithm itself."""
    found, current = [spec.id], _parent(spec)
    while current is not None and current.id not in found:
        found.insert(0, current.id)
        current = _parent(current)
    return found


def _children(spec: AlgorithmSpec) -> list[str]:
    return [each.id for each in algorithms.every() if each.parent == spec.id != each.id]


def _used(parts: Parts, slot: str) -> list[PartUse]:
    """The parts of a slot that do something."""
    value = getattr(parts, slot)
    return value if isinstance(value, list) else [value] if value.part != "none" else []


def _written(parts: Parts, slot: str) -> str:
    return " then ".join(algorithms.written(slot, use) for use in _used(parts, slot)) or "none"


def _titles(spec: AlgorithmSpec, slot: str) -> list[str]:
    return [describe(slot, use.part).title for use in _used(spec.parts, slot)] if slot in SLOTS else []


def _slot_facts(parts: Parts, slot: str) -> Iterator[dict[str, Any]]:
    for use in _used(parts, slot):
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


def _input_facts(name: str) -> dict[str, str]:
    known = INPUTS.get(name)
    return {"name": name, "meaning": known.meaning if known else "", "capture": known.capture if known else ""}


# --- in few words ----------------------------------------------------------------------------------------------------


def evidence(spec: AlgorithmSpec) -> str:
    """Against what an algorithm was confirmed; or that it is not exact, and how its definition is known."""
    libraries = " and ".join(_libraries(spec))
    if is_exact(spec):
        return f"confirmed: {libraries}"
    if libraries:
        return f"not exact, in part compared: {libraries}"
    how = EVIDENCE.get(spec.evidence[:1])
    return f"not exact, {how}" if how else "not exact"


def _libraries(spec: AlgorithmSpec) -> list[str]:
    """Library and version of each comparison, once."""
    return list(dict.fromkeys(_library(each) for each in algorithms.confirmations(spec.id)))


def _library(confirmation: Confirmation) -> str:
    """Library and version of "trl 1.16.0 GRPOTrainer._compute_loss"; what follows is the function."""
    return " ".join(confirmation.against.split()[:2])


def special(spec: AlgorithmSpec) -> str:
    """What an algorithm fills in another way than its parent does, or than an empty slot, in few words."""
    if spec.display:
        return "UNIPO cards, only shown"
    parent = _parent(spec)
    base = parent.parts if parent else None
    found = [text for slot in SLOTS if (text := _change(slot, base, spec.parts))]
    if spec.mixture and (parent is None or parent.mixture != spec.mixture):
        found.append(f"mixture of {len(spec.mixture)}")
    if found:
        return ", ".join(found)
    return f"the same parts as {parent.id}" if parent else ""


def _change(slot: str, base: Parts | None, parts: Parts) -> str:
    """One slot in few words; empty where it is as before. Of the same parts only the changed hyper-parameters."""
    new = _used(parts, slot)
    field = Parts.model_fields[slot]
    if base is None:
        default = field.get_default(call_default_factory=True)
        if getattr(parts, slot) == default and not field.is_required():
            return ""
        return f"{slot} {_names(new)}" if new else ""
    old = _used(base, slot)
    if [use.part for use in old] != [use.part for use in new]:
        return f"{slot} {_names(new)}" if new else f"no {slot}"
    changed = [
        f"{name} {_value(value)}"
        for before, after in zip(old, new, strict=True)
        for name, value in parameters(slot, after).items()
        if value != parameters(slot, before).get(name)
    ]
    return f"{slot} {' '.join(changed)}" if changed else ""


def _names(uses: list[PartUse]) -> str:
    return " + ".join(use.part for use in uses)


def _value(value: Any) -> str:
    """A hyper-parameter as JSON has it; numbers without needless digits."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


# --- tables ----------------------------------------------------------------------------------------------------------


def list_table(specs: list[AlgorithmSpec]) -> Table:
    """Algorithms by family. One line each in a pipe or on a wide screen; else a paragraph beside each id."""
    screen = console()
    wide = not screen.is_terminal or screen.width >= _WIDE
    table = _grid()
    table.add_column(no_wrap=True, style="bold")
    if wide:
        for width in (18, None, None, 22, 19):  # a pipe has whole lines
            table.add_column(overflow="fold", max_width=width if screen.is_terminal else None)
        heads = ("id", "name", "year", "against its parent", "evidence", "needs as well")
        table.add_row(*(_text(head, "dim") for head in heads))
    else:
        table.add_column(overflow="fold")
    family = None
    for spec in specs:
        if _family(spec) != family:
            family = _family(spec)
            table.add_row("")
            table.add_row(_text(family, "bold underline"))
        row = _wide_row(spec) if wide else [_paragraph(spec)]
        table.add_row(_text(spec.id), *row)
    return table


def _wide_row(spec: AlgorithmSpec) -> list[RenderableType]:
    year = str(spec.year) if spec.year else ""
    needs = ", ".join(_beyond_core(spec))
    return [_text(spec.name), _text(year), _text(special(spec)), _evidence(spec), _text(needs)]


def _paragraph(spec: AlgorithmSpec) -> Text:
    text = _text(", ".join(filter(None, (spec.name, str(spec.year or "")))))
    text.append("; ").append_text(_evidence(spec))
    if what := special(spec):
        text.append(f"\n{printable(what)}", "dim")
    if needs := _beyond_core(spec):
        text.append(f"\nneeds {printable(', '.join(needs))}")
    return text


def _evidence(spec: AlgorithmSpec) -> Text:
    return _text(evidence(spec), CONFIRMED if is_exact(spec) else NOT_EXACT)


def summary(specs: list[AlgorithmSpec]) -> list[str]:
    """What to know below the list: how many, and what to ask next."""
    if not specs:
        return ["no algorithm needs it"]
    exact = sum(map(is_exact, specs))
    number = "1 algorithm" if len(specs) == 1 else f"{len(specs)} algorithms"
    return [
        f"{number}, {exact} confirmed against the code that defines them",
        "Next: unipo-hooks algorithms show ID, or unipo-hooks algorithms diff A B",
    ]


def pages(spec: AlgorithmSpec) -> Iterator[tuple[str, Table]]:
    """An algorithm explained, as sections of a heading and a table; the first has no heading."""
    yield "", _head(spec)
    yield "Where it comes from", _origin(spec)
    if compared := algorithms.confirmations(spec.id):
        yield "Compared with", _confirmations(compared)
    if spec.display:
        yield from _cards(spec.display)
        return
    for key, heading in HEADINGS.items():
        slots = [slot for slot in SLOTS if SLOTS[slot] == key]
        used = [(slot, use) for slot in slots for use in _used(spec.parts, slot)]
        yield heading if used else f"{heading}: none", _section(used)
    if spec.mixture:
        yield "Mixture: a sum of objectives, each over rows of its own", _mixture(spec)
    yield "Needs", _inputs(spec)


def heading_table(heading: str) -> Table:
    """A heading on a line of its own."""
    table = _grid()
    table.add_column()
    table.add_row(_text(heading, "bold underline"))
    return table


def _head(spec: AlgorithmSpec) -> Table:
    table = _grid()
    table.add_column(overflow="fold", max_width=_PROSE + 14)
    name = _text(spec.name, "bold")
    if spec.name != spec.id:
        name.append(f"  {printable(spec.id)}", "dim")
    table.add_row(name)
    facts_line = ", ".join(filter(None, (spec.title if spec.title != spec.name else "", str(spec.year or ""))))
    for line in (facts_line, spec.source):
        if line:
            table.add_row(_text(line))
    table.add_row("")
    if is_exact(spec):
        table.add_row(_text(f"Exact: its numbers were compared with {' and '.join(_libraries(spec))}", CONFIRMED))
    else:
        table.add_row(_text("NOT EXACT: ", NOT_EXACT).append(printable(inexact(spec)), "yellow"))
    return table


def _origin(spec: AlgorithmSpec) -> Table:
    table = _labelled()
    if spec.story:
        table.add_row("story", _text(spec.story))
    if spec.changed:
        table.add_row("changed", _text(spec.changed))
    if parent := _parent(spec):
        for each in algorithms.diff(parent, spec):
            table.add_row("", _text(f"{each.slot}: ", "dim").append(printable(f"{each.a} → {each.b}")))
    lineage = _lineage(spec)
    if spec.parent and spec.parent not in lineage:
        lineage.insert(0, f"{spec.parent} (not known here)")
    if len(lineage) > 1:
        table.add_row("comes from", _text(" → ".join(lineage)))
    if children := _children(spec):
        table.add_row("led to", _text(", ".join(children)))
    table.add_row("family", _text(_family(spec)))
    if how := EVIDENCE.get(spec.evidence[:1]):
        table.add_row("definition", _text(how))
    if not spec.display:
        table.add_row("scope", _text(_SCOPES[algorithms.scope(spec)]))
    return table


def _confirmations(compared: tuple[Confirmation, ...]) -> Table:
    table = _labelled()
    for each in compared:
        cases = "1 case" if each.cases == 1 else f"{each.cases} cases"
        said = f"{' and '.join(each.covers)} in {cases}, largest error {each.error:.1e}"
        table.add_row(_text(_library(each)), _text(f"{' '.join(each.against.split()[2:])}: {said}"))
    return table


_SCOPES = {
    "token": "a token can be computed alone",
    "response": "all tokens of a response are needed at once",
    "group": "all responses of a group are needed at once",
    "batch": "the whole batch is needed at once",
    "history": "statistics of earlier updates are needed",
}
"""What has to be known at once, in words."""


def _section(used: list[tuple[str, PartUse]]) -> Table:
    table = _labelled()
    for slot, use in used:
        part = describe(slot, use.part)
        table.add_row(slot, _text(part.title, "bold").append(f"  {printable(use.part)}", "dim"))
        table.add_row("", _text(part.explanation))
        if part.latex:
            table.add_row("  formula", _text(part.latex, "cyan"))
        if part.parameters:
            table.add_row("  settings", _settings(part, parameters(slot, use)))
    return table


def _settings(part: Part, values: dict[str, Any]) -> Table:
    """Hyper-parameters with their values, symbols and meanings."""
    table = _grid()
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in values.items():
        known = part.parameters[name]
        symbol = "" if r"\mathrm{" + name in known.symbol.replace(r"\_", "_") else known.symbol
        meaning = _text(symbol, "cyan").append("  " if symbol else "").append(known.meaning)
        table.add_row(_text(f"{name} = {_value(value)}"), meaning)
    return table


def _mixture(spec: AlgorithmSpec) -> Table:
    table = _labelled()
    for component in spec.mixture:
        table.add_row(f"source {component.source}", _text(_component(component)))
        own = merged(spec.parts, component.parts)
        for slot in component.parts:
            titles = " then ".join(describe(slot, use.part).title for use in _used(own, slot)) or "none"
            table.add_row(
                "", _text(f"{slot}: ", "dim").append(f"{titles}  ", "bold").append(_written(own, slot), "dim")
            )
    return table


def _mixed(spec: AlgorithmSpec) -> Text:
    """A mixture in few words."""
    lines = []
    for each in spec.mixture:
        own = merged(spec.parts, each.parts)
        slots = ", ".join(f"{slot} {_names(_used(own, slot)) or 'none'}" for slot in each.parts)
        lines.append(f"source {each.source}: {_component(each)}" + (f"; {slots}" if slots else ""))
    return _text("\n".join(lines)) if lines else _text("none", "dim")


def _component(component: Component) -> str:
    rows = {"own": "its own rows", "all": "all rows"}
    return (
        f"times {component.coefficient:g}, averaged over {rows[component.denominator]}, rewards compared with those of "
        f"{rows[component.statistics]}"
    )


def _inputs(spec: AlgorithmSpec) -> Table:
    table = _labelled()
    core = [name for name in CORE if name in ("log_probs", "mask", *_needs(spec))]
    table.add_row("always there", _text(", ".join(core)))
    for name in _beyond_core(spec):
        known = _input_facts(name)
        text = f"{known['meaning']} To have it: {known['capture']}." if known["capture"] else "an input of a part's own"
        table.add_row(_text(name), _text(text))
    return table


def _cards(display: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    """UNIPO's own cards, as far as they are text."""
    for card in _objects(display.get("cards")):
        table = _labelled()
        if card.get("description"):
            table.add_row("", _text(str(card["description"])))
        for section in _objects(card.get("sections")):
            table.add_row(_text(str(section.get("label") or "")), _text(str(section.get("katex") or ""), "cyan"))
        yield str(card.get("title") or card.get("id") or "A card"), table


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects in a list of a file that nobody has checked."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def diff_table(a: AlgorithmSpec, b: AlgorithmSpec) -> Table:
    """The slots in which two algorithms differ, side by side, under UNIPO's headings."""
    table = _grid()
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold", ratio=1)
    table.add_column(overflow="fold", ratio=1)
    table.expand = console().is_terminal
    table.add_row("", *(_text(f"{spec.name}  ", "bold").append(printable(spec.id), "dim") for spec in (a, b)))
    heading = ""
    found = algorithms.diff(a, b)
    order = [*HEADINGS.values(), "Mixture"]
    for each in sorted(found, key=lambda each: order.index(each.heading)):
        if each.heading != heading:
            heading = each.heading
            table.add_row("")
            table.add_row("", _text(heading, "bold underline"))
        if each.slot in SLOTS:
            sides = (_side(a.parts, b.parts, each.slot), _side(b.parts, a.parts, each.slot))
        else:
            sides = (_mixed(a), _mixed(b))
        table.add_row(each.slot, *sides)
    return table


def _side(own: Parts, other: Parts, slot: str) -> Text:
    """A slot of one of two algorithms: its parts and, of a part both use, first the settings that differ."""
    text = _text("")
    theirs = {use.part: parameters(slot, use) for use in _used(other, slot)}
    for number, use in enumerate(_used(own, slot)):
        title = printable(describe(slot, use.part).title)
        text.append("\n" if number else "").append(title, "bold").append(f"  {printable(use.part)}", "dim")
        values = parameters(slot, use)
        changed = [name for name in values if use.part in theirs and values[name] != theirs[use.part].get(name)]
        for name in changed:
            text.append(printable(f"\n{name} = {_value(values[name])}"))
        rest = [
            f"{name} {_value(value)}" for name, value in values.items() if name not in changed and value is not None
        ]
        if rest:
            text.append(printable(f"\n{', '.join(rest)}"), "dim")
    return text if text else _text("none", "dim")


def shared(compared: dict[str, Any]) -> Table:
    """What two algorithms have in common, on as few lines as it takes."""
    table = _labelled()
    same = ", ".join(f"{slot} {written}" for slot, written in compared["same"].items())
    table.add_row("the same", _text(same or "nothing"))
    return table


def _grid() -> Table:
    from rich.table import Table

    return Table.grid(padding=(0, 2))


def _labelled() -> Table:
    """A grid of a label and a paragraph a row."""
    table = _grid()
    table.add_column(style="dim", no_wrap=True, min_width=13)
    table.add_column(overflow="fold", max_width=_PROSE)
    return table


def _text(value: str, style: str = "") -> Text:
    """Text for a cell, made fit for a terminal; what is appended to it has a style of its own."""
    from rich.text import Text

    return Text().append(printable(value), style or None)
