"""A Ray actor that samples from a model of transformers.

Every row has a generator of its own, and a place in a batch rounds no number: when a request arrives, and beside which
others, does not matter.
"""

from __future__ import annotations

# First of all: Ray imports this module before anything else of verl's, and verl imports the plugin.
import verl  # noqa: F401  # isort: skip

import asyncio
from collections import Counter
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from verl.workers.rollout.replica import TokenOutput

GATHER = 0.02
"""Seconds in which requests are gathered into a batch."""

ROWS = 16
"""Rows of a forward pass are a multiple of this: a matrix product of few rows is rounded differently."""


async def _nothing(self: Any, *_: Any, **__: Any) -> None:
    """What a server of weights in plain memory need not do."""


class TransformersServer:
    """Plain sampling by temperature: no top-p, no top-k."""

    def __init__(self, prompt_length: int, response_length: int, path: str) -> None:
        torch.set_num_threads(1)
        tokenizer = AutoTokenizer.from_pretrained(path)
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.prompt_length, self.response_length = prompt_length, response_length
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path)).eval().float()
        self.steps: int | None = None
        self.waiting: list[tuple[list[int], float, np.ndarray, asyncio.Future]] = []
        self.asked: Counter[tuple[int, ...]] = Counter()
        self.task: asyncio.Task | None = None

    wake_up = sleep = abort_all_requests = resume_generation = _nothing
    clear_kv_cache = release_kv_cache = resume_kv_cache = start_profile = stop_profile = _nothing

    async def set_global_steps(self, steps: int | None) -> None:
        """The trainer's step whose weights these are."""
        self.steps = steps

    async def load_weights(self, state: dict[str, torch.Tensor], steps: int | None = None) -> None:
        """Take the weights of a step; output and input embeddings may be one tensor, sent once."""
        unknown = self.model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False).unexpected_keys
        assert not unknown, unknown[:3]
        self.steps = self.steps if steps is None else steps
        self.asked.clear()

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **_: Any
    ) -> TokenOutput:
        """One response, with the log-probs of its tokens."""
        done = asyncio.get_running_loop().create_future()
        uniform_T = self._uniform(tuple(prompt_ids), sampling_params.get("draw"))
        self.waiting.append((list(prompt_ids), sampling_params.get("temperature") or 0.0, uniform_T, done))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._serve())
        return await done

    def _uniform(self, prompt: tuple[int, ...], draw: tuple[int, int] | None) -> np.ndarray:
        """A number in [0, 1) for each token. A request that carries no number is the n-th for its prompt."""
        if draw is None:
            draw, self.asked[prompt] = (-1, self.asked[prompt]), self.asked[prompt] + 1
        seed = [max(self.steps or 0, 0), draw[0] + 1, draw[1], *prompt]
        return np.random.default_rng(seed).random(self.response_length)

    async def _serve(self) -> None:
        await asyncio.sleep(GATHER)
        while self.waiting:
            batch, self.waiting = self.waiting, []
            prompts, temperatures, uniforms, futures = zip(*batch, strict=True)
            for done, output in zip(futures, self._sample(prompts, temperatures, uniforms), strict=True):
                done.set_result(output)
            await asyncio.sleep(0)

    @torch.no_grad()
    def _sample(self, prompts: Any, temperatures: Any, uniforms: Any) -> list[TokenOutput]:
        count = len(prompts)
        rows = -(-count // ROWS) * ROWS
        length = max(self.prompt_length, *map(len, prompts))
        ids_BP = torch.full((rows, length), self.pad)
        for row, prompt in enumerate(prompts):
            ids_BP[row, length - len(prompt) :] = torch.tensor(prompt)
        mask_BP = (
            torch.arange(length) >= torch.tensor([length - len(p) for p in prompts] + [0] * (rows - count))[:, None]
        )
        uniform_BT = torch.tensor(np.stack(uniforms + uniforms[:1] * (rows - count)))
        temperature_B = torch.tensor(temperatures + temperatures[:1] * (rows - count), dtype=torch.float32)
        tokens_BT, log_probs_BT = self._decode(ids_BP, mask_BP.long(), temperature_B, uniform_BT)
        return [
            self._output(*row) for row in zip(tokens_BT.tolist()[:count], log_probs_BT.tolist()[:count], strict=True)
        ]

    def _decode(
        self, ids_BP: torch.Tensor, mask_BP: torch.Tensor, temperature_B: torch.Tensor, uniform_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, T) and their log-probs, a token at a time; a temperature of 0 takes the likeliest."""
        cache, ended_B = None, torch.zeros(len(ids_BP), dtype=torch.bool)
        tokens, log_probs = [], []
        for step in range(self.response_length):
            positions = (mask_BP.cumsum(-1) - 1).clamp(min=0)[:, -ids_BP.shape[1] :]
            output = self.model(ids_BP, attention_mask=mask_BP, position_ids=positions, past_key_values=cache)
            cache = output.past_key_values
            log_probs_BV = (
                output.logits[:, -1].float() / temperature_B.where(temperature_B > 0, 1)[:, None]
            ).log_softmax(-1)
            below_BV = log_probs_BV.double().exp().cumsum(-1)
            drawn_B = torch.searchsorted(below_BV, uniform_BT[:, step : step + 1] * below_BV[:, -1:])[:, 0]
            token_B = drawn_B.clamp(max=below_BV.shape[1] - 1).where(temperature_B > 0, log_probs_BV.argmax(-1))
            tokens.append(token_B)
            log_probs.append(log_probs_BV.gather(1, token_B[:, None])[:, 0])
            ended_B |= token_B == self.end
            if ended_B.all():
                break
            ids_BP, mask_BP = token_B[:, None], torch.cat([mask_BP, torch.ones_like(mask_BP[:, :1])], 1)
        return torch.stack(tokens, 1), torch.stack(log_probs, 1)

    def _output(self, tokens: list[int], log_probs: list[float]) -> TokenOutput:
        ended = self.end in tokens
        length = tokens.index(self.end) + 1 if ended else len(tokens)
        return TokenOutput(
            token_ids=tokens[:length],
            log_probs=log_probs[:length],
            stop_reason="completed" if ended else "length",
            num_preempted=0,
            extra_fields={"global_steps": self.steps},
        )
