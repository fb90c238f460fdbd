"""Ranks that train together write one bundle: rank 0 opens it and says where, the others join.

They talk through the key-value store that torch.distributed began with, never through a collective: a rank whose
capture failed would leave all others waiting in one. Nothing here waits for long.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

from unipo_hooks.errors import CaptureError
from unipo_hooks.recorder import Recorder
from unipo_hooks.schema import Joined

PATIENCE = 30.0
"""Seconds a rank waits to hear from rank 0. Opening a bundle takes milliseconds, on a slow network disk seconds; the
first collective after it gives up after minutes, so that waiting this long harms no run."""

PAUSE = 0.02
"""Seconds between two looks: a wait inside the store would keep its connection from everyone else in the process."""

OFF = "off: "
"""What rank 0 says instead, with a reason, where it captures nothing."""

_numbers = itertools.count()

log = logging.getLogger("unipo_hooks")


class Meeting:
    """Where the ranks of one callback meet: under its number, as every rank makes its callbacks in the same order."""

    def __init__(self) -> None:
        self._number = next(_numbers)
        self._others: dict[int, str] = {}
        """Rank → the key under which it says that it has joined; known to rank 0 alone."""

    def recorder(self, accelerator: Any, start: int, record: Callable[[Joined | None], Recorder]) -> Recorder:
        """The recorder of this rank, which `record` makes: from what rank 0 says of this start, on rank 0 from None.

        Raises CaptureError where rank 0 captures nothing or cannot be heard, and whatever `record` raises.
        """
        if accelerator.num_processes == 1:
            return record(None)
        store, key = _store(), f"unipo_hooks/{self._number}/{start}"
        if accelerator.process_index == 0:
            self._others = {rank: f"{key}/{rank}" for rank in range(1, accelerator.num_processes)}
            return _tell(store, key, record)
        recorder = record(_hear(store, key))
        store.set(f"{key}/{accelerator.process_index}", "joined")
        return recorder

    def roll_call(self) -> None:
        """Warn of ranks that never joined: their responses are in no bundle. For rank 0, when training has ended."""
        store = _store()
        missing = [str(rank) for rank, key in self._others.items() if store is not None and not store.check([key])]
        if missing:
            ranks = f"rank{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
            log.warning("unipo-hooks: nothing of %s was captured: make the callback on every rank", ranks)


def _store() -> Any:
    """The store torch.distributed began with; None where there is none, or no longer under this private name."""
    try:
        from torch.distributed.distributed_c10d import _get_default_store

        return _get_default_store()
    except (ImportError, AttributeError, ValueError, KeyError):
        return None


def _tell(store: Any, key: str, record: Callable[[Joined | None], Recorder]) -> Recorder:
    if store is None:
        log.warning("unipo-hooks: only rank 0 is captured: torch.distributed has no store that all ranks see")
        return record(None)
    said = OFF
    try:
        recorder = record(None)
        said = recorder.start.model_dump_json()
        return recorder
    except BaseException as error:
        said += str(error) or type(error).__name__
        raise
    finally:
        store.set(key, said)


def _hear(store: Any, key: str) -> Joined:
    if store is None:
        raise CaptureError("torch.distributed has no store that all ranks see, so only rank 0 is captured")
    deadline = time.monotonic() + PATIENCE
    while not store.check([key]):
        if time.monotonic() > deadline:
            raise CaptureError(
                f"rank 0 has not said within {PATIENCE:g} s where the bundle is; make the callback on every rank"
            )
        time.sleep(PAUSE)
    said = store.get(key).decode()
    if said.startswith(OFF):
        raise CaptureError(f"rank 0 captures nothing: {said.removeprefix(OFF)}")
    return Joined.model_validate_json(said)
