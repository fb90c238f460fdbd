"""The Algorithm Explainer and the badge where something is amiss: links that lie, losses that do not fit, no update."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from viewer.analysing import SPEC, recorded_run
from viewer.conftest import OpenPage
from viewer.pages import ready, served, text_of, written

from unipo_hooks import algorithms, open_bundle
from unipo_hooks.bundle import layout

CARDS = {
    "id": "cards",
    "name": "Painted",
    "parts": {"gate": {"part": "log_prob"}, "aggregation": {"part": "token_mean"}},
    "display": {"id": "cards", "cards": [{"title": "A card of its own", "sections": [{"katex": "x^2"}]}]},
}


def change_lines(path: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Every line of one of a bundle's files of JSON lines, changed."""
    lines = [json.loads(line) for line in (path / name).read_text().splitlines()]
    for line in lines:
        change(line)
    (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def without_loss(line: dict[str, Any]) -> None:
    for part in line.get("micro_batches", []):
        part.update(loss=None, loss_gap=None, loss_tolerance=None)


def badge_of(page: Page, bundle: Path) -> tuple[str, str, str]:
    """The badge's state and words, and what it says when it is pressed."""
    with served(bundle) as url:
        page.goto(f"{url}#u=1")
        badge = page.get_by_test_id("badge")
        badge.click()
        proof = page.get_by_test_id("proof")
        expect(proof).to_be_visible()
        return badge.get_attribute("data-state") or "", text_of(badge), text_of(proof)


def test_the_badge_where_the_loss_is_off_or_not_compared(tmp_path: Path, new_page: OpenPage) -> None:
    page = new_page()
    off = recorded_run(tmp_path / "off", SPEC, error=1e-3, algorithm_notes=("loss_type 'new' is not known",))
    state, words, proof = badge_of(page, off)
    assert state == "off" and re.fullmatch("Loss off by (1.0e−3|0.0010)", words), words
    assert "does not match the trainer\u2019s" in proof and "loss_type 'new' is not known" in proof
    stored = [part["loss"] for part in open_bundle(off).updates().to_pylist()[-1]["micro_batches"]]
    cells = [
        float(text.replace("−", "-")) for text in page.get_by_test_id("proof").locator("tbody td").all_inner_texts()
    ]
    assert cells[0::3] == pytest.approx(stored, rel=1e-8)
    assert np.subtract(cells[1::3], cells[0::3]) == pytest.approx(-1e-3, abs=1e-7)

    unknown = recorded_run(tmp_path / "unknown", SPEC)
    change_lines(unknown, layout.index_name(0), without_loss)
    state, words, proof = badge_of(page, unknown)
    assert (state, words) == ("unknown", "Loss not compared")
    assert "The trainer's loss was not captured." in proof

    state, words, proof = badge_of(page, written(tmp_path / "nothing", info={"algorithm": None}))
    assert state == "unknown" and "does not say which algorithm it was trained with" in proof


def test_the_badge_and_the_formulas_of_an_update_with_metrics_alone(tmp_path: Path, new_page: OpenPage) -> None:
    page = new_page()
    run = recorded_run(tmp_path / "run", SPEC)
    lines = (run / layout.index_name(0)).read_text().splitlines(keepends=True)
    (run / layout.index_name(0)).write_text("".join(lines[:-1]))
    with served(run) as url:
        page.goto(f"{url}#u=1")
        badge = page.get_by_test_id("badge")
        expect(badge).to_have_attribute("data-state", "metrics")
        expect(badge).to_have_text("Metrics only")
        badge.click()
        expect(page.get_by_test_id("proof")).to_contain_text("CapturePolicy(every=1)")
        page.keyboard.press("Escape")
        assert_formulas_without_numbers(page, "This update has metrics, but no tokens")
        # An update that there is not: the same, in other words.
        page.goto(f"{url}#u=999&vs=dapo")
        assert_formulas_without_numbers(page, "No update is open")
        assert page.locator("[data-slot=bounds][data-differs=true] [data-testid=side]").count() == 2
        expect(page.get_by_test_id("badge")).to_have_count(0)


def assert_formulas_without_numbers(page: Page, words: str) -> None:
    expect(page.locator("[data-pane=algorithm] .hint").first).to_contain_text(f"{words}")
    page.wait_for_selector("[data-slot=bounds] math")
    for slot in ("baseline", "ratio", "gate"):
        numbers = page.locator(f"[data-slot={slot}] [data-name=advantage], [data-slot={slot}] [data-name=ratio]")
        assert numbers.evaluate_all("all => all.filter(t => t.dataset.value !== undefined).length") == 0


def test_a_tie_has_no_winner_where_nothing_has_moved(trained: Path, new_page: OpenPage) -> None:
    page = new_page()
    with served(trained) as url:
        page.goto(f"{url}#u=0")
        ready(page)
        gate = page.locator("[data-slot=gate]")
        expect(gate).to_contain_text("Both branches are equal")
        branches = gate.locator("[data-name='unclipped branch'], [data-name='clipped branch']")
        values = branches.evaluate_all("all => all.map(t => Number(t.dataset.value))")
        assert len(values) == 2 and values[0] == values[1] != 0
        assert gate.locator(".wins, .loses").count() == 0 and "✓" not in gate.inner_text()
        assert "pushed equally hard" in page.get_by_test_id("preview").inner_text()


def test_a_link_says_what_it_asks_for_and_cannot_have(tmp_path: Path, new_page: OpenPage) -> None:
    page = new_page()
    cards = algorithms.get(CARDS)
    with served(recorded_run(tmp_path / "run", SPEC, algorithms=(cards,))) as url:
        page.goto(f"{url}#u=1&what=dapo;bounds.epsilon_high=0.9;foo=1;bounds.epsilon_low=-5")
        ready(page)
        refused = page.get_by_test_id("what-if-refused")
        expect(refused).to_have_text(
            [
                "foo=1 was left out: DAPO has no hyper-parameter foo.",
                "bounds.epsilon_low=-5 was left out: must be 0 or more, not -5.",
            ]
        )
        expect(page.locator("[data-path='bounds.epsilon_high'] .field")).to_have_value("0.9")
        expect(page.locator("[data-path='bounds.epsilon_low'] .field")).to_have_value("0.2")
        # With the next change they are gone from the link too.
        page.locator("[data-path='bounds.epsilon_high'] .field").fill("0.8")
        page.locator("[data-path='bounds.epsilon_high'] .field").press("Enter")
        expect(refused).to_have_count(0)
        page.wait_for_function("location.hash.includes('0.8') && !location.hash.includes('foo')")

        page.goto(f"{url}#u=1&vs=cards")
        expect(page.get_by_test_id("versus-cards")).to_contain_text("cannot be compared slot by slot")
        expect(page.get_by_test_id("beside")).to_contain_text("Painted")
        expect(page.locator("[data-pane=algorithm]")).to_contain_text("A card of its own")
        assert page.locator("[data-differs]").count() == 0
        page.goto(f"{url}#u=1&vs=constructor")
        expect(page.get_by_test_id("versus-unknown")).to_contain_text("this page does not know")


def test_responses_without_a_reward_are_in_no_mean(tmp_path: Path, new_page: OpenPage) -> None:
    page = new_page()
    reward = np.array([1, np.nan, np.nan, np.inf, 1, 2, 3, 4], np.float32)
    run = written(tmp_path / "run", info={"algorithm": algorithms.get("dapo")}, reward_B=reward)
    with served(run) as url:
        page.goto(f"{url}#u=0&g=0.0&r=0.0&t=0")
        ready(page)
        values = page.locator("[data-slot=baseline] [data-value]").evaluate_all(
            "all => Object.fromEntries(all.map(t => [t.dataset.name, Number(t.dataset.value)]))"
        )
        assert values["group mean"] == 1 and values["group size"] == 1, values
        page.goto(f"{url}#u=0&g=0.0&r=0.3&t=0")
        expect(page.locator("[data-slot=baseline]")).to_contain_text("no finite reward")


def test_what_does_not_count_or_cannot_be_computed_has_no_number(tmp_path: Path, new_page: OpenPage) -> None:
    page = new_page()
    mask = np.ones((8, 6), bool)
    mask[0, 2] = False
    mask[3] = False
    reward = np.array([1, 0, 2, 4, 1, 2, 3, 4], np.float32)
    info = {"algorithm": algorithms.get("dapo")}
    run = written(tmp_path / "run", info=info, length_B=np.full(8, 6), mask_BT=mask, reward_B=reward)
    with served(run) as url:
        page.goto(f"{url}#u=0&g=0.0&r=0.0&t=2")
        ready(page)
        ratio = page.locator("[data-slot=ratio]")
        expect(ratio).to_contain_text("The token does not count")
        assert "likely" not in ratio.inner_text()
        assert ratio.locator("[data-name=ratio][data-value]").count() == 0
        pane = page.locator("[data-pane=algorithm]")
        assert "recorded and used" not in pane.inner_text()
        # A response that is masked whole is in the group's mean, as it is in the engine.
        values = page.locator("[data-slot=baseline] [data-value]").evaluate_all(
            "all => Object.fromEntries(all.map(t => [t.dataset.name, Number(t.dataset.value)]))"
        )
        assert values["group mean"] == reward[:4].mean() and values["group size"] == 4, values
        assert page.get_by_test_id("fan-in").locator("circle.silent").count() == 1
        expect(page.get_by_test_id("fan-silent")).to_contain_text("3 of 4 responses count")

        page.goto(f"{url}#u=0&g=0.0&r=0.0&t=1&vs=ppo")
        missing = page.get_by_test_id("versus-missing")
        expect(missing).to_contain_text("PPO cannot be computed here")
        above = missing.evaluate("p => p.compareDocumentPosition(document.querySelector('[data-heading]'))")
        assert above == 4, "the line is not above the cards"
        expect(ratio).to_contain_text("not computed for PPO")
