"""Copies of tensors to the host that do not make the training thread wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class HostCopy:
    """Tensors on their way to the host."""

    nbytes: int
    _values: Any
    _events: tuple[tuple[torch.device, torch.cuda.Event], ...]

    def wait(self) -> Any:
        """What was copied, once it is there. For the thread that reads: it blocks until the copies are done."""
        for device, event in self._events:
            # A thread begins with the first device of all, and would take memory of it.
            torch.cuda.set_device(device)
            event.synchronize()
        return self._values


class Copier:
    """Copies whatever tensors a structure of mappings, lists and tuples holds; the rest is passed along.

    On CUDA a copy goes into pinned memory on a stream of its own, behind what computes the tensor, and an event behind
    the copies says when they are done: nothing synchronises. On any other device they are done on return. Values keep
    their dtype: bfloat16 stays bfloat16.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __call__(self, values: Any) -> HostCopy:
        """Start copying. A tensor that is there twice is copied once."""
        copies: dict[int, torch.Tensor] = {}
        used: dict[torch.device, torch.cuda.Stream] = {}

        def copied(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                if id(value) not in copies:
                    copies[id(value)] = self._copied(value.detach(), used)
                return copies[id(value)]
            if isinstance(value, Mapping):
                return {key: copied(each) for key, each in value.items()}
            if isinstance(value, list | tuple):
                return [copied(each) for each in value]
            return value

        found = copied(values)
        nbytes = sum(copy.numel() * copy.element_size() for copy in copies.values())
        return HostCopy(nbytes, found, tuple((device, _event(stream)) for device, stream in used.items()))

    def _copied(self, tensor: torch.Tensor, used: dict[torch.device, torch.cuda.Stream]) -> torch.Tensor:
        if tensor.device.type != "cuda":
            return tensor.to("cpu", copy=True)
        side = self._streams.get(tensor.device)
        if side is None:
            side = self._streams[tensor.device] = torch.cuda.Stream(tensor.device)
        if tensor.device not in used:
            used[tensor.device] = side
            side.wait_stream(torch.cuda.current_stream(tensor.device))
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        with torch.cuda.stream(side):
            host.copy_(tensor, non_blocking=True)
        # The trainer may let go of the tensor at once: its memory is not to be used anew before it was read.
        tensor.record_stream(side)
        return host


def _event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    # A thread that waits for a blocking event sleeps, and leaves the processor to training.
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    return event
