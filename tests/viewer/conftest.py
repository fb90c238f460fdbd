"""Pages that fail a test when something goes wrong in them, and runs that were really trained."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect
from viewer.pages import BUILT, VIEWER

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect.set_options(timeout=15_000)
OpenPage = Callable[..., "Page"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these start a browser."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def new_page(browser: Browser) -> Iterator[OpenPage]:
    """Makes pages, 1440 × 900 unless told otherwise.

    The test fails at its end where a page has raised an error, written one to the console (a violation of its
    Content-Security-Policy is one) or opened a dialog. `expect=` names what may be in the console.
    """
    assert BUILT.exists(), "the viewer is not built: make viewer"
    contexts = []
    troubles: list[str] = []

    def make(*, expect: str | None = None, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()

        def on_console(message: Any) -> None:
            # A page outlives its server, and may be asking for more when that goes.
            gone = any(word in message.text for word in ("ERR_CONNECTION_RESET", "ERR_CONNECTION_REFUSED"))
            if message.type in ("error", "warning") and not gone and not (expect and expect in message.text):
                troubles.append(f"console: {message.text}")

        def on_dialog(dialog: Any) -> None:
            troubles.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("console", on_console)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("dialog", on_dialog)
        return page

    yield make
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the digits example, 30 updates: 8 groups of 8 responses, two updates a rollout."""
    from unipo_hooks.examples.trl_grpo import main

    return main(str(tmp_path_factory.mktemp("trained") / "digits"), steps=30)


@pytest.fixture(scope="session")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rollouts are spread over two updates, and gone through twice."""
    from viewer.training import train

    folder = tmp_path_factory.mktemp("spread")
    return train(folder, steps_per_generation=2, num_iterations=2, max_steps=4)


@pytest.fixture(scope="session")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which each update trains twice on every response: it accumulates over iterations."""
    from viewer.training import train

    folder = tmp_path_factory.mktemp("twice")
    return train(folder, gradient_accumulation_steps=2, steps_per_generation=1, num_iterations=2, max_steps=2)


@pytest.fixture(scope="session")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The viewer's analysis as a program for Node."""
    folder = tmp_path_factory.mktemp("analysis")
    command = [
        "npx",
        "vite",
        "build",
        "--config",
        "tests/vite.config.ts",
        "--logLevel",
        "warn",
        "--outDir",
        str(folder),
    ]
    subprocess.run(command, cwd=VIEWER, check=True)
    return folder / "analysis.js"
