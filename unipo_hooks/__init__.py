"""See every policy update of an RL trainer token by token.

The public names are below; each is loaded when it is first used, so that `import unipo_hooks` costs next to nothing and
loads neither a trainer nor its framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unipo_hooks import algorithms
    from unipo_hooks.adapters.trl import UnipoCallback
    from unipo_hooks.bundle.reader import open_bundle
    from unipo_hooks.objective.evaluate import evaluate
    from unipo_hooks.policy import CapturePolicy
    from unipo_hooks.recorder import Recorder

    __version__: str

__all__ = ["CapturePolicy", "Recorder", "UnipoCallback", "__version__", "algorithms", "evaluate", "open_bundle"]

_HOME = {
    "CapturePolicy": "unipo_hooks.policy",
    "Recorder": "unipo_hooks.recorder",
    "UnipoCallback": "unipo_hooks.adapters.trl",
    "evaluate": "unipo_hooks.objective.evaluate",
    "open_bundle": "unipo_hooks.bundle.reader",
}
"""Public name → the module that defines it."""

_TRL_STACK = {"accelerate", "datasets", "torch", "transformers", "trl"}
"""Modules that come with TRL: one of them missing means that TRL is not installed here."""


def __getattr__(name: str) -> object:
    """Load a public name on first use; ImportError says what to install where TRL is missing."""
    if name == "__version__":
        from importlib.metadata import version

        return version("unipo-hooks")
    if name == "algorithms":
        return import_module("unipo_hooks.algorithms")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value: object = getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if name == "UnipoCallback" and error.name in _TRL_STACK:
            raise ImportError(
                f"UnipoCallback needs TRL, and {error.name} is not installed: pip install 'unipo-hooks[trl]'",
                name=error.name,
            ) from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
