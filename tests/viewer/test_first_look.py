"""What someone sees who opens a run for the first time: names, words, and nothing that changes by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import records
from playwright.sync_api import expect
from viewer.conftest import OpenPage
from viewer.pages import open_group, open_update, ready, served, text_of, view, written

from unipo_hooks.bundle import layout
from unipo_hooks.export.html import export_html
from unipo_hooks.recorder import Recorder

CHOSEN = "[data-testid=channel-switch] [aria-checked=true]"


def test_the_channel_stays_while_updates_are_stepped_through(new_page: OpenPage, trained: Path) -> None:
    page = new_page()
    with served(trained) as url:
        page.goto(f"{url}#u=29")
        ready(page)
        expect(page.locator(CHOSEN)).to_have_text("Push")
        for number in (28, 27, 26):  # every other one is the first on its rollout
            page.keyboard.press("[")
            expect(page.locator("[data-testid=update-box]")).to_have_value(str(number))
            page.wait_for_selector("[aria-busy=false]")
            expect(page.locator(CHOSEN)).to_have_text("Push")
        page.click("[data-channel=log_ratio]")
        assert "fresh samples: the model has not moved yet" in text_of(page.locator("[data-testid=still]"))
        page.click("[data-channel=entropies]")
        page.keyboard.press("]")
        expect(page.locator("[data-testid=update-box]")).to_have_value("27")
        expect(page.locator("[data-testid=still]")).to_have_count(0)
        expect(page.locator(CHOSEN)).to_have_text("Entropy")


def test_special_tokens_go_by_their_own_name(new_page: OpenPage, tmp_path: Path) -> None:
    texts = ["a", "<pad>", "<|im_end|>", "<|reserved_special_token_217|>"]
    bundle = written(
        tmp_path / "run",
        info={"decode": lambda ids: "".join(texts[i] for i in ids)},
        width=4,
        length_B=np.full(8, 4),
        mask_BT=np.ones((8, 4)),
        ids_BT=np.tile(np.arange(4), (8, 1)),
    )
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        first = page.locator(".toks").first.locator(".tok")
        assert first.all_inner_texts() == texts
        assert first.evaluate_all("tokens => tokens.map(t => t.dataset.k ?? '')") == ["", *["special"] * 3]
        box = first.last.bounding_box()
        assert box and box["width"] < 100


def test_the_legend_says_what_lies_beyond_it_and_what_its_colours_mean(new_page: OpenPage, tmp_path: Path) -> None:
    values = np.zeros((8, 30), np.float32)
    values[:, 0], values[:, 1], values[0, 2], values[4, 2] = 1, -1, 7, 7
    bundle = written(
        tmp_path / "run",
        width=30,
        length_B=np.full(8, 30),
        mask_BT=np.ones((8, 30)),
        channels={"old_log_probs": np.zeros((8, 30), np.float32), "advantages": values},
    )
    page = new_page()
    with served(bundle) as url:
        page.goto(f"{url}#g=0.0&ch=advantages")
        ready(page)
        assert page.inner_text("[data-testid=scale-min]") == "−1.00"
        assert page.inner_text("[data-testid=scale-max]") == "≥ +1.00"
        legend = text_of(page.locator("[data-testid=legend]"))
        assert "scale of this group" in legend
        assert "≥ +1.00" in legend and "better" in legend and "worse" in legend
        assert page.locator("[data-testid=legend] [title='blue, line above']").count() == 1
        page.click("[data-channel=log_ratio]")
        tip = page.locator("[data-testid=legend] [role=tooltip]")
        assert not tip.is_visible()
        page.focus("[data-testid=legend] .term button")
        assert "+0.69 is twice as likely" in tip.inner_text()
        page.keyboard.press("Escape")
        expect(tip).to_be_hidden()


def test_columns_are_named_and_words_are_explained_from_the_keyboard(new_page: OpenPage, trained: Path) -> None:
    page = new_page()
    with served(trained) as url:
        page.goto(url)
        ready(page)
        names = text_of(page.locator("[data-testid=columns]"))
        assert names == "reward length reward functions advantage tokens"
        words = page.locator("[data-testid=glossary] dl")
        assert not words.is_visible()
        page.focus("[data-testid=glossary] summary")
        page.keyboard.press("Enter")
        explained = set(words.locator("dt").all_inner_texts())
        assert explained >= {"Rollout", "Update", "Prompt group", "Reward", "Advantage", "Log-ratio", "Mask"}
        assert all(words.locator("dd").all_inner_texts())
        page.keyboard.press("Escape")
        expect(words).to_be_hidden()


def test_tokens_that_are_still_to_come_are_announced(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = written(tmp_path / "run")
    path, index, metrics = (bundle / name for name in (layout.MANIFEST, layout.index_name(0), layout.metrics_name(0)))
    manifest = json.loads(path.read_text())
    manifest["status"] = manifest["attempts"][-1]["status"] = "running"
    path.write_text(json.dumps(manifest))
    lines, measured = index.read_text().splitlines(keepends=True), metrics.read_text()
    index.write_text("")
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        words = page.locator("[data-testid=notice]")
        expect(words).to_contain_text("Tokens are written in batches, about every 10 s; the first are on their way.")
        assert "0 captured (more on their way)" in text_of(page.locator(".facts"))
        index.write_text("".join(lines[:2]))
        ready(page)
        expect(page.locator("[data-testid=update-box]")).to_have_value("0")
        assert "1 captured (more on their way)" in text_of(page.locator(".facts"))
        page.fill("[data-testid=update-box]", "1")
        page.keyboard.press("Enter")
        expect(words).to_contain_text("The tokens of update 1 are on their way")
        index.write_text("".join(lines))
        expect(page.locator(".facts")).to_contain_text("all captured")
        index.write_text("")
        skipped = [json.loads(line) | {"captured": False} for line in measured.splitlines()]
        metrics.write_text("".join(json.dumps(line) + "\n" for line in skipped))
        expect(words).to_contain_text("This run has metrics, but no tokens yet.")


def test_rewards_that_are_missing_are_counted_and_left_out(new_page: OpenPage, tmp_path: Path) -> None:
    reward = np.arange(8, dtype=np.float32)
    reward[1] = np.nan
    bundle = written(tmp_path / "run", reward_B=reward, reward_components_BK=np.zeros((8, 2), np.float32))
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        open_group(page, 0, 0)
        card = text_of(page.locator("[data-testid=group-card][aria-pressed=true]"))
        assert "1 of 4 responses have no reward" in card
        assert "mean 1.67" in card and "std 1.53" in card
        assert page.locator("[data-testid=reward]").all_inner_texts() == ["3.000", "2.000", "0.000", "no reward"]
        assert "no reward" not in text_of(page.locator("[data-testid=group-card]").nth(1))


def test_a_number_beyond_the_range_opens_the_nearest_and_says_so(new_page: OpenPage, tmp_path: Path) -> None:
    page = new_page()
    with served(written(tmp_path / "run", updates=3)) as url:
        page.goto(f"{url}#u=1")
        ready(page)
        assert page.inner_text("[data-testid=range]") == "of 0–2"
        for asked, shown, words in ((5000, 2, "the last one"), (-3, 0, "the first one")):
            page.fill("[data-testid=update-box]", str(asked))
            page.keyboard.press("Enter")
            expect(page.locator("[data-testid=update-box]")).to_have_value(str(shown))
            expect(page.locator("[data-testid=beyond]")).to_have_text(f"There is no update {asked}; this is {words}.")
        open_update(page, 1)
        expect(page.locator("[data-testid=beyond]")).to_have_count(0)


def test_what_a_long_response_scored_stays_in_view(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = written(tmp_path / "run", rows=4, width=4000, length_B=np.full(4, 4000), mask_BT=np.ones((4, 4000)))
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        page.locator("[data-pane=step] .body").evaluate("body => (body.scrollTop = 900)")
        page.wait_for_function(
            """() => {
              const box = s => document.querySelector(s).getBoundingClientRect();
              const [side, bar] = [box("[data-testid=response] .side"), box(".chan")];
              return bar.top > 0 && bar.bottom <= side.top && side.top < bar.bottom + 20;
            }"""
        )


def test_served_and_exported_pages_call_the_run_the_same(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = written(tmp_path / "letters")
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        assert page.inner_text("[data-testid=run-name]") == "letters"
        assert page.title() == "letters · unipo-hooks"
        assert "none" in text_of(page.locator(".facts"))  # the data set
    page.goto(export_html(bundle, tmp_path / "letters.html").as_uri())
    ready(page)
    assert page.inner_text("[data-testid=run-name]") == "letters"


def test_a_server_that_has_stopped_is_asked_about(new_page: OpenPage, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=True)
    for number in range(2):
        rollout = records.rollout(number)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))
        assert recorder.flush(10)  # a segment of its own
    recorder.close()
    page = new_page(expect="net::ERR_CONNECTION_")
    with view(recorder.path) as url:
        page.goto(f"{url}#u=1")
        ready(page)
    page.keyboard.press("[")
    expect(page.locator("[data-testid=notice]")).to_contain_text(
        "it could not be fetched. Is unipo-hooks view still running?"
    )
