"""A run is followed while it trains: what is new appears by itself, and nothing is lost when the server goes away."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import records
from playwright.sync_api import expect
from viewer.conftest import OpenPage
from viewer.pages import ready, served, view, written

from unipo_hooks import open_bundle
from unipo_hooks.bundle import layout
from unipo_hooks.recorder import Recorder

TRAINING = Path(__file__).with_name("training.py")


def newest(bundle: Path) -> int:
    """The newest update of a bundle that may not be there yet; -1 without any."""
    if not (bundle / layout.index_name(0)).exists():
        return -1
    return max(open_bundle(bundle).updates().column("update").to_pylist(), default=-1)


def test_a_training_run_is_followed_without_reload_until_it_has_finished(new_page: OpenPage, tmp_path: Path) -> None:
    command = [sys.executable, str(TRAINING), str(tmp_path)]
    bundle = tmp_path / "run"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as training:
        try:
            deadline = time.monotonic() + 90
            while newest(bundle) < 1:
                assert training.poll() is None, training.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            page = new_page()
            loads: list[str] = []
            page.on("load", lambda loaded: loads.append(loaded.url))
            with view(bundle) as url:
                page.goto(url)
                ready(page)
                page.evaluate("window.marker = 'the same page'")
                assert page.inner_text("[data-testid=status]") == "running"
                assert page.input_value("[data-testid=update-box]") == "1"
                assert not page.locator("[data-testid=new-updates]").count()
                (tmp_path / "go-2").touch()  # training goes on: updates 2 and 3
                expect(page.locator("[data-testid=new-updates]")).to_contain_text("show 3", timeout=60_000)
                assert page.input_value("[data-testid=update-box]") == "1", "who looks at an update is not moved away"
                page.click("[data-testid=follow]")
                expect(page.locator("[data-testid=update-box]")).to_have_value("3")
                (tmp_path / "go-4").touch()  # updates 4 and 5, and the end
                expect(page.locator("[data-testid=status]")).to_have_text("finished", timeout=60_000)
                expect(page.locator("[data-testid=update-box]")).to_have_value("5")
                ready(page)
                assert page.locator("[data-testid=response]").count() == 4
                assert page.evaluate("window.marker") == "the same page"
                assert len(loads) == 1
            training.wait(60)
            assert training.returncode == 0, training.communicate()[1]
        finally:
            training.kill()


def test_waiting_for_the_first_update_ends_by_itself(new_page: OpenPage, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=True)
    page = new_page()
    with served(recorder.path) as url:
        page.goto(url)
        expect(page.locator("[data-testid=notice]")).to_contain_text("Waiting for the first update")
        first = records.rollout()
        recorder.rollout(first)
        recorder.update(records.update(0, first))
        assert recorder.flush(10)
        ready(page)
        assert page.inner_text("[data-testid=status]") == "running"
        recorder.close()
        expect(page.locator("[data-testid=status]")).to_have_text("finished")


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    """What a killed run leaves behind: its manifest says `running`, and its newest line is 25 minutes old."""
    bundle = written(tmp_path / "run")
    path = bundle / layout.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["status"] = "running"
    manifest["attempts"][-1] |= {"status": "running", "ended": None, "started": "2026-01-01T00:00:00Z"}
    path.write_text(json.dumps(manifest))
    for name in (layout.index_name(0), layout.metrics_name(0)):
        lines = [json.loads(line) for line in (bundle / name).read_text().splitlines()]
        aged = [line | ({"time": time.time() - 25 * 60} if "time" in line else {}) for line in lines]
        (bundle / name).write_text("".join(json.dumps(line) + "\n" for line in aged))
    return bundle


def test_a_run_that_has_gone_silent_is_not_called_running(new_page: OpenPage, silent: Path) -> None:
    page = new_page()
    with served(silent) as url:
        page.goto(url)
        ready(page)
        expect(page.locator("[data-testid=status]")).to_have_text("no new data for 25 min")
        line = json.loads((silent / layout.metrics_name(0)).read_text().splitlines()[-1])
        with (silent / layout.metrics_name(0)).open("a") as file:
            file.write(json.dumps(line | {"update": 2, "captured": False, "time": time.time()}) + "\n")
        expect(page.locator("[data-testid=status]")).to_have_text("running")  # it went on looking


def test_a_lost_connection_is_said_and_what_was_read_stays(new_page: OpenPage, silent: Path) -> None:
    page = new_page(expect="net::ERR_CONNECTION_")
    with view(silent) as url:
        page.goto(url)
        ready(page)
    expect(page.locator(".banner")).to_contain_text("Connection lost, retrying. Is unipo-hooks view still running?")
    expect(page.locator("[data-testid=status]")).to_have_text("not connected")
    assert page.locator(".tok").count() > 0
