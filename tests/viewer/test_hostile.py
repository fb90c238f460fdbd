"""Text of models, prompts and names is shown as it is, and never becomes markup, script or layout of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect
from viewer.conftest import OpenPage
from viewer.pages import ready, served, written

from unipo_hooks.export.html import export_html
from unipo_hooks.schema import Header

SCRIPT = "<script>window.pwned = 1; alert('script')</script>"
IMAGE = "<img src=x onerror=\"window.pwned = 2; alert('image')\">"
HUGE = "x" * 100_000
TEXTS = [
    "plain",
    SCRIPT,
    "</script>",
    "</title></textarea><svg onload=alert(3)>",
    IMAGE,
    "\u202egnp.exe",  # never ended
    "\x00\x07\x1b[31m",
    "a\tb",
    "\n",
    "\r\n",
    "\u2028",
    "<!--unipo-bundle-->",
    "{@html '<b>bold</b>'} ${window.pwned=3} {{7*7}}",
    "javascript:alert(4)",
    "&lt;b&gt;&amp;",
    " مرحبا",
    "e\u0301👨\u200d👩\u200d👧",
    HUGE,
    "constructor",
    "__proto__",
]
Way = Callable[[Path], AbstractContextManager[str]]
DRAWN = 2000
"""Characters of a single token that are drawn; the rest is counted."""


def decode(ids: list[int]) -> str:
    return "".join(TEXTS[i] for i in ids)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    n = len(TEXTS)
    return written(
        tmp_path / "run <b>&'\"",
        info={
            "header": Header(algorithm=IMAGE, model_name=SCRIPT, dataset=IMAGE, task=f"{SCRIPT}\u202e{IMAGE}"),
            "decode": decode,
            "reward_names": (IMAGE, "__proto__"),
        },
        rows=4,
        width=n,
        length_B=np.full(4, n),
        mask_BT=np.ones((4, n)),
        ids_BT=np.stack([np.roll(np.arange(n), row) for row in range(4)]),
        prompts=[np.arange(n)] * 4,
    )


@contextmanager
def from_server(bundle: Path) -> Iterator[str]:
    with served(bundle) as url:
        yield url


@contextmanager
def exported(bundle: Path) -> Iterator[str]:
    yield export_html(bundle, bundle.with_name("hostile.html")).as_uri()


@pytest.mark.parametrize("way", [from_server, exported])
def test_hostile_text_is_shown_literally_and_nothing_of_it_runs(new_page: OpenPage, hostile: Path, way: Way) -> None:
    page = new_page()
    with way(hostile) as address:
        page.goto(address)
        ready(page)
        page.wait_for_function("n => document.querySelectorAll('.tok').length === n", arg=4 * len(TEXTS))

        assert page.text_content("[data-testid=prompt] .text") == decode(range(len(TEXTS)))
        for row in page.locator("[data-testid=response]").all():
            number = int((row.get_attribute("data-row") or "").removeprefix("0."))
            texts = row.locator(".tok").evaluate_all("tokens => tokens.map(t => t.textContent)")
            assert texts == [text[:DRAWN] for text in np.roll(TEXTS, number).tolist()]
            names = row.locator("[data-testid=component] bdi").all_text_contents()
            assert names == [IMAGE, "__proto__"]
        # The run's names are in the bar, the title, and nowhere as elements.
        assert page.text_content("[data-testid=run-name]") == f"{SCRIPT}\u202e{IMAGE}"
        assert SCRIPT in (page.text_content(".facts") or "") and IMAGE in (page.text_content(".facts") or "")
        assert page.locator("#app :is(script, img, iframe, object, textarea, title, svg[onload])").count() == 0
        assert page.locator("#app *").evaluate_all(
            "all => all.flatMap(e => e.getAttributeNames()).filter(name => name.startsWith('on'))"
        ) == []  # fmt: skip

        for position in range(len(TEXTS)):
            page.locator(".toks").first.locator(".tok").nth(position).dispatch_event("pointerover")
            assert page.locator("[data-testid=token-card]").count() == 1
        assert page.evaluate("window.pwned") is None


def test_text_that_runs_the_other_way_leaves_its_neighbours_in_place(new_page: OpenPage, hostile: Path) -> None:
    page = new_page()
    with served(hostile) as url:
        page.goto(url)
        ready(page)
        places = page.locator(".toks[data-pass='0.0'] .tok").evaluate_all(
            "tokens => tokens.map(t => { const b = t.getClientRects()[0]; return [b.left, b.top, b.right]; })"
        )
    reading = sorted(range(len(places)), key=lambda i: (round(places[i][1] / 12), places[i][0]))
    assert reading == list(range(len(places)))


def test_a_huge_token_says_how_long_it_is_and_does_not_widen_the_page(new_page: OpenPage, hostile: Path) -> None:
    page = new_page()
    with served(hostile) as url:
        page.goto(url)
        ready(page)
        more = page.locator(".toks[data-pass='0.0'] .more")
        expect(more).to_have_count(1)
        assert more.get_attribute("data-c") == "… 100,000 characters"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(
            "(() => { const b = document.querySelector('.body'); return b.scrollWidth <= b.clientWidth })()"
        )
