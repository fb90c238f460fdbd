"""What the viewer's tests share: bundles to look at, servers, and reading what a page says."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page
from records import rollout, run_info, update

from unipo_hooks import examples
from unipo_hooks.recorder import Recorder
from unipo_hooks.server import BundleServer

VIEWER = Path(__file__).parents[2] / "viewer_static"
BUILT = VIEWER / "dist" / "index.html"
AXE = VIEWER / "node_modules" / "axe-core" / "axe.min.js"
SMOLLM2 = Path(str(examples.__file__)).parent / "smollm2"
"""The packaged run of a real model: 8 updates, two of each rollout."""


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """The bundle on a port of its own: its address."""
    with BundleServer(bundle, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@contextmanager
def view(bundle: Path) -> Iterator[str]:
    """`unipo-hooks view`, as a person starts it: the address it says."""
    command = [sys.executable, "-m", "unipo_hooks.cli", "view", str(bundle), "--no-browser", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "SSH_CONNECTION"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment | {"COLUMNS": "400"}
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if match := re.search(r"http://127\.0\.0\.1:\d+/", line):
                    yield match[0]
                    break
            else:
                pytest.fail("`unipo-hooks view` said no address")
        finally:
            process.terminate()


def written(path: Path, *, updates: int = 2, policy: Any = None, info: dict[str, Any] | None = None, **of: Any) -> Path:
    """A bundle from the product's own writer: one rollout with random contents, trained on `updates` times."""
    recorder = Recorder(path, run_info(**(info or {})), policy, strict=True)
    first = rollout(**of)
    recorder.rollout(first)
    for number in range(updates):
        recorder.update(update(number, first, is_first_step_after_rollout_phase=number == 0))
    recorder.close()
    return recorder.path


def ready(page: Page) -> None:
    """Wait until tokens are there and coloured."""
    page.wait_for_selector(".tok[class*=' ']")


def text_of(place: Locator) -> str:
    """What is written there, white space collapsed."""
    return " ".join(place.inner_text().split())


def assert_shows(shown: str, value: float) -> None:
    """`shown` is `value`, rounded to the digits that are shown; NaN is shown in words or as a dash."""
    text = shown.strip().replace("−", "-").removesuffix("nats").strip()
    if math.isnan(value):
        assert text in ("not computed", "–"), f"{shown!r} is shown for NaN"
        return
    match = re.fullmatch(r"([+-]?\d+(?:\.(\d+))?)(?:e(-?\d+))?", text)
    assert match, f"{shown!r} is no number"
    if float(text) == 0 and not match[2]:
        assert value == 0, f"{shown!r} is shown for {value}"
        return
    unit = 10.0 ** (int(match[3] or 0) - len(match[2] or ""))
    assert abs(float(text) - value) <= unit * 0.5001, f"{shown!r} is shown for {value}"


def card(page: Page) -> dict[str, str]:
    """The token card's channels, by name, as they are written."""
    rows = page.locator("[data-testid=token-card] dl > div[data-channel]")
    texts = rows.evaluate_all("rows => rows.map(r => [r.dataset.channel, r.querySelector('dd').innerText])")
    return {name: " ".join(text.split()) for name, text in texts}


def colours(page: Page) -> list[str]:
    """Colour class of every token on the page."""
    classes: list[str] = page.locator(".tok").evaluate_all("tokens => tokens.map(t => t.className)")
    return [name.removeprefix("tok ") for name in classes]


def open_group(page: Page, rollout_number: int, group: int) -> None:
    """Choose a prompt group."""
    page.click(f"[data-testid=group-card][data-group='{rollout_number}.{group}']")
    ready(page)


def open_update(page: Page, number: int) -> None:
    """Choose an update by its number."""
    page.fill("[data-testid=update-box]", str(number))
    page.keyboard.press("Enter")
    page.wait_for_function("number => location.hash.startsWith(`#u=${number}`)", arg=number)
    page.wait_for_selector("[aria-busy=false]")
    ready(page)
