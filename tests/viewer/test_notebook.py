"""The viewer inside a page of a notebook: in a frame that may run scripts and nothing else."""

from __future__ import annotations

from pathlib import Path

from viewer.conftest import OpenPage
from viewer.pages import SMOLLM2

from unipo_hooks import open_bundle


def test_a_cell_shows_the_bundles_tokens_and_asks_for_nothing(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = open_bundle(SMOLLM2)
    notebook = tmp_path / "notebook.html"
    output = bundle._repr_html_()
    notebook.write_text(f"<!doctype html><meta charset=utf-8><title>Notebook</title><p>Out[1]:</p>{output}", "utf-8")
    page = new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(notebook.as_uri())
    frame = page.frame_locator("iframe[sandbox='allow-scripts']")
    frame.locator(".tok[class*=' ']").first.wait_for()
    shown = {text.strip() for text in frame.locator(".tok").all_text_contents()} - {""}
    captured = {text.strip() for text in bundle.tokens(update=0)["strings"].to_pylist()}
    assert len(shown) > 40
    missing = {text for text in shown if text not in captured}
    print(f"{len(shown)} different tokens are shown; not in the bundle: {sorted(missing)}")
    assert len(missing) < len(shown) / 20  # line ends and spaces are drawn as signs
    frame.locator(".tok").nth(20).click()
    assert [url for url in requests if not url.startswith(("data:", "about:"))] == [notebook.as_uri()]
    box = page.locator("iframe").bounding_box()
    assert box and box["width"] > 1300 and box["height"] > 600
