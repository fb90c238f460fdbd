"""Ends of a whole process: signals, exceptions at its top, interpreter shutdown, forks. Every one is a real process."""

import contextlib
import json
import os
import signal
import time

import pytest
import torch
from processes import steps, wait_for_steps

from unipo_hooks import open_bundle
from unipo_hooks.bundle import layout
from unipo_hooks.bundle.verify import verify

pytestmark = pytest.mark.slow

PATIENCE = 60.0
"""Seconds that an end may take on the slowest machine, where nothing but the machine holds it up."""


def faults(folder):
    return [str(fault) for fault in verify(folder / "run") if fault.severity == "fault"]


def last_write(folder):
    """When the bundle was complete; the interpreter may take seconds more to shut down."""
    return (folder / "run" / layout.MANIFEST).stat().st_mtime


def updates(folder):
    return open_bundle(folder / "run").updates().column("update").to_pylist()


def test_sigterm_loses_nothing_and_ends_the_process_as_ever(processes, tmp_path):
    child = processes.start("endless", tmp_path, exit_seconds=PATIENCE)
    wait_for_steps(tmp_path, 20)
    done, start = steps(tmp_path), time.time()
    os.kill(child, signal.SIGTERM)
    assert processes.status() == -signal.SIGTERM
    took = last_write(tmp_path) - start
    captured = updates(tmp_path)
    print(f"{done} updates at the signal, {len(captured)} in the bundle, {took:.2f} s to the last write")
    assert captured == list(range(len(captured)))
    assert len(captured) >= done
    assert took < PATIENCE
    assert open_bundle(tmp_path / "run").manifest.status == "interrupted"
    assert faults(tmp_path) == []


def test_ctrl_c_loses_nothing(processes, tmp_path):
    child = processes.start("endless", tmp_path, exit_seconds=PATIENCE)
    wait_for_steps(tmp_path, 20)
    done, start = steps(tmp_path), time.time()
    os.kill(child, signal.SIGINT)
    assert processes.status() == -signal.SIGINT
    took = last_write(tmp_path) - start
    captured = updates(tmp_path)
    print(f"{done} updates at the signal, {len(captured)} in the bundle, {took:.2f} s to the last write")
    assert captured == list(range(len(captured)))
    assert len(captured) >= done
    assert took < PATIENCE
    assert open_bundle(tmp_path / "run").manifest.status == "interrupted"
    assert "Traceback" in (tmp_path / "log").read_text()
    assert faults(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_slow_disk_holds_up_the_end_by_five_seconds_and_what_is_lost_is_counted(processes, tmp_path, number):
    child = processes.start("slow_disk", tmp_path)
    wait_for_steps(tmp_path, 60)
    done, start = steps(tmp_path), time.time()
    os.kill(child, number)
    assert processes.status() == -number
    took = last_write(tmp_path) - start
    captured, manifest = updates(tmp_path), open_bundle(tmp_path / "run").manifest
    lost = manifest.lost
    print(
        f"{done} updates at the signal, {len(captured)} captured, {lost.updates} lost, {took:.2f} s to the last write"
    )
    assert took < PATIENCE
    assert captured == list(range(len(captured)))
    assert len(captured) > 4
    assert lost.updates > 0
    assert done <= len(captured) + lost.updates <= steps(tmp_path)
    assert lost.reason == "the process ended before they were written"
    assert manifest.status == "interrupted"
    assert faults(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_before_the_disk_has_taken_everything(processes, tmp_path, number):
    child = processes.start("slow_disk", tmp_path, exit_seconds=10 * PATIENCE)
    wait_for_steps(tmp_path, 60)
    with contextlib.suppress(ProcessLookupError):
        while True:  # one that comes before the first was noticed is no second
            os.kill(child, number)
            time.sleep(1)
    assert processes.status() == -number
    assert open_bundle(tmp_path / "run").manifest.status == "running"
    assert faults(tmp_path) == []


@pytest.mark.parametrize(("way", "code"), [("raises", 1), ("exits", 7), ("raises_in_a_thread", 0)])
def test_an_exception_at_the_top_and_an_exit_within_training_leave_everything(processes, tmp_path, way, code):
    processes.start(way, tmp_path)
    assert processes.status() == code
    assert updates(tmp_path) == [0, 1, 2]
    assert open_bundle(tmp_path / "run").manifest.status == "interrupted"
    assert faults(tmp_path) == []


def test_an_exit_nobody_can_notice_leaves_a_whole_bundle(processes, tmp_path):
    processes.start("exits_at_once", tmp_path)
    assert processes.status() == 9
    assert open_bundle(tmp_path / "run").manifest.status == "running"
    assert faults(tmp_path) == []


@pytest.mark.parametrize(("way", "count"), [("forks", 2), ("workers", 4)])
def test_forked_processes_end_as_they_would_and_leave_the_bundle_alone(processes, tmp_path, way, count):
    trained = {}
    for name, captured in (("with", True), ("without", False)):
        processes.start(way, tmp_path / name, captured=captured)
        assert processes.status() == 0, (tmp_path / name / "log").read_text()
        trained[name] = torch.load(tmp_path / name / "weights.pt")
        if way == "forks":
            codes = [json.loads(line) for line in (tmp_path / name / "codes").read_text().splitlines()]
            assert codes == [[-signal.SIGTERM, 3]] * count
    assert all(torch.equal(tensor, trained["without"][key]) for key, tensor in trained["with"].items())
    manifest = open_bundle(tmp_path / "with" / "run").manifest
    assert updates(tmp_path / "with") == list(range(count))
    assert (manifest.status, manifest.lost.updates) == ("finished", 0)
    assert (tmp_path / "with" / "run" / layout.metrics_name(0)).read_text().count('"entry":"metrics"') == count
    assert faults(tmp_path / "with") == []
