"""Text of models, prompts and names is shown as it is, and never becomes markup, script or layout of the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from viewer.conftest import OpenPage
from viewer.pages import ready, served, written

from unipo_hooks import algorithms
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.export.html import export_html
from unipo_hooks.schema import Header

SCRIPT = "<script>window.pwned = 1; alert('script')</script>"
IMAGE = "<img src=x onerror=\"window.pwned = 2; alert('image')\">"
HUGE = "x" * 1_000_000
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
    "\u200b\u200d\ufeff",
    "$\\href{javascript:alert(5)}{x}$ \\[\\includegraphics{y}\\] **b** [z](javascript:alert(6)) ![i](http://q/w.png)",
    "\\(\\def\\a{\\a\\a}\\a\\)",
]
Way = Callable[[Path], AbstractContextManager[str]]
DRAWN = 2000
"""Characters of a single token that are drawn; the rest is counted."""


def decode(ids: list[int]) -> str:
    return "".join(TEXTS[i] for i in ids)


CARDS = AlgorithmSpec(
    id="cards",
    name=IMAGE,
    parts=algorithms.get("dapo").parts,
    display={
        "id": "cards",
        "title": SCRIPT,
        "cards": [
            {
                "id": "a",
                "title": IMAGE,
                "sections": [
                    {"label": SCRIPT, "katex": "\\href{javascript:alert(7)}{x} \\def\\a{\\a\\a}\\a", "header": IMAGE}
                ],
                "description": SCRIPT,
            }
        ],
    },
)
"""An algorithm a user registered, in UNIPO's own format: as little to be trusted as a model's text."""

PLACES = [
    "#shape=linear&m=reward,__proto__,constructor&ch=push",
    "#vs=cards&ch=token_objective&rel=1&over=update",
    "#what=cards;__proto__=1;bounds.epsilon_high=1e999&only=changed",
    "#what=gspo;bounds.epsilon_high=0.3&sort=push&brush=log_ratio;-9;9",
    "#text=1&find=%3Cscript%3E",
    *(f"#learn={beat}" for beat in range(1, 8)),
    f"#run={SCRIPT}&u=99999999&g={IMAGE}&r=__proto__&t=7&ch={SCRIPT}&vs={IMAGE}&what={SCRIPT}&find={IMAGE}&learn=99",
]
"""Hashes that open every view and every way of looking; the last is nonsense throughout."""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    n = len(TEXTS)
    return written(
        tmp_path / "run <b>&'\"",
        info={
            "header": Header(algorithm=IMAGE, model_name=SCRIPT, dataset=IMAGE, task=f"{SCRIPT}\u202e{IMAGE}"),
            "decode": decode,
            "reward_names": (IMAGE, "__proto__"),
            "algorithm": algorithms.get("dapo").model_copy(
                update={
                    "id": "evil",
                    "name": IMAGE,
                    "title": SCRIPT,
                    "story": IMAGE,
                    "changed": SCRIPT,
                    "source": IMAGE,
                }
            ),
            "algorithms": (CARDS,),
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
        assert_inert(page)
        assert page.text_content("[data-testid=run-name]") == f"{SCRIPT}\u202e{IMAGE}"
        assert SCRIPT in (page.text_content(".facts") or "") and IMAGE in (page.text_content(".facts") or "")

        for position in range(len(TEXTS)):
            page.locator(".toks").first.locator(".tok").nth(position).dispatch_event("pointerover")
            assert page.locator("[data-testid=token-card]").count() == 1
        assert page.evaluate("window.pwned") is None


def assert_inert(page: Page) -> None:
    """Nothing that came with the run has become an element, an attribute that runs, or a link; the page is no wider."""
    assert page.locator("#app :is(script, img, iframe, object, embed, textarea, title, svg[onload])").count() == 0
    found = page.locator("#app *, dialog *").evaluate_all(
        """all => all.flatMap(e => e.getAttributeNames().filter(
          n => n.startsWith('on') || /^(href|src|action|formaction|data)$/.test(n)))"""
    )
    assert found == []
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("size", [(1440, 900), (390, 844)], ids=["desk", "phone"])
def test_no_view_runs_what_came_with_the_run(new_page: OpenPage, hostile: Path, size: tuple[int, int]) -> None:
    asked: list[str] = []
    page = new_page(viewport={"width": size[0], "height": size[1]})
    page.on("request", lambda request: asked.append(request.url))
    address = export_html(hostile, hostile.with_name("hostile.html")).as_uri()
    page.goto(address)
    ready(page)
    for place in PLACES:
        page.evaluate("place => { location.hash = place }", place)
        page.wait_for_timeout(150)
        for view in ("training", "step", "algorithm"):
            if size[0] < 500:
                page.click(f"[data-tab={view}]")
            assert_inert(page)
    assert {url.partition("#")[0] for url in asked} == {address}


def test_half_a_character_in_a_name_breaks_nothing(new_page: OpenPage, hostile: Path) -> None:
    manifest = hostile / "manifest.json"
    data = json.loads(manifest.read_text(encoding="utf-8"))
    data["header"]["task"] = "half \ud83d of one"
    data["reward_names"] = ["\udc00", "b"]
    manifest.write_text(json.dumps(data), encoding="utf-8")
    page = new_page()
    with served(hostile) as url:
        page.goto(url)
        ready(page)
        assert (page.text_content("[data-testid=run-name]") or "").startswith("half ")
        assert_inert(page)


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
        assert more.get_attribute("data-c") == "… 1,000,000 characters"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(
            "(() => { const b = document.querySelector('.body'); return b.scrollWidth <= b.clientWidth })()"
        )
