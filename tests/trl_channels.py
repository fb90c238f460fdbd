"""A real run under some settings, captured, beside what the trainer held while it ran, by means of our own.

The trainer's own values are the local variables of TRL's `_generate_and_score_completions` and `_compute_loss` at the
moment they return, as Python's profiler shows them: nothing here goes through what captures.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from trl import GRPOTrainer, RLOOTrainer
from trl.experimental.gmpo import GMPOTrainer
from trl_runs import DATASET, TOKENIZER, small_mixture, trainer_for
from vllm_stub import sampler

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.bundle.reader import Bundle
from unipo_hooks.bundle.verify import verify

NEVER = {"log_probs", "old_log_probs", "ref_log_probs", "entropies", "token_kl"}
"""Channels of a forward pass, which says nothing of positions that were not attended."""


@contextmanager
def locals_at_return(cls: type, method: str, found: dict[str, Any]) -> Iterator[None]:
    """Keeps the tensors (copied) and numbers among the locals of TRL's own `method` of a trainer's class."""
    owner = next(each for each in cls.__mro__ if method in vars(each) and each.__module__.startswith("trl."))
    code = vars(owner)[method].__code__

    def profiled(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is code:
            for name, value in frame.f_locals.items():
                if isinstance(value, torch.Tensor):
                    found[name] = value.detach().clone()
                elif isinstance(value, int | float | list):
                    found[name] = value

    before = sys.getprofile()
    sys.setprofile(profiled)
    try:
        yield
    finally:
        sys.setprofile(before)


class Spied:
    """Beside a real trainer: keeps what its generation and its losses worked with."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.rollouts: list[dict[str, Any]] = []
        self.passes: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    @property
    def kind(self) -> str:
        return "train" if self.model.training else "eval"

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        local: dict[str, Any] = {}
        with locals_at_return(type(self), "_generate_and_score_completions", local):
            batch = super()._generate_and_score_completions(inputs)
        self.rollouts.append({"kind": self.kind, "local": local, "batch": _tensors(batch)})
        return batch

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        local: dict[str, Any] = {}
        own = {"kind": self.kind, "step": self.state.global_step, "inputs": _tensors(inputs), "local": local}
        with locals_at_return(type(self), "_compute_loss", local):
            loss = super()._compute_loss(model, inputs)
        self.passes.append({**own, "loss": loss.item()})
        return loss


def _tensors(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)}


class SpiedGRPO(Spied, GRPOTrainer):
    """GRPOTrainer, watched."""


class SpiedRLOO(Spied, RLOOTrainer):
    """RLOOTrainer, watched."""


class SpiedGMPO(Spied, GMPOTrainer):
    """GMPOTrainer, watched."""


@dataclass
class Run:
    """A finished run."""

    trainer: Any
    bundle: Bundle
    faults: list[str]
    said: list[str]
    kinds: Sequence[str]
    _tokens: dict[str, pd.DataFrame] = field(default_factory=dict)

    def tokens(self, kind: str) -> pd.DataFrame:
        """Every stored token of every update."""
        if kind not in self._tokens:
            updates = self.bundle.updates(kind=kind).column("update").to_pylist()
            self._tokens[kind] = self.bundle.tokens(update=updates, kind=kind).to_pandas()
        return self._tokens[kind]

    def rollouts(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.trainer.rollouts if each["kind"] == kind]

    def passes(self, kind: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(update, micro-batch, what the trainer held), in order; an evaluation's pass is an update of its own."""
        seen: dict[int, int] = {}
        for number, each in enumerate(each for each in self.trainer.passes if each["kind"] == kind):
            update = each["step"] if kind == "train" else number
            seen[update] = seen.get(update, -1) + 1
            yield update, seen[update], each


class Heard(logging.Handler):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def run(saved_model: Path, folder: Path, **settings: Any) -> Run:
    """Train under these settings, captured.

    `vllm`: what the sampler that stands in for a server is to be like. `mixture`: whether the model is one of experts.
    `prompts`: how many the dataset has.
    """
    heard, vllm, mixture = Heard(), settings.pop("vllm", None), settings.pop("mixture", False)
    prompts = settings.pop("prompts", None)
    evaluated = "eval_steps" in settings
    callback = UnipoCallback(folder / "run", strict=True)
    log = logging.getLogger("unipo_hooks")
    if mixture:
        torch.manual_seed(0)
        saved_model = folder / "mixture"
        small_mixture(TOKENIZER).save_pretrained(saved_model)
    with ExitStack() as stack:
        log.addHandler(heard)
        stack.callback(log.removeHandler, heard)
        if vllm is not None:
            stack.enter_context(sampler(saved_model, {TOKENIZER.eos_token_id, TOKENIZER.pad_token_id}, **vllm))
            settings |= {"use_vllm": True, "vllm_mode": "server"}
        trainer = trainer_for(saved_model, folder, callbacks=[callback], **{"cls": SpiedGRPO} | settings)
        if evaluated:
            trainer.eval_dataset, trainer.args.eval_strategy = DATASET.select(range(4)), "steps"
        if prompts is not None:
            trainer.train_dataset = DATASET.select(range(prompts))
        trainer.train()
    bundle = open_bundle(callback.path)
    faults = [str(fault) for fault in verify(callback.path)]
    return Run(trainer, bundle, faults, heard.said, ("train", "eval") if evaluated else ("train",))


def held(each: dict[str, Any], rollout: dict[str, Any], rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Channel → what the trainer held of the rows of a pass, (b, T) or (b,), NaN where it computed nothing."""
    inputs, local, before = each["inputs"], each["local"], rollout["local"]
    attended = inputs["completion_mask"].numpy().astype(bool)
    if "old_logps" in inputs:  # RLOO: the batch has sums alone
        old, reference = (before.get(name) for name in ("old_per_token_logps", "ref_per_token_logps"))
        old, reference = (value if value is None else value[rows] for value in (old, reference))
        assert torch.equal((old * inputs["completion_mask"]).sum(1), inputs["old_logps"])
    else:
        old, reference = local["old_per_token_logps"], inputs.get("ref_per_token_logps")
    found = {
        "log_probs": local["per_token_logps"],
        "old_log_probs": old,
        "ref_log_probs": reference,
        "entropies": local["entropies"],
        "token_kl": local.get("per_token_kl"),
        "advantages": inputs["advantages"],
        "rollout_log_probs": inputs.get("sampling_per_token_logps"),
        "is_weights": inputs.get("importance_sampling_ratio"),
    }
    arrays = {name: value.float().numpy() for name, value in found.items() if value is not None}
    masks = [local[name].float().numpy() for name in ("entropy_mask", "off_policy_mask") if name in local]
    if masks:
        arrays["policy_mask"] = np.prod(np.broadcast_arrays(attended, *masks)[1:], axis=0, dtype=np.float32)
    arrays |= {name: np.where(attended, arrays[name], np.nan) for name in NEVER & arrays.keys()}
    return {name: value[:, 0] if value.shape[1:] == (1,) else value for name, value in arrays.items()}


def same(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two float32 arrays are the same bit for bit, NaN at the same places."""
    mine, theirs = np.asarray(mine, np.float32), np.asarray(theirs, np.float32)
    if mine.shape != theirs.shape or not np.array_equal(np.isnan(mine), np.isnan(theirs)):
        return False
    return mine[~np.isnan(mine)].tobytes() == theirs[~np.isnan(theirs)].tobytes()


def divided(run: Run, kind: str) -> float:
    """RLOO's loss is divided by the accumulation steps after it is returned."""
    return run.trainer.args.gradient_accumulation_steps if kind == "train" and isinstance(run.trainer, SpiedRLOO) else 1
