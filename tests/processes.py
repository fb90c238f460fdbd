"""Real processes for tests: each trains, and ends in one of the ways of `adapters/endings.py`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent


class Processes:
    """Starts processes that end in one of the ways of `endings.py`."""

    def __init__(self, model):
        environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(TESTS / "adapters" / "endings.py"), str(model)]
        pipe = subprocess.PIPE
        self.parent = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True, bufsize=1)
        assert self.parent.stdout.readline() == "ready\n"

    def start(self, way, folder, **settings):
        folder.mkdir(exist_ok=True)
        self.parent.stdin.write(json.dumps({"way": way, "folder": str(folder), **settings}) + "\n")
        self.child = int(self.parent.stdout.readline())
        return self.child

    def status(self):
        """Its exit status, negative where a signal ended it."""
        status = int(self.parent.stdout.readline())
        self.child = None
        return status

    def close(self):
        if getattr(self, "child", None):
            os.kill(self.child, signal.SIGKILL)
        self.parent.stdin.close()
        self.parent.wait(300)


def steps(folder):
    """Updates the trainer has completed."""
    file = folder / "steps"
    return file.stat().st_size if file.exists() else 0


def wait_for_steps(folder, number):
    deadline = time.monotonic() + 300
    while steps(folder) < number:
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.02)
