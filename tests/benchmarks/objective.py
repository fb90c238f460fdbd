"""What evaluating an objective costs: every registered algorithm on a batch of 64 × 1024 tokens, on one core.

    python tests/benchmarks/objective.py               every algorithm
    python tests/benchmarks/objective.py grpo dapo     these

The bar: under 25 ms for every algorithm whose parts are array operations alone. Parts that walk in Python over token
positions or a tree are named beside the time, and not held to it.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

# In place of this folder, whose objective.py would hide tests/objective.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

from objective.batches import full_batch

from unipo_hooks import algorithms
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.objective.describe import merged, uses
from unipo_hooks.objective.evaluate import evaluate

BAR_MS = 25.0
ROWS, WIDTH = 64, 1024
WALKS = {
    "baseline.return_to_go",
    "baseline.gae",
    "baseline.greedy",
    "baseline.macro_gae",
    "baseline.optimal_token",
    "baseline.segment_values",
    "baseline.turn_leave_one_out",
    "baseline.normalised_turn_returns",
    "baseline.episode_and_step",
    "baseline.budget_relative",
    "baseline.prefix_tree",
    "modulation.entropy_share",
    "mask.conflict_tokens",
    "bounds.batch_search",
}
"""Parts that loop in Python over token positions, the nodes of a tree, or the steps of a search."""


def walks(spec: AlgorithmSpec) -> list[str]:
    """Parts of the algorithm that are not array operations alone."""
    every = [merged(spec.parts, component.parts) for component in spec.mixture] or [spec.parts]
    return sorted({f"{slot}.{use.part}" for parts in every for slot, _, use in uses(parts)} & WALKS)


def milliseconds(spec: AlgorithmSpec, rounds: int) -> float:
    """Median over rounds, after one that is not counted."""
    without = () if "rewards" in algorithms.needs(spec) else ("rewards",)
    batch = full_batch(0, ROWS, WIDTH, without=without)
    evaluate(spec, batch)
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        evaluate(spec, batch)
        seconds.append(time.process_time() - start)
    return 1e3 * statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", help="algorithms; every one where none is named")
    parser.add_argument("--rounds", type=int, default=9, help="evaluations of each, the median of which counts")
    options = parser.parse_args()
    chosen = [algorithms.get(name) for name in options.ids] or algorithms.every()
    chosen = [spec for spec in chosen if spec.display is None]
    bars = Console(stderr=True)
    found = [
        (milliseconds(spec, options.rounds), spec)
        for spec in track(chosen, description="evaluating", console=bars, transient=True)
    ]
    table = Table(
        title=f"Evaluating {ROWS} × {WIDTH} tokens on one core",
        caption=f"median CPU time of {options.rounds}; the bar is {BAR_MS:g} ms, for array operations alone",
    )
    for column in ("algorithm", "ms", "scope", "walks in Python"):
        table.add_column(column, justify="right" if column == "ms" else "left")
    missed = []
    for spent, spec in sorted(found, key=lambda each: -each[0]):
        by_hand = walks(spec)
        over = spent > BAR_MS and not by_hand
        if over:
            missed.append(spec.id)
        table.add_row(
            spec.id, f"[red]{spent:.1f}[/]" if over else f"{spent:.1f}", algorithms.scope(spec), ", ".join(by_hand)
        )
    Console(width=130).print(table)
    if missed:
        sys.exit(f"over {BAR_MS:g} ms: {', '.join(missed)}")


if __name__ == "__main__":
    main()
