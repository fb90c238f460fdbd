"""Shows a bundle inside a notebook: the viewer and the data as one page in a frame. IPython is not needed for that.

The frame is a sandbox without an origin: what is in it can neither read the notebook nor reach its server, and needs no
server of its own, so that it works wherever the notebook is shown and stays in the saved file.
"""

from __future__ import annotations

import tempfile
from html import escape
from pathlib import Path

from unipo_hooks.errors import UnipoError

HEIGHT = 760
"""Pixels: room for the viewer's panes, and no more than a laptop's screen."""

PAGE_LIMIT = 25_000_000
"""Bytes of a page that a notebook is given at most, since it keeps the page in its own file."""


def notebook_html(bundle: Path, height: int = HEIGHT) -> str:
    """The viewer on this bundle as HTML for a notebook; one clear line where that cannot be. Never raises.

    The bundle is read as it is now, also where its run goes on.
    """
    try:
        return _frame(bundle, height)
    except UnipoError as error:
        return _line(str(error))
    except Exception as error:  # a traceback out of a repr would hide what the person wanted to see
        return _line(f"{bundle} cannot be shown here ({type(error).__name__}: {error}); {_elsewhere(bundle)}")


def show(bundle: Path, height: int = HEIGHT) -> None:
    """Show the bundle in the notebook this is called from. Raises UnipoError where IPython is not installed."""
    try:
        from IPython.display import display
    except ModuleNotFoundError as error:
        raise UnipoError(f"there is no notebook to show {bundle} in; {_elsewhere(bundle)}") from error
    display(_View(bundle, height))


class _View:
    """What `show` hands to IPython, which takes the HTML in a notebook and the text in a terminal."""

    def __init__(self, bundle: Path, height: int) -> None:
        self._bundle = bundle
        self._height = height

    def __repr__(self) -> str:
        return f"{self._bundle} is shown in notebooks; here {_elsewhere(self._bundle)}"

    def _repr_html_(self) -> str:
        return notebook_html(self._bundle, self._height)


def _frame(bundle: Path, height: int) -> str:
    from unipo_hooks.export import viewer_page
    from unipo_hooks.export.html import contents, export_html

    size = len(viewer_page()) + contents(bundle).size * 4 // 3
    if size > PAGE_LIMIT:
        limit = f"{PAGE_LIMIT / 1e6:.0f} MB a notebook is given"
        raise UnipoError(f"the page of {bundle} has {size / 1e6:.0f} MB, more than the {limit}; {_elsewhere(bundle)}")
    with tempfile.TemporaryDirectory() as folder:
        page = export_html(bundle, Path(folder) / "page.html").read_text(encoding="utf-8")
    title = f"{bundle.resolve().name} · unipo-hooks"
    # What stays where a notebook that somebody else saved is opened: frames are taken out of it.
    instead = f"Nothing above? Run the cell, or trust this notebook. Or {_elsewhere(bundle)}"
    return (
        f'<div><iframe title="{escape(title)}" sandbox="allow-scripts" '
        f'style="box-sizing:border-box;width:100%;height:{int(height)}px;border:1px solid #8886;border-radius:4px" '
        f'srcdoc="{escape(page)}"></iframe><div style="font-size:12px;opacity:0.7">{escape(instead)}</div></div>'
    )


def _line(text: str) -> str:
    return f"<div>{escape(' '.join(f'unipo-hooks: {text}'.split()))}</div>"


def _elsewhere(bundle: Path) -> str:
    return f"open it in a browser: unipo-hooks view {bundle}"


__all__ = ["notebook_html", "show"]
