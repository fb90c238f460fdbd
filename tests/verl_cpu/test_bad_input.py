"""What goes wrong costs capture and not the run; what ends the run costs what was not yet written, and no bundle."""

from __future__ import annotations

import os
import signal
import time

import pytest

# A module inside verl: `verl` alone would be found wherever this folder's parent is on the path.
pytest.importorskip("verl.trainer.ppo", reason="needs verl: make test runs it in .venv-verl")

from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from unipo_hooks import open_bundle
from unipo_hooks.bundle.verify import verify
from verl_cpu.captured import ACTOR
from verl_cpu.pieces import composed
from verl_cpu.runs import started

pytestmark = pytest.mark.slow

V0, LONG = "trainer.use_v1=False", 1000
"""The trainer that starts fastest; more steps than anybody waits for."""
UPDATES_A_STEP = 4


def said(run):
    """Our lines, without what Ray puts before them."""
    return [line[line.index("unipo-hooks: ") :] for line in run.output.splitlines() if "unipo-hooks: " in line]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("+unipo.path=runs/x", "+unipo.evry=3"), ("evry", "every")),
        (("+unipo.path=runs/x", "+unipo.every=0"), ("every", "0")),
        (("+unipo.every=2",), ("unipo.path", "+unipo.path=runs/gsm8k")),
        (("+unipo.path=runs/x", "+unipo.on_full=perhaps"), ("on_full", "drop or block", "perhaps")),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line_and_the_trainer_is_verls(overrides, words, caplog):
    line = line_of_a_trainer_without_capture(overrides, caplog)
    assert all(word in line for word in words)


def test_a_folder_that_cannot_be_written_is_one_line_and_the_trainer_is_verls(tmp_path, caplog):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "bundle"
    line = line_of_a_trainer_without_capture((f"+unipo.path={path}",), caplog)
    assert line.startswith(f"unipo-hooks: capture is off: cannot write to {path}: ")


def line_of_a_trainer_without_capture(overrides, caplog):
    """What is said where a trainer is made, which has nothing that one without the settings has not."""
    plain, trainer = PPOTrainerSync(config=composed()), PPOTrainerSync(config=composed(*overrides))
    (record,) = [each for each in caplog.records if each.name == "unipo_hooks"]
    line = record.getMessage()
    print(line)
    assert "\n" not in line and record.exc_info is None
    assert line.startswith("unipo-hooks: capture is off: ") and line.endswith(". Training goes on.")
    assert vars(trainer).keys() == vars(plain).keys()
    return line


def until(there, process):
    """Wait until what `there` gives is not empty."""
    deadline = time.monotonic() + 600
    while not there() and process.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert there(), process.log.read_text(errors="replace")[-6000:]


def test_a_worker_that_is_killed_leaves_what_was_captured_before(tmp_path):
    loss = f"{ACTOR}policy_loss.loss_mode=clip_cov"
    with started(tmp_path / "run", V0, loss, f"+unipo.path={tmp_path / 'bundle'}", steps=LONG) as process:
        until(process.rows, process)
        (rank,) = process.pids("ray::WorkerDict")
        os.kill(rank, signal.SIGKILL)
        run = process.wait()
    assert run.status == 1
    assert "ActorDiedError" in run.output or "RayActorError" in run.output
    assert verify(tmp_path / "bundle") == []
    bundle = open_bundle(tmp_path / "bundle")
    updates = bundle.updates().column("update").to_pylist()
    print(f"{len(run.rows)} steps logged, {len(updates)} updates, {bundle.manifest.status}")
    assert bundle.manifest.status == "interrupted"
    assert updates == list(range(len(updates))) and len(updates) >= UPDATES_A_STEP * len(run.rows) > 0
    assert bundle.tokens(updates).num_rows > 0
    assert f"updates before the interruption are in {tmp_path / 'bundle'}" in said(run)[-1]
    # The loss chooses tokens at random: it cannot be recomputed, which is said, and everything else is there.
    (note,) = bundle.manifest.algorithm_notes
    print(note)
    assert "clip_cov" in note
    assert sum(note in line for line in said(run)) == 1
    passes = [part for row in bundle.updates().to_pylist() for part in row["micro_batches"]]
    assert {part["loss_gap"] for part in passes} == {None}
    assert all(part["loss"] is not None for part in passes)


def test_a_run_that_is_told_to_stop_keeps_what_was_durable(tmp_path):
    """Ray ends the driver with its command, and gives it a tenth of a second: what no segment holds yet is lost."""
    bundle = tmp_path / "bundle"
    index = bundle / "index.r0.jsonl"
    # A checkpoint of the trainer makes durable what was captured before it.
    saving = ("trainer.save_freq=3", f"trainer.default_local_dir={tmp_path / 'checkpoints'}")
    with started(tmp_path / "run", V0, *saving, f"+unipo.path={bundle}", steps=LONG) as process:
        until(lambda: index.exists() and index.read_text(), process)
        written = open_bundle(bundle).updates().num_rows
        process.process.send_signal(signal.SIGTERM)
        run = process.wait()
    assert run.status != 0
    faults = verify(bundle)
    updates = open_bundle(bundle).updates().column("update").to_pylist()
    print(f"{len(run.rows)} steps logged, {written} updates written before, {len(updates)} after; {faults}")
    assert all(fault.severity == "note" for fault in faults)
    assert updates == list(range(len(updates))) and len(updates) >= written > 0
    assert open_bundle(bundle).tokens(updates).num_rows > 0
