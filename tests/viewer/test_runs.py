"""Several runs side by side: a folder of bundles, one more beside the first, and a list served over HTTP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from viewer.conftest import OpenPage
from viewer.hosting import static
from viewer.pages import BUILT, ready, text_of, written

from unipo_hooks.export.html import export_html

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, one of them of a format that is still to come; two are called alike."""
    top = tmp_path_factory.mktemp("several") / "runs"
    written(top / "letters", updates=3)
    written(top / "old" / "letters", updates=2)
    broken = written(top / "zebra")
    manifest = json.loads((broken / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps(manifest | {"version": "9.0"}))
    (top / "notes").mkdir()
    (top / "notes" / "manifest.json").write_text('{"name": "an extension of a browser"}')
    return top


def rail(page: Page) -> list[list[str | None]]:
    """Each run of the rail: its id, its state, whether it is the one that is shown."""
    found: list[list[str | None]] = page.locator("[data-testid=run-rail] [data-run]").evaluate_all(
        "all => all.map(e => [e.dataset.run, e.dataset.phase, e.getAttribute('aria-current')])"
    )
    return found


def settled(page: Page) -> None:
    page.wait_for_function("() => !document.querySelector('[data-run][data-phase=waiting]')")


def last_update(page: Page) -> str:
    """What the step box says of the run's length."""
    return page.locator("[data-testid=run-rail] [aria-current]").get_attribute("title") or ""


def test_a_folder_of_runs_opens_side_by_side_and_a_broken_one_says_why(new_page: OpenPage, folder: Path) -> None:
    page = new_page()
    page.goto(BUILT.as_uri())
    page.set_input_files("input[type=file]", folder)
    ready(page)
    settled(page)
    assert rail(page) == [
        ["runs/letters", "ready", "true"],
        ["zebra", "failed", None],
        ["old/letters", "ready", None],
    ]
    assert "3 updates, all captured" in last_update(page)
    page.click("[data-run=zebra]")
    problem = page.locator("[data-testid=run-problem]")
    expect(problem).to_contain_text("This bundle has format 9.0, this viewer reads 1.x: update unipo-hooks.")
    assert rail(page)[0][2] == "true", "a run that cannot be read is shown"
    page.keyboard.press("Escape")
    expect(problem).to_have_count(0)


def test_another_run_is_shown_as_the_first_was_and_a_link_opens_it_again(new_page: OpenPage, folder: Path) -> None:
    page = new_page()
    page.goto(f"{BUILT.as_uri()}#shape=linear")
    page.set_input_files("input[type=file]", folder)
    ready(page)
    settled(page)
    page.evaluate("location.hash += '&ch=entropies'")
    page.locator(".tok").first.click()
    assert "t=" in page.evaluate("location.hash")
    page.focus("[data-run='runs/letters']")
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("[data-run='old/letters']")).to_have_attribute("aria-current", "true")
    ready(page)
    place = page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")
    assert place["run"] == "old/letters" and place["shape"] == "linear" and place["ch"] == "entropies"
    assert "t" not in place and place["u"] == "1", f"the place in the first run is kept: {place}"
    assert "2 updates" in last_update(page)

    again = new_page()
    again.goto(BUILT.as_uri() + page.evaluate("location.hash.replace('u=1', 'u=0')"))
    again.set_input_files("input[type=file]", folder)
    ready(again)
    assert rail(again)[2] == ["old/letters", "ready", "true"]
    assert "u=0" in again.evaluate("location.hash")


def test_one_more_run_is_opened_beside_the_first(new_page: OpenPage, folder: Path, tmp_path: Path) -> None:
    page = new_page()
    page.goto(export_html(folder / "letters", tmp_path / "letters.html").as_uri())
    ready(page)
    assert page.locator("[data-testid=run-rail]").count() == 0
    assert "run=" not in page.evaluate("location.hash")
    another = written(tmp_path / "another", updates=5)
    page.set_input_files("[data-testid=open-another]", another)
    expect(page.locator("[data-run=another]")).to_have_attribute("aria-current", "true")
    ready(page)
    assert rail(page) == [["letters", "ready", None], ["another", "ready", "true"]]
    # The same folder again: read anew, in its place. One that holds no run: nothing is lost.
    page.click("[data-run=letters]")
    expect(page.locator("[data-run=letters]")).to_have_attribute("aria-current", "true")
    page.set_input_files("[data-testid=open-another]", another)
    expect(page.locator("[data-run=another]")).to_have_attribute("aria-current", "true")
    settled(page)
    assert [name for name, *_ in rail(page)] == ["letters", "another"]
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "notes.txt").write_text("nothing")
    page.set_input_files("[data-testid=open-another]", tmp_path / "nothing")
    expect(page.locator("[data-testid=runs-complaint]")).to_contain_text("There is no manifest.json in what you chose")
    assert len(rail(page)) == 2 and page.locator(".tok").count()


def test_a_link_to_a_run_that_is_not_open_waits_for_it(new_page: OpenPage, folder: Path, tmp_path: Path) -> None:
    page = new_page()
    page.goto(export_html(folder / "letters", tmp_path / "letters.html").as_uri() + "#run=another&u=3")
    ready(page)
    awaited = page.locator("[data-testid=awaited]")
    expect(awaited).to_contain_text("The link is to the run another, which is not open here.")
    expect(awaited).to_contain_text("update 3 of it")
    assert "u=3" not in page.evaluate("location.hash"), "the place in the other run is taken for one in this"
    page.set_input_files("[data-testid=open-another]", written(tmp_path / "another", updates=5))
    expect(page.locator("[data-run=another]")).to_have_attribute("aria-current", "true")
    expect(page.locator("[data-testid=update-box]")).to_have_value("3")
    expect(awaited).to_have_count(0)


def test_a_list_beside_the_page_is_asked_for_only_without_a_manifest(
    new_page: OpenPage, folder: Path, tmp_path: Path
) -> None:
    for name in ("letters", "old"):
        shutil.copytree(folder / name, tmp_path / "site" / name)
    shutil.copy(BUILT, tmp_path / "site" / "index.html")
    shutil.copy(BUILT, tmp_path / "site" / "letters" / "index.html")
    hostile = ["../letters/", "/letters/", "letters/../../letters", "//127.0.0.1/x/", "https://127.0.0.1/x/", "a\\b", 7]
    listed = [{"name": f"hostile {n}", "path": path} for n, path in enumerate(hostile)]
    listed += [{"name": "<img src=x onerror=alert(1)>", "path": "letters/"}, {"name": "second", "path": "old/letters"}]
    (tmp_path / "site" / "bundles.json").write_text(json.dumps({"bundles": listed}))
    with static(tmp_path / "site") as (url, asked):
        page = new_page(expect="404")
        page.goto(url)
        ready(page)
        settled(page)
        assert rail(page) == [["<img src=x onerror=alert(1)>", "ready", "true"], ["second", "ready", None]]
        assert page.locator("[data-testid=run-rail] img").count() == 0
        assert {path.split("?")[0].split("/")[1] for path in asked} <= {
            "", "manifest.json", "bundles.json", "letters", "old", "favicon.ico",
        }  # fmt: skip
        assert not any("segments" in path for path in asked if path.startswith("/old/"))
        page.click("[data-run=second]")
        expect(page.locator("[data-run=second]")).to_have_attribute("aria-current", "true")
        ready(page)
        assert "run=second" in page.evaluate("location.hash")

        # A single run: manifest, index, metrics and one segment, nothing else.
        asked.clear()
        page = new_page(expect="404")
        page.goto(f"{url}letters/")
        ready(page)
        page.wait_for_load_state("networkidle")
        files = sorted({path for path in asked if "favicon" not in path})
        assert [path for path in files if "segments" not in path] == [
            "/letters/", "/letters/index.r0.jsonl", "/letters/manifest.json", "/letters/metrics.r0.jsonl",
        ]  # fmt: skip
        assert len({Path(path).name.split(".")[0] for path in files if "segments" in path}) == 1
        print(f"\nfirst view of a run asks for {len(files)} files: {[text.split('/')[-1] for text in files]}")
        assert text_of(page.locator("[data-testid=run-name]"))
