"""Whatever fails on our side costs the capture, never the training: weights stay bit-identical, one line says it."""

import contextlib
import gc
import json
import logging
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import CodeType, FunctionType

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl_runs import trainer_for

import unipo_hooks
import unipo_hooks.adapters.trl
from unipo_hooks import UnipoCallback, open_bundle, recorder
from unipo_hooks.bundle import layout, segment
from unipo_hooks.bundle.verify import verify
from unipo_hooks.recorder import Recorder, close_all
from unipo_hooks.signals import unwatch

SETTINGS = {"num_iterations": 2, "max_steps": 2, "cls": GRPOTrainer}
FOLDERS = tuple(str(Path(module.__file__).parent) for module in (unipo_hooks, unipo_hooks.adapters))

THIN = {
    # They call the trainer's own method and, guarded, one of ours.
    "wrap.<locals>.method",
    "Tap._around_rewards.<locals>.calculate_rewards",
    "Tap._around_generate.<locals>.generate_and_score_completions",
    "Tap._around_log_probs.<locals>.log_probs",
    "Tap._around_loss.<locals>.compute_loss",
    "on_failure.<locals>.around_train.<locals>.wrapped_train",
    "on_failure.<locals>.around_step.<locals>.wrapped_step",
    "Tap._ours",
    # Asked for every module anyone imports, once verl's adapter is loaded: one look into a dict.
    "Watcher.find_spec",
    # The walls themselves.
    "Guard.__call__",
    "Guard.always",
    "Recorder._run",
    # The trainer's events: one guarded call each.
    *(f"UnipoCallback.{name}" for name in vars(UnipoCallback) if name.startswith("on_")),
}
"""Functions that stand in the trainer's own calls: an exception of theirs would be the trainer's, so they hold no code
of which one could come."""


def train(saved_model, folder, callbacks=(), **settings):
    """Final weights of a run, the trainer, and what was logged."""
    torch.manual_seed(3)
    trainer = trainer_for(saved_model, folder, callbacks=list(callbacks), **SETTINGS | settings)
    trainer.train()
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


COUNTING = {
    "BundleWriter.update_manifest",
    "Recorder._write",
    "Session._contained",
    "Session._end_attempt",
    "Session._write_manifest",
    "Session.finish",
    "UnipoCallback._is_of",
    "end_attempt",
}
"""Functions without which nothing can be counted any more: the log alone says that capture has ended."""


@pytest.fixture(scope="module")
def untouched(saved_model, tmp_path_factory):
    """Weights of the run that nobody captures."""
    return train(saved_model, tmp_path_factory.mktemp("untouched"))


def check_same(weights, untouched):
    assert weights.keys() == untouched.keys()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in weights.items())


def check_whole(path, lines, *, counted=True):
    """What is left of a bundle validates, and what is not there is counted; how many updates are there."""
    if not (path / layout.MANIFEST).exists():
        assert lines, "a run without a bundle, and nobody was told"
        return 0
    assert [str(fault) for fault in verify(path) if fault.severity == "fault"] == []
    bundle = open_bundle(path)
    stored, lost = len(bundle.updates()), bundle.manifest.lost.updates
    rollouts = len(bundle.rollouts()), bundle.manifest.lost.rollouts
    trained = json.loads((path / layout.MANIFEST).read_text())["header"]["totalSteps"]
    began = bundle.manifest.channels or lost
    assert not began or not counted or stored + lost == trained, (
        f"{stored} stored, {lost} counted as lost, {trained} trained: {lines}"
    )
    if began and counted:
        assert sum(rollouts) == trained // SETTINGS["num_iterations"], f"{rollouts} rollouts stored and lost: {lines}"
    assert lines or stored == trained
    assert bundle.manifest.status != "running" or not counted
    return stored


@pytest.fixture(autouse=True)
def only_its_own(monkeypatch):
    """What an earlier test has left running is neither ended by this one nor said in its log."""
    monkeypatch.setattr(recorder, "_live", set())


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "unipo_hooks"]


# --- an exception in any of our own functions ---


def ours(code: CodeType) -> bool:
    """Whether code is the package's: neither a test's nor an example's."""
    return code.co_filename.startswith(FOLDERS) and "examples" not in Path(code.co_filename).parts


def functions_of_a_run(run):
    """Every function of ours that is called while `run` runs, on any thread: qualified name → its code."""
    found = {}

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and ours(code) and not code.co_name.startswith("<"):
            found.setdefault(f"{Path(code.co_filename).stem}.{code.co_qualname}", code)

    profiled(note, run)
    return found


def profiled(function, run):
    threading.setprofile(function)
    sys.setprofile(function)
    try:
        return run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def injected(*_, **__):
    raise RuntimeError("injected")


def raising(code, functions, run):
    """Run while a function raises: always, where its code can be exchanged, else the first time it is called."""
    if functions and not code.co_freevars:
        for function in functions:
            function.__code__ = injected.__code__
        try:
            return run()
        finally:
            for function in functions:
                function.__code__ = code

    def inject(frame, event, _):
        if event == "call" and frame.f_code is code:
            injected()

    return profiled(inject, run)


@pytest.mark.slow
def test_an_exception_in_any_function_of_ours_never_reaches_training(saved_model, tmp_path, untouched, caplog):
    names = functions_of_a_run(lambda: train(saved_model, tmp_path, [UnipoCallback(tmp_path / "reference")]))
    names = {name: code for name, code in names.items() if code.co_qualname not in THIN}
    assert len(names) > 150
    functions = {}
    gc.unfreeze()  # what is frozen is not listed
    gc.collect()
    objects = gc.get_objects()
    gc.freeze()
    for each in objects:
        if type(each) is FunctionType and ours(each.__code__):
            functions.setdefault(each.__code__, []).append(each)
    wrong, silent, capture_on = {}, [], 0
    for number, (name, code) in enumerate(sorted(names.items())):
        caplog.clear()
        path, result = tmp_path / f"run{number}", {}
        callback = UnipoCallback(path)
        try:
            with caplog.at_level(logging.WARNING, logger="unipo_hooks"):
                raising(code, functions.get(code), lambda: result.update(train(saved_model, tmp_path, [callback])))  # noqa: B023
            close_all()  # as the end of the process does
            unwatch(callback)
            check_same(result, untouched)
            lines = said(caplog)
            assert len([line for line in lines if "capture is off" in line and "Training goes on" in line]) <= 1, lines
            assert len(lines) <= 2, lines
            capture_on += check_whole(path, lines, counted=code.co_qualname not in COUNTING) == SETTINGS["max_steps"]
            silent += [name] * (not lines)
        except BaseException as error:
            wrong[name] = f"{type(error).__name__}: {str(error)[:300]}"
    print(
        f"an exception in each of {len(names)} functions: weights bit-identical in {len(names) - len(wrong)}, "
        f"every update stored all the same in {capture_on}; nobody noticed {len(silent)}: {', '.join(silent)}"
    )
    assert wrong == {}, "\n".join(f"{name}: {error}" for name, error in wrong.items())


# --- the disk ---


class At(TrainerCallback):
    """Does something at the beginning of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            self.action()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "unipo", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def hurried(monkeypatch):
    """Segments of a few rows, so that a short run writes many."""
    monkeypatch.setattr(segment, "MAX_TOKENS", 60)


def test_a_full_disk_costs_what_does_not_fit_and_no_more(saved_model, tmp_path, small_disk, monkeypatch, caplog):
    hurried(monkeypatch)
    without = train(saved_model, tmp_path, max_steps=40)
    callback = UnipoCallback(small_disk / "run")
    with caplog.at_level(logging.WARNING, logger="unipo_hooks"):
        check_same(train(saved_model, tmp_path, [callback], max_steps=40), without)
    lines = said(caplog)
    assert [line for line in lines if "No space left on device" in line and "Training goes on" in line] == lines[:1]
    stored = check_whole(callback.path, lines)
    print(f"{stored} of 40 updates are on a disk of 256 KiB; {lines[-1]}")
    assert 0 < stored < 40
    assert len(lines) == 2


def test_a_disk_that_is_full_for_a_while_costs_what_came_meanwhile(
    saved_model, tmp_path, small_disk, monkeypatch, caplog
):
    hurried(monkeypatch)
    blocker = small_disk / "something else"

    def fill():
        with contextlib.suppress(OSError):
            blocker.write_bytes(bytes(1 << 20))

    callback = UnipoCallback(small_disk / "run")
    callbacks = [callback, At(6, fill), At(14, blocker.unlink)]
    met = At(13, lambda: callback._recorder.flush())  # the writing thread has met the full disk
    without = train(saved_model, tmp_path, max_steps=20)
    check_same(train(saved_model, tmp_path, [*callbacks, met], max_steps=20), without)
    updates = open_bundle(callback.path).updates().column("update").to_pylist()
    print(f"updates on the disk: {updates}")
    assert updates[0] == 0 and updates[-1] == 19
    assert 2 <= len(updates) < 20
    assert check_whole(callback.path, said(caplog)) == len(updates)


@pytest.fixture
def anyones():
    """A folder that every user may look into, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_made_read_only_costs_what_comes_after(saved_model, anyones, monkeypatch, caplog):
    """As a user that read-only means something to: root writes all the same, so it becomes nobody for a while."""
    tmp_path = anyones
    hurried(monkeypatch)
    without = train(saved_model, tmp_path, max_steps=12)
    callback = UnipoCallback(tmp_path / "run")
    root = os.geteuid() == 0

    def close():
        callback._recorder.flush()
        for folder in (tmp_path / "run" / "segments", tmp_path / "run"):
            folder.chmod(0o555)
        if root:
            os.seteuid(pwd.getpwnam("nobody").pw_uid)

    try:
        with caplog.at_level(logging.WARNING, logger="unipo_hooks"):
            weights = train(saved_model, tmp_path, [callback, At(6, close)], max_steps=12)
    finally:
        if root:
            os.seteuid(0)
        for folder in (tmp_path / "run", tmp_path / "run" / "segments"):
            folder.chmod(0o755)
    check_same(weights, without)
    first, last = said(caplog)
    assert "Permission denied" in first and first.endswith("Training goes on.")
    # The manifest could not be written either, so that the log alone has the count.
    stored = len(open_bundle(callback.path).updates())
    print(f"{stored} of 12 updates were stored; {last}")
    assert [str(fault) for fault in verify(callback.path) if fault.severity == "fault"] == []
    assert stored == 6
    assert f"unipo-hooks: {12 - stored} updates and" in last


def test_a_folder_deleted_mid_run_costs_the_bundle_and_no_more(saved_model, tmp_path, monkeypatch, caplog):
    hurried(monkeypatch)
    without = train(saved_model, tmp_path, max_steps=8)
    callback = UnipoCallback(tmp_path / "run")
    delete = At(4, lambda: (callback._recorder.flush(), shutil.rmtree(tmp_path / "run")))
    with caplog.at_level(logging.WARNING, logger="unipo_hooks"):
        check_same(train(saved_model, tmp_path, [callback, delete], max_steps=8), without)
    first, last = said(caplog)
    assert first.endswith("Training goes on.") and "No such file or directory" in first
    assert "updates and" in last and "are not in" in last


def test_a_queue_that_is_full_behind_a_slow_disk_drops_and_counts(saved_model, tmp_path, monkeypatch, caplog):
    hurried(monkeypatch)
    sync, answers = os.fsync, threading.Event()

    def slow(descriptor):
        if threading.current_thread().name == "unipo-hooks":
            answers.wait(300)
        return sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    monkeypatch.setitem(Recorder.__init__.__kwdefaults__, "queue_bytes", 20_000)
    without = train(saved_model, tmp_path, max_steps=20)
    callback = UnipoCallback(tmp_path / "run")
    with caplog.at_level(logging.WARNING, logger="unipo_hooks"):
        check_same(train(saved_model, tmp_path, [callback, At(18, answers.set)], max_steps=20), without)
    lines = said(caplog)
    stored = check_whole(callback.path, lines)
    print(f"{stored} of 20 updates are stored; {lines}")
    assert stored < 20
    assert lines[0].endswith("Records are dropped and counted; training goes on.")
    assert len(lines) == 2


def test_a_queue_that_blocks_loses_nothing_behind_a_slow_disk(saved_model, tmp_path, monkeypatch, caplog):
    hurried(monkeypatch)
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (time.sleep(0.02), sync(descriptor)))
    monkeypatch.setitem(Recorder.__init__.__kwdefaults__, "queue_bytes", 20_000)
    callback = UnipoCallback(tmp_path / "run", on_full="block", strict=True)
    without = train(saved_model, tmp_path, max_steps=12)
    check_same(train(saved_model, tmp_path, [callback], max_steps=12), without)
    assert check_whole(callback.path, said(caplog)) == 12
