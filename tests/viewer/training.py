"""Trains a very small model for real. As a script: a run that waits twice until it is told to go on."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from unipo_hooks import UnipoCallback
from unipo_hooks.examples.trl_grpo import SUMS, digit_tokenizer, exact, small_llama


def length(completions: list[str], **_: Any) -> list[float]:
    """A second reward, so that every group has a spread."""
    return [0.1 * len(completion) for completion in completions]


def train(folder: Path, *callbacks: TrainerCallback, **settings: Any) -> Path:
    """Train into `folder` and return its bundle: groups of 4 responses of at most 5 tokens."""
    torch.manual_seed(0)
    tokenizer = digit_tokenizer()
    unipo = UnipoCallback(folder / "run", strict=True)
    defaults: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 5,
        "learning_rate": 1e-2,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
    }
    trainer = GRPOTrainer(
        small_llama(tokenizer),
        reward_funcs=[exact, length],
        args=GRPOConfig(**defaults | settings),
        train_dataset=Dataset.from_dict(
            {"prompt": [f"{a}+{b}=" for a, b in SUMS], "answer": [str(a + b) for a, b in SUMS]}
        ),
        processing_class=tokenizer,
        callbacks=[unipo, *callbacks],
    )
    trainer.train()
    assert unipo.path is not None
    return unipo.path


class WaitForWord(TrainerCallback):
    """After each checkpoint, training waits until the file `go-STEPS` is in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait where it is time to."""
        while state.global_step in (2, 4) and not (self.folder / f"go-{state.global_step}").exists():
            time.sleep(0.05)


if __name__ == "__main__":
    here = Path(sys.argv[1])
    # A checkpoint makes the bundle durable too, so that what was trained can be seen at once.
    train(here, WaitForWord(here), max_steps=6, num_iterations=2, save_strategy="steps", save_steps=2)
