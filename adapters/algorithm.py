"""What a trainer's settings come to, whichever trainer it is: they may be ones nobody has thought of."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from unipo_hooks.algorithm_spec import AlgorithmSpec

log = logging.getLogger("unipo_hooks")


class Said(Protocol):
    """What an adapter says of its trainer's settings."""

    @property
    def spec(self) -> AlgorithmSpec:
        """The objective they come to."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """Settings whose effect is not in it, a line each."""


def read_algorithm(read: Callable[[], Said], *, strict: bool) -> tuple[AlgorithmSpec | None, tuple[str, ...]]:
    """The algorithm and what is to be said of it; None, with a warning, where the settings cannot be read at all.

    `strict`: raise instead.
    """
    try:
        said = read()
    except Exception as error:
        if strict:
            raise
        note = f"the algorithm cannot be read from the trainer's settings ({type(error).__name__}: {error})"
        log.warning("unipo-hooks: %s; the loss is not recomputed. Training goes on.", note, exc_info=error)
        return None, (note,)
    return said.spec, said.unknown
