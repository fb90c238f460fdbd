"""Takes the README's pictures anew, from the packaged SmolLM2 run.

python viewer_static/screenshots/take.py [NAME ...]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from playwright.sync_api import sync_playwright

from unipo_hooks.export.html import export_html

HERE = Path(__file__).parent
PLACES = {
    "three-views": "u=1&g=0.0&r=0.0&t=52",
    "beside": "u=1&g=0.0&r=0.0&t=52&vs=dr_grpo",
    "what-if": "u=1&g=0.0&what=grpo;bounds.epsilon_low=0.05;bounds.epsilon_high=0.05",
    "learn": "u=1&g=0.2&learn=4",
}
"""Picture → the place in the run."""


def main(names: list[str]) -> None:
    """Take these pictures, or all."""
    with (
        resources.as_file(resources.files("unipo_hooks.examples") / "smollm2") as bundle,
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
    ):
        address = export_html(bundle, Path(folder) / "page.html").as_uri()
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name in names or PLACES:
            page = chromium.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
            page.goto(f"{address}#{PLACES[name]}")
            page.wait_for_selector(".tok[class*=' ']")
            page.mouse.move(650, 20)
            page.wait_for_timeout(1000)
            page.screenshot(path=HERE / f"{name}.png")
            page.close()
        chromium.close()


if __name__ == "__main__":
    main(sys.argv[1:])
