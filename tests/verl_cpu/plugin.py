"""Loaded by verl itself, in each of its processes (VERL_USE_EXTERNAL_MODULES): what makes it run on a CPU.

Registries of verl's where it has one, and five changes where it has none. Nothing heavy is imported here: most
processes of a run need no model.
"""

from __future__ import annotations

import os
from functools import partial, wraps
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.distributed

from verl_cpu.after_import import after_import
from verl_cpu.device import pretend_platform, register_platform

NAME = "transformers_cpu"
"""Of the rollout, and of its agent loop."""

TOOL = f"{NAME}_tool"
"""Of an agent loop in which a tool answers."""

POLL = 0.05
"""Seconds between two looks into the replay buffer; verl's 2 would be most of a step."""


def _rollout(module: ModuleType) -> None:
    """A rollout of our own in verl's registry."""
    module._ROLLOUT_REGISTRY[NAME, "async"] = "verl_cpu.rollout.TransformersRollout"


def _replica(module: ModuleType) -> None:
    """The server that belongs to it."""

    def load() -> type:
        from verl_cpu.rollout import TransformersReplica

        return TransformersReplica

    module.RolloutReplicaRegistry.register(NAME, load)


def _agents(module: ModuleType) -> None:
    """Agent loops that tell the server which draw a request is."""
    import verl_cpu.agent  # noqa: F401


def _backend(start: Any) -> Any:
    """verl asks for "cpu:gloo,cpu:gloo", or nccl before 0.9; and torch refuses to be told of a device twice."""

    @wraps(start)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return start("gloo", *args, **kwargs)

    return init_process_group


def _unpinned(module: ModuleType) -> None:
    """A reference policy is offloaded to pinned memory, which takes an accelerator."""
    original = module.CPUOffloadPolicy
    module.CPUOffloadPolicy = lambda pin_memory=True: original(pin_memory=False)


def _value_head(module: ModuleType) -> None:
    """A critic is loaded with flash attention, whatever the configuration says."""

    def load_valuehead_model(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
        from transformers import AutoModelForTokenClassification

        load = partial(AutoModelForTokenClassification.from_pretrained, local_path, config=model_config)
        return load(torch_dtype=torch_dtype, attn_implementation="sdpa", trust_remote_code=trust_remote_code)

    module.load_valuehead_model = load_valuehead_model


def _replay(module: ModuleType) -> None:
    """The replay buffer looks more often, and gives rows in the order of the prompts, not in that of their arrival."""
    buffer = module.ReplayBuffer
    wait = buffer._wait_for_next_poll

    def wait_for_next_poll(self: Any, *args: Any) -> Any:
        self.poll_interval = POLL
        return wait(self, *args)

    def select_prompt_uids(self: Any, partition: str, sampleable: set[str], size: int) -> tuple[list, dict, dict]:
        started = dict(self.prompt_global_steps[partition])  # in the order in which the prompts were put
        uids = sorted((uid for uid in started if uid in sampleable), key=lambda uid: started[uid])[:size]
        place = {uid: number for number, uid in enumerate(started)}

        def order(item: tuple[str, dict]) -> tuple[int, int, int]:
            uid, session, output = item[0].rsplit("_", 2)
            return place.get(uid, len(place)), int(session), int(output)

        return uids, dict(sorted(self.partitions[partition].items(), key=order)), started

    buffer._wait_for_next_poll, buffer._select_prompt_uids = wait_for_next_poll, select_prompt_uids


def _install() -> None:
    """Everything; once a process."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.distributed.init_process_group = _backend(torch.distributed.init_process_group)
    if find_spec("verl.plugin"):
        register_platform()
    else:
        pretend_platform()
    after_import("verl.workers.rollout.base", _rollout)
    after_import("verl.workers.rollout.replica", _replica)
    after_import("verl.experimental.agent_loop.single_turn_agent_loop", _agents)
    after_import("verl.workers.engine.fsdp.transformer_impl", _unpinned)
    after_import("verl.utils.model", _value_head)
    after_import("verl.trainer.ppo.v1.replay_buffer", _replay)


_install()
