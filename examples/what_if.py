"""What other algorithms would have made of the same tokens: one update of a bundle under several objectives.

    python examples/what_if.py runs/demo
    python examples/what_if.py runs/demo 7 gspo cispo examples/my_algorithm.json

Without an update it takes the last one captured; without algorithms GSPO, CISPO and the one in my_algorithm.json.

What is compared is the objective on the same tokens with the same parameters, not what training would have done. All
take the advantages the trainer computed, for a micro-batch may hold only a part of a group. Descent moves against the
gradient weight, so the push on a token is its negative; up and down are the shares of tokens pushed either way.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from unipo_hooks import algorithms, evaluate, open_bundle

if TYPE_CHECKING:
    from unipo_hooks.algorithm_spec import AlgorithmSpec
    from unipo_hooks.bundle.batches import MicroBatch
    from unipo_hooks.objective.evaluate import Evaluation

MINE = Path(__file__).with_name("my_algorithm.json")


def main(path: str, update: int | None = None, others: tuple[str, ...] = ("gspo", "cispo", str(MINE))) -> None:
    """Print a row for the run's algorithm and one for each of the others."""
    bundle = open_bundle(path)
    if update is None:
        update = bundle.updates().column("update").to_pylist()[-1]
    micro_batches = bundle.micro_batches(update)
    captured = set.intersection(*(set(each.batch.arrays) for each in micro_batches))
    specs: dict[str, AlgorithmSpec] = {}
    if bundle.manifest.algorithm is not None:
        spec = algorithms.get(bundle.manifest.algorithm)
        specs[f"{spec.id} (run)"] = algorithms.as_recorded(spec, captured)
    for other in others:
        spec = algorithms.chosen(other)
        specs[spec.id] = algorithms.given_advantages(spec)

    table = Table("algorithm", "loss", "clipped", "up", "down", "largest push", "cosine", box=SIMPLE)
    table.title = f"{path}, update {update}"
    first = None
    for name, spec in specs.items():
        missing = [need for need in algorithms.needs(spec) if need not in captured]
        if missing:  # `unipo-hooks algorithms show` says how to capture it
            table.add_row(name, f"needs {', '.join(missing)}")
            continue
        found = [evaluate(spec, each.batch) for each in micro_batches]
        first = first or found
        table.add_row(name, *row(found, micro_batches, first))
    Console().print(table)


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
    main(arguments[0], number, rest) if rest else main(arguments[0], number)
