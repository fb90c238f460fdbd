"""Capture for TRL's GRPO-like trainers: one callback. What their settings mean is known without TRL.

`UnipoCallback` is loaded when it is first used; `spec_from_trl` and `normalisers_from_trl` need no TRL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unipo_hooks.adapters.trl.algorithm import TrlAlgorithm, spec_from_trl
from unipo_hooks.adapters.trl.normalisers import normalisers_from_trl

if TYPE_CHECKING:
    from unipo_hooks.adapters.trl.callback import UnipoCallback

__all__ = ["TrlAlgorithm", "UnipoCallback", "normalisers_from_trl", "spec_from_trl"]


def __getattr__(name: str) -> object:
    """Load the callback, and TRL with it, on first use."""
    if name == "UnipoCallback":
        from unipo_hooks.adapters.trl.callback import UnipoCallback

        return UnipoCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
