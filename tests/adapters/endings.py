"""Ways a training process can end, each a function that a child of this one runs until its very end.

`python endings.py MODEL` imports everything once, then reads lines of JSON `{"way": ..., "folder": ..., ...}` and forks
a process for each, so that every one ends as a process does: by signal, exception or return, interpreter shutdown
included. It answers with the child's pid, then with its exit status.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from transformers import TrainerCallback
from trl_runs import length, trainer_for

from unipo_hooks import UnipoCallback, recorder, session


class Told(TrainerCallback):
    """Notes every update in a file as soon as it is complete; comes after the capture."""

    def __init__(self, folder):
        self.file = os.open(folder / "steps", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def on_step_end(self, args, state, control, **_):
        os.write(self.file, b".")


class At(TrainerCallback):
    """Does something once a step is complete."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.action()


def trainer_of(model, folder, *more, captured=True, rewards=(length,), **settings):
    torch.manual_seed(0)
    callbacks = [*([UnipoCallback(folder / "run")] if captured else []), Told(folder), *more]
    return trainer_for(model, folder, callbacks=callbacks, rewards=rewards, **settings)


def endless(model, folder, **settings):
    """Trains until something from outside ends it; `steps` has been written to once it is under way."""
    trainer_of(model, folder, **{"max_steps": 100_000, "logging_steps": 1000, **settings}).train()


def saves(model, folder):
    """Saves a checkpoint after every fourth update, in folders whose names are relative."""
    os.chdir(folder)
    endless(model, Path(), save_strategy="steps", save_steps=4)


def slow_disk(model, folder):
    """What is queued would take hours."""
    original = session.rollout_rows

    def slow(*args):
        time.sleep(0.5)
        return original(*args)

    session.rollout_rows = slow
    endless(model, folder)


def raises(model, folder):
    trainer_of(model, folder, At(3, lambda: 1 / 0)).train()


def exits(model, folder):
    trainer_of(model, folder, At(3, lambda: sys.exit(7))).train()


def exits_at_once(model, folder):
    trainer_of(model, folder, At(3, lambda: os._exit(9))).train()


def raises_in_a_thread(model, folder):
    """While the interpreter shuts down: it waits for threads."""
    ends, begun = threading.Event(), threading.Event()

    def fail():
        begun.set()
        ends.wait()
        threading.main_thread().join()
        raise ZeroDivisionError

    trainer = trainer_of(model, folder, At(3, fail))
    threading.Thread(target=trainer.train).start()
    begun.wait()
    ends.set()


def forks(model, folder, captured=True):
    """A reward function starts processes, ends one, and lets one fall out of training."""

    def forking(completions, **_):
        sleeper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
        sleeper.start()
        sleeper.terminate()
        fallen = os.fork()
        if not fallen:
            sys.exit(3)  # through the trainer's frames, then atexit
        sleeper.join()
        codes = [sleeper.exitcode, os.waitstatus_to_exitcode(os.waitpid(fallen, 0)[1])]
        with (folder / "codes").open("a") as file:
            file.write(json.dumps(codes) + "\n")
        return length(completions)

    finish(trainer_of(model, folder, captured=captured, rewards=[forking], max_steps=2), folder)


def workers(model, folder, captured=True):
    """Forked workers load the data."""
    settings = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "max_steps": 4}
    finish(trainer_of(model, folder, captured=captured, **settings), folder)


def finish(trainer, folder):
    trainer.train()
    torch.save(trainer.model.state_dict(), folder / "weights.pt")


def main():
    model = sys.argv[1]
    print("ready", flush=True)
    while line := os.read(0, 100_000):
        asked = json.loads(line)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            folder = Path(asked.pop("folder"))
            recorder.EXIT_SECONDS = asked.pop("exit_seconds", recorder.EXIT_SECONDS)
            log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            globals()[asked.pop("way")](model, folder, **asked)
            return
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
