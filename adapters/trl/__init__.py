"""Capture for TRL's GRPO-like trainers: one callback."""

from unipo_hooks.adapters.trl.callback import UnipoCallback

__all__ = ["UnipoCallback"]
