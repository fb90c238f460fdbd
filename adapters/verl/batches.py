"""The batch the driver hands to `_update_actor`, whichever trainer of verl it is: read, and its rows marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from unipo_hooks.record import Array

ROW, KEEP = "unipo_row", "unipo_keep"
"""Columns the driver adds to a batch: the row of a response in its rollout, -1 for padding; whether its tokens are
kept, which is there only where some are not."""

TOKENS = (
    "responses",
    "old_log_probs",
    "ref_log_prob",
    "rollout_log_probs",
    "rollout_is_weights",
    "values",
    "token_level_rewards",
)
"""What is read of the responses whose tokens are kept."""

EVERYWHERE = ("response_mask", "rm_scores", "advantages")
"""What is read of every response: metrics are of all of them."""

RETURNS, SAMPLED = "returns", "loss_mask"
"""Read where they say something: an estimator of one advantage a response has no returns of its own, and tokens the
policy did not write (0 in SAMPLED) are those that do not count, unless the trainer rejects others."""

PROMPTS = "prompts"


@dataclass(frozen=True, slots=True)
class Rows:
    """What was read of some rows, in their order."""

    tensors: Mapping[str, torch.Tensor]
    """verl's name → (b, T), jagged or padded on the right."""
    length_b: Array
    prompts: Sequence[torch.Tensor]
    """Ids without padding; none where `PROMPTS` was not asked for."""


class Batch(Protocol):
    """A batch of verl's, of which padding rows are no part."""

    @property
    def uids(self) -> Sequence[str]:
        """The prompt each response is of."""

    @property
    def width(self) -> int | None:
        """Positions every response is padded to; None where a micro-batch is padded to its own longest."""

    def read(self, rows: Array | None, names: Sequence[str]) -> Rows:
        """These rows (all: None), of which response_mask or responses is asked for; what is not there is left out."""

    def labels(self) -> dict[str, list[Any]]:
        """What is said of each response: data_source, staleness, conversation (`raw_prompt`), reward extras."""

    def mark(self, keep_B: Array | None) -> None:
        """Add the columns that tell workers rows apart."""

    def unmark(self) -> None:
        """Take off again what anyone would see."""


class ProtoBatch:
    """A `DataProto`, as the driver of `RayPPOTrainer` has it: every tensor is here, padded."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.width = int(batch.batch["responses"].shape[1])
        self._lengths = batch.batch["attention_mask"][:, -self.width :].sum(1)
        self.uids = [str(uid) for uid in batch.non_tensor_batch["uid"]]

    def read(self, rows: Array | None, names: Sequence[str]) -> Rows:
        """See `Batch`."""
        chosen = slice(None) if rows is None else torch.as_tensor(rows)
        held = self._batch.batch
        there = set(held.keys()) - {PROMPTS}
        # Cloned: what is written later is to be what the trainer trains on now.
        tensors = {name: held[name][chosen].clone() for name in names if name in there}
        if "rm_scores" in names and "rm_scores" not in tensors:
            tensors["rm_scores"] = held["token_level_scores"][chosen].clone()
        prompts: list[torch.Tensor] = []
        if PROMPTS in names:
            width = held[PROMPTS].shape[1]
            attended = held["attention_mask"][chosen][:, :width].bool()
            prompts = [row[mask] for row, mask in zip(held[PROMPTS][chosen], attended, strict=True)]
        return Rows(tensors, self._lengths[chosen].numpy(), prompts)

    def labels(self) -> dict[str, list[Any]]:
        """See `Batch`."""
        held, extras = self._batch.non_tensor_batch, self._batch.meta_info.get("reward_extra_keys", ())
        names = ("data_source", "raw_prompt", "min_global_steps", "max_global_steps")
        found = {name: list(held[name]) for name in names if name in held}
        found["reward_extra_info"] = [
            {name: held[name][row] for name in extras if name in held} for row in range(len(self.uids))
        ]
        return found

    def mark(self, keep_B: Array | None) -> None:
        """See `Batch`."""
        columns = {ROW: torch.arange(len(self.uids))} | ({} if keep_B is None else {KEEP: torch.as_tensor(keep_B)})
        self._batch.batch.update(columns)

    def unmark(self) -> None:
        """See `Batch`."""
        for name in (ROW, KEEP):
            if name in self._batch.batch.keys():  # noqa: SIM118
                self._batch.batch.pop(name)


class QueueBatch:
    """A `KVBatchMeta`, as the driver of the V1 trainer has it: keys of rows that lie in the TransferQueue, jagged."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self.width = None
        self._real = np.flatnonzero([not tag.get("is_padding", False) for tag in batch.tags])
        self._keys = [batch.keys[row] for row in self._real]
        self.uids = [key.rsplit("_", 2)[0] for key in self._keys]  # {uid}_{session}_{output}

    def read(self, rows: Array | None, names: Sequence[str]) -> Rows:
        """See `Batch`."""
        found = self._get(names, rows)
        tensors = {name: found[name] for name in found.keys()}  # noqa: SIM118
        prompts = list(tensors.pop(PROMPTS).unbind()) if PROMPTS in names else []
        length_b = tensors["responses" if "responses" in names else "response_mask"].offsets().diff().numpy()
        return Rows(tensors, length_b, prompts)

    def labels(self) -> dict[str, list[Any]]:
        """See `Batch`."""
        data = self._get(["data_source", "raw_prompt", "extra_fields"])
        names = set(data.keys())
        found = {name: list(data[name]) for name in ("data_source", "raw_prompt") if name in names}
        tags = [self._batch.tags[row] for row in self._real]
        found |= {name: [tag.get(name) for tag in tags] for name in ("min_global_steps", "max_global_steps")}
        extras = list(data["extra_fields"]) if "extra_fields" in names else [{}] * len(tags)
        found["reward_extra_info"] = [each.get("reward_extra_info") or {} for each in extras]
        return found

    def mark(self, keep_B: Array | None) -> None:
        """See `Batch`."""
        import transfer_queue
        from tensordict import TensorDict

        rows = len(self._batch.keys)
        row = torch.full((rows,), -1, dtype=torch.int64)
        row[self._real] = torch.arange(len(self._real))
        columns = {ROW: row}
        if keep_B is not None:
            columns[KEEP] = torch.zeros(rows, dtype=torch.bool)
            columns[KEEP][self._real] = torch.as_tensor(keep_B)
        put = transfer_queue.kv_batch_put(
            keys=self._batch.keys,
            partition_id=self._batch.partition_id,
            fields=TensorDict(columns, batch_size=rows),
        )
        self._batch.fields = put.fields  # workers fetch the columns named here, and no others

    def unmark(self) -> None:
        """The queue forgets the batch at the end of the step."""

    def _get(self, names: Sequence[str], rows: Array | None = None) -> Any:
        import transfer_queue

        keys = self._keys if rows is None else [self._keys[row] for row in rows]
        return transfer_queue.kv_batch_get(keys=keys, partition_id=self._batch.partition_id, select_fields=list(names))


def batch_of(batch: Any) -> Batch:
    """The batch `_update_actor` was given."""
    return ProtoBatch(batch) if hasattr(batch, "non_tensor_batch") else QueueBatch(batch)
