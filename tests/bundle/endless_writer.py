"""Writes a bundle for ever, flushing now and then and saying which update is durable. To be killed."""

import itertools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import records

from unipo_hooks.recorder import Recorder

recorder = Recorder(sys.argv[1], records.run_info())
sys.stdout.write("writing\n")
sys.stdout.flush()
for number in itertools.count():
    rollout = records.rollout(number)
    recorder.rollout(rollout)
    recorder.update(records.update(number, rollout))
    if number % 7 == 6:
        recorder.flush()
        os.write(1, f"{number}.\n".encode())
