"""Runs the example that comes with the package."""

from __future__ import annotations

from pathlib import Path

from unipo_hooks.errors import UnipoError


def train(path: Path) -> Path:
    """Train the packaged example with its bundle at `path`, and return where the bundle is.

    That is beside `path` where there was one already. Raises UnipoError where TRL is not installed.
    """
    try:
        import trl  # noqa: F401

        from unipo_hooks.examples.trl_grpo import main
    except ModuleNotFoundError as error:
        raise UnipoError(
            f"the demo trains with TRL, and {error.name} is not installed: pip install 'unipo-hooks[trl]'"
        ) from error
    return main(str(path))
