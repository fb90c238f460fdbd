"""What `unipo-hooks algorithms` shows people: the list, one algorithm explained, two side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from unipo_hooks import algorithms
from unipo_hooks.algorithm_spec import HEADINGS, SLOTS, AlgorithmSpec, Component, Parts, PartUse
from unipo_hooks.cli.algorithm_facts import (
    CORE,
    EVIDENCE,
    beyond_core,
    children_of,
    compared,
    evidence,
    family_of,
    function_of,
    inexact,
    input_facts,
    is_exact,
    libraries_of,
    library_of,
    lineage_of,
    names_of,
    needs_of,
    parent_of,
    special,
    used_parts,
    value_text,
    written_slot,
)
from unipo_hooks.cli.terminal import console, printable
from unipo_hooks.cli.words import WORDS
from unipo_hooks.objective.describe import describe, merged, parameters

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from unipo_hooks.objective.describe import Part

_WIDE = 120
"""Columns from which the list is one line an algorithm."""

_PROSE = 96
"""Columns of a paragraph: longer lines are hard to follow."""

NOT_EXACT, CONFIRMED = "bold yellow", "green"


def list_table(specs: list[AlgorithmSpec]) -> Table:
    """Algorithms by family. One line each in a pipe or on a wide screen; else a paragraph beside each id."""
    screen = console()
    wide = not screen.is_terminal or screen.width >= _WIDE
    table = _grid()
    table.add_column(no_wrap=True, style="bold")
    if wide:
        for width in (18, None, None, 22, 19):
            table.add_column(overflow="fold", max_width=_prose(width) if width else None)
        heads = ("id", "name", "year", "against its parent", "evidence", "needs as well")
        table.add_row(*(_text(head, "dim") for head in heads))
    else:
        table.add_column(overflow="fold")
    family = None
    for spec in specs:
        if family_of(spec) != family:
            family = family_of(spec)
            table.add_row("")
            table.add_row(_text(family, "bold underline"))
        row = _wide_row(spec) if wide else [_paragraph(spec)]
        table.add_row(_text(spec.id), *row)
    return table


def _wide_row(spec: AlgorithmSpec) -> list[RenderableType]:
    year = str(spec.year) if spec.year else ""
    needs = ", ".join(beyond_core(spec))
    return [_text(spec.name), _text(year), _text(special(spec)), _evidence(spec), _text(needs)]


def _paragraph(spec: AlgorithmSpec) -> Text:
    text = _text(", ".join(filter(None, (spec.name, str(spec.year or "")))))
    text.append("; ").append_text(_evidence(spec))
    if what := special(spec):
        text.append(f"\n{printable(what)}", "dim")
    if needs := beyond_core(spec):
        text.append(f"\nneeds {printable(', '.join(needs))}")
    return text


def _evidence(spec: AlgorithmSpec) -> Text:
    return _text(evidence(spec), CONFIRMED if is_exact(spec) else NOT_EXACT)


def summary(specs: list[AlgorithmSpec]) -> list[str]:
    """What to know below the list: how many, and what to ask next."""
    if not specs:
        return ["no algorithm is like that"]
    exact = sum(map(is_exact, specs))
    number = "1 algorithm" if len(specs) == 1 else f"{len(specs)} algorithms"
    return [
        f"{number}, {exact} compared with running code: a trainer's, the authors' or another library's",
        "Next: unipo-hooks algorithms show ID, or diff A B; unipo-hooks algorithms words says what the words mean",
    ]


def pages(spec: AlgorithmSpec) -> Iterator[tuple[str, Table]]:
    """An algorithm explained, as sections of a heading and a table; the first has no heading."""
    yield "", _head(spec)
    yield "Where it comes from", _origin(spec)
    if algorithms.confirmations(spec.id):
        yield "Compared with", _confirmations(spec)
    if spec.display:
        yield from _cards(spec.display)
        return
    for key, heading in HEADINGS.items():
        slots = [slot for slot in SLOTS if SLOTS[slot] == key]
        used = [(slot, use) for slot in slots for use in used_parts(spec.parts, slot)]
        yield heading if used else f"{heading}: {_EMPTY[key]}", _section(used)
    if spec.mixture:
        yield "Mixture: a sum of objectives, each over rows of its own", _mixture(spec)
    yield "Needs", _inputs(spec)


_EMPTY = {
    "advantage": "the reward itself",
    "objective": "none",
    "constraint": "none",
    "mask": "every token counts that the trainer counts",
    "aggregation": "none",
}
"""What it means that nothing is said under a heading."""


def heading_table(heading: str) -> Table:
    """A heading on a line of its own."""
    table = _grid()
    table.add_column()
    table.add_row(_text(heading, "bold underline"))
    return table


def _head(spec: AlgorithmSpec) -> Table:
    table = _grid()
    table.add_column(overflow="fold", max_width=_prose(_PROSE + 14))
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
        table.add_row(_text(f"Exact: its numbers were compared with {', '.join(libraries_of(spec))}", CONFIRMED))
    else:
        table.add_row(_text("NOT EXACT: ", NOT_EXACT).append(printable(inexact(spec)), "yellow"))
    return table


def _origin(spec: AlgorithmSpec) -> Table:
    table = _labelled()
    if spec.story:
        table.add_row("story", _text(spec.story))
    if spec.changed:
        table.add_row("changed", _text(spec.changed))
    if parent := parent_of(spec):
        for slot in SLOTS:
            if step := _step(used_parts(parent.parts, slot), used_parts(spec.parts, slot), slot):
                table.add_row("", _text(f"{slot}: ", "dim").append(printable(step)))
    lineage = lineage_of(spec)
    if spec.parent and spec.parent not in lineage:
        lineage.insert(0, f"{spec.parent} (not known here)")
    if len(lineage) > 1:
        table.add_row("comes from", _text(" → ".join(lineage)))
    if children := children_of(spec):
        table.add_row("led to", _text(", ".join(children)))
    table.add_row("family", _text(family_of(spec)))
    if how := EVIDENCE.get(spec.evidence[:1]):
        table.add_row("definition", _text(how))
    if not spec.display:
        table.add_row("scope", _text(_SCOPES[algorithms.scope(spec)]))
    return table


def _step(old: list[PartUse], new: list[PartUse], slot: str) -> str:
    """From one slot to another in few words: the parts, or of the same parts the hyper-parameters that changed."""
    if [use.part for use in old] != [use.part for use in new]:
        return f"{names_of(old) or 'none'} → {names_of(new) or 'none'}"
    return ", ".join(
        f"{name} {value_text(before)} → {value_text(value)}"
        for first, second in zip(old, new, strict=True)
        for name, value in parameters(slot, second).items()
        if (before := parameters(slot, first).get(name)) != value
    )


def _confirmations(spec: AlgorithmSpec) -> Table:
    table = _labelled()
    for each in algorithms.confirmations(spec.id):
        cases = "1 case" if each.cases == 1 else f"{each.cases} cases"
        said = f"{' and '.join(each.covers)} in {cases}, largest error {f'{each.error:.1e}' if each.error else 0}"
        table.add_row(_text(library_of(each)), _text(f"{function_of(each)}: {said}"))
    missing = ", ".join(algorithms.not_compared(spec)) or "nothing"
    table.add_row("parts", _text(f"compared: {', '.join(compared(spec)) or 'nothing'}; not compared: {missing}"))
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
    """Hyper-parameters with their values, symbols and meanings; those at their defaults are last, and dim."""
    table = _grid()
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name in sorted(values, key=lambda each: values[each] == part.parameters[each].default):
        known, value = part.parameters[name], values[name]
        style = "dim" if value == known.default else ""
        symbol = "" if r"\mathrm{" + name in known.symbol.replace(r"\_", "_") else known.symbol
        meaning = _text(symbol, "cyan").append("  " if symbol else "").append(known.meaning, style or None)
        table.add_row(_text(f"{name} = {value_text(value)}", style), meaning)
    return table


def _mixture(spec: AlgorithmSpec) -> Table:
    table = _labelled()
    for component in spec.mixture:
        table.add_row(f"source {component.source}", _text(_component(spec, component)))
        own = merged(spec.parts, component.parts)
        for slot in component.parts:
            titles = " then ".join(describe(slot, use.part).title for use in used_parts(own, slot)) or "none"
            table.add_row(
                "", _text(f"{slot}: ", "dim").append(f"{titles}  ", "bold").append(written_slot(own, slot), "dim")
            )
    return table


def _mixed(spec: AlgorithmSpec) -> Text:
    """A mixture in few words."""
    lines = []
    for each in spec.mixture:
        own = merged(spec.parts, each.parts)
        slots = ", ".join(f"{slot} {names_of(used_parts(own, slot)) or 'none'}" for slot in each.parts)
        lines.append(f"source {each.source}: {_component(spec, each)}" + (f"; {slots}" if slots else ""))
    return _text("\n".join(lines)) if lines else _text("none", "dim")


def _component(spec: AlgorithmSpec, component: Component) -> str:
    rows = {"own": "its own rows", "all": "all rows"}
    said = f"times {component.coefficient:g}, averaged over {rows[component.denominator]}"
    baseline = describe("baseline", merged(spec.parts, component.parts).baseline.part)
    if "reward" not in baseline.needs:  # what is imitated, say, has no reward to compare
        return said
    return f"{said}, rewards compared with those of {rows[component.statistics]}"


def _inputs(spec: AlgorithmSpec) -> Table:
    table = _labelled()
    core = [name for name in CORE if name in ("log_probs", "mask", *needs_of(spec))]
    table.add_row("always there", _text(", ".join(core)))
    for name in beyond_core(spec):
        known = input_facts(name)
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
            table.add_row(each.slot, _side(a.parts, b.parts, each.slot), _side(b.parts, a.parts, each.slot))
            continue
        for row in list(_mixture_rows(a, b)) or [(each.slot, _mixed(a), _mixed(b))]:
            table.add_row(*row)
    return table


def _mixture_rows(a: AlgorithmSpec, b: AlgorithmSpec) -> Iterator[tuple[str, Text, Text]]:
    """What differs between two mixtures of the same sources, component by component; nothing where they do not fit."""
    if [each.source for each in a.mixture] != [each.source for each in b.mixture]:
        return
    for one, other in zip(a.mixture, b.mixture, strict=True):
        own = merged(a.parts, one.parts), merged(b.parts, other.parts)
        # a slot that neither sets for itself is that of the algorithm, where it is shown already
        slots = [slot for slot in SLOTS if slot in one.parts or slot in other.parts]
        changed = [slot for slot in slots if written_slot(own[0], slot) != written_slot(own[1], slot)]
        said = _component(a, one), _component(b, other)
        differ = said[0] != said[1]
        if differ or changed:
            left, right = (_text(each if differ else "") for each in said)
            yield f"source {one.source}", left, right
        for slot in changed:
            yield f"  {slot}", _side(own[0], own[1], slot), _side(own[1], own[0], slot)


def words_table() -> Table:
    """The words algorithms are explained in."""
    table = _labelled()
    for word, meaning in WORDS.items():
        table.add_row(_text(word), _text(meaning))
    return table


def _side(own: Parts, other: Parts, slot: str) -> Text:
    """A slot of one of two algorithms: its parts and, of a part both use, first the settings that differ."""
    text = _text("")
    theirs = {use.part: parameters(slot, use) for use in used_parts(other, slot)}
    for number, use in enumerate(used_parts(own, slot)):
        title = printable(describe(slot, use.part).title)
        text.append("\n" if number else "").append(title, "bold").append(f"  {printable(use.part)}", "dim")
        values = parameters(slot, use)
        changed = [name for name in values if use.part in theirs and values[name] != theirs[use.part].get(name)]
        for name in changed:
            text.append(printable(f"\n{name} = {value_text(values[name])}"))
        rest = [
            f"{name} {value_text(value)}" for name, value in values.items() if name not in changed and value is not None
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


def _prose(columns: int) -> int | None:
    """So many columns for a paragraph; a pipe has whole lines."""
    return columns if console().is_terminal else None


def _labelled() -> Table:
    """A grid of a label and a paragraph a row."""
    table = _grid()
    table.add_column(style="dim", no_wrap=True, min_width=13)
    table.add_column(overflow="fold", max_width=_prose(_PROSE))
    return table


def _text(value: str, style: str = "") -> Text:
    """Text for a cell, made fit for a terminal; what is appended to it has a style of its own."""
    from rich.text import Text

    return Text().append(printable(value), style or None)
