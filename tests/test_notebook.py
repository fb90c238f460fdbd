"""A bundle as the last expression of a cell, as IPython itself formats it."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bundle.builder import simple
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from unipo_hooks import notebook, open_bundle
from unipo_hooks.errors import ExportError, UnipoError
from unipo_hooks.export import html as pages

PAGE = '<!doctype html><title>unipo-hooks</title><p title="a&quot;b">"&amp;"</p><!--unipo-bundle-->'


@pytest.fixture(autouse=True)
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython keeps its files in here."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    """IPython, showing everything as a notebook's kernel does."""
    shell = InteractiveShell.instance()
    shell.display_formatter.active_types = shell.display_formatter.format_types
    yield shell
    InteractiveShell.clear_instance()


@pytest.fixture
def viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small page in the place of the built one."""
    monkeypatch.setattr("unipo_hooks.export.viewer_page", lambda: PAGE.encode())
    monkeypatch.setattr(pages, "viewer_page", lambda: PAGE.encode())


class Frame(HTMLParser):
    """The one frame in a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: dict[str, str | None] = {}
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "iframe":
            self.attributes = dict(attrs)


def formatted(shell: InteractiveShell, value: Any) -> dict[str, str]:
    """What IPython sends to a notebook for a value, by MIME type."""
    with capture_output() as said:
        data, _ = shell.display_formatter.format(value)
    assert (said.stdout, said.stderr) == ("", "")
    return data


def line_of(text: str) -> str:
    """What HTML says that is one line and has no frame."""
    assert "<iframe" not in text and "\n" not in text
    found = re.fullmatch(r"<div>([^<>]*)</div>", text)
    assert found, text
    return html.unescape(found[1])


@pytest.mark.usefixtures("viewer")
def test_a_bundle_shows_the_viewer_with_its_data(shell: InteractiveShell, tmp_path: Path) -> None:
    path = simple(tmp_path / "my <run> & co").write()
    bundle = open_bundle(path)
    data = formatted(shell, bundle)
    assert data["text/plain"] == repr(bundle)
    frame = Frame(data["text/html"])
    assert frame.tags == ["div", "iframe", "div"]
    assert frame.attributes["sandbox"] == "allow-scripts"
    assert frame.attributes["title"] == "my <run> & co · unipo-hooks"
    assert f"width:100%;height:{notebook.HEIGHT}px;" in (frame.attributes["style"] or "")
    assert set(frame.attributes) == {"title", "sandbox", "style", "srcdoc"}
    page = pages.export_html(path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert frame.attributes["srcdoc"] == page
    assert 'data-bundle-file="manifest.json"' in page
    assert f"unipo-hooks view {path}" in html.unescape(data["text/html"].rpartition("</iframe>")[2])


@pytest.mark.usefixtures("viewer")
def test_the_last_expression_of_a_cell_is_shown(
    shell: InteractiveShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, str]] = []
    monkeypatch.setattr(shell.displayhook, "write_format_data", lambda data, _: sent.append(data))
    path = simple(tmp_path / "run").write()
    shell.run_cell(f"from unipo_hooks import open_bundle\nopen_bundle({str(path)!r})").raise_error()
    (data,) = sent
    assert "<iframe" in data["text/html"]


@pytest.mark.usefixtures("viewer")
def test_show_takes_a_height_and_says_nothing_else(shell: InteractiveShell, tmp_path: Path) -> None:
    bundle = open_bundle(simple(tmp_path / "run").write())
    shell.user_ns["bundle"] = bundle
    with capture_output() as said:
        shell.run_cell("bundle.show(height=900)\nbundle.show()\nNone").raise_error()
    heights = [re.findall(r"height:(\d+)px", output.data["text/html"]) for output in said.outputs]
    assert heights == [["900"], [str(notebook.HEIGHT)]]
    assert (said.stdout, said.stderr) == ("", "")


@pytest.mark.usefixtures("viewer")
def test_a_terminal_gets_text(tmp_path: Path) -> None:
    path = simple(tmp_path / "run").write()
    cell = f"import unipo_hooks; b = unipo_hooks.open_bundle({str(path)!r}); b.show(); b"
    code = (
        "from IPython.terminal.interactiveshell import TerminalInteractiveShell\n"
        "shell = TerminalInteractiveShell.instance(colors='nocolor')\n"
        f"shell.run_cell({cell!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"<Bundle {path}: grpo, 3 updates captured of 3, finished>" in done.stdout
    assert f"{path} is shown in notebooks; here open it in a browser: unipo-hooks view {path}" in done.stdout
    assert "iframe" not in done.stdout


def test_without_ipython_show_says_what_to_do_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(simple(tmp_path / "run").write())
    for name in [name for name in sys.modules if name.startswith("IPython")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnipoError, match="unipo-hooks view"):
        bundle.show()


@pytest.mark.usefixtures("viewer")
def test_reading_a_bundle_makes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "notebook_html", lambda *_: pytest.fail("a page was made"))
    bundle = open_bundle(simple(tmp_path / "run").write())
    assert repr(bundle) and bundle.updates().num_rows == 3


def test_a_bundle_too_large_is_one_line_with_the_command(
    shell: InteractiveShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unipo_hooks.export.viewer_page", lambda: PAGE.encode())
    path = simple(tmp_path / "run").write()
    with (path / "segments" / "r0-000000.responses.parquet").open("ab") as segment:
        segment.truncate(24_000_000)
    line = line_of(formatted(shell, open_bundle(path))["text/html"])
    assert line == (
        f"unipo-hooks: the page of {path} has 32 MB, more than the 25 MB a notebook is given; "
        f"open it in a browser: unipo-hooks view {path}"
    )


def test_a_viewer_that_was_never_built_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> bytes:
        raise ExportError("the viewer is not built; run make viewer")

    monkeypatch.setattr("unipo_hooks.export.viewer_page", missing)
    bundle = open_bundle(simple(tmp_path / "run").write())
    assert line_of(bundle._repr_html_()) == "unipo-hooks: the viewer is not built; run make viewer"


@pytest.mark.usefixtures("viewer")
@pytest.mark.parametrize("how", ["gone", "index", "error"])
def test_no_trouble_comes_out_of_a_repr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path = simple(tmp_path / "<b>run").write()
    bundle = open_bundle(path)
    if how == "gone":
        path.rename(tmp_path / "elsewhere")
    elif how == "index":
        (path / "index.r0.jsonl").write_text("nonsense\n")
    else:
        monkeypatch.setattr(pages, "contents", lambda _: 1 / 0)
    line = line_of(bundle._repr_html_())
    expected = {"gone": "does not exist", "index": "index.r0.jsonl:1", "error": "(ZeroDivisionError: division by zero)"}
    assert line.startswith("unipo-hooks: ") and str(path) in line and expected[how] in line
