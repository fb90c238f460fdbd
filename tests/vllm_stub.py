"""What stands in for TRL's client of a vLLM server: a sampler in this process whose log-probs are not the trainer's.

Nothing else of TRL is replaced. The trainer pushes its weights to the sampler and asks it for responses through its own
code, and gets log-probs some way off its own, as an engine with other kernels would give.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM


class Sampler:
    """The methods of `trl.generation.vllm_client.VLLMClient` that a trainer calls."""

    def __init__(self, folder: Any, ends: set[int], spread: float, unscored: float):
        self._model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._ends, self._spread, self._unscored = ends, spread, unscored
        self._random = torch.Generator().manual_seed(0)
        self.synchronised = 0

    def init_communicator(self, device: Any) -> None:
        """Weights come in memory."""

    def get_server_info(self) -> dict[str, Any]:
        """Log-probs are said to be those after temperature."""
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata: list[Any], named_params: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take the trainer's weights."""
        weights = {name: tensor.detach().clone() for name, tensor in named_params}
        assert set(weights) == {name for name, _, _ in metadata}
        left = self._model.load_state_dict(weights, strict=False)
        assert not left.unexpected_keys
        self.synchronised += 1

    def reset_prefix_cache(self) -> None:
        """There is none."""

    @torch.no_grad()
    def generate(
        self, prompts: list[list[int]], *, n: int, temperature: float, max_tokens: int, **_: Any
    ) -> dict[str, Any]:
        """`n` responses a prompt; log-probs `spread` nats off, None for a share of the tokens, as for vLLM's NaN."""
        answers = [self._sampled(prompt, temperature, max_tokens) for prompt in prompts for _ in range(n)]
        return {
            "prompt_ids": prompts,
            "completion_ids": [ids for ids, _ in answers],
            "logprobs": [[[each] for each in log_probs] for _, log_probs in answers],
            "logprob_token_ids": [[[each] for each in ids] for ids, _ in answers],
        }

    def _sampled(self, prompt: list[int], temperature: float, most: int) -> tuple[list[int], list[float | None]]:
        ids: list[int] = []
        log_probs: list[float | None] = []
        while len(ids) < most and not self._ends.intersection(ids):
            logits = self._model(torch.tensor([prompt + ids])).logits[0, -1] / temperature
            drawn = int(torch.multinomial(logits.softmax(0), 1, generator=self._random))
            off, hidden = torch.randn((), generator=self._random), torch.rand((), generator=self._random)
            said = min(float(logits.log_softmax(0)[drawn] + self._spread * off), 0.0)
            ids.append(drawn)
            log_probs.append(None if hidden < self._unscored else said)
        return ids, log_probs


@contextmanager
def sampler(folder: Any, ends: set[int], *, spread: float = 0.3, unscored: float = 0.0) -> Iterator[None]:
    """While it lasts, a trainer with `use_vllm=True, vllm_mode="server"` finds such a sampler for its server."""
    with pytest.MonkeyPatch.context() as patch:
        module = "trl.generation.vllm_generation"
        patch.setattr(f"{module}.is_vllm_available", lambda: True)
        patch.setattr(f"{module}.VLLMClient", lambda **_: Sampler(folder, ends, spread, unscored))
        yield
