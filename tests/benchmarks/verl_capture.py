"""What capture of a verl run costs, piece by piece: in the worker's loss, at the drain, on the driver.

    .venv-verl/bin/python tests/benchmarks/verl_capture.py

Measured on the CPU, with verl's own loss and batches: the tap around a micro-batch, the drain of it, what the driver
reads and marks of a DataProto (V0) and of a TransferQueue (V1); each beside forward and backward of a small transformer
on the same tokens, in the same run. From milliseconds and bytes a token follows an estimate for a step of a realistic
size, under the assumptions printed with it. Not named after verl: a script's folder is on the path, before verl.
"""

from __future__ import annotations

import pickle
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tensordict import TensorDict
from verl import DataProto
from verl_cpu.pieces import Worker, as_trained, info, proto, put, transfer_queue_running

from unipo_hooks.adapters.verl.batches import EVERYWHERE, PROMPTS, TOKENS, batch_of
from unipo_hooks.adapters.verl.translate import captured_rollout, groups_of
from unipo_hooks.adapters.verl.worker import Tap

GRPO = "algorithm.adv_estimator=grpo"
SIZES = ((8, 1024), (32, 1024))
MANY = 256
"""Rows of a batch that tells what one more row costs on the driver; most of the rest are calls."""
PROMPT = 64
REPEATS = 5

# A step of a run people really have: 7B parameters, 1024 responses of 1024 tokens on 8 data-parallel ranks.
PARAMETERS, RESPONSES, LENGTH, RANKS, MICRO_BATCH = 7e9, 1024, 1024, 8, 8
FLOPS = 4e14
"""Of an H100 in bfloat16 at 40 % use."""
NETWORK = 1e9
"""Bytes a second into the driver."""


class Model(torch.nn.Module):
    """Two layers of a transformer; forward and backward of it are what everything is compared with."""

    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(64, 2, 256, dropout=0.0, batch_first=True)
        self.embed, self.head = torch.nn.Embedding(256, 64), torch.nn.Linear(64, 256)
        self.layers = torch.nn.TransformerEncoder(layer, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits = torch.log_softmax(self.head(self.layers(self.embed(ids))), -1)
        return logits.gather(2, ids[:, :, None])


def whole(rows: int, length: int) -> DataProto:
    """A batch in which every response is as long as it can be."""
    batch = proto(rows, PROMPT, length)
    for name in ("attention_mask", "response_mask"):
        batch.batch[name] = torch.ones_like(batch.batch[name])
    batch.batch["position_ids"] = torch.arange(PROMPT + length).repeat(rows, 1)
    return batch


def milliseconds(action: Callable[[], Any]) -> float:
    """Median of some calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def around_the_loss(data: TensorDict, *, sampled: bool) -> tuple[float, float, int]:
    """Milliseconds of the tap and of the drain of one micro-batch, and bytes that leave the worker for it."""
    worker = Worker(GRPO, micro_batch=len(data))
    tap = Tap(worker, info(GRPO), 0.0)
    taps, drains, sent = [], [], 0
    for _ in range(REPEATS):
        before = tap._guard.seconds
        worker.train_batch(data)
        taps.append(tap._guard.seconds - before)
        start = time.perf_counter()
        drained = tap.drain(compare=True)
        drains.append(time.perf_counter() - start)
        assert drained.failure is None
        [(_, _, [each])] = drained.steps
        assert (each.left_behind is not None) == sampled
        sent = len(pickle.dumps(drained, protocol=5))
    return 1e3 * statistics.median(taps), 1e3 * statistics.median(drains), sent


def on_the_driver(make: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds to read and mark a batch, and to make the record of it (which the writing thread does)."""
    batch = make()
    found = batch_of(batch)
    labels, read = found.labels(), found.read(None, (*EVERYWHERE, *TOKENS, PROMPTS))
    group_B = groups_of(found.uids)

    def before() -> None:
        each = batch_of(batch)
        each.labels()
        each.read(None, (*EVERYWHERE, *TOKENS, PROMPTS))
        each.mark(None)
        each.unmark()

    def record() -> None:
        captured_rollout(
            read,
            read,
            np.arange(len(group_B)),
            rollout=0,
            step=1,
            group_B=group_B,
            handed_over=None,
            labels=labels,
            uids=found.uids,
            reward_names=(),
            estimator="grpo",
            rejects=False,
        )

    return milliseconds(before), milliseconds(record)


def forward_and_backward(rows: int, length: int) -> float:
    """Milliseconds of the small model on one micro-batch."""
    model, ids = Model(), torch.randint(0, 256, (rows, PROMPT + length))
    return milliseconds(lambda: model(ids).mean().backward())


@dataclass(frozen=True)
class Cost:
    """Of one micro-batch, and of a batch of as many rows on the driver of V1."""

    tap: float
    drain: float
    driver: float
    """Milliseconds, as all of these."""
    bytes_a_token: float


def report(console: Console) -> dict[int, Cost]:
    """Prints a line a size. Returns what was measured, by rows."""
    table = Table(title=f"Milliseconds, medians of {REPEATS}; in brackets ÷ forward and backward of a small model")
    names = ("tokens", "forward, backward", "tap", "drain", "tap, sampled", "drain, sampled", "driver V0", "driver V1")
    for column in (*names, "record", "bytes a token"):
        table.add_column(column, justify="right")
    found = {}
    for rows, length in SIZES:
        batch, tokens = whole(rows, length), rows * length
        batch_of(batch).mark(None)
        tap, drain, sent = around_the_loss(as_trained(batch), sampled=False)
        batch_of(batch).mark(np.arange(rows) < rows // 4)
        tap_part, drain_part, _ = around_the_loss(as_trained(batch), sampled=True)
        batch_of(batch).unmark()
        held, record = on_the_driver(lambda batch=batch: batch)
        queued, _ = on_the_driver(lambda batch=batch: put(batch))
        model = forward_and_backward(rows, length)
        spent = (tap, drain, tap_part, drain_part, held, queued, record)
        told = (f"{each:.2f} ({each / model:.5f})" for each in spent)
        table.add_row(f"{rows} × {length}", f"{model:.0f}", *told, f"{sent / tokens:.1f}")
        found[rows] = Cost(tap, drain, queued, sent / tokens)
    console.print(table)
    many = whole(MANY, SIZES[-1][1])
    driver, _ = on_the_driver(lambda: put(many))
    console.print(f"driver V1, {MANY} × {SIZES[-1][1]} tokens: {driver:.0f} ms")
    return found | {MANY: Cost(0.0, 0.0, driver, 0.0)}


def estimate(console: Console, costs: dict[int, Cost]) -> None:
    """What these come to in a step of a realistic size. The worst is assumed: every token is kept."""
    one, some, many = costs[MICRO_BATCH], costs[SIZES[-1][0]], costs[MANY]
    a_row = (many.driver - some.driver) / (MANY - SIZES[-1][0])
    tokens, passes = RESPONSES * LENGTH, RESPONSES // RANKS // MICRO_BATCH
    train = 6 * PARAMETERS * tokens / RANKS / FLOPS
    step = 3 * train
    tap, drain = 1e-3 * one.tap * passes, 1e-3 * one.drain * passes
    driver = 1e-3 * (many.driver + a_row * (RESPONSES - MANY))
    moved = one.bytes_a_token * tokens
    total = tap + drain + driver + moved / NETWORK
    console.print(
        f"Estimate, not measured: {PARAMETERS / 1e9:.0f}B parameters, {RESPONSES} × {LENGTH} tokens a step on {RANKS} "
        f"data-parallel ranks, {passes} micro-batches of {MICRO_BATCH} each.\n"
        f"Assumed: training takes 6 × parameters × tokens at {FLOPS:.0e} FLOP/s a rank, {train:.0f} s, sampling and "
        f"log-probs twice that; {NETWORK / 1e9:.0f} GB/s into the driver; every row once, no token left behind; the "
        f"time of this CPU, where the tap copies at once (on CUDA it starts copies: tests/benchmarks/gpu.py).\n"
        f"Tap {tap:.3f} s, drain {drain:.3f} s, {moved / 1e6:.0f} MB on their way {moved / NETWORK:.3f} s, driver "
        f"{driver:.3f} s: {total:.2f} s of a step of {step:.0f} s, {100 * total / step:.2f} % (the bar: at most 1 %)."
    )


def main() -> None:
    torch.set_num_threads(1)
    console = Console(width=180)
    with transfer_queue_running():
        costs = report(console)
    estimate(console, costs)


if __name__ == "__main__":
    main()
