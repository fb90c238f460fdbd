"""What the page shows of a real run is what the Python reader says of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import records
from playwright.sync_api import expect
from viewer.conftest import OpenPage
from viewer.pages import assert_shows, card, open_group, open_update, ready, served, text_of, view

from unipo_hooks import open_bundle
from unipo_hooks.channels import CHANNELS, METRICS, ROLLOUT_TOKEN_FLOATS, UPDATE_TOKEN_FLOATS
from unipo_hooks.record import CapturedMicroBatch
from unipo_hooks.recorder import Recorder

FLOATS = [name for name, channel in CHANNELS.items() if channel.dtype == "float32" and channel.level != "response"]


def most_moved(path: Path) -> int:
    """The captured update in which the policy had moved furthest: what a finished run opens on."""
    captured = set(open_bundle(path).updates().column("update").to_pylist())
    moved = {max(captured): 0.0}
    for row in open_bundle(path).metrics().to_pylist():
        if row["update"] in captured:
            far = max(abs(1 - row["importance_sampling_ratio"]), row.get("clip_fraction") or 0.0)
            moved[row["update"]] = max(far, moved.get(row["update"], 0.0))
    return max(moved, key=lambda update: moved[update])


def test_view_shows_the_update_the_prompt_and_every_response_of_the_group(new_page: OpenPage, trained: Path) -> None:
    bundle = open_bundle(trained)
    page = new_page()
    with view(trained) as url:
        page.goto(url)
        ready(page)
        assert page.inner_text("[data-testid=run-name]") == "digits"
        assert page.inner_text("[data-testid=status]") == "finished"
        assert page.input_value("[data-testid=update-box]") == str(most_moved(trained))
        for number, group in ((29, 3), (28, 0)):
            open_update(page, number)
            responses = bundle.responses(update=number).to_pandas()
            assert page.locator("[data-testid=group-card]").count() == responses["group"].nunique() == 8
            open_group(page, responses["rollout"][0], group)
            mine = responses[responses["group"] == group].set_index("row")
            assert page.locator("[data-testid=prompt] .text").inner_text() == mine["prompt"].iloc[0]
            rows = page.locator("[data-testid=response]")
            assert rows.count() == len(mine) == 8
            for i in range(8):
                row = rows.nth(i)
                response = mine.loc[int((row.get_attribute("data-row") or "").removeprefix("0."))]
                assert_shows(row.locator("[data-testid=reward]").inner_text(), response["reward"])
                assert_shows(text_of(row.locator("[data-testid=advantage]")).split()[0], response["advantages"])
                name, component = text_of(row.locator("[data-testid=component]")).split()
                assert name == "exact"
                assert_shows(component, response["reward_components.0"])
                assert f"{response['length']} tok" in text_of(row)
            shown = rows.evaluate_all("rows => rows.map(r => r.dataset.row)")
            assert len(set(shown)) == 8


def test_every_channel_of_a_token_is_the_number_that_python_reads(new_page: OpenPage, trained: Path) -> None:
    bundle = open_bundle(trained)
    page, compared = new_page(), 0
    with served(trained) as url:
        page.goto(url)
        for number in (29, 28, 0):
            open_update(page, number)
            tokens = bundle.tokens(update=number).to_pandas()
            stored = [name for name in FLOATS if name in tokens]
            open_group(page, tokens["rollout"][0], 2)
            for row in page.locator("[data-testid=response]").all()[:4]:
                key = row.get_attribute("data-row") or ""
                mine = tokens[(tokens["group"] == 2) & (tokens["row"] == int(key.removeprefix("0.")))]
                spans = row.locator(".tok")
                assert spans.count() == len(mine)
                for position, token in enumerate(mine.sort_values("position").to_dict("records")):
                    spans.nth(position).hover()
                    assert spans.nth(position).text_content() == token["strings"]
                    assert f"token {position + 1} of {len(mine)} · id {token['ids']}" in text_of(
                        page.locator("[data-testid=token-card]")
                    )
                    shown = card(page)
                    assert shown.keys() == {*stored, "log_ratio", "push", "token_objective"}
                    for name in stored:
                        assert_shows(shown[name], token[name])
                    # a difference of float32 numbers, as Python's own would be
                    assert_shows(shown["log_ratio"], float(token["log_probs"]) - float(token["old_log_probs"]))
                    compared += len(shown)
    print(f"{compared} numbers compared")
    assert compared > 100


def test_every_channel_of_the_vocabulary_is_on_the_card(new_page: OpenPage, tmp_path: Path) -> None:
    random = np.random.default_rng(5)

    def values(names: tuple[str, ...]) -> dict[str, np.ndarray]:
        drawn = {name: (random.normal(size=(4, 6)) * 10.0 ** random.integers(-6, 4)) for name in names}
        for array in drawn.values():
            array[:, 3] = np.nan
        return {name: array.astype(np.float32) for name, array in drawn.items()}

    full = np.full(4, 6)
    first = records.rollout(rows=4, width=6, length_B=full, channels=values(ROLLOUT_TOKEN_FLOATS))
    forward = CapturedMicroBatch(rollout=0, rows_b=np.arange(4), channels=values(UPDATE_TOKEN_FLOATS), loss=0.5)
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=True)
    recorder.rollout(first)
    recorder.update(replace(records.update(0, first), micro_batches=[forward]))
    recorder.close()
    tokens = open_bundle(tmp_path / "run").tokens(update=0).to_pandas()
    page = new_page()
    with served(tmp_path / "run") as url:
        page.goto(url)
        ready(page)
        for row in page.locator("[data-testid=response]").all():
            mine = tokens[tokens["row"] == int((row.get_attribute("data-row") or "").removeprefix("0."))]
            for position, token in enumerate(mine.sort_values("position").to_dict("records")):
                row.locator(".tok").nth(position).hover()
                shown = card(page)
                assert set(FLOATS) <= shown.keys()
                for name in FLOATS:
                    assert_shows(shown[name], token[name])


def test_metrics_are_those_python_reads_and_say_what_they_are(new_page: OpenPage, trained: Path) -> None:
    metrics = {row["update"]: row for row in open_bundle(trained).metrics().to_pylist()}
    page = new_page()
    with served(trained) as url:
        page.goto(url)
        ready(page)
        page.click("[data-testid=more-metrics]")
        for number in (29, 12):
            open_update(page, number)
            page.mouse.move(900, 60)
            rows = page.locator("[data-testid=metrics] [data-metric]").all()
            names = [row.get_attribute("data-metric") or "" for row in rows]
            assert {"reward", "reward_std", "group_reward_std", "advantage_std", "entropy", "grad_norm"} <= set(names)
            for name, row in zip(names, rows, strict=True):
                if name not in METRICS:  # the trainer's own
                    continue
                shown = row.locator("[data-testid=metric-value]").inner_text()
                assert_shows(shown.removesuffix(" %"), metrics[number][name] * (100 if shown.endswith(" %") else 1))
                row.locator("button").first.focus()  # by keyboard; a pointer does the same
                assert page.inner_text("[data-testid=meaning]") == METRICS[name]
        page.hover("[data-metric=reward_std]")
        assert page.inner_text("[data-testid=meaning]") == METRICS["reward_std"]


def test_a_group_of_short_responses_fits_the_screen(new_page: OpenPage, trained: Path) -> None:
    page = new_page()
    with served(trained) as url:
        page.goto(url)
        ready(page)
        boxes = [row.bounding_box() for row in page.locator("[data-testid=response]").all()]
    assert len(boxes) == 8
    assert all(box and box["y"] + box["height"] < 900 and box["height"] < 48 for box in boxes), boxes


def test_responses_that_are_not_in_this_update_are_marked_with_what_is_known(new_page: OpenPage, spread: Path) -> None:
    bundle = open_bundle(spread)
    where: dict[int, list[int]] = {}
    for number in range(4):
        for row in bundle.responses(update=number).column("row").to_pylist():
            where.setdefault(row, []).append(number)
    inside = set(bundle.responses(update=2).column("row").to_pylist())
    everything = bundle.responses(rollout=0).to_pandas().set_index("row")
    page, marked = new_page(), 0
    with served(spread) as url:
        page.goto(url)
        open_update(page, 2)
        for group in sorted(everything["group"].unique()):
            open_group(page, 0, group)
            for row in page.locator("[data-testid=response]").all():
                number = int((row.get_attribute("data-row") or "").removeprefix("0."))
                known = everything.loc[number]
                assert_shows(row.locator("[data-testid=reward]").inner_text(), known["reward"])
                assert_shows(text_of(row.locator("[data-testid=advantage]")).split()[0], known["advantages"])
                mark = row.locator("[data-testid=not-in-update]")
                if number in inside:
                    assert mark.count() == 0
                    continue
                marked += 1
                first, last = where[number]
                expect(mark).to_have_text(f"not in this update; trained on in updates {first} and {last}")
                assert row.locator(".tok").count() == known["length"]
                row.locator(".tok").first.hover()
                shown = card(page)
                assert {"advantages", "old_log_probs"} <= shown.keys()
                assert not {"log_probs", "entropies", "log_ratio"} & shown.keys()
                tokens = bundle.tokens(rollout=0).to_pandas()
                token = tokens[(tokens["row"] == number) & (tokens["position"] == 0)].iloc[0]
                assert_shows(shown["old_log_probs"], token["old_log_probs"])
    assert marked == len(everything) - len(inside) > 0


def two_passes(path: Path) -> Path:
    """Two updates on every response twice, each pass with numbers of its own: a real run's may be the same."""
    first = records.rollout(rows=8, length_B=np.full(8, 6))
    recorder = Recorder(path, records.run_info(), strict=True)
    recorder.rollout(first)
    for number in range(2):
        one, other = (records.update(number, first, seed=seed).micro_batches for seed in (7, 8))
        recorder.update(replace(records.update(number, first), micro_batches=[*one, *other]))
    recorder.close()
    return recorder.path


@pytest.mark.parametrize("real", [True, False])
def test_a_response_that_an_update_trained_on_twice_shows_both_passes(
    new_page: OpenPage, twice: Path, tmp_path: Path, real: bool
) -> None:
    path = twice if real else two_passes(tmp_path / "run")
    tokens = open_bundle(path).tokens(update=1).to_pandas()
    rollout = int(tokens["rollout"][0])
    page = new_page()
    with served(path) as url:
        page.goto(url)
        open_update(page, 1)
        open_group(page, rollout, 1)
        rows = page.locator("[data-testid=response]").all()
        assert len(rows) == 4
        assert "4 responses" in text_of(page.locator("[data-testid=group-card][aria-pressed=true]"))
        for row in rows:
            number = int((row.get_attribute("data-row") or "").removeprefix("0."))
            mine = tokens[tokens["row"] == number]
            passes = row.locator("[data-testid=pass]")
            assert passes.count() == mine["micro_batch"].nunique() == 2
            for i, (_, of_pass) in enumerate(mine.groupby("micro_batch")):
                assert text_of(passes.nth(i).locator("p")) == f"pass {i + 1} of 2"
                last = of_pass.sort_values("position").iloc[-1]
                passes.nth(i).locator(".tok").last.hover()
                shown = card(page)
                assert f"pass {i + 1} of 2" in text_of(page.locator("[data-testid=token-card]"))
                assert_shows(shown["log_probs"], last["log_probs"])
                assert_shows(shown["entropies"], last["entropies"])


def test_numbers_are_compared_at_the_precision_that_is_shown() -> None:
    assert_shows("−0.0312", -0.03123)
    assert_shows("+4.7e−4 nats", 0.000474)
    assert_shows("not computed", math.nan)
    for shown, value in (("0", 1e-9), ("0.031", 0.0316), ("not computed", 0.0), ("1.00", 1.006)):
        with pytest.raises(AssertionError):
            assert_shows(shown, value)
