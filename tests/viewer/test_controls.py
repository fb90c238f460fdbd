"""Colour, keyboard, links, and whether everyone can use the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect
from viewer.conftest import OpenPage
from viewer.pages import AXE, colours, open_update, ready, served, text_of, written

from unipo_hooks import open_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return written(tmp_path / "run", updates=3, length_B=np.full(8, 6), mask_BT=np.ones((8, 6)))


def test_the_channel_switch_changes_the_colours_the_words_and_the_legend(new_page: OpenPage, bundle: Path) -> None:
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        switch = page.locator("[data-testid=channel-switch] [role=radio]")
        assert switch.all_inner_texts() == [
            "Log-ratio",
            "Entropy",
            "Probability",
            "Advantage",
            "Log-prob",
            "Old log-prob",
        ]
        seen = {}
        for item in switch.all():
            item.click()
            name = item.get_attribute("data-channel")
            assert item.get_attribute("aria-checked") == "true"
            assert text_of(page.locator("[data-testid=channel-meaning]")).startswith(f"{item.inner_text()}.")
            page.wait_for_function("name => location.hash.includes(`ch=${name}`)", arg=name)
            seen[name] = (tuple(colours(page)), text_of(page.locator("[data-testid=legend]")))
        assert len({classes for classes, _ in seen.values()}) == len(seen)
        assert all(kind.startswith("d") for kind in seen["log_ratio"][0])
        assert all(kind.startswith("s") for kind in seen["entropies"][0])


def test_masked_tokens_are_marked_and_do_not_set_the_scale(new_page: OpenPage, tmp_path: Path) -> None:
    mask = np.ones((8, 6))
    mask[:, 5] = 0
    old = np.full((8, 6), -1.0, np.float32)
    old[:, 5] = -1000  # would bleach everything else
    bundle = written(
        tmp_path / "run",
        length_B=np.full(8, 6),
        mask_BT=mask,
        channels={"old_log_probs": old, "advantages": np.ones(8)},
    )
    page = new_page()
    with served(bundle) as url:
        page.goto(f"{url}#ch=old_log_probs")
        ready(page)
        assert page.inner_text("[data-testid=scale-min]") == "−1.00"
        assert "20 counted tokens" in text_of(page.locator("[data-testid=legend]"))
        classes = np.array(colours(page)).reshape(4, 6)
        assert (classes[:, 5] == "mask").all() and (classes[:, :5] == "s5").all()
        page.locator(".tok").nth(5).hover()
        assert "Does not count in the loss" in text_of(page.locator("[data-testid=token-card]"))


def test_colour_follows_the_value(new_page: OpenPage, bundle: Path) -> None:
    tokens = open_bundle(bundle).tokens(update=2).to_pandas()
    tokens["log_ratio"] = tokens["log_probs"] - tokens["old_log_probs"]
    page = new_page()
    with served(bundle) as url:
        page.goto(f"{url}#u=2&ch=log_ratio")
        ready(page)
        rows = page.locator("[data-testid=response]").evaluate_all(
            "rows => rows.map(r => Number(r.dataset.row.slice(2)))"
        )
        ordered = [tokens[tokens["row"] == row].sort_values("position")["log_ratio"] for row in rows]
        values = np.concatenate(ordered)
        steps = np.array([int(name[1:]) for name in colours(page)])
    assert len(steps) == len(values)
    assert (np.diff(steps[np.argsort(values)]) >= 0).all(), "a larger value never has a lower step"
    assert steps.min() == 0 or steps.max() == 10
    assert ((steps > 5) <= (values > 0)).all() and ((steps < 5) <= (values < 0)).all()


def test_the_keyboard_moves_the_pinned_token_and_the_update(new_page: OpenPage, bundle: Path) -> None:
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        keys = page.locator("[data-testid=response]").evaluate_all("rows => rows.map(r => r.dataset.row)")
        pinned = page.locator(".tok[data-selected]")
        page.locator(".tok").first.click()

        def expect_pinned(row: int, token: int) -> None:
            expect(page.locator(f".toks[data-pass='{keys[row]}'] .tok[data-i='{token}']")).to_have_attribute(
                "data-selected", ""
            )
            assert pinned.count() == 1
            assert f"r={keys[row]}&t={token}" in page.evaluate("location.hash")
            assert f"token {token + 1} of 6" in text_of(page.locator("[data-testid=token-card]"))

        expect_pinned(0, 0)
        for key, row, token in (
            ("ArrowRight", 0, 1),
            ("ArrowRight", 0, 2),
            ("ArrowDown", 1, 2),
            ("ArrowLeft", 1, 1),
            ("ArrowUp", 0, 1),
            ("ArrowUp", 0, 1),  # the first response is the first
        ):
            page.keyboard.press(key)
            expect_pinned(row, token)
        page.keyboard.press("Escape")
        expect(pinned).to_have_count(0)
        page.mouse.move(5, 5)
        expect(page.locator("[data-testid=token-card]")).to_have_count(0)
        open_update(page, 2)
        page.locator("[data-testid=update-box]").blur()
        for key, number in (("[", 1), ("[", 0), ("[", 0), ("]", 1)):
            page.keyboard.press(key)
            expect(page.locator("[data-testid=update-box]")).to_have_value(str(number))


def test_tokens_can_be_reached_by_tab_and_arrow_alone(new_page: OpenPage, bundle: Path) -> None:
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.classList.contains('toks')"):
                break
        page.keyboard.press("ArrowRight")
        expect(page.locator(".tok[data-selected]")).to_have_attribute("data-i", "0")


def test_a_link_opens_the_same_place(new_page: OpenPage, bundle: Path) -> None:
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        open_update(page, 1)
        page.click("[data-testid=group-card] >> nth=1")
        page.click("[data-channel=entropies]")
        page.locator(".tok").nth(8).click()
        page.wait_for_function("() => location.hash.includes('t=2')")
        link, there = page.url, page.locator(".tok[data-selected]").text_content()
        again = new_page()
        again.goto(link)
        expect(again.locator(".tok[data-selected]")).to_have_text(there or "")
        assert again.input_value("[data-testid=update-box]") == "1"
        assert again.locator("[data-channel=entropies][role=radio]").get_attribute("aria-checked") == "true"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_the_way_of_assistive_technology(new_page: OpenPage, bundle: Path, scheme: str) -> None:
    axe = AXE.read_text(encoding="utf-8")
    page = new_page(color_scheme=scheme, bypass_csp=True)
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        page.locator(".tok").nth(2).click()
        page.click("[data-testid=glossary] summary")
        page.focus("[data-testid=legend] .term button")
        page.evaluate(axe)
        found = page.evaluate(
            "axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200))]))"
        )
    assert found == []
