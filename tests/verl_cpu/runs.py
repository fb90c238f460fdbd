"""Starts `python -m verl.trainer.main_ppo` for tests, and says what came of it. Nothing of a run outlives it."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

from verl_cpu.assets import Assets, make_assets
from verl_cpu.settings import settings

HERE = Path(__file__).parent
SLOW = "node timed out during startup"
"""What Ray says where it did not come up within half a minute: nothing of the run has begun then."""

MARK = "VERL_CPU_RUN"
"""A variable every process of a run is started with: by its value they are found, whichever session they went to."""


@dataclass(frozen=True)
class Run:
    """What a run left."""

    folder: Path
    rows: tuple[Mapping[str, float], ...]
    """The trainer's own metrics, a step each, from verl's `file` logger; `step` among them."""
    output: str
    """Of all processes, as the terminal would have shown it."""
    status: int
    """Of the process; negative where a signal ended it."""
    seconds: float
    left: tuple[int, ...] = ()
    """Its processes that were there still when all had been cleared away."""

    @property
    def numbers(self) -> list[dict[str, float]]:
        """The rows without what is measured by the clock or by the machine."""
        return [{k: v for k, v in row.items() if "timing" not in k and "perf/" not in k} for row in self.rows]


def environment() -> dict[str, str]:
    """For every process of every run."""
    before = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "VERL_"))}
    path = [str(HERE.parent), *filter(None, [before.get("PYTHONPATH")])]
    return before | {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONHASHSEED": "0",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",  # engines are registered for it, and run as well without
        "VERL_CPU_PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HYDRA_FULL_ERROR": "1",
        "TQ_NUM_THREADS": "1",  # more than there are cores is a warning for every message
        "RAY_AUTH_MODE": "disabled",  # a token would be written to the user's home
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_prestart_worker_first_driver": "0",
        # A slow machine is to be slow, not to fail.
        "TQ_STORAGE_HANDSHAKE_TIMEOUT": "120",
        "TQ_DATA_UPDATE_RESPONSE_TIMEOUT": "120",
    }


@cache
def warm() -> str:
    """The socket of a Python with everything heavy imported; it ends with this process."""
    path = f"{tempfile.mkdtemp(prefix='warm-', dir='/tmp')}/socket"
    pipe = subprocess.PIPE
    command = [sys.executable, str(HERE / "warm.py"), path]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment(), text=True, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    atexit.register(shutil.rmtree, Path(path).parent, True)
    atexit.register(process.communicate)
    return path


@cache
def assets() -> Assets:
    """Made once a process, and gone with it."""
    folder = Path(tempfile.mkdtemp(prefix="verl-cpu-"))
    atexit.register(shutil.rmtree, folder, True)
    return make_assets(folder)


def main_ppo(
    folder: Path,
    *overrides: str,
    ranks: int = 1,
    steps: int = 3,
    modules: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float = 900,
) -> Run:
    """Train in `folder`, wait for the end, and clear away what is left of it.

    `overrides` are verl's, and win over those of `settings`. `modules` are loaded by verl in every process, after the
    harness. With `check`, a run that fails is an AssertionError with the end of its output.
    """
    for _ in range(2):
        with started(folder, *overrides, ranks=ranks, steps=steps, modules=modules, env=env) as process:
            run = process.wait(timeout)
        if run.status == 0 or SLOW not in run.output:
            break
    assert not check or run.status == 0, f"status {run.status} of main_ppo\n{run.output[-6000:]}"
    return replace(run, left=process.left)


class started:
    """A run that goes on beside the test: `with started(folder) as process`, then `process.wait()`.

    It trains what is `given`, or the assets every run shares.

    `process.process` stands for the driver: it ends as the driver does, and passes on SIGTERM and SIGINT.
    """

    def __init__(
        self,
        folder: Path,
        *overrides: str,
        ranks: int = 1,
        steps: int = 3,
        modules: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        given: Assets | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.log, self.metrics = folder, folder / "log", folder / "metrics.jsonl"
        # Not below `folder`: Ray's sockets are there, whose paths must be short.
        self.left: tuple[int, ...] = ()
        self.ray = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.mark, self.forked = self.ray.name, self.ray / "pids"
        self.forked.mkdir()
        own = {
            MARK: self.mark,
            "VERL_CPU_WARM": warm(),
            "VERL_CPU_PIDS": str(self.forked),
            "VERL_USE_EXTERNAL_MODULES": ",".join(["verl_cpu.plugin", *modules]),
            "VERL_FILE_LOGGER_PATH": str(self.metrics),
        }
        command = [str(HERE / "warm_python"), "-m", "verl.trainer.main_ppo"]
        command += settings(version("verl"), given or assets(), ranks, steps)
        command += [f"+ray_kwargs.ray_init._temp_dir={self.ray}", f"hydra.run.dir={folder / 'hydra'}", *overrides]
        self.begin = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment() | own | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> started:
        return self

    def pids(self, title: str = "") -> list[int]:
        """Processes of the run, Ray's too, with `title` in their command line; that of a rank is `ray::WorkerDict`."""
        wanted, found = f"{MARK}={self.mark}".encode(), []
        forked = {path.name for path in self.forked.glob("*")}  # their first environment is that of whom they came from
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = folder.name in forked or wanted in (folder / "environ").read_bytes().split(b"\0")
                if ours and title in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
            except OSError:  # another user's, or gone
                continue
        return found

    def rows(self) -> tuple[Mapping[str, float], ...]:
        """Steps that are logged so far."""
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        return tuple({"step": each["step"], **each["data"]} for each in map(json.loads, lines))

    def wait(self, timeout: float = 900) -> Run:
        """The run when it is over, or was cut off after `timeout` seconds."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        seconds = time.monotonic() - self.begin
        return Run(self.folder, self.rows(), self.log.read_text(errors="replace"), status, seconds)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self._after(5):  # Ray's processes end with their parent, given a moment
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.left = self._after(5)
        shutil.rmtree(self.ray, ignore_errors=True)

    def _after(self, seconds: float) -> tuple[int, ...]:
        """Processes of the run that do not end within some seconds."""
        deadline = time.monotonic() + seconds
        while (left := self.pids()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return tuple(left)
