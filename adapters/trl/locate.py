"""Finds the trainer a callback belongs to: `TrainerCallback` events carry everything but the trainer."""

from __future__ import annotations

import sys

import trl
from transformers import Trainer, TrainerState

from unipo_hooks.adapters.trl.versions import NEWEST, OLDEST, READ_TRAINERS, Version, parsed_version

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


def why_not(trainer: Trainer) -> str | None:
    """Why nothing can be captured of a trainer; None where something can."""
    missing = [name for name in NEEDED if not callable(getattr(trainer, name, None))]
    if not missing:
        return None
    name, lacks = type(trainer).__name__, f"no {' and no '.join(missing)}"
    if READ_TRAINERS.intersection(each.__name__ for each in type(trainer).__mro__):
        return f"{name} of TRL {trl.__version__} has {lacks}; {verified()}"
    return f"{name} is not GRPO-like (it has {lacks}); use it with TRL's GRPOTrainer or a trainer derived from it"


def beyond_verified() -> str | None:
    """What to say of a TRL that is older or newer than those that were read; None of any other."""
    version = parsed_version(trl.__version__)
    if version >= OLDEST and version[:2] <= NEWEST:
        return None
    return f"{verified()}, this is {trl.__version__}: what it computes is compared with what is captured as it runs"


def verified() -> str:
    """The range of TRL in a sentence."""
    return f"capture was verified with TRL {_dotted(OLDEST)} to {_dotted(NEWEST)}"


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
