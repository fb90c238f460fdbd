"""The page where there is no server: exported, opened as a file, in a frame that allows scripts and nothing else."""

from __future__ import annotations

from pathlib import Path

import records
from playwright.sync_api import Page, expect
from viewer.conftest import OpenPage
from viewer.pages import BUILT, open_update, ready, text_of, written

from unipo_hooks.export.html import export_html
from unipo_hooks.recorder import Recorder


def watched(page: Page) -> list[str]:
    """What the page asks for, as it happens."""
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    return requests


def test_the_exported_page_opens_from_a_file_and_asks_for_nothing(
    new_page: OpenPage, trained: Path, tmp_path: Path
) -> None:
    exported = export_html(trained, tmp_path / "run to share.html")
    page = new_page()
    requests = watched(page)
    page.goto(exported.as_uri())
    ready(page)
    assert page.inner_text("[data-testid=status]") == "finished"
    open_update(page, 29)
    assert page.locator("[data-testid=response]").count() == 8
    page.locator(".tok").first.hover()
    expect(page.locator("[data-testid=token-card]")).to_contain_text("Log-prob")
    page.click("[data-testid=previous-update]")
    expect(page.locator("[data-testid=update-box]")).to_have_value("28")
    assert [url for url in requests if not url.startswith("data:")] == [page.url.partition("#")[0]]


def test_a_copy_of_a_running_run_does_not_claim_to_be_running(new_page: OpenPage, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=True)
    first = records.rollout()
    recorder.rollout(first)
    recorder.update(records.update(0, first))
    assert recorder.flush(10)
    exported = export_html(recorder.path, tmp_path / "run.html")
    recorder.close()
    page = new_page()
    page.goto(exported.as_uri())
    ready(page)
    assert page.inner_text("[data-testid=status]") == "running, or killed"
    assert page.locator("[data-testid=follow]").count() == 0


def test_a_page_with_nothing_beside_it_explains_itself_and_takes_a_folder(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = written(tmp_path / "runs" / "letters")
    page = new_page()
    requests = watched(page)
    page.goto(BUILT.as_uri())
    words = text_of(page.locator("[data-testid=open-folder]"))
    assert "opened as a file" in words and "Choose a bundle's folder" in words and "unipo-hooks view" in words
    page.set_input_files("input[type=file]", bundle)
    ready(page)
    assert page.inner_text("[data-testid=run-name]") == "letters"
    assert page.locator("[data-testid=response]").count() == 4
    assert [url for url in requests if not url.startswith("data:")] == [BUILT.as_uri()]


def test_a_folder_that_is_no_bundle_is_refused_in_words(new_page: OpenPage, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("nothing")
    page = new_page()
    page.goto(BUILT.as_uri())
    page.set_input_files("input[type=file]", tmp_path / "runs")
    expect(page.locator("[data-testid=notice]")).to_contain_text("There is no manifest.json in what you chose")
    page.set_input_files("input[type=file]", written(tmp_path / "right"))
    ready(page)


def test_it_works_in_a_sandboxed_frame(new_page: OpenPage, tmp_path: Path) -> None:
    export_html(written(tmp_path / "run"), tmp_path / "run.html")
    outer = tmp_path / "outer.html"
    inner = "run.html#vs=gspo&amp;what=dapo&amp;shape=linear"
    outer.write_text(
        f'<!doctype html><iframe sandbox="allow-scripts" src="{inner}" width="1300" height="800"></iframe>'
    )
    page = new_page()
    page.goto(outer.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator(".tok[class*=' ']").first.wait_for()
    frame.locator(".tok").first.click()
    expect(frame.locator(".tok[data-selected]")).to_have_count(1)
    expect(frame.locator("[data-testid=token-card]")).to_contain_text("token 1 of")
    frame.locator("[data-testid=previous-update]").click()
    expect(frame.locator("[data-testid=update-box]")).to_have_value("0")
    expect(frame.locator("[data-testid=badge]")).to_contain_text("What-if")
    frame.locator("[data-testid=learn]").click()
    expect(frame.locator("[data-testid=lesson]")).to_be_visible()
    frame.locator("[data-testid=copy-link]").click()
    expect(frame.locator("[role=status]", has_text="Copying is not allowed here")).to_be_visible()
    before = frame.locator("html").get_attribute("data-theme")
    frame.locator("[data-testid=theme]").click()
    assert frame.locator("html").get_attribute("data-theme") != before


def test_a_bundle_of_format_1_opens(new_page: OpenPage, tmp_path: Path) -> None:
    fixture = Path(__file__).parents[1] / "fixtures" / "bundle_v1"
    page = new_page()
    page.goto(export_html(fixture, tmp_path / "v1.html").as_uri())
    ready(page)
    open_update(page, 3)
    assert page.locator("[data-testid=group-card]").count() == 3
    assert page.locator(".tok").count() > 0
