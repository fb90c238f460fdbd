"""Trains a small model to add digits with GRPO, on the CPU, in about half a minute, and captures every update.

A two-layer Llama with a vocabulary of characters first sees sums with half of the answers wrong; GRPO then teaches it
to prefer the right ones. Mean reward rises from about .45 to about .88. Run it, then open what happened:

    python examples/trl_grpo.py runs/demo
    unipo-hooks view runs/demo
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from unipo_hooks import UnipoCallback

SUMS = [(a, b) for a in range(10) for b in range(10)]
STEPS = 1200


def digit_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character: digits, plus and equals."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *"0123456789+="]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def small_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Two layers, 64 wide: about 100 thousand parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            name_or_path="digits-llama",
        )
    ).float()


def warm_up(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int = 400) -> None:
    """Supervised training on sums of which half are wrong: the model knows the task, but not what is right."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in tqdm(range(steps), desc="warm-up", unit="batch"):
        texts = []
        for _ in range(64):
            a, b = random.choice(SUMS)
            answer = a + b if random.random() < 0.5 else random.randint(0, 18)
            texts.append(f"{a}+{b}={answer}<eos>")
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, :4] = -100  # the question is given
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def exact(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 for the right sum, 0 for any other."""
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


class RewardBar(TrainerCallback):
    """A progress bar that shows the mean reward of the last hundred updates, instead of a printed line an update."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the bar."""
        self.bar = tqdm(total=state.max_steps, desc="GRPO", unit="update")
        self.rewards: deque[float] = deque(maxlen=100)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Note the reward."""
        if "reward" in logs:
            self.rewards.append(logs["reward"])
            self.bar.set_postfix_str(f"reward {sum(self.rewards) / len(self.rewards):.2f}", refresh=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more."""
        self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the bar's line."""
        self.bar.close()


def main(path: str = "runs/demo", steps: int = STEPS) -> Path:
    """Train, and return where the bundle is: `path`, or beside it where another run is there already."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the model is too small for more
    tokenizer = digit_tokenizer()
    model = small_llama(tokenizer)
    warm_up(model, tokenizer)
    dataset = Dataset.from_dict(
        {"prompt": [f"{a}+{b}=" for a, b in SUMS], "answer": [str(a + b) for a, b in SUMS]},
    )
    dataset.info.dataset_name = "digit sums"
    unipo = UnipoCallback(path, strict=True)  # this and the line that passes it on are all there is to it
    with tempfile.TemporaryDirectory() as output_dir:
        args = GRPOConfig(
            output_dir=output_dir,
            per_device_train_batch_size=64,
            num_generations=8,
            num_iterations=2,
            max_completion_length=4,
            max_steps=steps,
            learning_rate=5e-4,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            disable_tqdm=True,
            log_completions=False,
            seed=0,
        )
        trainer = GRPOTrainer(
            model,
            reward_funcs=exact,
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[RewardBar(), unipo],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    assert unipo.path is not None
    return unipo.path


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
