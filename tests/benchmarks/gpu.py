"""What capture costs on a CUDA device: time in the hooks, the paired ratio of steps, and that nothing synchronises.

    python tests/benchmarks/gpu.py                     a random Llama of 30 million parameters in bfloat16
    python tests/benchmarks/gpu.py --layers 24 --hidden 2048 --tokens 1024     a larger one

Three questions. Does a hook ever wait for the device? Torch is told to raise where it would (`set_sync_debug_mode`).
Are the numbers what the trainer computed? Every stored log-prob is compared bit for bit with one that was copied with a
plain, blocking copy. What does it cost? Steps are timed behind a synchronisation, with and without capture, in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.adapters.guard import Guard
from unipo_hooks.examples import trl_grpo


class StepClock(TrainerCallback):
    """Seconds of every optimizer step, the device's work included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = self._now()
        self.seconds.append(now - self._last)
        self._last = now

    def _now(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()


class Watched(GRPOTrainer):
    """Keeps the log-probs of every loss, copied in a way that cannot be too early."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.log_probs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._last: Any = None
        super().__init__(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        self._last = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self._last

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        loss = super()._compute_loss(model, inputs)
        mask, log_probs = inputs["completion_mask"], self._last[0]
        self.log_probs.append((mask.cpu().bool(), log_probs.detach().float().cpu()))
        return loss


def remainder(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that differs from response to response: most tokens of a random model have no text."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def trainer_of(
    options: argparse.Namespace, folder: Path, callbacks: list[TrainerCallback], cls: type[GRPOTrainer] = GRPOTrainer
) -> GRPOTrainer:
    torch.manual_seed(0)
    tokenizer = trl_grpo.digit_tokenizer()
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 64,
        max_position_embeddings=options.tokens + 64,
        # One token in 32,000 ends a response: nearly all are as long as they may be.
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    data = {"prompt": [f"{a}+{b}=" for a, b in trl_grpo.SUMS]}
    return cls(
        LlamaForCausalLM(config).to(torch.bfloat16),
        reward_funcs=remainder,
        args=GRPOConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=options.rows,
            num_generations=8,
            num_iterations=2,
            max_completion_length=options.tokens,
            max_steps=options.steps,
            learning_rate=1e-5,
            bf16=True,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


@contextlib.contextmanager
def no_hook_may_synchronise() -> Iterator[None]:
    """Have torch raise where a hook would wait for the device."""
    always = Guard.always

    def watched(self: Guard, action: Callable[[], None]) -> None:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            always(self, action)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    Guard.always = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        Guard.always = always  # type: ignore[method-assign]


def largest_difference(options: argparse.Namespace) -> tuple[float, int]:
    """Largest difference of a stored log-prob from the trainer's own, and how many were compared."""
    with tempfile.TemporaryDirectory() as name, no_hook_may_synchronise():
        path = Path(name) / "run"
        trainer = trainer_of(options, Path(name), [UnipoCallback(path, strict=True)], Watched)
        trainer.train()
        bundle, worst, compared = open_bundle(path), 0.0, 0
        for update, (mask, own) in enumerate(trainer.log_probs):
            (stored,) = bundle.micro_batches(update=update)
            at_BT = mask.numpy()
            width = stored.batch["log_probs"].shape[1]
            difference = np.abs(stored.batch["log_probs"] - own.numpy()[:, :width])[at_BT[:, :width]]
            worst, compared = max(worst, float(difference.max())), compared + len(difference)
        return worst, compared


def steps_of(options: argparse.Namespace, *, capture: bool) -> tuple[list[float], float]:
    """Seconds of each step, and milliseconds in the hooks an update."""
    with tempfile.TemporaryDirectory() as name:
        clock, path = StepClock(), Path(name) / "run"
        callbacks: list[TrainerCallback] = [clock, *([UnipoCallback(path, strict=True)] if capture else [])]
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            trainer_of(options, Path(name), callbacks).train()
        spent = open_bundle(path).manifest.cost.hook_seconds if capture else 0.0
        return clock.seconds[2:], 1e3 * spent / options.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--rows", type=int, default=32, help="responses an update")
    parser.add_argument("--tokens", type=int, default=256, help="tokens a response")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here: nothing was measured")
    worst, compared = largest_difference(options)
    steps_of(options, capture=True)  # imports, caches
    ratios, hooks, medians = [], [], []
    for pair in range(options.pairs):
        found = {
            capture: steps_of(options, capture=capture) for capture in ((True, False) if pair % 2 else (False, True))
        }
        medians.append(statistics.median(found[False][0]))
        ratios.append(statistics.median(found[True][0]) / medians[-1])
        hooks.append(found[True][1])
    table = Table(title=f"Cost of capture on {torch.cuda.get_device_name()}", caption="medians over the runs")
    for column in ("what", "measured"):
        table.add_column(column)
    table.add_row("update", f"{options.rows} × {options.tokens} tokens, step {1e3 * statistics.median(medians):.1f} ms")
    table.add_row("synchronisations in a hook", "none: torch raises at one")
    table.add_row("stored log-probs", f"{compared} compared, largest difference {worst:.1e}")
    table.add_row("hooks", f"{statistics.median(hooks):.3f} ms an update, start-up included")
    table.add_row("step with ÷ without", f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]")
    Console(width=110).print(table)
    if worst:
        sys.exit("stored log-probs are not the trainer's")


if __name__ == "__main__":
    main()
