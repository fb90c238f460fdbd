"""Finds the trainer a callback belongs to: `TrainerCallback` events carry everything but the trainer."""

from __future__ import annotations

import sys

from transformers import Trainer, TrainerState

NEEDED = ("_generate_and_score_completions", "_compute_loss")
"""Methods without which nothing can be captured (present since TRL 0.17)."""


def find_trainer(state: TrainerState) -> Trainer | None:
    """The trainer on the call stack whose state this is; None where the event was not raised by a trainer.

    Events are raised from the trainer's own methods, so it is a `self` a few frames up.
    """
    frame = sys._getframe(1)
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, Trainer) and getattr(candidate, "state", None) is state:
            return candidate
        frame = frame.f_back  # type: ignore[assignment]
    return None


def missing_methods(trainer: Trainer) -> list[str]:
    """Methods of a GRPO-like trainer that this one lacks."""
    return [name for name in NEEDED if not callable(getattr(trainer, name, None))]
