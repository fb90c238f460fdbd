"""The Training Explorer: metrics as rings and as lines, chips, marks, and what a pointer, a key or a link reaches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from viewer.conftest import OpenPage
from viewer.hosting import static
from viewer.pages import AXE, assert_shows, ready, served, text_of, written

from unipo_hooks import open_bundle
from unipo_hooks.bundle import layout
from unipo_hooks.channels import METRICS
from unipo_hooks.export import viewer_page

if TYPE_CHECKING:
    from playwright.sync_api import Page

DIAL = "[data-testid=dial]"
LINEAR = "[data-testid=linear]"
BOX = "[data-testid=update-box]"


def long_run(path: Path, updates: int, value: Callable[[int], float]) -> Path:
    """A bundle with two captured updates, and the metrics of many more."""
    bundle: Path = written(path, updates=2)
    file = bundle / layout.metrics_name(0)
    pattern = json.loads(file.read_text().splitlines()[1])
    with file.open("a") as stream:
        for update in range(2, updates):
            of = {"update": update, "step": update + 1, "captured": False, "rollouts": [update // 2]}
            first = {"is_first_step_after_rollout_phase": update % 2 == 0}
            number = value(update)
            sums = pattern["sums"] | {"reward": [number, 1.0, number * number]}
            stream.write(json.dumps(pattern | of | first | {"sums": sums}) + "\n")
    return bundle


def places(page: Page) -> dict[int, tuple[float, float]]:
    """Where the mark of each captured update is drawn on the dial now, on the screen."""
    dial = page.locator(DIAL)
    box = dial.bounding_box()
    assert box
    x, y = (float(part) for part in (dial.get_attribute("data-middle") or "").split())
    radius = float(dial.get_attribute("data-outer") or 0) + 12.5
    found = {}
    for item in (page.locator(f"{DIAL} [data-testid=marks]").get_attribute("data-places") or "").split():
        update, place = item.split(":")
        angle = -math.pi / 2 + 1.5 * math.pi * float(place)
        found[int(update)] = (box["x"] + x + radius * math.cos(angle), box["y"] + y + radius * math.sin(angle))
    return found


def test_every_mark_opens_its_update_by_a_click_on_it(new_page: OpenPage, trained: Path) -> None:
    captured = open_bundle(trained).updates().column("update").to_pylist()
    page = new_page()
    with served(trained) as url:
        page.goto(f"{url}#u=12")
        ready(page)
        page.evaluate("addEventListener('pointermove', event => { window.moved = event.timeStamp }, true)")
        for away in (False, True):  # from mark to mark with the lens under the pointer; and from outside
            for update in captured[1::5] if away else captured[::3]:
                if away:
                    page.mouse.move(900, 60)
                there = places(page)
                assert there.keys() == set(captured)
                on_top = page.evaluate("at => document.elementFromPoint(...at)?.dataset.testid", there[update])
                assert on_top == "dial"
                # A person looks before they move on: after a pause the dial takes what was aimed at.
                page.wait_for_function("() => performance.now() > (window.moved ?? 0) + 90")
                page.mouse.move(*there[update])
                assert page.locator(DIAL).get_attribute("data-at") == str(update)
                page.mouse.down()
                page.mouse.up()
                expect(page.locator(BOX)).to_have_value(str(update))
        page.mouse.move(900, 60)
        page.click("[data-shape=linear]")
        ends = [float(page.locator(LINEAR).get_attribute(f"data-{end}") or 0) for end in ("left", "right")]
        box = page.locator(LINEAR).bounding_box()
        assert box
        for update in captured[::4]:
            at = ends[0] + (ends[1] - ends[0]) * (update - captured[0]) / (captured[-1] - captured[0])
            page.mouse.click(box["x"] + at, box["y"] + 11)
            expect(page.locator(BOX)).to_have_value(str(update))


def test_a_finger_opens_what_it_taps(new_page: OpenPage, trained: Path) -> None:
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    with served(trained) as url:
        page.goto(f"{url}#u=12&view=training")
        page.wait_for_selector(DIAL)
        for update in (3, 14, 27):
            page.touchscreen.tap(*places(page)[update])
            expect(page.locator(BOX)).to_have_value(str(update))
        wide = page.evaluate("document.querySelector('.explorer').scrollWidth")
        assert wide <= 390


def test_arrow_keys_step_through_the_captured_updates(new_page: OpenPage, trained: Path) -> None:
    page = new_page()
    with served(trained) as url:
        page.goto(f"{url}#u=12")
        ready(page)
        for chart, shape in ((DIAL, "radial"), (LINEAR, "linear")):
            page.click(f"[data-shape={shape}]")
            page.focus(chart)
            for key, update in (
                ("Home", 0),
                ("ArrowLeft", 0),
                ("ArrowRight", 1),
                ("PageUp", 4),
                ("End", 29),
                ("PageDown", 26),
            ):
                page.keyboard.press(key)
                expect(page.locator(BOX)).to_have_value(str(update))
                assert page.locator(chart).get_attribute("aria-valuenow") == str(update)
        # After a number was typed, keys are those of the page again.
        page.fill(BOX, "12")
        page.press(BOX, "Enter")
        expect(page.locator(BOX)).to_have_value("12")
        page.keyboard.press("]")
        expect(page.locator(BOX)).to_have_value("13")


def test_chips_add_and_remove_metrics_and_a_link_brings_them_back(new_page: OpenPage, trained: Path) -> None:
    page = new_page()
    with served(trained) as url:
        page.goto(url)
        ready(page)
        rings = page.locator(f"{DIAL} [data-ring]")
        first = rings.evaluate_all("rings => rings.map(r => r.dataset.ring)")
        assert {"reward", "entropy", "grad_norm"} <= set(first) <= METRICS.keys() and len(first) <= 8
        page.click("[data-chip=entropy]")
        expect(page.locator("[data-chip=entropy]")).to_have_attribute("aria-pressed", "false")
        assert rings.count() == len(first) - 1
        page.click("[data-testid=more-metrics]")
        # What this run did not record is not offered; what only its trainer knows goes by its own name.
        chips = page.locator("[data-chip]").evaluate_all("chips => chips.map(c => c.dataset.chip)")
        there = {name for line in open_bundle(trained).metrics().to_pylist() for name in line if line[name] is not None}
        assert set(chips) & METRICS.keys() == there & METRICS.keys()
        assert "kl" not in chips and "num_tokens" in chips
        page.click("[data-chip=num_tokens]")
        page.click("[data-chip=reward_std]")
        shown = rings.evaluate_all("rings => rings.map(r => r.dataset.ring)")
        assert set(shown) == {*first, "num_tokens", "reward_std"} - {"entropy"}
        page.wait_for_function("() => location.hash.includes('num_tokens')")
        again = new_page()
        again.goto(page.url)
        ready(again)
        found = again.locator(f"{DIAL} [data-ring]").evaluate_all("rings => rings.map(r => r.dataset.ring)")
        assert found == shown
        for name in shown:
            page.click(f"[data-chip='{name}']")
        expect(page.locator("[data-testid=chart]")).to_contain_text("No metric is on the chart")


def test_numbers_and_words_are_those_of_python(new_page: OpenPage, trained: Path) -> None:
    metrics = {row["update"]: row for row in open_bundle(trained).metrics().to_pylist()}
    page, worst = new_page(), 0.0
    with served(trained) as url:
        page.goto(f"{url}#u=12")
        ready(page)
        page.click("[data-testid=more-metrics]")
        page.mouse.move(900, 60)
        for row in page.locator("[data-testid=metrics] [data-metric]").all():
            name = row.get_attribute("data-metric") or ""
            if name not in METRICS:
                continue
            times = 100 if "%" in row.inner_text() else 1
            values = [line[name] for line in metrics.values() if line[name] is not None]
            shown = row.locator("[data-testid=metric-value]").inner_text().removesuffix(" %")
            assert_shows(shown, metrics[12][name] * times)
            worst = max(worst, abs(float(shown.replace("−", "-")) - metrics[12][name] * times))
            ends = row.locator("[data-testid=metric-range]").inner_text()
            if ends == "always the same":
                assert min(values) == max(values)
            else:
                for end, value in zip(ends.split(" to "), (min(values), max(values)), strict=True):
                    assert_shows(end.removesuffix(" %"), value * times)
            change = row.locator("[data-testid=metric-change]").inner_text()
            moved = metrics[12][name] - metrics[11][name]
            assert (change == "held") == (moved == 0) and (moved == 0 or change[0] == ("▴" if moved > 0 else "▾"))
            row.locator("th button").focus()
            assert page.inner_text("[data-testid=meaning]") == METRICS[name]
            hint = page.locator("[data-testid=metric-hint]")
            assert hint.get_attribute("data-of") == name
            assert len(text_of(hint)) > len(METRICS[name]) + 40, "and how to read it"
        # A click on either end opens the update it is of.
        rewards = {update: line["reward"] for update, line in metrics.items()}
        for end, most in ((0, min(rewards.values())), (1, max(rewards.values()))):
            page.locator("[data-metric=reward] .end").nth(end).click()
            expect(page.locator(BOX)).to_have_value(str(next(u for u, r in rewards.items() if r == most)))
        # The value the dial names is that of the update that is pointed at.
        page.mouse.move(*places(page)[20])
        expect(page.locator("[data-testid=metrics] thead")).to_contain_text("at 20")
        reward = page.locator("[data-metric=reward] [data-testid=metric-value]").inner_text()
        assert_shows(reward, metrics[20]["reward"])
    print(f"largest difference to what is shown: {worst:.2g} (rounding)")


def test_a_zoom_samples_the_lines_anew(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = long_run(tmp_path / "run", 3000, lambda update: 9.0 if update == 1234 else math.sin(update / 40))
    page = new_page()
    with served(bundle) as url:
        page.goto(f"{url}#u=1&shape=linear&m=reward")
        ready(page)
        chart, row = page.locator(LINEAR), page.locator("[data-row=reward]")
        count = int(row.get_attribute("data-points") or 0)
        assert 100 < count < 300
        line = row.locator(".line").get_attribute("d") or ""
        heights = [float(corner.split()[1]) for corner in line.lstrip("M").split("L")]
        assert heights.count(min(heights)) == 1, "the peak stays"
        box = chart.bounding_box()
        assert box
        left, right = (float(chart.get_attribute(f"data-{end}") or 0) for end in ("left", "right"))

        def x(update: float) -> float:
            return float(box["x"] + left + (right - left) * update / 2999)

        page.mouse.move(x(1200), box["y"] + 40)
        page.mouse.down()
        page.mouse.move(x(1290), box["y"] + 44, steps=3)
        page.mouse.up()
        expect(page.locator("[data-testid=zoom]")).to_be_visible()
        low, high = (int(chart.get_attribute(f"data-{end}") or 0) for end in ("low", "high"))
        assert 1185 < low < 1205 and 1285 < high < 1305
        assert high - low <= int(row.get_attribute("data-points") or 0) <= high - low + 3, "every update in view"
        page.keyboard.press("Escape")
        expect(chart).to_have_attribute("data-high", "2999")
        assert int(row.get_attribute("data-points") or 0) == count
        page.focus(LINEAR)
        page.keyboard.press("+")
        page.keyboard.press("+")
        expect(chart).to_have_attribute("data-high", "750")
        page.click("[data-testid=zoom-out]")
        expect(chart).to_have_attribute("data-high", "2999")


def test_runs_lie_side_by_side(new_page: OpenPage, trained: Path, spread: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(viewer_page())
    (tmp_path / "a").symlink_to(trained)
    (tmp_path / "b").symlink_to(spread)
    listed = [{"name": "digits", "path": "a/"}, {"name": "spread", "path": "b/"}]
    (tmp_path / "bundles.json").write_text(json.dumps({"bundles": listed}))
    page = new_page(expect="404")  # there is no manifest beside the page
    with static(tmp_path) as (url, _):
        page.goto(url)
        ready(page)
        other = page.locator("[data-testid=other-runs] button")
        expect(other).to_have_count(1)
        assert "spread" in text_of(other) and "4 updates" in text_of(other)
        assert other.locator("[data-ring]").count() == page.locator(f"{DIAL} [data-ring]").count()
        page.click("[data-shape=linear]")
        line = page.locator("[data-row=reward] .line")
        expect(line).to_have_count(2)
        assert line.nth(0).get_attribute("stroke-dasharray") is None
        assert line.nth(1).get_attribute("stroke-dasharray")
        assert "spread" in page.locator("[data-row=reward] .run").all_text_contents()
        assert text_of(page.locator("[data-testid=dashes]")) == "this run spread own axes"
        # Four updates beside thirty: with axes of its own that run is as long as the chart.
        shared = line.nth(1).bounding_box()
        page.click("[data-testid=apart]")
        apart, own = line.nth(1).bounding_box(), line.nth(0).bounding_box()
        assert shared and apart and own
        assert shared["width"] < own["width"] / 5 and abs(apart["width"] - own["width"]) < 1
        page.click("[data-shape=radial]")
        other.click()
        expect(page.locator("[data-testid=range]")).to_have_text("of 0–3")


def test_short_runs_and_runs_without_metrics_say_so(new_page: OpenPage, tmp_path: Path) -> None:
    page = new_page()
    with served(written(tmp_path / "one", updates=1)) as url:
        page.goto(url)
        ready(page)
        assert "One update so far" in text_of(page.locator(".explorer"))
        assert page.locator(f"{DIAL} .alone").count() > 3
    two = written(tmp_path / "two", updates=2)
    with served(two) as url:
        page.goto(f"{url}#u=99")
        expect(page.locator("[data-testid=absent]")).to_contain_text("There is no update 99 in this run.")
        page.click("[data-testid=absent] button")
        expect(page.locator(BOX)).to_have_value("1")
        ready(page)
        page.focus(DIAL)
        for key, update in (("Home", "0"), ("End", "1")):
            page.keyboard.press(key)
            expect(page.locator(BOX)).to_have_value(update)
    (two / layout.metrics_name(0)).write_text("")
    with served(two) as url:
        page.goto(url)
        ready(page)
        assert "No metrics were recorded in this run." in text_of(page.locator(".explorer"))
        assert page.locator(DIAL).count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pane_is_open_to_everyone(new_page: OpenPage, trained: Path, scheme: str) -> None:
    axe = AXE.read_text(encoding="utf-8")
    page = new_page(color_scheme=scheme, bypass_csp=True)
    with served(trained) as url:
        page.goto(url)
        ready(page)
        page.click("[data-testid=more-metrics]")
        page.evaluate(axe)
        for shape in ("radial", "linear"):
            page.click(f"[data-shape={shape}]")
            found = page.evaluate(
                "axe.run('[data-pane=training]')"
                ".then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200))]))"
            )
            assert found == []
