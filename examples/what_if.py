"""What other algorithms would have made of the same tokens: one update of a bundle under several objectives.

    python examples/what_if.py runs/demo
    python examples/what_if.py runs/demo 7 gspo cispo examples/my_algorithm.json

Without an update it takes the last one captured; without algorithms GSPO, CISPO and the one in my_algorithm.json.

What is compared is the objective on the same tokens with the same parameters, not what training would have done.
Descent moves against the gradient weight, so the push on a token is its negative; up and down are the shares of tokens
pushed either way, clipped is the share the policy term no longer pushes, capped that pushed with a limited ratio.

A micro-batch may hold only a part of a group. Where it holds whole groups an algorithm's own advantages are computed;
elsewhere it takes those of the trainer. A line below the table says which it was.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unipo_hooks import algorithms, evaluate, open_bundle
from unipo_hooks.algorithm_spec import SLOTS
from unipo_hooks.errors import AlgorithmError, BundleError, UnipoError
from unipo_hooks.objective.describe import merged, uses
from unipo_hooks.objective.inputs import INPUTS

if TYPE_CHECKING:
    from unipo_hooks.algorithm_spec import AlgorithmSpec
    from unipo_hooks.bundle.batches import MicroBatch
    from unipo_hooks.bundle.reader import Bundle
    from unipo_hooks.objective.evaluate import Evaluation

MINE = Path(__file__).with_name("my_algorithm.json")
OTHERS = ("gspo", "cispo", str(MINE))
SILENT = 5
"""Codes of `Evaluation.clipped` up to this one: the policy term does not push. Above it pushes with a capped ratio."""


@dataclass(frozen=True)
class Answer:
    """An algorithm on every micro-batch of an update, or why there is none."""

    name: str
    found: list[Evaluation]
    said: str


def main(path: str, update: int | None = None, others: tuple[str, ...] = OTHERS) -> None:
    """Print a row for the run's algorithm and one for each of the others."""
    bundle = open_bundle(path)
    update, attempt = captured_update(bundle, update)
    micro_batches = bundle.micro_batches(update)
    if not micro_batches:
        raise BundleError(f"{path} keeps no tokens of update {update}; choose another")
    answers = []
    if (own := bundle.manifest.attempt(attempt).algorithm) is not None:
        answers.append(of_the_run(algorithms.get(own), micro_batches))
    size = bundle.manifest.header.hparams.get("group_size")
    answers += [of_another(algorithms.chosen(other), micro_batches, size) for other in others]

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("algorithm", overflow="fold")
    for head in ("loss", "clipped", "capped", "up", "down", "largest\npush", "cosine"):
        table.add_column(head, justify="right", no_wrap=True)
    computed = [answer for answer in answers if answer.found]
    for answer in computed:
        table.add_row(Text(answer.name), *row(answer.found, micro_batches, computed[0].found))
    console = Console(markup=False, highlight=False, emoji=False)
    console.print(f"{path}, update {update}")
    if computed:
        console.print(table)
    for answer in answers:
        console.print(f"{answer.name}: {answer.said}")


def captured_update(bundle: Bundle, update: int | None) -> tuple[int, int]:
    """The update asked for, or the last one captured, and the start of the trainer it belongs to."""
    there = {row["update"]: row["attempt"] for row in bundle.updates().to_pylist()}
    if not there:
        raise BundleError(f"{bundle.path} has no update yet")
    if update is None:
        update = max(there)
    if update not in there:
        raise BundleError(f"{bundle.path} has no update {update}; captured are {ranges(sorted(there))}")
    return update, there[update]


def ranges(numbers: list[int]) -> str:
    """0 to 3, 7, 9 to 12"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    more = ["…"] if len(runs) > 8 else []
    return ", ".join([" to ".join(map(str, run)) for run in runs[:8]] + more)


def of_the_run(spec: AlgorithmSpec, micro_batches: list[MicroBatch]) -> Answer:
    """The run's algorithm on what the trainer recorded of it."""
    name = f"{spec.id} (run)"
    recorded = [algorithms.as_recorded(spec, each.batch.arrays) for each in micro_batches]
    if said := missing(recorded, micro_batches):
        return Answer(name, [], said)
    pairs = zip(recorded, micro_batches, strict=True)
    return Answer(name, [evaluate(each, part.batch) for each, part in pairs], "as the trainer recorded it")


def of_another(spec: AlgorithmSpec, micro_batches: list[MicroBatch], group_size: Any) -> Answer:
    """Another algorithm, with its own advantages where they can be computed and the trainer's elsewhere."""
    if spec.display:
        return Answer(spec.id, [], "is only shown: it came as UNIPO cards, which say nothing that can be computed")
    own = [can_judge(spec, each, group_size) for each in micro_batches]
    given = algorithms.given_advantages(without_filters(spec))
    chosen = [spec if mine else given for mine in own]
    if said := missing(chosen, micro_batches):
        return Answer(spec.id, [], said)
    found = [evaluate(each, part.batch) for each, part in zip(chosen, micro_batches, strict=True)]
    if all(own):
        return Answer(spec.id, found, "its own advantages")
    where = f" in {own.count(False)} of {len(own)} micro-batches" if any(own) else ""
    return Answer(spec.id, found, f"the trainer's advantages{where} in place of {replaced(spec)}{in_part(given)}")


def without_filters(spec: AlgorithmSpec) -> AlgorithmSpec:
    """The algorithm with every response taking part: which do cannot be told from a part of a group."""
    return spec.model_copy(update={"parts": merged(spec.parts, {"filter": []})})


def can_judge(spec: AlgorithmSpec, part: MicroBatch, group_size: Any) -> bool:
    """Whether an algorithm's own advantages can be computed: every group is there, once, with all of its rewards.

    What compares a response with the whole batch, or with earlier updates, cannot be told from a micro-batch.
    """
    every_part = [use for each in compositions(spec) for use in uses(each)]
    scopes = {
        algorithms.describe(slot, use.part).scope
        for slot, _, use in every_part
        if SLOTS[slot] == "advantage" or slot == "filter"
    }
    sizes = np.unique(part.batch.arrays["group"], return_counts=True)[1]
    return (
        part.whole
        and not scopes & {"batch", "history"}
        and len(set(part.row_B.tolist())) == len(part.row_B)
        and bool((sizes == group_size).all())
        and bool(np.isfinite(part.batch.arrays["reward"]).all())
        and not missing([spec], [part])
    )


def compositions(spec: AlgorithmSpec) -> list[Any]:
    """The parts of an algorithm, or those of each component of a mixture."""
    return [merged(spec.parts, each.parts) for each in spec.mixture] or [spec.parts]


def replaced(spec: AlgorithmSpec) -> str:
    """The parts the trainer's advantages stand for, filters of responses among them."""
    slots = ("filter", "reward", "baseline", "scale")
    names = [f"{slot} {use.part}" for slot, _, use in uses(spec.parts) if slot in slots and use.part != "none"]
    return ", ".join(names) or "the reward itself"


def in_part(spec: AlgorithmSpec) -> str:
    """What of an algorithm looks at more responses than a micro-batch may hold."""
    wide = ("group", "batch")
    found = [(slot, use.part) for each in compositions(spec) for slot, _, use in uses(each)]
    names = [f"{slot} {name}" for slot, name in found if algorithms.describe(slot, name).scope in wide]
    names = [each for each in dict.fromkeys(names) if not each.startswith("aggregation ")]
    return f"; within each micro-batch: {', '.join(names)}" if names else ""


def missing(specs: list[AlgorithmSpec], micro_batches: list[MicroBatch]) -> str:
    """The inputs a micro-batch lacks and how they are captured; empty where all is there."""
    pairs = zip(specs, micro_batches, strict=True)
    lacking = {need: None for spec, part in pairs for need in algorithms.needs(spec) if need not in part.batch.arrays}
    said = [f"{name} ({INPUTS[name].capture})" if name in INPUTS else name for name in lacking]
    return f"needs {', '.join(said)}" if said else ""


def row(found: list[Evaluation], micro_batches: list[MicroBatch], first: list[Evaluation]) -> list[str]:
    """Cells of the table: shares are of the tokens that count, over all micro-batches of the update.

    The last is the cosine between the pushes and those of the first row: 1 is the same direction.
    """
    counts = np.concatenate([each.batch.mask_BT.ravel() > 0 for each in micro_batches])
    if not counts.any():
        return ["–"] * 7
    codes = np.concatenate([each.clipped.ravel() for each in found])[counts]
    push, other = -flat(found)[counts], -flat(first)[counts]
    silent = (codes > 0) & (codes <= SILENT)
    shares = [f"{100 * each.mean():.1f} %" for each in (silent, codes > SILENT, push > 0, push < 0)]
    size = np.linalg.norm(push) * np.linalg.norm(other)
    cosine = f"{push @ other / size:.3f}" if size else "–"
    return [f"{sum(each.loss for each in found):.5f}", *shares, f"{np.abs(push).max():.2e}", cosine]


def flat(found: list[Evaluation]) -> np.ndarray:
    """Gradient weights of all micro-batches in one array."""
    return np.concatenate([each.gradient_weight.ravel() for each in found])


def asked(arguments: list[str]) -> None:
    """Run what the command line asks for; what is wrong is one line on stderr."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit(__doc__)
    path, *rest = arguments
    try:
        number = int(rest[0]) if rest and is_number(rest[0]) else None
        if number is not None and number < 0:
            raise AlgorithmError(f"updates are counted from 0: there is no update {number}")
        others = tuple(rest if number is None else rest[1:])
        main(path, number, others or OTHERS)
    except (UnipoError, OSError) as error:
        sys.exit(f"what_if: {' '.join(str(error).split())}")


def is_number(text: str) -> bool:
    """Whether an argument is meant as a number, a negative one included."""
    return text.removeprefix("-").isdecimal()


if __name__ == "__main__":
    asked(sys.argv[1:])
