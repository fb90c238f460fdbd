"""Runs the example that comes with the package, and shows the run that does."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from importlib import resources
from pathlib import Path

from unipo_hooks.errors import BundleError, UnipoError

EXAMPLE_RUN = "smollm2"
"""The folder in the package's examples with a captured run of a real language model; `trl_smollm2.py` made it."""


def example_page(bundle: Path) -> Path:
    """Write the page of the packaged run beside `bundle`, where the demo's own goes, and return where it is.

    Where a bundle of the same name is or will be, the page beside it is that one's: ours gets another name. Raises
    ExportError where the viewer was never built or the page cannot be written.
    """
    from unipo_hooks.export.html import export_html

    own = bundle if bundle.name not in ("", "..") else bundle.resolve()
    taken = own.name == EXAMPLE_RUN or own.with_name(EXAMPLE_RUN).exists()
    page = own.with_name(f"{EXAMPLE_RUN}{'-example' if taken else ''}.html")
    with resources.as_file(resources.files("unipo_hooks.examples") / EXAMPLE_RUN) as run:
        return export_html(run, page)


def place(path: Path) -> Path:
    """Where the demo's bundle will be: `path`, or beside it where there is one already.

    Raises BundleError where it cannot be written, found out by doing so: a minute of training would be lost. Nothing
    is left behind.
    """
    from unipo_hooks.bundle import layout
    from unipo_hooks.bundle.attempts import claim_folder
    from unipo_hooks.bundle.files import reason

    made: list[Path] = []
    try:
        before = set(path.parent.iterdir()) if path.parent.is_dir() else set()
        made = [folder for folder in path.parents if not folder.exists()]
        folder = claim_folder(path)
        made = [folder / layout.SEGMENTS, *([] if folder in before else [folder]), *made]
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BundleError(f"cannot write to {path}: {reason(error)}") from error
    finally:
        for made_here in made:
            with suppress(OSError):
                made_here.rmdir()
    return folder


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


def interrupted(bundle: Path) -> str:
    """What to say of a demo that Ctrl-C ended."""
    from unipo_hooks.bundle import layout

    if not (bundle / layout.MANIFEST).is_file():
        return "stopped before anything was captured"
    return f"stopped; what was captured so far is in {bundle}: unipo-hooks view {bundle}"
