import errno
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import records

from unipo_hooks import recorder as recorder_module
from unipo_hooks import session
from unipo_hooks.bundle import layout
from unipo_hooks.bundle.reader import open_bundle
from unipo_hooks.bundle.segment import Segment
from unipo_hooks.bundle.verify import verify
from unipo_hooks.errors import BundleError, CaptureError
from unipo_hooks.policy import CapturePolicy
from unipo_hooks.recorder import Recorder

PATIENCE = 300.0
"""Seconds that what hangs here takes, and that no test takes on the slowest machine: whoever waited is told apart."""


def faults(path):
    return [str(fault) for fault in verify(path) if fault.severity == "fault"]


def manifest(path):
    return json.loads((path / layout.MANIFEST).read_text())


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing waits until told to go on."""
    gate = threading.Event()
    original = session.rollout_rows

    def wait(*args):
        gate.wait(PATIENCE)
        return original(*args)

    monkeypatch.setattr(session, "rollout_rows", wait)
    yield gate
    gate.set()


def test_a_full_queue_drops_counts_and_never_holds_up_training(tmp_path, slow_disk, caplog):
    rollouts = [records.rollout(n, rows=64, width=64) for n in range(50)]
    recorder = Recorder(tmp_path / "run", records.run_info(), queue_bytes=3 * rollouts[0].nbytes)
    longest = 0.0
    for rollout in rollouts:
        start = time.perf_counter()
        recorder.rollout(rollout)
        recorder.update(records.update(rollout.rollout, rollout))
        longest = max(longest, time.perf_counter() - start)
    slow_disk.set()
    recorder.close()
    lost, updates = manifest(recorder.path)["lost"], len(open_bundle(recorder.path).updates())
    assert lost["rollouts"] > 0
    assert lost["bytes"] > 0
    assert updates + lost["updates"] == 50
    assert lost["reason"] == "the queue was full"
    assert [r.message for r in caplog.records if "slower than the run" in r.message] == [caplog.messages[0]]
    assert faults(recorder.path) == []
    assert longest < 60  # the gate is shut for longer: nothing waited for it


def test_what_has_no_bytes_is_never_dropped(tmp_path, slow_disk, caplog):
    recorder = Recorder(tmp_path / "run", records.run_info(), queue_bytes=1)
    hand_over(recorder, 0)
    for number in range(3):
        recorder.log(number, number + 1, {"seen": float(number)})
        recorder.rollout(records.rollout(1))  # finds the queue full
    recorder.expect(7)
    recorder.missed(5, 1, "the workers lost them")
    slow_disk.set()
    recorder.close()
    said = [json.loads(line) for line in (recorder.path / layout.metrics_name(0)).read_text().splitlines()]
    assert [line["scalars"]["seen"] for line in said if line["entry"] == "log"] == [0.0, 1.0, 2.0]
    left = manifest(recorder.path)
    assert left["header"]["totalSteps"] == 7
    assert (left["lost"]["updates"], left["lost"]["rollouts"]) == (5, 1 + 3)
    assert len([message for message in caplog.messages if "slower than the run" in message]) == 1


def test_a_flush_makes_durable_what_it_waited_for_though_the_queue_is_full(tmp_path, slow_disk):
    recorder = Recorder(tmp_path / "run", records.run_info(), queue_bytes=1)
    hand_over(recorder, 0)
    threading.Timer(0.5, slow_disk.set).start()
    assert recorder.flush(60)
    assert open_bundle(recorder.path).updates().column("update").to_pylist() == [0]
    recorder.close()


def test_a_flush_while_the_bundle_ends_waits_for_its_end(tmp_path, monkeypatch):
    original = session.Session.finish
    monkeypatch.setattr(session.Session, "finish", lambda self: (time.sleep(0.5), original(self))[1])
    recorder = Recorder(tmp_path / "run", records.run_info())
    hand_over(recorder, 0)
    recorder.end()
    assert recorder.flush(60)
    assert open_bundle(recorder.path).updates().column("update").to_pylist() == [0]
    assert manifest(recorder.path)["status"] == "finished"


def test_asked_to_block_a_full_queue_loses_nothing(tmp_path):
    rollouts = [records.rollout(n, rows=64, width=64) for n in range(30)]
    recorder = Recorder(tmp_path / "run", records.run_info(), on_full="block", queue_bytes=rollouts[0].nbytes)
    for rollout in rollouts:
        recorder.rollout(rollout)
        recorder.update(records.update(rollout.rollout, rollout))
    recorder.close()
    assert len(open_bundle(recorder.path).updates()) == 30
    assert manifest(recorder.path)["lost"]["updates"] == 0


def test_memory_is_bounded_by_the_queue_whatever_the_length_of_the_run(tmp_path):
    alive = []
    recorder = Recorder(tmp_path / "run", records.run_info(), on_full="block", queue_bytes=1 << 20)
    for number in range(300):
        rollout = records.rollout(number, rows=32, width=64)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))
        if number % 50 == 49:
            recorder.flush()
            gc.collect()
            alive.append(sum(isinstance(o, type(rollout)) for o in gc.get_objects()))
    recorder.close()
    print("rollouts alive after every 50:", alive)
    assert max(alive) <= 3


def test_an_update_whose_rollouts_take_several_phases_is_joined_with_each(tmp_path):
    first, second = records.rollout(0), records.rollout(1)
    update = records.update(0, first)
    both = records.update(1, second)
    both = type(both)(
        kind="train",
        update=1,
        step=2,
        micro_batches=[*records.update(1, first).micro_batches, *both.micro_batches],
        is_first_step_after_rollout_phase=True,
    )
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=True)
    for hand_over, item in ((recorder.rollout, first), (recorder.update, update), (recorder.rollout, second)):
        hand_over(item)
    recorder.update(both)
    recorder.close()
    assert faults(recorder.path) == []
    assert set(open_bundle(recorder.path).tokens(update=1).column("rollout").to_pylist()) == {0, 1}


def test_every_update_has_metrics_though_only_some_rollouts_are_kept(tmp_path):
    recorder = Recorder(tmp_path / "run", records.run_info(), CapturePolicy(every=5), strict=True)
    for number in range(20):
        rollout = records.rollout(number)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))
        recorder.log(number, number + 1, {"grad_norm": 0.5 + number})
    recorder.close()
    bundle = open_bundle(recorder.path)
    assert bundle.updates().column("update").to_pylist() == [0, 5, 10, 15]
    metrics = bundle.metrics().to_pylist()
    assert [row["update"] for row in metrics] == list(range(20))
    assert [row["captured"] for row in metrics] == [n % 5 == 0 for n in range(20)]
    assert metrics[7]["grad_norm"] == 7.5
    assert metrics[7]["learning_rate"] == 1e-3


def test_a_run_stays_within_its_byte_budget(tmp_path):
    recorder = Recorder(
        tmp_path / "run", records.run_info(), CapturePolicy(max_bytes=300_000), strict=True, on_full="block"
    )
    for number in range(1000):  # the header says 1,000 updates
        rollout = records.rollout(number, rows=16, width=16)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))
        if number % 20 == 19:
            recorder.flush()
    recorder.close()
    size = sum(file.stat().st_size for file in (recorder.path / layout.SEGMENTS).iterdir())
    kept = open_bundle(recorder.path).updates().column("update").to_pylist()
    print(f"{size} bytes of 300000 in {len(kept)} updates, the last of them {kept[-1]}")
    assert size <= 300_000
    assert kept[-1] > 900
    assert len(open_bundle(recorder.path).metrics()) == 1000


def test_an_unwritable_folder_is_one_clear_line(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    target = "/sys/unipo" if os.geteuid() == 0 else str(folder / "run")
    with pytest.raises(BundleError) as error:
        Recorder(target, records.run_info())
    assert str(error.value).startswith(f"cannot write to {target}: ")
    assert "\n" not in str(error.value)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB, or where that takes rights we lack, a limit on the size of a file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        yield folder
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    else:
        yield folder
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_costs_what_does_not_fit_says_so_once_and_recovers(small_disk, caplog):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(100_000))
    recorder = Recorder(small_disk / "run", records.run_info())
    for number in range(60):
        if number == 50:
            ballast.unlink()  # somebody made room
        rollout = records.rollout(number, rows=32, width=64)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))
        recorder.flush()
    recorder.close()
    assert len([message for message in caplog.messages if "cannot write to" in message]) == 1
    assert faults(recorder.path) == []
    kept = open_bundle(recorder.path).updates().column("update").to_pylist()
    lost = manifest(recorder.path)["lost"]
    print(f"kept updates {kept}, lost {lost}")
    assert kept[0] == 0
    assert max(kept) >= 50
    assert 0 < len(kept) < 60
    assert len(kept) + lost["updates"] == 60
    assert lost["tokens"] > 0
    assert f"{lost['updates']} updates" in caplog.messages[-1]


def test_a_defect_of_ours_is_said_once_and_turns_capture_off(tmp_path, monkeypatch, caplog):
    recorder = Recorder(tmp_path / "run", records.run_info())
    first = records.rollout(0)
    recorder.rollout(first)
    recorder.update(records.update(0, first))
    recorder.flush()
    monkeypatch.setattr(session, "update_sums", lambda *_: 1 / 0)
    for number in range(1, 4):
        rollout = records.rollout(number)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))
    recorder.close()
    assert len(caplog.messages) == 2  # when it happened, and what it cost at the end
    assert "ZeroDivisionError" in caplog.messages[0]
    assert "Training goes on" in caplog.messages[0]
    assert faults(recorder.path) == []
    assert manifest(recorder.path)["lost"]["updates"] == 3
    assert open_bundle(recorder.path).updates().column("update").to_pylist() == [0]


def test_a_defect_of_ours_does_not_cost_what_was_captured_before_it(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path / "run", records.run_info())
    original = session.update_sums
    monkeypatch.setattr(
        session, "update_sums", lambda update, *a: 1 / 0 if update.update == 3 else original(update, *a)
    )
    for number in range(5):
        rollout = records.rollout(number)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))
    recorder.close()
    assert open_bundle(recorder.path).updates().column("update").to_pylist() == [0, 1, 2]
    assert manifest(recorder.path)["lost"]["updates"] == 2
    assert faults(recorder.path) == []


def test_memory_stays_bounded_though_nothing_can_be_written(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path / "run", records.run_info())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder._session._writer, "add_metrics", full)
    rollout = None
    for number in range(60):
        rollout = records.rollout(number)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))
    recorder.flush()
    gc.collect()
    alive = sum(type(o) is type(rollout) for o in gc.get_objects())
    recorder.close()
    assert alive <= 3
    assert manifest(recorder.path)["lost"]["updates"] == 60


def test_an_interrupted_close_still_writes_what_is_queued(tmp_path, slow_disk):
    recorder = Recorder(tmp_path / "run", records.run_info())
    rollout = records.rollout(0)
    recorder.rollout(rollout)
    recorder.update(records.update(0, rollout))
    recorder._closing = True  # as Ctrl-C leaves it that hits while close() waits
    slow_disk.set()
    recorder.close("interrupted")
    assert open_bundle(recorder.path).updates().column("update").to_pylist() == [0]


def test_long_prompts_count_towards_the_budget(tmp_path):
    recorder = Recorder(tmp_path / "run", records.run_info(), CapturePolicy(max_bytes=200_000), strict=True)
    random = np.random.default_rng(0)
    for number in range(300):
        prompts = [random.integers(0, 26, 1500) for _ in range(8)]
        rollout = records.rollout(number, prompts=prompts)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))
    recorder.close()
    size = sum(file.stat().st_size for file in (recorder.path / layout.SEGMENTS).iterdir())
    assert size <= 200_000


def test_strict_raises_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "update_sums", lambda *_: 1 / 0)
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=True)
    rollout = records.rollout(0)
    recorder.rollout(rollout)
    recorder.update(records.update(0, rollout))
    recorder.flush()
    with pytest.raises(CaptureError, match="ZeroDivisionError"):
        recorder.rollout(rollout)
    with pytest.raises(CaptureError):
        recorder.close()


def test_rewards_that_are_nan_and_empty_responses_are_kept_as_they_are(tmp_path):
    rollout = records.rollout(
        reward_B=np.full(8, np.nan, np.float32),
        reward_components_BK=np.full((8, 2), np.nan, np.float32),
        length_B=np.array([0, 6] * 4),
        mask_BT=np.array([[False] * 6, [True] * 6] * 4),
    )
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=True)
    recorder.rollout(rollout)
    recorder.update(records.update(0, rollout))
    recorder.close()
    assert faults(recorder.path) == []
    rewards = open_bundle(recorder.path).responses().column("reward").to_numpy()
    assert np.isnan(rewards).all()
    assert len(open_bundle(recorder.path).tokens(update=0)) == 24


def test_a_process_that_ends_without_a_word_leaves_everything_and_says_interrupted(tmp_path):
    code = (
        "import sys, records\n"
        "from unipo_hooks.recorder import Recorder\n"
        "recorder = Recorder(sys.argv[1], records.run_info())\n"
        "rollout = records.rollout(0)\n"
        "recorder.rollout(rollout)\n"
        "recorder.update(records.update(0, rollout))\n"
        "raise SystemExit('training failed')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], env=environment, capture_output=True)
    assert manifest(tmp_path / "run")["status"] == "interrupted"
    assert open_bundle(tmp_path / "run").updates().column("update").to_pylist() == [0]


def hand_over(recorder, *numbers):
    for number in numbers:
        rollout = records.rollout(number)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))


def test_a_disk_that_hangs_does_not_hold_up_a_run_on_another(tmp_path, slow_disk, monkeypatch):
    monkeypatch.setattr(recorder_module, "EXIT_SECONDS", PATIENCE)
    first = Recorder(tmp_path / "one", records.run_info())
    hand_over(first, 0)
    first.end()
    begin = time.monotonic()
    second = Recorder(tmp_path / "two", records.run_info(first_update=1))
    took = time.monotonic() - begin
    slow_disk.set()
    first.close()
    second.close()
    assert took < 60


@pytest.mark.parametrize("name", ["run", "link"])
def test_a_start_that_goes_on_with_a_bundle_waits_for_the_one_before(tmp_path, slow_disk, name):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    first = Recorder(tmp_path / "run", records.run_info())
    hand_over(first, 0, 1)
    first.end("interrupted")
    threading.Timer(0.5, slow_disk.set).start()
    second = Recorder(tmp_path / name, records.run_info(first_update=2), strict=True)
    assert second.earlier.next_rollout["train"] == 2
    hand_over(second, 2)
    second.close()
    bundle = open_bundle(tmp_path / "run")
    assert bundle.updates().column("update").to_pylist() == [0, 1, 2]
    assert [attempt.status for attempt in bundle.manifest.attempts] == ["interrupted", "finished"]
    assert faults(bundle.path) == []


def test_it_waits_for_a_disk_that_hangs_no_longer_than_the_end_of_a_process_does(
    tmp_path, slow_disk, monkeypatch, caplog
):
    monkeypatch.setattr(recorder_module, "EXIT_SECONDS", 0.5)
    first = Recorder(tmp_path / "run", records.run_info())
    hand_over(first, 0)
    first.end("interrupted")
    begin = time.monotonic()
    second = Recorder(tmp_path / "run", records.run_info(first_update=1))
    took = time.monotonic() - begin
    slow_disk.set()
    first.close()
    second.close()
    assert 0.4 < took < 60
    assert caplog.messages[0].endswith("run does not take what is left of this run: it is lost")


def test_what_went_wrong_with_a_start_is_not_raised_into_the_next(tmp_path, monkeypatch):
    first = Recorder(tmp_path / "run", records.run_info(), strict=True)
    with monkeypatch.context() as patch:
        patch.setattr(session, "update_sums", lambda *_: 1 / 0)
        hand_over(first, 0)
        first.flush()
    first.end("interrupted")
    second = Recorder(tmp_path / "run", records.run_info(first_update=1), strict=True)
    hand_over(second, 1)
    second.close()
    assert open_bundle(second.path).updates().column("update").to_pylist() == [1]


@pytest.mark.parametrize("strict", [False, True])
def test_the_end_of_training_waits_for_a_disk_that_takes_nothing_for_a_while_and_says_so(
    tmp_path, slow_disk, monkeypatch, caplog, strict
):
    monkeypatch.setattr(recorder_module, "NOTICE_SECONDS", 0.2)
    monkeypatch.setattr(recorder_module, "STUCK_SECONDS", 0.5)
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=strict)
    hand_over(recorder, 0, 1, 2)
    evaluation = records.rollout(0, kind="eval")
    recorder.rollout(evaluation)
    recorder.update(records.update(0, evaluation, kind="eval"))  # is none of training's
    begin = time.monotonic()
    lost = f"{recorder.path} has taken nothing for 0 s. What waits for it is lost (3 updates, 1 MB)"
    if strict:
        with pytest.raises(CaptureError) as error:
            recorder.close()
        assert str(error.value).startswith(lost)
    else:
        assert not recorder.close()
    took = time.monotonic() - begin
    print(f"given up after {took:.2f} s")
    assert 0.7 <= took < 60
    writing, given_up = caplog.messages
    assert writing == f"unipo-hooks: writing the last 1 MB to {recorder.path}"
    assert given_up.startswith(f"unipo-hooks: {lost}")
    assert recorder.lost_updates == 3
    slow_disk.set()  # it answers before the process ends
    assert recorder.close()
    assert recorder.lost_updates == 0
    assert open_bundle(recorder.path).updates().column("update").to_pylist() == [0, 1, 2]
    assert len(caplog.messages) == 2


def test_the_end_of_training_waits_as_long_as_a_slow_disk_takes_something(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(recorder_module, "NOTICE_SECONDS", 0.2)
    monkeypatch.setattr(recorder_module, "STUCK_SECONDS", 3.0)
    original = session.rollout_rows
    monkeypatch.setattr(session, "rollout_rows", lambda *args: (time.sleep(0.1), original(*args))[1])
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=True)
    hand_over(recorder, *range(40))
    begin = time.monotonic()
    assert recorder.close()
    assert time.monotonic() - begin > 3
    assert caplog.messages == [f"unipo-hooks: writing the last 1 MB to {recorder.path}"]
    assert len(open_bundle(recorder.path).updates()) == 40


class Odd(BaseException):
    """Not an Exception."""


def waits_for_ever(action):
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(60)
    return thread.is_alive()


@pytest.mark.parametrize("error", [SystemExit, Odd, MemoryError])
def test_whatever_is_raised_on_the_writing_thread_training_that_waits_for_it_goes_on(
    tmp_path, monkeypatch, caplog, error
):
    def raises(*_):
        raise error("of a part of the user's own")

    recorder = Recorder(tmp_path / "run", records.run_info(), on_full="block", queue_bytes=1)
    monkeypatch.setattr(session, "update_sums", raises)
    assert not waits_for_ever(lambda: hand_over(recorder, *range(8)))
    assert not waits_for_ever(recorder.close)
    assert len(caplog.messages) == 2  # when it happened, and what it cost at the end
    assert error.__name__ in caplog.messages[0]
    assert "Training goes on" in caplog.messages[0]
    assert manifest(recorder.path)["lost"]["updates"] == 8
    assert faults(recorder.path) == []


def test_nobody_waits_for_a_writing_thread_that_has_ended(tmp_path, monkeypatch, caplog):
    gate = threading.Event()

    def write(_):
        gate.wait(PATIENCE)
        raise SystemExit("a defect of ours")

    monkeypatch.setattr(Recorder, "_write", write)
    rollouts = [records.rollout(number) for number in range(4)]
    recorder = Recorder(
        tmp_path / "run", records.run_info(), on_full="block", queue_bytes=sum(r.nbytes for r in rollouts)
    )
    threading.Timer(0.5, gate.set).start()
    assert not waits_for_ever(lambda: hand_over(recorder, *range(100)))
    assert not waits_for_ever(recorder.close)
    assert not recorder.flush(0)
    left = manifest(recorder.path)
    assert left["lost"]["updates"] > 0
    assert left["status"] == "interrupted"
    assert "SystemExit" in caplog.messages[0]


def test_a_damaged_bundle_that_cannot_be_continued_keeps_no_file_open(tmp_path):
    first = Recorder(tmp_path / "run", records.run_info())
    hand_over(first, 0)
    first.close()
    with (tmp_path / "run" / layout.index_name(0)).open("a") as file:
        file.write("{}\n")
    before = len(os.listdir("/dev/fd"))
    second = Recorder(tmp_path / "run", records.run_info(first_update=1))
    second.close()
    assert second.path == tmp_path / "run-2"
    assert len(os.listdir("/dev/fd")) == before


def interrupted_at(instruction, action):
    """Raise KeyboardInterrupt before that instruction of all that `action` takes; whether there were so many."""
    left = instruction

    def trace(frame, event, _):
        nonlocal left
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        left -= event == "opcode"
        if not left:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    gc.disable()  # what it calls may be hit too, and would keep the interrupt to itself
    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        assert left <= 0
    finally:
        sys.settrace(None)
        gc.enable()
    return left <= 0


@pytest.mark.parametrize("on_full", ["drop", "block"])
def test_ctrl_c_at_any_instruction_of_handing_over_leaves_a_thread_that_writes_on(tmp_path, on_full):
    recorder = Recorder(tmp_path / "run", records.run_info(), on_full=on_full)
    instruction = 1
    while interrupted_at(instruction, lambda: recorder.log(0, 1, {"seen": 1.0})):
        assert recorder.flush(60), f"stuck after instruction {instruction}"
        instruction += 1
    hand_over(recorder, 0)
    recorder.close()
    print(f"interrupted at each of {instruction - 1} instructions")
    assert instruction > 50
    assert open_bundle(recorder.path).updates().column("update").to_pylist() == [0]
    assert faults(recorder.path) == []


def test_ctrl_c_at_any_instruction_of_dropping_leaves_every_drop_before_and_after_it_counted(tmp_path, slow_disk):
    rollout = records.rollout(0)
    recorder = Recorder(tmp_path / "run", records.run_info(), queue_bytes=1)
    for _ in range(3):  # the last finds the queue full: it is the first to be dropped, and said to be
        recorder.rollout(rollout)
    instruction = dropped = 1
    while interrupted_at(instruction, lambda: recorder.rollout(rollout)):
        recorder.rollout(rollout)
        instruction, dropped = instruction + 1, dropped + 1
    slow_disk.set()
    assert recorder.close()
    lost = manifest(recorder.path)["lost"]
    print(f"interrupted at each of {instruction - 1} instructions; {dropped} drops besides, {lost['rollouts']} counted")
    assert dropped < lost["rollouts"] <= 2 * dropped
    assert manifest(recorder.path)["status"] == "finished"


def test_ctrl_c_at_any_instruction_of_closing_leaves_a_recorder_that_ends(tmp_path):
    instruction = 1
    while True:
        recorder = Recorder(tmp_path / str(instruction), records.run_info())
        hand_over(recorder, 0)
        many = interrupted_at(instruction, recorder.close)
        assert recorder.close(), f"stuck after instruction {instruction}"
        left = manifest(recorder.path)
        assert (left["status"], left["lost"]["updates"]) == ("finished", 0), f"instruction {instruction}"
        assert not many or recorder._ended
        if not many:
            break
        instruction += 1
    print(f"interrupted at each of {instruction - 1} instructions")
    assert instruction > 50


def test_a_record_that_is_being_handed_over_when_the_end_comes_is_written(tmp_path, monkeypatch):
    """SIGTERM ends a recorder on another thread, whatever the training thread is at."""
    recorder = Recorder(tmp_path / "run", records.run_info())
    rollout = records.rollout(0)
    recorder.rollout(rollout)

    def fits(_):
        recorder.end("interrupted")
        time.sleep(0.3)
        return True

    monkeypatch.setattr(recorder, "_fits", fits)
    recorder.update(records.update(0, rollout))
    recorder.close()
    assert open_bundle(recorder.path).updates().column("update").to_pylist() == [0]
    assert manifest(recorder.path)["status"] == "interrupted"


def test_a_hand_over_that_does_not_end_is_waited_for_once_whatever_is_queued(tmp_path, slow_disk, monkeypatch):
    monkeypatch.setattr(recorder_module, "HAND_OVER_SECONDS", 1.0)
    recorder = Recorder(tmp_path / "run", records.run_info())
    hand_over(recorder, 0)
    for number in range(60):
        recorder.log(number, number + 1, {"seen": 1.0})
    recorder._handing_over = True  # as a thread leaves it that is stopped there
    recorder.end("interrupted")
    begin = time.monotonic()
    slow_disk.set()
    assert recorder._ends(PATIENCE)
    took = time.monotonic() - begin
    print(f"ended after {took:.2f} s")
    assert 0.9 < took < 30
    assert len(open_bundle(recorder.path).updates()) == 1


def test_what_a_forked_child_hands_over_goes_nowhere_and_holds_it_up_never(tmp_path):
    code = (
        "import os, signal, sys, records\n"
        "from unipo_hooks.recorder import Recorder\n"
        "recorder = Recorder(sys.argv[1], records.run_info(), on_full='block', queue_bytes=1)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(30)\n"
        "of = records.rollout(0)\n"
        "for number in range(4):\n"
        "    recorder.rollout(of)\n"
        "    recorder.update(records.update(number, of))\n"
        "if not child:\n"
        "    os._exit(7 if not recorder.flush() and not recorder._queue else 8)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "recorder.close()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "7\n", done.stderr
    assert len(open_bundle(tmp_path / "run").updates()) == 4


def test_a_handlers_lock_that_ctrl_c_left_taken_costs_a_message_and_never_the_bundle(tmp_path, monkeypatch):
    said = []
    handler = logging.Handler()
    handler.emit = said.append
    logger = logging.getLogger("unipo_hooks")
    logger.addHandler(handler)
    handler.acquire()  # as Ctrl-C leaves it that arrives within `Handler.acquire`
    try:
        recorder = Recorder(tmp_path / "run", records.run_info())
        hand_over(recorder, 0)
        recorder.flush()
        monkeypatch.setattr(session, "update_sums", lambda *_: 1 / 0)
        hand_over(recorder, 1)
        assert not waits_for_ever(recorder.close)
        assert said == []
        left = manifest(recorder.path)
        assert (left["status"], left["lost"]["updates"]) == ("finished", 1)
        assert open_bundle(recorder.path).updates().column("update").to_pylist() == [0]
    finally:
        handler.release()
        logger.removeHandler(handler)


def test_an_update_of_a_rollout_that_did_not_reach_the_disk_is_counted_as_lost(tmp_path, monkeypatch):
    write, refused = Segment.write, []

    def once_full(segment, *place):
        if not refused:
            refused.append(place)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(segment, *place)

    monkeypatch.setattr(Segment, "write", once_full)
    recorder = Recorder(tmp_path / "run", records.run_info())
    first, second = records.rollout(0), records.rollout(1)
    recorder.rollout(first)
    recorder.update(records.update(0, first))
    assert not recorder.flush()
    recorder.update(records.update(1, first))
    recorder.rollout(second)
    recorder.update(records.update(2, second))
    recorder.close()
    bundle = open_bundle(tmp_path / "run")
    assert bundle.updates()["update"].to_pylist() == [2]
    assert (bundle.manifest.lost.updates, bundle.manifest.lost.rollouts) == (2, 1)
