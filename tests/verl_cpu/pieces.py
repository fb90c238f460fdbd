"""Pieces of verl for tests that start no run: its own configuration, a batch of random responses, a worker's loop.

What is a stand-in here is the model and the process group; the batch, its way to the loss and the loss are verl's.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import hydra
import numpy as np
import ray
import torch
import transfer_queue
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine.utils import prepare_micro_batches
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import left_right_2_no_padding

from unipo_hooks.adapters.verl.batches import EVERYWHERE, PROMPTS, TOKENS
from unipo_hooks.adapters.verl.settings import Plan, run_info
from unipo_hooks.adapters.verl.translate import RESPONSE_LEVEL
from unipo_hooks.record import RunInfo

VOCABULARY = 17


@cache
def _plain() -> Any:
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer")


@cache
def composed(*overrides: str) -> Any:
    """verl's own configuration, as `main_ppo` gets it. Hydra is asked once: it takes half a second."""
    config = OmegaConf.create(OmegaConf.to_container(_plain(), resolve=False))
    return OmegaConf.merge(config, OmegaConf.from_dotlist([each.lstrip("+") for each in overrides]))


class Characters:
    """A tokenizer: a token a letter."""

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(map(chr, ids))


@cache
def info(*overrides: str, reward_names: tuple[str, ...] = (), strict: bool = True, **more: Any) -> RunInfo:
    """What is known of a run with these settings; `more`: further attributes of its trainer."""
    trainer = SimpleNamespace(config=composed(*overrides), tokenizer=Characters(), processor=None, **more)
    plan = Plan(trainer.config)
    named = {"reward_names": reward_names, "reward_names_found": True}
    return run_info(trainer, **named, steps_before=0, plan=plan, strict=strict)


@cache
def loss(*overrides: str) -> Any:
    """The loss function a worker is given."""
    config = composed("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1", *overrides)
    return partial(ppo_loss, config=omega_conf_to_dataclass(config.actor_rollout_ref.actor))


def proto(rows: int = 8, prompt: int = 5, response: int = 7, *, seed: int = 0, estimator: str = "grpo") -> DataProto:
    """A batch as the driver of V0 hands it to `_update_actor`: prompts padded on the left, responses on the right.

    Responses have holes, as tools leave them; groups are of two.
    """
    random = np.random.default_rng(seed)
    prompts, lengths = random.integers(1, prompt + 1, rows), random.integers(1, response + 1, rows)
    attention = np.zeros((rows, prompt + response), np.int64)
    for row in range(rows):
        attention[row, prompt - prompts[row] : prompt + lengths[row]] = 1
    ids = random.integers(1, VOCABULARY, attention.shape) * attention
    mask = attention[:, prompt:] * (random.random((rows, response)) < 0.8)
    mask[0] = 0  # a response none of whose tokens counts
    own = (rows, 1 if estimator in RESPONSE_LEVEL else response)
    tensors = {
        "prompts": ids[:, :prompt],
        "responses": ids[:, prompt:],
        "input_ids": ids,
        "attention_mask": attention,
        "position_ids": np.maximum(attention.cumsum(1) - 1, 0) * attention,
        "response_mask": mask,
        "advantages": (random.normal(size=own) * mask).astype(np.float32),
    }
    for name in ("old_log_probs", "ref_log_prob", "rollout_log_probs"):
        tensors[name] = -random.exponential(2.0, mask.shape).astype(np.float32) * mask
    tensors["token_level_scores"] = np.zeros(mask.shape, np.float32)
    tensors["token_level_scores"][np.arange(rows), lengths - 1] = random.random(rows)
    talk = np.empty(rows, object)
    talk[:] = [[{"role": "user", "content": f"question {row // 2}"}] for row in range(rows)]
    return DataProto.from_dict(
        tensors={name: torch.as_tensor(values) for name, values in tensors.items()},
        non_tensors={
            "uid": np.array([f"uid{row // 2}" for row in range(rows)], object),
            "data_source": np.array(["gsm8k"] * rows, object),
            "raw_prompt": talk,
            "acc": random.integers(0, 2, rows).astype(bool),
            "note": np.array([f"row {row}" for row in range(rows)], object),
            "min_global_steps": np.array([3] * rows, object),
            "max_global_steps": np.array([None] * rows, object),
        },
        meta_info={"reward_extra_keys": ["acc", "note"], "temperature": 1.0},
    )


def as_trained(batch: DataProto) -> TensorDict:
    """What a worker of V0 is sent of it."""
    data = left_right_2_no_padding(batch.to_tensordict())
    tu.assign_non_tensor(data, global_batch_size=len(batch), calculate_entropy=True)
    return data


def as_queued(batch: DataProto) -> TensorDict:
    """What a worker of V1 fetches of it: every tensor jagged, a row a response."""
    held, padded = batch.batch, batch.batch["prompts"].shape[1]
    attended = held["attention_mask"].bool()
    marks = {name: held[name] for name in held.keys() if held[name].ndim == 1}  # noqa: SIM118
    rows: dict[str, Any] = {}
    for name in set(held.keys()) - set(marks) - {"attention_mask"}:
        width = held[name].shape[1]
        of = attended if width == attended.shape[1] else attended[:, :padded]
        of = attended[:, padded:] if width == attended.shape[1] - padded and name != "prompts" else of
        rows[name] = torch.nested.as_nested_tensor(
            [each[mask] for each, mask in zip(held[name], of, strict=True)], layout=torch.jagged
        )
    rows["loss_mask"] = rows["response_mask"]
    data = TensorDict({**rows, **marks}, batch_size=len(batch))
    tu.assign_non_tensor(data, global_batch_size=len(batch), calculate_entropy=True)
    return data


@contextmanager
def transfer_queue_running() -> Iterator[None]:
    """A TransferQueue of its own, in a Ray of its own."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0"}
    logging.getLogger("transfer_queue.utils.common").setLevel(logging.ERROR)  # says of every call how few cores it has
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=10**8, _temp_dir=folder, log_to_driver=False)
        try:
            units = "transfer_queue.backend.SimpleStorage.num_data_storage_units=1"
            transfer_queue.init(composed(units, "transfer_queue.enable=True").transfer_queue)
            yield
            transfer_queue.close()
        finally:
            ray.shutdown()


def put(batch: DataProto, *, padding: int = 0) -> Any:
    """The batch as the driver of V1 has it; behind its rows so many of padding, copies of the first."""
    data, rows, partition = as_queued(batch), len(batch), f"train_{uuid4().hex}"
    order = [*range(rows), *[0] * padding]
    columns = TensorDict({}, batch_size=len(order))
    for name in set(data.keys()) & {*EVERYWHERE, *TOKENS, PROMPTS, "token_level_scores"}:
        values = [data[name][row] for row in order]
        columns[{"token_level_scores": "rm_scores"}.get(name, name)] = torch.nested.as_nested_tensor(
            values, layout=torch.jagged
        )
    said = batch.non_tensor_batch
    extras = [{"reward_extra_info": {name: said[name][row] for name in ("acc", "note")}} for row in order]
    tu.assign_non_tensor_stack(columns, "extra_fields", extras)
    for name in ("data_source", "raw_prompt"):
        tu.assign_non_tensor_stack(columns, name, [said[name][row] for row in order])
    keys = [f"{said['uid'][row]}_{row % 2}_0" for row in range(rows)] + [f"padff_{row}_0" for row in range(padding)]
    tags = [{"is_padding": key.startswith("pad"), "min_global_steps": 3, "max_global_steps": None} for key in keys]
    return transfer_queue.kv_batch_put(keys=keys, partition_id=partition, fields=columns, tags=tags)


class Engine:
    """The model, and where it stands among data-parallel ranks."""

    def __init__(self, *, rank: int = 0, ranks: int = 1, dtype: torch.dtype = torch.float32, holds: bool = True):
        table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1))
        self.table = torch.nn.Parameter(table.to(dtype))
        self.optimizer = torch.optim.SGD([self.table], lr=0.25)
        self._rank, self._ranks, self._holds = rank, ranks, holds

    def get_data_parallel_rank(self) -> int:
        return self._rank

    def get_data_parallel_size(self) -> int:
        return self._ranks

    def is_mp_src_rank_with_outputs(self) -> bool:
        return self._holds

    def __call__(self, data: TensorDict) -> dict[str, torch.Tensor]:
        """Log-probs and entropies of every token, jagged, as `FSDPEngine.prepare_model_outputs` gives them."""
        ids = data["input_ids"]
        logits = torch.log_softmax(self.table[ids.values()], -1)
        following = torch.roll(ids.values(), -1)
        found = {
            "log_probs": logits.gather(1, following[:, None]).squeeze(1),
            "entropy": -(logits.exp() * logits).sum(1),
        }
        return {name: torch.nested.nested_tensor_from_jagged(each, ids.offsets()) for name, each in found.items()}


class Worker:
    """What `TrainingWorker` does with a mini-batch, on verl's own loss."""

    def __init__(self, *overrides: str, micro_batch: int = 4, dynamic: bool = False, **engine: Any) -> None:
        self.loss_fn: Any = loss(*overrides)
        self.engine = Engine(**engine)
        self._cut = {"use_dynamic_bsz": dynamic, "micro_batch_size_per_gpu": micro_batch, "max_token_len_per_gpu": 24}

    def train_batch(self, data: TensorDict) -> TensorDict | None:
        """`FSDPEngine.forward_backward_batch` and one optimizer step. Returns what a rank with outputs returns."""
        ranks = self.engine.get_data_parallel_size()
        tokens = ranks * data["loss_mask"].sum().item()
        tu.assign_non_tensor(data, batch_num_tokens=tokens, dp_size=ranks, **self._cut)
        self.engine.optimizer.zero_grad()
        total = 0.0
        for each in prepare_micro_batches(data)[0]:
            lost, _ = self.loss_fn(model_output=self.engine(each), data=each, dp_group=None)
            lost.backward()
            total += lost.item()
        norm = float(self.engine.table.grad.norm())
        self.engine.optimizer.step()
        metrics = {"grad_norm": norm, "loss": total}
        return tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": metrics})
