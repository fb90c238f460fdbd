"""Forks children that capture as fast as they can, and ends each with SIGTERM at a random moment.

`python sigterm_children.py FOLDER NUMBER` prints how each child ended, how many updates it had handed over by then and
how many seconds the end took.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import records

from unipo_hooks import signals
from unipo_hooks.recorder import Recorder


class Owner:
    """Whoever wants SIGTERM watched."""


def capture(path, told):
    owner = Owner()
    signals.watch(owner)
    recorder = Recorder(path, records.run_info())
    for number in range(1_000_000):
        rollout = records.rollout(number)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))
        os.pwrite(told, str(number + 1).encode(), 0)
        if number % 50 == 0:
            recorder.checkpoint()


def main():
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    moments = random.Random(0)
    for child in range(number):
        told = os.open(folder / f"{child}.told", os.O_CREAT | os.O_RDWR)
        pid = os.fork()
        if not pid:
            try:
                capture(folder / str(child), told)
            finally:
                os._exit(1)
        while not os.pread(told, 10, 0):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        handed_over, start = int(os.pread(told, 10, 0)), time.monotonic()
        os.kill(pid, signal.SIGTERM)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(status, handed_over, time.monotonic() - start, flush=True)


if __name__ == "__main__":
    main()
