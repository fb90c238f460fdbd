import _thread
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unipo_hooks import signals
from unipo_hooks.bundle.reader import open_bundle
from unipo_hooks.bundle.verify import verify


def test_sigterm_at_any_moment_of_handing_over_ends_the_process_in_time_and_accounts_for_everything(tmp_path):
    """The code it interrupts may hold the queue's lock."""
    script = Path(__file__).with_name("sigterm_children.py")
    environment = os.environ | {"PYTHONPATH": str(script.parent)}
    run = subprocess.run([sys.executable, script, tmp_path, "8"], env=environment, stdout=subprocess.PIPE, check=True)
    slowest = 0.0
    for child, line in enumerate(run.stdout.decode().splitlines()):
        status, handed_over, took = line.split()
        slowest = max(slowest, float(took))
        assert int(status) == -signal.SIGTERM
        bundle = open_bundle(tmp_path / str(child))
        kept, lost = bundle.updates().column("update").to_pylist(), bundle.manifest.lost.updates
        assert kept == list(range(len(kept)))
        assert len(kept) + lost >= int(handed_over)
        assert bundle.manifest.status == "interrupted"
        assert [str(fault) for fault in verify(bundle.path) if fault.severity == "fault"] == []
    print(f"slowest end of {child + 1}: {slowest:.2f} s")
    assert child == 7
    assert slowest < 60


def start(code, *arguments):
    """A process that runs `code` while SIGTERM is watched."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED + code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def ready(process):
    """The process, once it says that it is."""
    assert process.stdout.readline() == "ready\n"
    return process


WATCHED = """
import os, signal, sys, time
from unipo_hooks import signals

class Owner: ...

signal.alarm(600)
owner = Owner()
signals.watch(owner)
"""


COLLECTIVE = """
import records, torch
from unipo_hooks import recorder, session
from unipo_hooks.recorder import Recorder

folder, rank, slow = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
recorder.EXIT_SECONDS = float(sys.argv[4])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
if rank:
    print("ready", flush=True)
    time.sleep(600)
write = session.update_rows
session.update_rows = lambda *a: (time.sleep(slow), write(*a))[1]
recorder = Recorder(folder + "/run", records.run_info())
for number in range(5):
    rollout = records.rollout(number)
    recorder.rollout(rollout)
    recorder.update(records.update(number, rollout))
print("ready", flush=True)
torch.distributed.recv(torch.zeros(1), src=1)
"""


@pytest.fixture
def in_a_collective(tmp_path):
    """Starts a process that waits for another rank for ever, with records for a slow disk in its queue."""
    processes = []

    def enter(record_seconds, exit_seconds):
        processes.extend(start(COLLECTIVE, tmp_path, rank, record_seconds, exit_seconds) for rank in (0, 1))
        for process in processes:
            ready(process)
        time.sleep(0.5)
        return processes[0]

    yield enter
    for process in processes:
        process.kill()
        process.communicate()


def test_sigterm_ends_a_rank_that_waits_in_a_collective_and_what_is_queued_is_written(in_a_collective, tmp_path):
    """Python's own handlers would run once the collective returns: never."""
    process, begin = in_a_collective(0.2, 60.0), time.monotonic()
    process.terminate()
    assert process.wait(120) == -signal.SIGTERM
    took = time.monotonic() - begin
    print(f"ended after {took:.2f} s")
    bundle = open_bundle(tmp_path / "run")
    assert bundle.updates().column("update").to_pylist() == [0, 1, 2, 3, 4]
    assert (bundle.manifest.status, bundle.manifest.lost.updates) == ("interrupted", 0)
    assert [str(fault) for fault in verify(bundle.path) if fault.severity == "fault"] == []
    assert took < 60


def test_a_second_sigterm_ends_it_at_once(in_a_collective):
    process, begin = in_a_collective(600.0, 300.0), time.monotonic()
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None
    while process.poll() is None:  # one that comes before the first was noticed is no second
        process.terminate()
        time.sleep(0.5)
    assert process.wait() == -signal.SIGTERM
    assert time.monotonic() - begin < 120


def test_a_disk_that_does_not_answer_holds_it_up_by_five_seconds(in_a_collective):
    process, begin = in_a_collective(600.0, 5.0), time.monotonic()
    process.terminate()
    assert process.wait(120) == -signal.SIGTERM
    assert 4 < time.monotonic() - begin < 60


def test_a_sigterm_that_a_forked_child_handles_is_none_of_its_parents():
    process = ready(
        start("""
heard, tell = os.pipe()
child = os.fork()
if not child:
    signal.alarm(300)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
    print("ready", flush=True)
    os.write(tell, b".")
    while True:
        time.sleep(1)
os.read(heard, 1)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
time.sleep(0.5)
print("parent goes on")
""")
    )
    assert process.communicate(timeout=120)[0] == "3\nparent goes on\n"
    assert process.returncode == 0


def test_a_forked_child_may_watch_for_itself():
    process = ready(
        start("""
heard, tell = os.pipe()
child = os.fork()
if not child:
    mine = Owner()
    signals.watch(mine)
    print("ready", flush=True)
    signal.alarm(300)
    os.write(tell, b".")
    import ctypes
    mutex = ctypes.create_string_buffer(64)  # zeros: one that is free
    for _ in range(2):  # the second waits for ever, and not in Python
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
os.read(heard, 1)
time.sleep(0.5)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    )
    assert process.communicate(timeout=120)[0] == f"{-signal.SIGTERM}\n"
    assert process.returncode == 0


def test_a_handler_set_since_is_called_and_nothing_else_happens():
    process = ready(
        start("""
called = []
signal.signal(signal.SIGTERM, lambda *_: called.append("called"))
print("ready", flush=True)
while not called:
    time.sleep(0.1)
time.sleep(0.5)
print(*called)
""")
    )
    process.terminate()
    assert process.communicate(timeout=120)[0] == "called\n"
    assert process.returncode == 0


@pytest.mark.parametrize("before", [True, False])
def test_a_wakeup_descriptor_of_someone_elses_is_left_alone(before):
    """Whether it was set before ours or since; what is in Python ends by SIGTERM as ever."""
    process = ready(
        start(
            """
before = sys.argv[1] == "True"
if before:
    signals.unwatch(owner)
read, write = os.pipe()
os.set_blocking(write, False)
signal.set_wakeup_fd(write)
if before:
    signals.watch(owner)
assert signal.set_wakeup_fd(write) == write
signals.unwatch(owner)
assert signal.set_wakeup_fd(write) == write
signals.watch(owner)
print("ready", flush=True)
while True:
    time.sleep(1)
""",
            before,
        )
    )
    process.terminate()
    assert process.wait(120) == -signal.SIGTERM


def test_many_trainings_leave_no_thread_no_descriptor_and_sigterm_as_it_was():
    def resources():
        return _thread._count(), len(os.listdir("/dev/fd"))

    owner = type("Owner", (), {})()
    signals.watch(owner)
    signals.unwatch(owner)  # the pipe stays
    before = resources()
    for _ in range(200):
        signals.watch(owner)
        assert signal.getsignal(signal.SIGTERM) is signals._terminated
        signals.unwatch(owner)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    deadline = time.monotonic() + 60
    while resources() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert resources()[0] <= before[0]
    assert resources()[1] == before[1]
    assert signal.set_wakeup_fd(-1) == -1
