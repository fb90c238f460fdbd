"""Text of models, prompts and names is shown as it is, and never becomes markup, script or layout of the page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from viewer.conftest import OpenPage
from viewer.pages import open_group, ready, served, text_of, written

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
    "constructor",
    "__proto__",
    "\u200b\u200d\ufeff",
    "$\\href{javascript:alert(5)}{x}$ \\[\\includegraphics{y}\\] **b** [z](javascript:alert(6)) ![i](http://q/w.png)",
    "\\(\\def\\a{\\a\\a}\\a\\)",
    HUGE,  # last: of a prompt, only the beginning is drawn
]
Way = Callable[[Path], AbstractContextManager[str]]
DRAWN = 2000
"""Characters of a single token that are drawn; the rest is counted."""
PROMPT_DRAWN = 20_000
"""The same of a prompt, as JavaScript counts them."""


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

PLACES = {
    "#shape=linear&m=reward,__proto__,constructor&ch=push": "[data-testid=linear]",
    "#vs=cards&ch=token_objective&rel=1&over=update": "[data-testid=other-cards]",
    "#what=cards;__proto__=1;bounds.epsilon_high=1e999&only=changed": "[data-testid=not-computed]",
    "#what=gspo;bounds.epsilon_high=0.3&sort=push&brush=log_ratio;-9;9": "[data-testid=picked]",
    "#text=1&find=%3Cscript%3E": "[data-testid=rendered-text] .lf",
    **{f"#learn={beat}": f"[data-testid=lesson][data-beat='{beat}']" for beat in range(1, 8)},
    f"#run={SCRIPT}&u=99999999&g={IMAGE}&r=__proto__&t=7&ch={SCRIPT}&vs={IMAGE}&what={SCRIPT}&find={IMAGE}&learn=99": (
        "[data-testid=notice]:has-text('99999999')"
    ),
}
"""Hashes that open every view and every way of looking, and what is there once they are open; the last is nonsense."""


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
        labels={SCRIPT: [IMAGE, HUGE, "\u202egnp.exe", None], "__proto__": [1, None, 2.5, math.inf], HUGE: TEXTS[:4]},
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

        prompt = page.text_content("[data-testid=prompt] .text") or ""
        assert (
            decode(list(range(len(TEXTS)))).startswith(prompt) and len(prompt.encode("utf-16-le")) == 2 * PROMPT_DRAWN
        )
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
    for place, opened in PLACES.items():
        assert page.locator(opened).count() == 0
        page.evaluate("place => { location.hash = place }", place)
        page.wait_for_selector(opened, state="attached")
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


def of(path: Path, *texts: str, prompt: str | None = None, **rest: Any) -> Path:
    """A bundle whose four responses are these tokens, and whose prompt is one of its own."""
    known = [*texts, prompt or "q"]
    n = len(texts)
    return written(
        path,
        updates=1,
        info={"decode": lambda ids: "".join(known[i] for i in ids), "algorithm": algorithms.get("dapo")},
        rows=4,
        width=n,
        length_B=np.full(4, n),
        mask_BT=np.ones((4, n)),
        ids_BT=np.tile(np.arange(n), (4, 1)),
        prompts=[np.array([n])] * 4,
        **rest,
    )


def assert_answers(page: Page) -> None:
    """The page does what it is asked: another channel is picked and the tokens, or their text, are still there."""
    page.click("[data-channel=entropies]")
    page.wait_for_function("() => location.hash.includes('ch=entropies')")
    assert page.evaluate("document.querySelectorAll('#app *').length") < 40_000


PROMPTS = {
    "line breaks": "\n" * 1_000_000,
    "turns that never end": "<|im_start|>user\n" * 60_000,
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_of_a_million_marks_is_drawn_in_part(new_page: OpenPage, tmp_path: Path, prompt: str) -> None:
    page = new_page()
    with served(of(tmp_path / "run", "a", " b", prompt=prompt)) as url:
        page.goto(url)
        ready(page)
        more = page.locator("[data-testid=prompt] .more")
        assert more.get_attribute("data-c") == f"… {len(prompt):,} characters"
        assert len(page.text_content("[data-testid=prompt] .text") or "") <= PROMPT_DRAWN
        page.click("[data-testid=prompt] button")
        assert_answers(page)


RENDERED = {
    "brackets that never close": ["\\[\n" * 20_000],
    "short formulas that are long to lay out": [
        "\\(" + "\\ce{" + "H2O->" * 90 + "}" + chr(97 + i) + "\\) " for i in range(40)
    ],
    "many formulas": [f"$x_{{{i}}}$ " for i in range(2200)],
}


@pytest.mark.parametrize("texts", RENDERED.values(), ids=RENDERED)
def test_text_that_is_long_to_render_is_rendered_in_part(new_page: OpenPage, tmp_path: Path, texts: list[str]) -> None:
    page = new_page()
    with served(of(tmp_path / "run", *texts)) as url:
        page.goto(url)
        ready(page)
        page.click("[data-testid=rendered]")
        expect(page.locator("[data-testid=rendered-text]").first).to_contain_text(re.compile("as written|not rendered"))
        assert page.locator("[data-testid=rendered-text]").first.locator("math").count() <= 200
        page.click("[data-testid=raw]")
        ready(page)
        assert_answers(page)


def test_formulas_stay_where_they_are(new_page: OpenPage, tmp_path: Path) -> None:
    texts = [
        "start ",
        "\\(\\hspace{-60em}\\rule{12em}{12em}A\\)",
        " \\(\\raisebox{12em}{B}\\)",
        " \\(\\kern-12em C\\)",
        " \\(\\ref{x}\\)",
    ]
    page = new_page()
    with served(of(tmp_path / "run", *texts)) as url:
        page.goto(f"{url}#text=1")
        text = page.locator("[data-testid=rendered-text]").first
        expect(text.locator("math").first).to_be_visible()
        assert text.locator("a").count() == 0
        box = text.bounding_box()
        assert box and box["height"] < 220
        for letter in text.locator("mi, mtext").all():
            inside = letter.bounding_box()
            assert inside and inside["x"] >= box["x"] - 1
            assert box["y"] - 1 <= inside["y"] <= box["y"] + box["height"]


def test_a_letter_that_is_there_a_million_times_is_found_a_thousand_times(new_page: OpenPage, tmp_path: Path) -> None:
    page = new_page()
    with served(of(tmp_path / "run", "a" * 1_000_000, "b")) as url:
        page.goto(f"{url}#find=a")
        ready(page)
        expect(page.locator("[data-testid=find-count]")).to_have_text("–/4\u2009000+")
        assert_answers(page)


def test_rewards_without_end_are_named_and_nothing_else_is_disturbed(new_page: OpenPage, tmp_path: Path) -> None:
    reward = np.array([np.inf, -np.inf, 1, 2, np.inf, 0, 1, 1], np.float32)
    parts = np.stack([reward, np.zeros(8, np.float32)], 1)
    page = new_page()  # an attribute that is no number is an error in the console
    with served(written(tmp_path / "run", reward_B=reward, reward_components_BK=parts)) as url:
        page.goto(url)
        ready(page)
        for group in (0, 1):
            open_group(page, 0, group)
            words = text_of(page.locator("[data-pane=step]"))
            assert "∞" in words and "Infinity" not in words and "NaN" not in words
        assert page.locator("[data-pane=step] :is([cx*=NaN], [width*=NaN], [width*=Infinity], [x*=NaN])").count() == 0
