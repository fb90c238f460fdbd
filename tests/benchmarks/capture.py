"""What capture costs: time in the hooks on the training thread, CPU of the writing thread, and a paired ratio.

    python tests/benchmarks/capture.py            the small model, SmolLM2, and the small model in many settings
    python tests/benchmarks/capture.py --tiny     the small model alone

The bars: at most 1 ms an update in the hooks on the small model, at most 1 % of the step time on SmolLM2. The paired
ratio trains the same thing with and without capture, in turn, and is a sanity check: on a noisy machine its interval is
wide, the time in the hooks is what is measured directly.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.examples import trl_grpo, trl_smollm2

PAIRS = 5


class StepClock(TrainerCallback):
    """Seconds of every optimizer step, generation included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def common(folder: Path, config: type[GRPOConfig] = GRPOConfig, **settings: Any) -> GRPOConfig:
    return config(
        output_dir=str(folder / "out"),
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        disable_tqdm=True,
        seed=0,
        **settings,
    )


def tiny(
    folder: Path,
    callbacks: list[TrainerCallback],
    steps: int,
    *,
    cls: type[GRPOTrainer] = GRPOTrainer,
    config: type[GRPOConfig] = GRPOConfig,
    **settings: Any,
) -> GRPOTrainer:
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = trl_grpo.digit_tokenizer()
    defaults = {
        "per_device_train_batch_size": 64,
        "num_generations": 8,
        "num_iterations": 2,
        "max_completion_length": 4,
        "max_steps": steps,
        "learning_rate": 1e-4,
    }
    args = common(folder, config, **defaults | settings)
    data = {"prompt": [f"{a}+{b}=" for a, b in trl_grpo.SUMS], "answer": [str(a + b) for a, b in trl_grpo.SUMS]}
    model = trl_grpo.small_llama(tokenizer)
    if settings.get("beta"):  # the reference is loaded from where the policy came from
        model.save_pretrained(folder / "model")
        model = type(model).from_pretrained(folder / "model")
    return cls(
        model,
        reward_funcs=trl_grpo.exact,
        args=args,
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def smollm2(folder: Path, callbacks: list[TrainerCallback], steps: int) -> GRPOTrainer:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model, tokenizer = trl_smollm2.load_smollm2()
    args = common(
        folder,
        per_device_train_batch_size=8,
        num_generations=4,
        num_iterations=2,
        max_completion_length=64,
        max_steps=steps,
        learning_rate=1e-5,
    )
    questions = trl_smollm2.QUESTIONS
    data = {"prompt": [[{"role": "user", "content": q}] for q, _ in questions], "answer": [a for _, a in questions]}
    return GRPOTrainer(
        model,
        reward_funcs=[trl_smollm2.correct, trl_smollm2.sums_hold],
        args=args,
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def measure(make: Callable[..., GRPOTrainer], steps: int, *, capture: bool) -> tuple[StepClock, Any]:
    """Step times of one run, and the cost its bundle states."""
    with tempfile.TemporaryDirectory() as name:
        folder, clock = Path(name), StepClock()
        callbacks: list[TrainerCallback] = [clock]
        if capture:
            callbacks.append(UnipoCallback(folder / "run", strict=True))
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            make(folder, callbacks, steps).train()
        if not capture:
            return clock, None
        bundle = open_bundle(folder / "run")
        return clock, (bundle.manifest.cost, len(bundle.updates()))


def report(table: Table, name: str, make: Callable[..., GRPOTrainer], *, steps: int, pairs: int) -> None:
    measure(make, 2, capture=True)  # imports, caches
    ratios, hooks, steps_seconds, cpu = [], [], [], []
    for pair in track(range(pairs), description=name, console=Console(stderr=True), transient=True):
        order = (True, False) if pair % 2 else (False, True)
        step = {}
        for capture in order:
            clock, cost = measure(make, steps, capture=capture)
            step[capture] = statistics.median(clock.seconds[1:])
            if cost is not None:
                spent, updates = cost
                hooks.append(1e3 * spent.hook_seconds / updates)
                cpu.append(1e3 * spent.writer_cpu_seconds / updates)
                steps_seconds.append(1e3 * statistics.mean(clock.seconds))
        ratios.append(step[True] / step[False])
    hook, of_step = statistics.median(hooks), statistics.median(steps_seconds)
    table.add_row(
        name,
        f"{of_step:.1f}",
        f"{hook:.3f}",
        f"{100 * hook / of_step:.3f} %",
        f"{statistics.median(cpu):.2f}",
        f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}] of {len(ratios)}",
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "4 micro-batches an update": {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4},
    "4 updates a rollout": {"per_device_train_batch_size": 16, "steps_per_generation": 4},
    "reference policy": {"beta": 0.05},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo"},
    "sequence level": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "entropy quantile, off-policy mask": {"top_entropy_quantile": 0.5, "off_policy_mask_threshold": 0.001},
    "entropy bonus": {"entropy_coef": 0.01},
    "RLOO": {"cls": RLOOTrainer, "config": RLOOConfig, "beta": 0.05},
    "GMPO": {"cls": GMPOTrainer, "config": GMPOConfig},
}


def in_all_settings() -> Table:
    """Time in the hooks on the small model, setting by setting."""
    table = Table(title="In many settings: the small model, 64 × 4 tokens", caption="the bar is 1 ms an update")
    for column in ("setting", "step ms", "hooks ms/update", "writer CPU ms/update"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    measure(tiny, 2, capture=True)  # imports, caches
    for name, settings in track(SETTINGS.items(), "settings", console=Console(stderr=True), transient=True):
        clock, (cost, updates) = measure(partial(tiny, **settings), 100, capture=True)
        spent = (1e3 * each / updates for each in (cost.hook_seconds, cost.writer_cpu_seconds))
        table.add_row(name, f"{1e3 * statistics.median(clock.seconds):.1f}", *(f"{each:.2f}" for each in spent))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the small model alone")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    table = Table(title="Cost of capture, every update kept whole, start-up included", caption="medians over the runs")
    for column in ("run", "step ms", "hooks ms/update", "of the step", "writer CPU ms/update", "paired step ratio"):
        table.add_column(column, justify="left" if column == "run" else "right")
    report(table, "small model, 64 × 4 tokens", tiny, steps=150, pairs=PAIRS)
    if not options.tiny:
        report(table, "SmolLM2-135M, 8 × 64 tokens", smollm2, steps=4, pairs=2)
    Console(width=130).print(table)
    if not options.tiny:
        Console(width=130).print(in_all_settings())


if __name__ == "__main__":
    main()
