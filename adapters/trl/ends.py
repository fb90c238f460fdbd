"""Training that ends in an exception: the one end of which a callback gets no event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unipo_hooks.adapters.wrap import wrap


def on_failure(trainer: Any, failed: Callable[[], None]) -> None:
    """Call `failed` when an exception, Ctrl-C included, ends this trainer's training; the exception goes on its way.

    It is one that leaves `train()`. A callback that is added after the trainer was made learns of the first `train()`
    when it already runs: an exception then counts when it leaves `training_step`, where nearly all of them come from.
    """
    inside = False

    def around_train(train: Callable[..., Any]) -> Callable[..., Any]:
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

        return wrapped_train

    def around_step(training_step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped_step(*args: Any, **kwargs: Any) -> Any:
            try:
                return training_step(*args, **kwargs)
            except BaseException:
                if not inside:
                    failed()
                raise

        return wrapped_step

    wrap(trainer, "train", around_train)
    wrap(trainer, "training_step", around_step)
