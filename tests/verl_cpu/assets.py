"""A tokenizer, a model and data small enough to train in seconds; the same bytes every time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRAIN, TEST, LARGEST = 64, 8, 12
"""Questions of each kind; numbers of one and of two digits, so that prompts differ in length."""

Answer = Callable[[int, int, random.Random], object]


@dataclass(frozen=True)
class Assets:
    """Where they are."""

    model: Path
    train: Path
    test: Path


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the marks of Qwen's chats."""
    vocabulary = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = TEMPLATE
    return made


def small_qwen2(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Two layers, 64 wide, about 100 thousand parameters, not trained."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )


def teach(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, answer: Answer, steps: int) -> None:
    """Supervised training on what `answer` gives for two numbers."""
    torch.set_num_threads(1)
    draw, optimizer = random.Random(0), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows, asked = [], []
        for _ in range(64):
            a, b = draw.randint(0, LARGEST), draw.randint(0, LARGEST)
            prompt = tokenizer.apply_chat_template(question(a, b), add_generation_prompt=True, tokenize=False)
            asked.append(len(tokenizer(prompt)["input_ids"]))
            rows.append(torch.tensor(tokenizer(f"{prompt}{answer(a, b, draw)}<|im_end|>")["input_ids"]))
        ids_BT = torch.nn.utils.rnn.pad_sequence(rows, True, -100)
        labels_BT = ids_BT.where(torch.arange(ids_BT.shape[1]) >= torch.tensor(asked)[:, None], -100)
        model(ids_BT.where(ids_BT >= 0, tokenizer.pad_token_id), labels=labels_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def some_digits(a: int, b: int, draw: random.Random) -> str:
    """Any one to eight digits: responses of every length."""
    return "".join(draw.choices("0123456789", k=draw.randint(1, 8)))


def question(a: int, b: int) -> list[dict[str, str]]:
    """A chat of one message, such as `3+4=`."""
    return [{"role": "user", "content": f"{a}+{b}="}]


def sums(count: int, split: str, draw: random.Random) -> pa.Table:
    """Questions with their answers, in verl's columns."""
    rows = []
    for index in range(count):
        a, b = draw.randint(0, LARGEST), draw.randint(0, LARGEST)
        rows.append(
            {
                "data_source": "digits/add",
                "prompt": question(a, b),
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(a + b)},
                "extra_info": {"split": split, "index": index},
            }
        )
    return pa.Table.from_pylist(rows)


def make_assets(folder: Path, answer: Answer = some_digits, steps: int = 30) -> Assets:
    """Write them to `folder`; the model has been taught `answer` for some steps."""
    logging.disable_progress_bar()
    made = Assets(folder / "tiny-qwen2", folder / "train.parquet", folder / "test.parquet")
    tokenizer, draw = byte_tokenizer(), random.Random(0)
    model = small_qwen2(tokenizer)
    teach(model, tokenizer, answer, steps)
    tokenizer.save_pretrained(made.model)
    model.save_pretrained(made.model)
    pq.write_table(sums(TRAIN, "train", draw), made.train)
    pq.write_table(sums(TEST, "test", draw), made.test)
    return made
