"""What the viewer costs in a real browser: opening a long run, and one update of 64 × 1024 tokens.

    make viewer && python tests/benchmarks/viewer.py

The bars: a first view of a run with 1,000 captured updates in under 1 s, with under 60 MB of heap, reading one segment
alone; its dial follows the pointer in under 16 ms; an update of 64 × 1024 tokens painted in under 500 ms from the
click, another colour in under 100 ms, a hovered token in under 16 ms; the page at most 400 KB gzipped. Times are
medians on this machine: from the event to the frame after the one in which the page had changed; for what is hovered,
the work up to the frame, layout included.
"""

from __future__ import annotations

import gzip
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from records import rollout, run_info, update

from unipo_hooks import algorithms
from unipo_hooks.policy import CapturePolicy
from unipo_hooks.recorder import Recorder
from unipo_hooks.server import BundleServer

PAGE = Path(__file__).parents[2] / "viewer_static" / "dist" / "index.html"
WORDS = ["the", "number", "of", "books", "and", "shells", "on", "a", "table", "is", "how", "many", "so", "answer"]

# After the frame that shows what has changed: two frames, as the first callback still runs before the paint.
PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"

FIRST_TOKENS = f"""async () => {{
  while (!document.querySelector('.tok[class*=" "]')) await new Promise(requestAnimationFrame);
  return await {PAINTED};
}}"""

# Clicks, waits until the open update is another one and what is in view of it is painted, and says how long it took.
OPEN_UPDATE = f"""async (selector) => {{
  const before = location.hash;
  const first = document.querySelector('.tok');
  const start = performance.now();
  document.querySelector(selector).click();
  while (location.hash === before || document.querySelector('.tok') === first
      || !document.querySelector('.tok[class*=" "]') || document.querySelector('[aria-busy=true]')) {{
    await new Promise(requestAnimationFrame);
  }}
  return (await {PAINTED}) - start;
}}"""

RECOLOUR = f"""async (selector) => {{
  const start = performance.now();
  document.querySelector(selector).click();
  return (await {PAINTED}) - start;
}}"""

HOVER = f"""async (number) => {{
  const tokens = [...document.querySelectorAll('.tok')];
  const token = tokens[(number * 37) % Math.min(400, tokens.length)];
  const start = performance.now();
  token.dispatchEvent(new PointerEvent('pointerover', {{bubbles: true, pointerType: 'mouse'}}));
  await Promise.resolve();
  void document.body.offsetHeight;  // the layout the next frame needs
  const changed = performance.now();
  await {PAINTED};
  return changed - start;
}}"""


HOVER_DIAL = f"""async (number) => {{
  const dial = document.querySelector('[data-testid=dial]');
  const box = dial.getBoundingClientRect();
  const angle = number / 8 - 1.5;
  const clientX = box.left + box.width / 2 + 100 * Math.cos(angle);
  const clientY = box.top + box.height / 2 + 100 * Math.sin(angle);
  const start = performance.now();
  dial.dispatchEvent(new PointerEvent('pointermove', {{ clientX, clientY, bubbles: true, pointerType: 'mouse' }}));
  await Promise.resolve();
  void document.body.offsetHeight;
  const changed = performance.now();
  await {PAINTED};
  return changed - start;
}}"""


def decode(ids: list[int]) -> str:
    """Words of a small vocabulary, each with the blank before it."""
    return "".join(" " + WORDS[i % len(WORDS)] for i in ids)


def bundle(path: Path, *, updates: int, rows: int, width: int, group_size: int) -> Path:
    """A run by the product's own writer, two updates a rollout, with random contents."""
    info = run_info(decode=decode, algorithm=algorithms.get("dapo"))
    recorder = Recorder(path, info, CapturePolicy(max_bytes=2**34), strict=True)
    full = np.full(rows, width)
    for number in range(0, updates, 2):
        of = rollout(
            number // 2, rows=rows, width=width, group_size=group_size, length_B=full, mask_BT=np.ones((rows, width))
        )
        recorder.rollout(of)
        for each in (number, number + 1):
            recorder.update(update(each, of, is_first_step_after_rollout_phase=each == number))
    recorder.close()
    return recorder.path


@contextmanager
def served(path: Path) -> Iterator[str]:
    """The bundle on a port of its own: its address."""
    with BundleServer(path, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


def median(measure: Any, times: int) -> float:
    """The median of so many measurements."""
    return statistics.median(measure(number) for number in range(times))


def first_view(page: Page, path: Path) -> Iterator[tuple[str, str, str]]:
    """What opening a long run costs."""
    times, asked = [], []
    with served(path) as url:
        page.on("request", lambda request: asked.append(request.url))
        for _ in range(5):
            page.goto("about:blank")
            page.goto(url)
            times.append(page.evaluate(FIRST_TOKENS))
            page.wait_for_timeout(500)
        session = page.context.new_cdp_session(page)
        session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")["usedSize"]
        segments = {name.split("/segments/")[1].split(".")[0] for name in asked if "/segments/" in name}
        hovered = median(lambda number: page.evaluate(HOVER_DIAL, number), 30)
    yield "first view, 1,000 captured updates", f"{statistics.median(times):.0f} ms", "1000 ms"
    yield "heap after it", f"{heap / 1e6:.1f} MB", "60 MB"
    yield "segments it read", str(len(segments)), "1"
    yield "hovered dial, 1,000 updates", f"{hovered:.1f} ms", "16 ms"


def large_update(page: Page, path: Path, words: str) -> Iterator[tuple[str, str, str]]:
    """What one update of 64 × 1024 tokens costs."""
    with served(path) as url:
        page.goto(f"{url}#u=0")
        page.evaluate(FIRST_TOKENS)
        page.wait_for_timeout(3000)
        there = ["[data-testid=next-update]", "[data-testid=previous-update]"]

        def opened(number: int) -> float:
            taken: float = page.evaluate(OPEN_UPDATE, there[number % 2])
            page.wait_for_timeout(2500)
            return taken

        yield f"update painted from the click, {words}", f"{median(opened, 4):.0f} ms", "500 ms"
        channels = page.locator("[data-testid=channel-switch] [data-channel]").evaluate_all(
            "all => all.slice(0, 5).map(each => each.dataset.channel)"
        )
        page.wait_for_timeout(4000)  # until all of it is there
        for name in channels:  # whatever is computed once is computed
            page.evaluate(RECOLOUR, f"[data-channel={name}]")

        def recoloured(number: int) -> float:
            taken: float = page.evaluate(RECOLOUR, f"[data-channel={channels[number % len(channels)]}]")
            return taken

        yield f"another colour, {words}", f"{median(recoloured, 10):.0f} ms", "100 ms"
        yield f"hovered token, {words}", f"{median(lambda n: page.evaluate(HOVER, n), 40):.1f} ms", "16 ms"


def main() -> None:
    """Measure, and print a row a bar."""
    table = Table("what", "measured", "bar")
    size = len(gzip.compress(PAGE.read_bytes(), 9))
    table.add_row("the page, gzipped", f"{size / 1000:.0f} KB", "400 KB")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = chromium.new_page(viewport={"width": 1440, "height": 900})
        console = Console()
        with console.status("writing the runs"):
            long = bundle(Path(folder) / "long", updates=1000, rows=16, width=24, group_size=8)
            large = bundle(Path(folder) / "large", updates=2, rows=64, width=1024, group_size=8)
            whole = bundle(Path(folder) / "whole", updates=2, rows=64, width=1024, group_size=64)
        with console.status("looking at them"):
            for row in first_view(page, long):
                table.add_row(*row)
            for row in large_update(page, large, "8 groups of 8"):
                table.add_row(*row)
            for row in large_update(page, whole, "one group of 64"):
                table.add_row(*row)
        chromium.close()
        console.print(table)


if __name__ == "__main__":
    main()
