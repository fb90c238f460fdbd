"""Every state a bundle can be in has words of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import records
from playwright.sync_api import expect
from viewer.conftest import OpenPage
from viewer.pages import open_group, ready, served, text_of, written

from unipo_hooks.bundle import layout
from unipo_hooks.policy import CapturePolicy
from unipo_hooks.recorder import Recorder
from unipo_hooks.schema import Header


def notice(new_page: OpenPage, bundle: Path) -> str:
    """What the page says in the place of tokens."""
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        page.wait_for_selector("[data-testid=notice] h2")
        page.wait_for_function("() => !/Reading the update|Opening the run/.test(document.body.innerText)")
        return text_of(page.locator("[data-testid=notice]"))


def change_manifest(bundle: Path, **changes: object) -> None:
    path = bundle / layout.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_that_ended_before_its_first_update(new_page: OpenPage, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=True)
    recorder.close()
    assert "This run is empty" in notice(new_page, recorder.path)


@pytest.mark.parametrize(
    ("library", "setting"),
    [
        ("trl", 'UnipoCallback("runs/my-run", every=1)'),
        ("verl", "+unipo.every=1"),
        ("another", "CapturePolicy(every=1)"),
    ],
)
def test_a_run_with_metrics_and_no_tokens_says_how_its_trainer_is_told_to_capture_them(
    new_page: OpenPage, tmp_path: Path, library: str, setting: str
) -> None:
    bundle = written(tmp_path / "run")
    (bundle / layout.index_name(0)).write_text("")
    change_manifest(bundle, trainer={"library": library, "version": "1", "trainer_class": "Trainer"})
    words = notice(new_page, bundle)
    assert "This run has metrics, but no tokens" in words
    assert words.endswith(setting)


def test_a_run_whose_tokens_were_lost_says_why_and_is_not_called_complete(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = written(tmp_path / "run")
    (bundle / layout.index_name(0)).write_text("")
    change_manifest(bundle, lost={"updates": 2, "rollouts": 1, "reason": "No space left on device"})
    words = notice(new_page, bundle)
    assert "The tokens of this run were lost 2 updates could not be kept: No space left on device." in words
    assert "complete" not in words and "every=1" not in words


def test_a_run_that_only_evaluated_opens_on_its_evaluations(new_page: OpenPage, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=True)
    for number in range(2):
        rollout = records.rollout(number, kind="eval")
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout, kind="eval"))
    recorder.close()
    page = new_page()
    with served(recorder.path) as url:
        page.goto(url)
        ready(page)
        assert page.get_by_role("radio", name="Evaluations").get_attribute("aria-checked") == "true"
        assert text_of(page.locator("[data-testid=update-picker] h2")) == "Evaluation batch"
        assert text_of(page.locator(".facts")).endswith("2 evaluation batches")


def test_a_rank_that_wrote_nothing_is_named_and_its_responses_are_missed(new_page: OpenPage, tmp_path: Path) -> None:
    header = Header(algorithm="grpo", model_name="letters", hparams={"group_size": 6})
    bundle = written(tmp_path / "run", info={"ranks": 2, "header": header})
    page = new_page(expect="404")  # there are no files of rank 1
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        assert text_of(page.locator("[data-testid=partial]")) == "rank 1 is missing in 2 updates"
        assert "2 updates" in text_of(page.locator(".facts")) and "all captured" not in text_of(page.locator(".facts"))
        assert "4 of 6 responses" in text_of(page.locator("[data-testid=group-card]").first)
        words = text_of(page.locator("[data-testid=lacking]"))
        assert words.startswith("2 of 6 responses of this group are missing: rank 1 wrote nothing of rollout 0.")
        change_manifest(bundle, ranks=1)
        attempts = json.loads((bundle / layout.MANIFEST).read_text())["attempts"]
        change_manifest(bundle, attempts=[attempt | {"ranks": 1} for attempt in attempts])
        page.reload()
        ready(page)
        assert page.locator("[data-testid=partial], [data-testid=lacking]").count() == 0
        assert "all captured" in text_of(page.locator(".facts"))


def test_updates_that_were_lost_are_not_called_captured(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = written(tmp_path / "run")
    change_manifest(bundle, lost={"updates": 4, "reason": "the queue was full"})
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        assert text_of(page.locator("[data-testid=lost]")) == "4 updates not kept"
        assert [text_of(fact) for fact in page.locator(".facts span").all()][-2:] == ["6 updates", "2 captured"]


def test_a_resumed_run_says_what_it_hides(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = written(tmp_path / "run", updates=3)
    (start,) = json.loads((bundle / layout.MANIFEST).read_text())["attempts"]
    change_manifest(bundle, attempts=[start, start | {"attempt": 1, "first_update": 2}])
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        facts = [text_of(fact) for fact in page.locator(".facts span").all()]
        assert facts[-3:] == ["2 updates", "all captured", "1 update of an earlier attempt is hidden"]
        again = (bundle / layout.index_name(0)).read_text().splitlines()[-1]
        line = json.loads(again) | {"attempt": 1}
        with (bundle / layout.index_name(0)).open("a") as index:
            index.write(json.dumps(line) + "\n")
        page.reload()
        ready(page)
        facts = [text_of(fact) for fact in page.locator(".facts span").all()]
        assert facts[-1] == "resumed at update 2: 1 update of an earlier attempt is hidden"


@pytest.mark.parametrize("of", ["response", "token"])
def test_a_response_that_the_sampler_weight_takes_out_is_said_to_be_dropped(
    new_page: OpenPage, tmp_path: Path, of: str
) -> None:
    weights = np.where(np.arange(8) == 2, 0, 0.5).astype(np.float32)
    channels = {"is_weights": weights if of == "response" else np.repeat(weights[:, None], 6, 1)}
    bundle = written(tmp_path / "run", channels=channels, reward_B=-np.arange(8, dtype=np.float32))
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        open_group(page, 0, 0)
        dropped = page.locator("[data-testid=response]", has=page.locator("[data-testid=dropped]"))
        assert [row.get_attribute("data-row") for row in dropped.all()] == ["0.2"]


def test_a_length_says_how_many_of_its_tokens_count(new_page: OpenPage, tmp_path: Path) -> None:
    length = np.full(8, 5)
    mask = np.arange(6) < np.where(np.arange(8) == 0, 3, 5)[:, None]
    bundle = written(tmp_path / "run", length_B=length, mask_BT=mask, reward_B=-np.arange(8, dtype=np.float32))
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        open_group(page, 0, 0)
        lengths = page.locator("[data-testid=response] .rw > span:last-child")
        assert [text_of(each) for each in lengths.all()] == ["3 of 5 tok", "5 tok", "5 tok", "5 tok"]


def test_an_update_that_was_not_captured(new_page: OpenPage, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run", records.run_info(), CapturePolicy(every=2), strict=True)
    for number in range(3):
        rollout = records.rollout(number)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))
    recorder.close()
    page = new_page()
    with served(recorder.path) as url:
        page.goto(url)
        ready(page)
        page.fill("[data-testid=update-box]", "1")
        page.keyboard.press("Enter")
        expect(page.locator("[data-testid=notice]")).to_contain_text(
            "Update 1 has metrics, but no tokens. It was not captured; 2 others of this run were."
        )
        page.goto(f"{url}#u=77")
        expect(page.locator("[data-testid=notice]")).to_contain_text("There is no update 77 in this run.")
        page.locator("[data-testid=update-box]").blur()
        page.keyboard.press("[")
        ready(page)
        assert page.input_value("[data-testid=update-box]") == "2"


def test_a_segment_file_that_is_cut_short_or_missing_is_named(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = written(tmp_path / "run")
    path = layout.segment_path(layout.segment_name(0, 0), layout.UPDATE_TOKENS)
    (bundle / path).write_bytes((bundle / path).read_bytes()[:500])
    words = notice(new_page, bundle)
    assert words.startswith(f"This update cannot be shown {path}: it is damaged or cut short")
    assert "unipo-hooks validate" in words
    (bundle / path).unlink()
    page = new_page(expect="404")
    with served(bundle) as url:
        page.goto(url)
        expect(page.locator("[data-testid=notice]")).to_contain_text(f"{path}: it is missing")


def test_a_bundle_of_a_newer_major_version(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = written(tmp_path / "run")
    change_manifest(bundle, version="2.0")
    words = notice(new_page, bundle)
    assert "This bundle has format 2.0, this viewer reads 1.x: update unipo-hooks." in words


def test_a_manifest_that_is_not_json_or_another_programs(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = written(tmp_path / "run")
    change_manifest(bundle, format="something else")
    assert "does not belong to a unipo-hooks bundle" in notice(new_page, bundle)
    (bundle / layout.MANIFEST).write_text("{")
    assert "manifest.json is not valid JSON" in notice(new_page, bundle)


def test_a_damaged_line_is_named_and_a_half_written_one_is_not(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = written(tmp_path / "run")
    with (bundle / layout.index_name(0)).open("a") as file:
        file.write('{"entry": "update", "upd')
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        assert page.locator(".banner").count() == 0
        with (bundle / layout.index_name(0)).open("a") as file:
            file.write("\n")
        page.reload()
        ready(page)
        assert text_of(page.locator(".banner")) == "index.r0.jsonl, line 4, is not JSON and is left out."


def test_a_group_without_tokens_keeps_its_rewards(new_page: OpenPage, tmp_path: Path) -> None:
    bundle = written(tmp_path / "run", policy=CapturePolicy(max_groups=1))
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        page.click("[data-testid=group-card]:has-text('no tokens')")
        words = text_of(page.locator("[data-testid=not-kept]"))
        assert "the run was set to store so much of a rollout and no more" in words
        assert "A kept group of this one stands for 2 groups" in words
        rows = page.locator("[data-testid=response]")
        assert rows.count() == 4
        assert all("Tokens not kept." in text_of(row) for row in rows.all())
        assert page.locator("[data-testid=reward]").count() == 4


def test_a_group_that_teaches_nothing_and_values_that_are_not_known(new_page: OpenPage, tmp_path: Path) -> None:
    unknown = np.full((8, 2), np.nan, np.float32)
    unknown[:4] = 1
    advantages = np.where(np.arange(8) < 4, 0, np.nan).astype(np.float32)
    bundle = written(
        tmp_path / "run",
        reward_components_BK=unknown,
        reward_B=unknown.sum(1),
        length_B=np.array([3, 3, 3, 3, 0, 2, 2, 2]),
        channels={"advantages": advantages},
    )
    page = new_page()
    with served(bundle) as url:
        page.goto(url)
        ready(page)
        open_group(page, 0, 0)
        assert "nothing to learn" in text_of(page.locator("[data-testid=flat]"))
        open_group(page, 0, 1)
        assert page.locator("[data-testid=flat]").count() == 0
        assert page.locator("[data-testid=reward]").all_inner_texts() == ["no reward"] * 4
        assert "4 of 4 responses have no reward" in text_of(page.locator("[data-testid=group-card][aria-pressed=true]"))
        assert page.locator("[data-testid=advantage]").count() == 0
        assert page.locator("text=This response is empty.").count() == 1
