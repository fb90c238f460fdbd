"""Notes what verl really computed, by means of its own, so that a test can hold a capture against it.

Loaded by verl (`modules=("verl_cpu.witness",)`), with the folder to write to in VERL_CPU_WITNESS. In the driver: the
whole batch at the end of every update of the actor. In each worker: every call of the actor's loss function. `read`
gives both back as arrays. It changes nothing: functions and methods are wrapped, and return what they returned.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import wraps
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

FOLDER = "VERL_CPU_WITNESS"
Column = np.ndarray | tuple[np.ndarray, ...]
"""A value for each row: one array, or an array a row where rows have lengths of their own."""

_COUNT = count()


@dataclass(frozen=True)
class Update:
    """A batch as it was when the actor had been trained on it."""

    step: int
    columns: Mapping[str, Column]
    """As verl has them. V1: rows of their own length, `keys` and `tags` (JSON) among them. V0: padded to a width."""


@dataclass(frozen=True)
class Pass:
    """One call of the loss function: a micro-batch of one rank."""

    step: int
    """Of the update in which it happened."""
    rank: int
    number: int
    """In the order of this rank's calls in this update."""
    loss: float
    """What it returned; the next one among its metrics."""
    pg_loss: float
    columns: Mapping[str, Column]
    """Log-probs of the policy as `log_probs`, what it was given beside, and numbers such as `batch_num_tokens`."""


@dataclass(frozen=True)
class Witness:
    """Everything noted in a run."""

    updates: tuple[Update, ...]
    passes: tuple[Pass, ...]


def read(folder: Path) -> Witness:
    """What the processes of a run wrote to `folder`, in order."""
    notes = sorted(map(_load, folder.glob("*.npz")), key=lambda note: note["began"])
    batches = [note for note in notes if note["kind"] == "update"]
    updates = tuple(Update(int(note["step"]), _columns(note)) for note in batches)
    passes, seen = [], {}
    for note in notes:
        if note["kind"] == "update":
            continue
        step = next(int(each["step"]) for each in batches if each["began"] <= note["began"] <= each["ended"])
        place = (step, int(note["rank"]))
        seen[place] = seen.get(place, -1) + 1
        passes.append(Pass(*place, seen[place], float(note["loss"]), float(note["pg_loss"]), _columns(note)))
    return Witness(updates, tuple(passes))


def _load(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: value[()] if value.ndim == 0 else value for name, value in file.items()}


def _columns(note: dict[str, Any]) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for name, value in note.items():
        if name.startswith("column.") and not name.endswith(".lengths"):
            lengths = note.get(f"{name}.lengths")
            whole = value if lengths is None else tuple(np.split(value, np.cumsum(lengths)[:-1]))
            columns[name.removeprefix("column.")] = whole
    return columns


# --- in verl's processes ---------------------------------------------------------------------------------------------


def _plain(name: str, value: Any) -> dict[str, np.ndarray]:
    """A field of a batch as arrays that need no unpickling: rows of their own length lie one after the other."""
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
        if value.is_nested:
            rows = [row.numpy() for row in value.unbind()]
            lengths = np.array([len(row) for row in rows])
            return {f"column.{name}": np.concatenate(rows), f"column.{name}.lengths": lengths}
        return {f"column.{name}": value.numpy()}
    items = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(items, (list, tuple)):
        items = [getattr(item, "data", item) for item in items]
        if not all(isinstance(item, (str, int, float)) for item in items):
            items = [json.dumps(item, default=str) for item in items]
        return {f"column.{name}": np.array(items)}
    return {f"column.{name}": np.array(items if isinstance(items, (str, int, float)) else str(items))}


def _write(kind: str, began: float, fields: Mapping[str, Any], **values: Any) -> None:
    """One note: a file of its own, complete once it has its name."""
    note = {"kind": kind, "began": began, "ended": time.monotonic(), **values}
    for name, value in fields.items():
        note |= _plain(name, value)
    path = Path(os.environ[FOLDER]) / f"{kind}-{os.getpid()}-{next(_COUNT):06}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".part").open("wb") as file:
        np.savez(file, **note)
    path.with_suffix(".part").rename(path.with_suffix(".npz"))


def _of_transfer_queue(batch: Any) -> dict[str, Any]:
    """V1: all fields the queue has of these keys."""
    import transfer_queue

    fields = transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id)
    return {**dict(fields.items()), "keys": list(batch.keys), "tags": list(batch.tags)}


def _of_data_proto(batch: Any) -> dict[str, Any]:
    """V0 and before: a padded batch."""
    return {**dict(batch.batch.items()), **batch.non_tensor_batch}


def _watch_updates(trainer: str, fields: Any) -> Any:
    """A change of a module: its trainer class notes the batch of each update of the actor."""

    def change(module: ModuleType) -> None:
        cls = getattr(module, trainer)
        original = cls._update_actor

        @wraps(original)
        def _update_actor(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            began = time.monotonic()
            result = original(self, batch, *args, **kwargs)
            _write("update", began, fields(batch), step=self.global_steps)
            return result

        cls._update_actor = _update_actor

    return change


def _watch_loss(module: ModuleType) -> None:
    """The actor's loss function notes what it was given and what it gave."""
    original = module.ppo_loss
    # 0.7 has the function under another name.
    of_responses = getattr(module, "no_padding_2_padding", None) or module._slice_response_from_unpad_output

    @wraps(original)
    def ppo_loss(config: Any, model_output: Any, data: Any, dp_group: Any = None) -> Any:
        import torch

        began = time.monotonic()
        loss, metrics = original(config, model_output, data, dp_group)
        pg_loss = metrics["actor/pg_loss"]
        pg_loss = getattr(pg_loss, "values", [pg_loss])
        fields = {name: data[name] for name in data.keys()}  # noqa: SIM118  # a TensorDict iterates over its rows
        fields["log_probs"] = of_responses(model_output["log_probs"], data)
        rank = torch.distributed.get_rank()
        _write("pass", began, fields, rank=rank, loss=loss.item(), pg_loss=float(pg_loss[0]))
        return loss, metrics

    module.ppo_loss = ppo_loss


if FOLDER in os.environ:
    from verl_cpu.after_import import after_import

    after_import("verl.trainer.ppo.v1.trainer_base", _watch_updates("PPOTrainer", _of_transfer_queue))
    after_import("verl.trainer.ppo.ray_trainer", _watch_updates("RayPPOTrainer", _of_data_proto))
    after_import("verl.workers.utils.losses", _watch_loss)
