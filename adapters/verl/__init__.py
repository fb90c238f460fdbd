"""Capture for verl: one setting, `+unipo.path=runs/gsm8k`. What its settings mean is known without verl.

Importing this package is what verl does with a plugin: from then on the trainers it loads are looked at when they are
made, and captured where the setting is there (`plugin.py`). Everything else is loaded then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unipo_hooks.adapters.verl import plugin

if TYPE_CHECKING:
    from unipo_hooks.adapters.verl.algorithm import VerlAlgorithm, normalisers_from_verl, spec_from_verl

__all__ = ["VerlAlgorithm", "normalisers_from_verl", "spec_from_verl"]

plugin.watch()


def __getattr__(name: str) -> Any:
    """Load the algebra on first use: verl loads this package in every process it starts."""
    if name in __all__:
        from unipo_hooks.adapters.verl import algorithm

        return getattr(algorithm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
