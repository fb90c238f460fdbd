"""Training that ends in an exception: the one end of which a callback gets no event."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def on_failure(trainer: Any, failed: Callable[[], None]) -> None:
    """Call `failed` when an exception, Ctrl-C included, ends this trainer's training; the exception goes on its way.

    It is one that leaves `train()`. A callback that is added after the trainer was made learns of the first `train()`
    when it already runs: an exception then counts when it leaves `training_step`, where nearly all of them come from.
    """
    train, training_step = trainer.train, trainer.training_step
    inside = False

    @functools.wraps(train)
    def wrapped_train(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        inside = True
        try:
            return train(*args, **kwargs)
        except BaseException:
            failed()
            raise
        finally:
            inside = False

    @functools.wraps(training_step)
    def wrapped_step(*args: Any, **kwargs: Any) -> Any:
        try:
            return training_step(*args, **kwargs)
        except BaseException:
            if not inside:
                failed()
            raise

    trainer.train, trainer.training_step = wrapped_train, wrapped_step
