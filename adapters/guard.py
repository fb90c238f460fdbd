"""The wall between our code and the trainer: timed, contained, said once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from unipo_hooks.errors import CaptureError, UnipoError

log = logging.getLogger("unipo_hooks")


class Guard:
    """Runs our code inside the trainer's calls.

    An exception is logged once, turns capture off and never reaches the trainer; with `strict` it is raised as
    CaptureError instead.
    """

    def __init__(self, *, strict: bool) -> None:
        self.seconds = 0.0
        """Time spent inside so far, on the training thread."""
        self.off = False
        self.reason = ""
        """Why capture is off."""
        self.speaker = "unipo-hooks: "
        """What a message begins with (`record.speaker`)."""
        self._strict = strict

    def reset(self) -> None:
        """Try again: what failed may have been put right since."""
        self.off, self.reason = False, ""

    def __call__(self, action: Callable[[], None]) -> None:
        """Run `action`, unless capture is off."""
        if not self.off:
            self.always(action)

    def always(self, action: Callable[[], None]) -> None:
        """Run `action`, whether capture is off or not: what ends it."""
        start = time.perf_counter()
        try:
            action()
        except Exception as error:
            self.give_up(str(error) if isinstance(error, UnipoError) else f"{type(error).__name__}: {error}", error)
        finally:
            self.seconds += time.perf_counter() - start

    def give_up(self, reason: str, error: Exception | None = None) -> None:
        """Capture no more, and say why in one line (a defect of ours brings its traceback)."""
        told, self.off = self.off, True
        self.reason = self.reason or reason
        if self._strict:
            raise CaptureError(reason) from error
        if not told:
            defect = error if error is not None and not isinstance(error, UnipoError) else None
            log.warning("%scapture is off: %s. Training goes on.", self.speaker, reason, exc_info=defect)
