"""Ends of training that a process survives: exceptions, Ctrl-C in a notebook, another trainer, threads."""

import os
import random
import signal
import threading
import time

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl_runs import DATASET, length, trainer_for

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.bundle.verify import verify


class Stop(Exception):
    """What training ends with."""


class Raise(TrainerCallback):
    """Raises at one event of one step, once."""

    def __init__(self, event, step, error=Stop):
        def act(args, state, control, **_):
            if state.global_step == step and not self.done:
                self.done = True
                raise error

        self.done = False
        setattr(self, event, act)


def failing_reward(calls):
    """Raises when it is called for the `calls`-th time."""
    count = iter(range(1, 1000))

    def reward(completions, **_):
        if next(count) == calls:
            raise Stop
        return length(completions)

    return reward


def ended(path):
    """The bundle once it says that it ended, before anything else does; tells how long that took."""
    start = time.monotonic()
    while open_bundle(path).manifest.status == "running":
        assert time.monotonic() - start < 60
        time.sleep(0.01)
    print(f"ended {time.monotonic() - start:.3f} s after the exception")
    assert [str(fault) for fault in verify(path)] == []
    return open_bundle(path)


def state_of(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


FAILURES = {
    "a reward": lambda: ({"rewards": [failing_reward(3)]}, Stop),
    "an optimizer step": lambda: ({"callbacks": [Raise("on_pre_optimizer_step", 2)]}, Stop),
    "a callback": lambda: ({"callbacks": [Raise("on_step_end", 2)]}, Stop),
    "a checkpoint": lambda: ({"callbacks": [Raise("on_save", 2)], "save_strategy": "steps", "save_steps": 2}, Stop),
    "Ctrl-C": lambda: ({"callbacks": [Raise("on_step_begin", 2, KeyboardInterrupt)]}, KeyboardInterrupt),
    "an exit": lambda: ({"callbacks": [Raise("on_step_begin", 2, SystemExit)]}, SystemExit),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_an_exception_in_training_ends_the_bundle_at_once_and_changes_nothing(saved_model, tmp_path, failure):
    weights = {}
    for captured in (True, False):
        settings, error = FAILURES[failure]()
        callback = UnipoCallback(tmp_path / "run", strict=True)
        callbacks = [*([callback] if captured else []), *settings.pop("callbacks", [])]
        torch.manual_seed(1)
        trainer = trainer_for(saved_model, tmp_path, callbacks=callbacks, cls=GRPOTrainer, **settings)
        with pytest.raises(error):
            trainer.train()
        if captured:
            bundle = ended(tmp_path / "run")
            assert bundle.manifest.status == "interrupted"
            assert bundle.updates().column("update").to_pylist() == [0, 1]
            assert bundle.manifest.lost.updates == 0
        weights[captured] = state_of(trainer)
    assert all(torch.equal(tensor, weights[False][name]) for name, tensor in weights[True].items())


@pytest.mark.parametrize("failure", ["a reward", "Ctrl-C"])
def test_so_does_one_that_a_callback_added_late_sees(saved_model, tmp_path, failure):
    def interrupted(completions, **_):
        raise KeyboardInterrupt

    rewards = [failing_reward(3) if failure == "a reward" else interrupted]
    trainer = trainer_for(saved_model, tmp_path, rewards=rewards)
    trainer.add_callback(UnipoCallback(tmp_path / "run", strict=True))
    with pytest.raises((Stop, KeyboardInterrupt)):
        trainer.train()
    bundle = ended(tmp_path / "run")
    assert bundle.manifest.status == "interrupted"
    assert len(bundle.updates()) == (2 if failure == "a reward" else 0)


def test_an_evaluation_after_a_failed_start_is_an_attempt_of_its_own(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    callbacks = [callback, Raise("on_step_begin", 2)]
    trainer = trainer_for(saved_model, tmp_path, callbacks=callbacks, per_device_eval_batch_size=8)
    with pytest.raises(Stop):
        trainer.train()
    trainer.evaluate(DATASET.select(range(4)))
    bundle = ended(tmp_path / "run")
    assert [attempt.status for attempt in bundle.manifest.attempts] == ["interrupted", "finished"]
    assert len(bundle.updates(kind="eval")) == 2
    assert bundle.updates().column("update").to_pylist() == [0, 1]


def test_ctrl_c_at_random_moments_leaves_whole_bundles_and_trainers_that_train_on(saved_model, tmp_path):
    moments = random.Random(0)
    interrupted = 0
    callback = UnipoCallback(tmp_path / "run", strict=True)

    class Alarm(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.001, 0.5))

    callbacks = [callback, Alarm()]
    trainer = trainer_for(saved_model, tmp_path, callbacks=callbacks, max_steps=60, logging_steps=100)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(12):
            try:
                trainer.train()
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    trainer.remove_callback(Alarm)
    trainer.train()
    bundles = [path for path in tmp_path.iterdir() if path.name.startswith("run")]
    counts = []
    for path in bundles:
        bundle = ended(path)
        numbers = bundle.updates().column("update").to_pylist()
        # TRL's buffer of the start before holds responses that belong to another bundle
        assert numbers == list(range(bundle.manifest.lost.updates, len(numbers) + bundle.manifest.lost.updates))
        counts.append(len(numbers))
    print(f"{interrupted} of 12 interrupted, updates kept: {counts}")
    assert interrupted > 5
    assert open_bundle(callback.path).manifest.status == "finished"
    assert counts[bundles.index(callback.path)] + open_bundle(callback.path).manifest.lost.updates == 60


def test_a_notebook_cell_run_again_gives_each_run_its_bundle(saved_model, tmp_path):
    def cell(reward):
        """Names of a notebook live on between runs of a cell, and so does the last exception's traceback."""
        global callback, trainer
        callback = UnipoCallback(tmp_path / "run", strict=True)
        trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], rewards=[reward], max_steps=3)
        trainer.train()

    with pytest.raises(Stop) as last:
        cell(failing_reward(2))
    cell(length)
    cell(length)
    assert last.tb is not None
    found = [ended(tmp_path / name) for name in ("run", "run-2", "run-3")]
    assert [bundle.manifest.status for bundle in found] == ["interrupted", "finished", "finished"]
    assert [len(bundle.updates()) for bundle in found] == [1, 3, 3]


def test_a_cell_that_resumes_goes_on_with_the_bundle_that_the_failed_one_still_writes(saved_model, tmp_path):
    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    first = [UnipoCallback(tmp_path / "run", strict=True), Raise("on_step_begin", 3)]
    with pytest.raises(Stop):
        trainer_for(saved_model, tmp_path, callbacks=first, **settings).train()
    again = UnipoCallback(tmp_path / "run", strict=True)
    trainer_for(saved_model, tmp_path, callbacks=[again], **settings).train(resume_from_checkpoint=True)
    assert again.path == tmp_path / "run"
    bundle = ended(again.path)
    assert [attempt.status for attempt in bundle.manifest.attempts] == ["interrupted", "finished"]
    assert bundle.updates().column("update").to_pylist() == [0, 1, 2, 3, 4]
    assert len(bundle.updates(superseded=True)) == 6


def test_two_trainers_with_callbacks_of_their_own_take_turns(saved_model, tmp_path):
    callbacks = [UnipoCallback(tmp_path / name, strict=True) for name in ("one", "two")]
    trainers = [
        trainer_for(saved_model, tmp_path / f"out-{n}", callbacks=[callback], max_steps=2, save_strategy="steps")
        for n, callback in enumerate(callbacks)
    ]
    for steps in (2, 4):
        for trainer in trainers:
            trainer.args.max_steps, trainer.args.save_steps = steps, 2
            trainer.train(resume_from_checkpoint=steps > 2)
    for callback, name in zip(callbacks, ("one", "two"), strict=True):
        assert callback.path == tmp_path / name
        bundle = ended(callback.path)
        assert bundle.updates().column("update").to_pylist() == [0, 1, 2, 3]
        assert [attempt.status for attempt in bundle.manifest.attempts] == ["finished", "finished"]


def test_a_callback_given_to_two_trainers_captures_whichever_trains(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    one, two = (
        trainer_for(saved_model, tmp_path / name, callbacks=[callback], max_steps=steps, per_device_eval_batch_size=8)
        for name, steps in (("a", 2), ("b", 3))
    )

    class EvaluateTheOther(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            two.evaluate(DATASET.select(range(4)))

    one.add_callback(EvaluateTheOther())
    one.train()
    two.train()
    found = [ended(tmp_path / name) for name in ("run", "run-2")]
    assert [bundle.manifest.status for bundle in found] == ["finished", "finished"]
    assert [len(bundle.updates()) for bundle in found] == [2, 3]
    assert len(found[0].updates(kind="eval")) == 0


def test_two_trainers_train_in_two_threads(saved_model, tmp_path):
    callbacks = [UnipoCallback(tmp_path / name, strict=True) for name in ("one", "two")]
    trainers = [trainer_for(saved_model, tmp_path / f"out-{n}", callbacks=[c]) for n, c in enumerate(callbacks)]
    threads = [threading.Thread(target=trainer.train) for trainer in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for callback, trainer in zip(callbacks, trainers, strict=True):
        bundle = ended(callback.path)
        assert bundle.manifest.status == "finished"
        losses = [part["loss"] for row in bundle.updates().to_pylist() for part in row["micro_batches"]]
        assert losses == [entry["loss"] for entry in trainer.losses]
        assert len(losses) == 4


class Handlers(TrainerCallback):
    """Who handles SIGTERM while training runs."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **_):
        self.seen.append(signal.getsignal(signal.SIGTERM))


def test_sigterm_is_watched_only_while_training_runs_and_only_where_nobody_else_does(saved_model, tmp_path):
    def train(name, *more):
        handlers = Handlers()
        callbacks = [UnipoCallback(tmp_path / name, strict=True), handlers, *more]
        trainer_for(saved_model, tmp_path, callbacks=callbacks, max_steps=1).train()
        return handlers.seen[0]

    assert train("free") not in (signal.SIG_DFL, None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(Stop):
        train("failed", Raise("on_step_end", 1))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def own(*_):
        pass

    try:
        for theirs in (own, signal.SIG_IGN):
            signal.signal(signal.SIGTERM, theirs)
            assert train("taken") is theirs
            assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_handler_set_during_training_stays(saved_model, tmp_path):
    def own(*_):
        pass

    class Set(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            signal.signal(signal.SIGTERM, own)

    try:
        callbacks = [UnipoCallback(tmp_path / "run", strict=True), Set()]
        trainer_for(saved_model, tmp_path, callbacks=callbacks, max_steps=1).train()
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_process_forked_during_training_is_ended_by_a_sigterm_however_early(saved_model, tmp_path):
    codes = []

    class Fork(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            for _ in range(10):
                child = os.fork()
                if not child:
                    time.sleep(60)
                    os._exit(0)
                os.kill(child, signal.SIGTERM)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    callbacks = [UnipoCallback(tmp_path / "run", strict=True), Fork()]
    trainer_for(saved_model, tmp_path, callbacks=callbacks, max_steps=2).train()
    assert codes == [-signal.SIGTERM] * 20
