"""The CPU as a kind of device: what `torch.cuda` has and `torch.cpu` has not, and verl's word for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from verl_cpu.after_import import after_import


def _nothing(*_: Any, **__: Any) -> None:
    """What a CPU need not do."""


def _none_allocated(*_: Any, **__: Any) -> int:
    """Bytes."""
    return 0


_ADDED = {
    **dict.fromkeys(("empty_cache", "set_device", "manual_seed", "manual_seed_all"), _nothing),
    **dict.fromkeys(("ipc_collect", "reset_peak_memory_stats"), _nothing),
    **dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), _none_allocated),
    **dict.fromkeys(("memory_allocated", "memory_reserved"), _none_allocated),
    "mem_get_info": lambda *_, **__: (1 << 33, 1 << 34),
    "get_device_name": lambda *_, **__: "cpu",
    "get_rng_state": lambda *_, **__: torch.get_rng_state(),
    "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
}
"""Memory is 8 of 16 GiB free, and none of it ever allocated."""


def register_platform() -> None:
    """From 0.9 on verl has a registry of platforms."""
    from verl.plugin.platform.platform_base import PlatformBase
    from verl.plugin.platform.platform_manager import PlatformRegistry

    module = ModuleType("torch_cpu_as_a_device")
    for name in ("is_available", "synchronize", "current_stream", "Stream", "stream", "device_count"):
        setattr(module, name, getattr(torch.cpu, name))
    for name, function in _ADDED.items():
        setattr(module, name, function)
    module.current_device = lambda: "cpu"

    @PlatformRegistry.register(platform="cpu")
    class CpuPlatform(PlatformBase):
        """Everything a platform must say, of a machine without an accelerator."""

        device_name = property(lambda self: "cpu")
        vendor_name = property(lambda self: "cpu")
        device_module = property(lambda self: module)
        is_available = staticmethod(lambda: True)
        current_device = staticmethod(lambda: "cpu")
        device_count = staticmethod(lambda: 1)
        communication_backend_name = staticmethod(lambda: "gloo")
        visible_devices_envvar = staticmethod(lambda: "CUDA_VISIBLE_DEVICES")
        ray_resource_name = staticmethod(lambda: "GPU")  # pretended: Ray is told of as many as there are ranks
        ray_noset_envvars = staticmethod(list)
        is_ipc_supported = staticmethod(lambda: False)
        get_device_capability = staticmethod(lambda index=0: (None, None))
        manual_seed = manual_seed_all = staticmethod(torch.manual_seed)
        set_device = synchronize = set_allocator_settings = empty_cache = staticmethod(_nothing)
        profiler_start = profiler_stop = cudart = staticmethod(_nothing)

        @contextmanager
        def nvtx_range(self, message: str) -> Iterator[None]:
            """No profiler looks at it."""
            yield


def pretend_platform() -> None:
    """Before 0.9 verl takes `torch.cpu` as it finds it, and is written for accelerators."""
    for name, function in _ADDED.items():
        if not hasattr(torch.cpu, name):
            setattr(torch.cpu, name, function)

    def register_engines(module: ModuleType) -> None:
        for kinds in module.EngineRegistry._engines.values():
            for devices in kinds.values():
                devices.setdefault("cpu", devices.get("cuda"))

    def without_flash_attention(module: ModuleType) -> None:
        def functions() -> tuple[Any, ...]:
            from verl.utils import npu_flash_attn_utils as plain  # of which nothing is particular to NPUs

            return plain.index_first_axis, plain.pad_input, plain.rearrange, plain.unpad_input

        module._get_attention_functions = functions

    after_import("verl.workers.engine.fsdp.transformer_impl", register_engines)
    after_import("verl.utils.attention_utils", without_flash_attention)
