"""What is pointed at in one view is shown in the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from viewer.conftest import OpenPage
from viewer.pages import SMOLLM2, ready

from unipo_hooks.export.html import export_html


@pytest.fixture
def page(new_page: OpenPage, tmp_path: Path) -> Page:
    page = new_page()
    page.goto(export_html(SMOLLM2, tmp_path / "page.html").as_uri() + "#u=1&ch=push")
    ready(page)
    return page


def lit(page: Page) -> dict[str, list[str]]:
    """What is lit, by its kind."""
    found: dict[str, list[str]] = page.evaluate(
        """() => Object.fromEntries(["metric", "slot", "channel"].map(kind => {
          const named = [...document.querySelectorAll(`[data-${kind}]`)].filter(e => e.closest(".lit"));
          return [`${kind}s`, [...new Set(named.flatMap(e => e.dataset[kind].split(" ")))].sort()];
        }))"""
    )
    return found


def test_a_metric_lights_the_slot_that_makes_it_and_the_channel_that_shows_it(page: Page) -> None:
    page.hover("[data-testid=chips] [data-chip=kl]")
    expect(page.locator("[data-slot=constraint].lit")).to_have_count(1)
    found = lit(page)
    assert "kl" in found["metrics"] and found["slots"] == ["constraint"] and found["channels"] == ["token_kl"]


def test_a_slot_lights_its_metrics_and_channels(page: Page) -> None:
    page.hover("[data-slot=ratio]")
    expect(page.locator("[data-testid=channel-switch] [data-channel=log_ratio].lit")).to_have_count(1)
    found = lit(page)
    assert found["channels"] == ["log_ratio"] and found["metrics"] == ["importance_sampling_ratio"]


def test_a_channel_lights_its_metric_and_slot(page: Page) -> None:
    page.hover("[data-testid=channel-switch] [data-channel=token_kl]")
    expect(page.locator("[data-slot=constraint].lit")).to_have_count(1)
    assert lit(page)["metrics"] == ["kl"]


def test_a_token_is_the_same_in_both_views_and_a_point_of_a_metric_opens_its_update(page: Page) -> None:
    token = page.locator(".toks").first.locator(".tok").nth(6)
    token.click()
    expect(page.locator("[data-pane=algorithm]")).to_contain_text("token 7 of response 1")
    before = page.evaluate("location.hash")
    page.focus("[data-testid=dial]")
    page.keyboard.press("ArrowRight")
    expect(page.locator("[data-testid=update-box]")).to_have_value("2")
    expect(page.locator("[data-pane=step] .pane-head")).to_contain_text("update 2")
    assert page.evaluate("location.hash") != before


def test_a_further_pass_keeps_the_token_and_back_returns_to_the_update_before(page: Page) -> None:
    page.locator(".toks").first.locator(".tok").nth(6).click()
    token = page.locator(".tok[data-selected]").inner_text()
    page.keyboard.press("[")
    expect(page.locator("[data-testid=update-box]")).to_have_value("0")
    expect(page.locator(".tok[data-selected]")).to_have_text(token)
    page.keyboard.press("x")
    expect(page.locator("[data-pane=algorithm]")).to_contain_text("slots differ")
    page.go_back()
    expect(page.locator("[data-pane=algorithm]")).not_to_contain_text("slots differ")
    page.go_back()
    expect(page.locator("[data-testid=update-box]")).to_have_value("1")
    page.go_forward()
    expect(page.locator("[data-testid=update-box]")).to_have_value("0")
