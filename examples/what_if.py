"""What other algorithms would have made of the same tokens: one update of a bundle under several objectives.

    python examples/what_if.py runs/demo
    python examples/what_if.py runs/demo 7 gspo cispo examples/my_algorithm.json

Without an update it takes the last one captured; without algorithms GSPO, CISPO and the one in my_algorithm.json.

What is compared is the objective on the same tokens with the same parameters, not what training would have done. All
take the advantages the trainer computed, for a micro-batch may hold only a part of a group. Descent moves against the
gradient weight: the push on a token is its negative.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from unipo_hooks import algorithms, evaluate, open_bundle
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.bundle.batches import MicroBatch
from unipo_hooks.errors import MissingInputError, UnipoError
from unipo_hooks.objective.describe import given_advantages
from unipo_hooks.objective.evaluate import Evaluation
from unipo_hooks.objective.recorded import as_recorded

MINE = Path(__file__).with_name("my_algorithm.json")


def main(path: str, update: int | None = None, others: tuple[str, ...] = ("gspo", "cispo", str(MINE))) -> None:
    """Print a row for the run's algorithm and one for each of the others."""
    bundle = open_bundle(path)
    if update is None:
        update = bundle.updates().column("update").to_pylist()[-1]
    micro_batches = bundle.micro_batches(update)
    specs: dict[str, AlgorithmSpec] = {}
    if bundle.manifest.algorithm is not None:
        spec = algorithms.get(bundle.manifest.algorithm)
        captured = set.intersection(*(set(each.batch.arrays) for each in micro_batches))
        specs[f"{spec.id} (run)"] = as_recorded(spec, captured)
    for other in others:
        spec = algorithms.chosen(other)
        specs[spec.id] = given_advantages(spec)

    table = Table("algorithm", "loss", "clipped", "pushed up", "down", "largest push", "cosine", box=SIMPLE)
    table.title = f"{path}, update {update}"
    missing, first = [], None
    for name, spec in specs.items():
        try:
            found = [evaluate(spec, each.batch) for each in micro_batches]
        except MissingInputError as error:
            missing.append(str(error))
            table.add_row(name, *["–"] * 6)
            continue
        first = first or found
        table.add_row(name, *row(found, micro_batches, first))
    console = Console()
    console.print(table)
    for each in missing:
        console.print(each)


def row(found: list[Evaluation], micro_batches: list[MicroBatch], first: list[Evaluation]) -> list[str]:
    """Cells of the table: shares are of the tokens that count, over all micro-batches of the update.

    The last is the cosine between the pushes and those of the first row: 1 is the same direction.
    """
    counts = np.concatenate([each.batch.mask_BT.ravel() > 0 for each in micro_batches])
    clipped = np.concatenate([each.clipped.ravel() for each in found])[counts] > 0
    push, other = -flat(found)[counts], -flat(first)[counts]
    shares = [f"{100 * each.mean():.1f} %" for each in (clipped, push > 0, push < 0)]
    size = np.linalg.norm(push) * np.linalg.norm(other)
    cosine = f"{push @ other / size:.3f}" if size else "–"
    return [f"{sum(each.loss for each in found):.5f}", *shares, f"{np.abs(push).max():.2e}", cosine]


def flat(found: list[Evaluation]) -> np.ndarray:
    """Gradient weights of all micro-batches in one array."""
    return np.concatenate([each.gradient_weight.ravel() for each in found])


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not arguments:
        sys.exit(__doc__)
    number = int(arguments[1]) if arguments[1:] and arguments[1].isdigit() else None
    rest = tuple(arguments[1 if number is None else 2 :])
    try:
        main(arguments[0], number, rest) if rest else main(arguments[0], number)
    except UnipoError as error:
        sys.exit(f"what_if: {error}")
