"""Puts methods of ours around a trainer's own, on that one instance."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable
from typing import Any


def wrap(trainer: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace the method `name` of this trainer by what `around` makes of it; nothing happens where there is none.

    What is put there is a bound method: a deep copy of the trainer gets one that is bound to the copy, and which then
    does what the class does. It does not keep the trainer alive beyond a collection.
    """
    original = getattr(trainer, name, None)
    if original is None:
        return
    ours, wrapped = weakref.ref(trainer), around(original)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is ours():
            return wrapped(*args, **kwargs)
        return getattr(type(self), name)(self, *args, **kwargs)

    # Of the class, so that the name, the text and the signature are those of a method with a `self`.
    functools.update_wrapper(method, getattr(type(trainer), name, original))
    setattr(trainer, name, types.MethodType(method, trainer))
