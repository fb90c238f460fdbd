"""Warnings of a thread that must not stand still.

An interrupt that reaches the main thread while it logs can leave a handler's lock taken for ever
(`logging.Handler.acquire` is Python's own), and any other thread that logs then waits for it. So each message is logged
by a thread that nobody waits for any longer than a moment: what gets lost is the message.
"""

from __future__ import annotations

import logging
import threading
from functools import partial

SECONDS = 1.0
"""How long a message is waited for: they keep their order, and the last one is said before a process ends."""


class Aside:
    """A logger that holds nobody up."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def warning(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """As a logger's own."""
        say = partial(self._logger.warning, message, *args, exc_info=exc_info)
        thread = threading.Thread(target=say, name="unipo-hooks: aside", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter shuts down, or the system has no more threads
            say()
        else:
            thread.join(SECONDS)
