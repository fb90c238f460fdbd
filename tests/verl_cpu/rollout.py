"""verl's side of the rollout: where its server is started, and how weights get there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica

from verl_cpu.server import TransformersServer


def _name(replica: int) -> str:
    return f"transformers_server_{replica}"


class TransformersReplica(RolloutReplica):
    """One server for each replica, without a CPU of its own in Ray's count."""

    async def launch_servers(self) -> None:
        made = ray.remote(TransformersServer).options(
            name=_name(self.replica_rank), max_concurrency=self.max_concurrency, num_cpus=0
        )
        self._server_handle = made.remote(
            self.config.prompt_length, self.config.response_length, self.model_config.path
        )
        self._server_address = _name(self.replica_rank)
        self.servers = [self._server_handle]
        await self._server_handle.sleep.remote()  # until it is there


class TransformersRollout(BaseRollout):
    """In the actor's process: hands weights to the server."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1, **_: Any) -> None:
        super().__init__(config, model_config, device_mesh)
        ranks = self.config.tensor_model_parallel_size * self.config.data_parallel_size
        self.replica = int(os.environ["RANK"]) // ranks

    async def resume(self, tags: list[str]) -> None:
        """Nothing was released."""

    async def release(self) -> None:
        """Nothing is to be released."""

    async def update_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None, **_: Any
    ) -> None:
        """The whole model at once: it is small."""
        state = {name: weight.detach().cpu().clone() for name, weight in weights}
        await ray.get_actor(_name(self.replica)).load_weights.remote(state, global_steps)
