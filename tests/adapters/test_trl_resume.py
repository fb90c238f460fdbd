"""Runs that are killed and resumed: what was done again is hidden, and every start is an attempt of one bundle."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import steps, wait_for_steps
from trl_runs import length, trainer_for

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.bundle.verify import verify


@pytest.fixture(scope="module")
def killed_run(processes, tmp_path_factory):
    """The folder of a run that saved a checkpoint every four updates and was killed in between."""
    folder = tmp_path_factory.mktemp("killed")
    child = processes.start("saves", folder)
    wait_for_steps(folder, 14)
    os.kill(child, signal.SIGKILL)
    assert processes.status() == -signal.SIGKILL
    committed = len(open_bundle(folder / "run").updates())
    print(f"killed after {steps(folder)} updates, of which {committed} were written")
    for path in (folder / "out").glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > committed:  # saved a moment before: the bundle follows on its own thread
            shutil.rmtree(path)
    return folder


@pytest.fixture
def killed(killed_run, tmp_path, monkeypatch):
    """A copy of it to work on, as the working directory."""
    folder = tmp_path / "copy"
    shutil.copytree(killed_run, folder)
    monkeypatch.chdir(folder)
    return folder


def newest_checkpoint(folder):
    """Its number, and its name."""
    found = [path for path in (folder / "out").glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    number = max(int(path.name.split("-")[1]) for path in found)
    return number, f"out/checkpoint-{number}"


def resume(model, checkpoint, updates, *, path="run", **settings):
    """Resume from `checkpoint` (its number) and train up to `updates` in all."""
    callback = UnipoCallback(path, strict=True)
    settings = {"max_steps": updates, "rewards": [length], **settings}
    trainer = trainer_for(model, Path(), callbacks=[callback], **settings)
    trainer.train(resume_from_checkpoint=f"out/checkpoint-{checkpoint}")
    return callback, trainer


def whole(path):
    assert [str(fault) for fault in verify(path) if fault.severity == "fault"] == []
    return open_bundle(path)


def test_what_a_killed_run_did_after_its_checkpoint_is_hidden_once_it_is_resumed(saved_model, killed):
    before = whole("run").updates().column("update").to_pylist()
    number, _ = newest_checkpoint(killed)
    callback, trainer = resume(saved_model, number, number + 3)
    assert callback.path == Path("run")
    bundle = whole("run")
    assert [attempt.first_update for attempt in bundle.manifest.attempts] == [0, number]
    assert [attempt.status for attempt in bundle.manifest.attempts] == ["interrupted", "finished"]
    assert bundle.updates().column("update").to_pylist() == list(range(number + 3))
    assert bundle.updates().column("attempt").to_pylist() == [0] * number + [1] * 3
    everything = bundle.updates(superseded=True).to_pylist()
    again = [row["update"] for row in everything if row["superseded"]]
    assert again == [update for update in before if update >= number]
    losses = [row["micro_batches"][0]["loss"] for row in bundle.updates().to_pylist()[number:]]
    assert losses == [entry["loss"] for entry in trainer.losses]
    command = [sys.executable, "-m", "unipo_hooks.cli", "info"]
    told = json.loads(subprocess.check_output([*command, "run", "--json"]))
    assert [attempt["first_update"] for attempt in told["attempts"]] == [0, number]
    shown = subprocess.check_output([*command, "run"], text=True, env=os.environ | {"COLUMNS": "200"})
    assert f"2 (from update 0: interrupted, from update {number}: finished" in shown


def test_a_run_resumed_twice_and_from_an_older_checkpoint_shows_each_update_once(saved_model, killed):
    number, _ = newest_checkpoint(killed)
    resume(saved_model, number, number + 2)
    resume(saved_model, number, number + 1)
    resume(saved_model, 4, 6)
    bundle = whole("run")
    assert [attempt.first_update for attempt in bundle.manifest.attempts] == [0, number, number, 4]
    assert bundle.updates().column("update").to_pylist() == list(range(6))
    assert bundle.updates().column("attempt").to_pylist() == [0] * 4 + [3] * 2
    assert bundle.metrics().column("update").to_pylist() == list(range(6))
    assert len(bundle.updates(superseded=True)) >= number + 2 + 1 + 2


@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": 0.1},
        {"beta": 0.05},
        {"loss_type": "dr_grpo"},
    ],
)
def test_a_run_resumed_with_other_settings_has_the_algorithm_of_each_attempt(saved_model, killed, settings):
    number, _ = newest_checkpoint(killed)
    callback, _ = resume(saved_model, number, number + 2, **settings)
    assert callback.path == Path("run")
    bundle = whole("run")
    first, second = (attempt.algorithm for attempt in bundle.manifest.attempts)
    assert first != second
    parts = [part for row in bundle.updates().to_pylist() for part in row["micro_batches"]]
    gaps = [(part["loss_gap"], part["loss_tolerance"]) for part in parts]
    print(f"largest gap {max(abs(gap) for gap, _ in gaps):.1e}")
    assert all(abs(gap) <= tolerance for gap, tolerance in gaps)


def test_a_run_whose_bundle_was_deleted_gets_a_new_one(saved_model, killed):
    shutil.rmtree("run")
    number, _ = newest_checkpoint(killed)
    resume(saved_model, number, number + 2)
    assert whole("run").updates().column("update").to_pylist() == [number, number + 1]


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "index.r0.jsonl", "metrics.r0.jsonl"],
)
def test_a_run_whose_bundle_is_damaged_gets_one_beside_it(saved_model, killed, name, caplog):
    damaged = (killed / "run" / name).read_bytes()
    (killed / "run" / name).write_bytes(b"\x00\x01nonsense\n" + damaged[11:])
    number, _ = newest_checkpoint(killed)
    callback = UnipoCallback("run")
    trainer = trainer_for(saved_model, Path(), callbacks=[callback], rewards=[length], max_steps=number + 2)
    trainer.train(resume_from_checkpoint=f"out/checkpoint-{number}")
    assert trainer.state.global_step == number + 2
    said = [message for message in caplog.messages if "unipo-hooks" in message]
    print(said)
    assert len(said) == 1
    assert callback.path == Path("run-2")
    assert whole("run-2").updates().column("update").to_pylist() == [number, number + 1]


def test_a_run_resumed_from_another_working_directory_goes_on_with_its_bundle(saved_model, killed, monkeypatch):
    number, _ = newest_checkpoint(killed)
    monkeypatch.chdir("/")
    callback = UnipoCallback(killed / "run", strict=True)
    trainer = trainer_for(saved_model, killed, callbacks=[callback], rewards=[length], max_steps=number + 2)
    trainer.train(resume_from_checkpoint=str(killed / "out" / f"checkpoint-{number}"))
    assert callback.path == killed / "run"
    assert whole(callback.path).updates().column("update").to_pylist() == list(range(number + 2))


def test_a_checkpoint_within_a_rollout_is_resumed_with_a_rollout_of_its_own(saved_model, tmp_path):
    """TRL samples anew then: the updates that follow train on responses that the first attempt never saw."""
    settings = {"steps_per_generation": 4, "gradient_accumulation_steps": 1, "num_iterations": 2}
    settings |= {"save_strategy": "steps", "save_steps": 3, "max_steps": 10}
    trainers = []
    for checkpoint in (None, 6):
        callback = UnipoCallback(tmp_path / "run", strict=True)
        trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], **settings)
        trainer.train(resume_from_checkpoint=checkpoint and str(tmp_path / "out" / f"checkpoint-{checkpoint}"))
        trainers.append(trainer)
    bundle = whole(tmp_path / "run")
    assert bundle.updates().column("update").to_pylist() == list(range(10))
    assert bundle.updates().column("attempt").to_pylist() == [0] * 6 + [1] * 4
    numbers = [rollouts for row in bundle.updates().to_pylist() for rollouts in row["rollouts"]]
    first = len(trainers[0].generated)
    assert numbers[:6] == [0] * 6
    assert min(numbers[6:]) == first
    compared = 0
    for row in bundle.updates().to_pylist():
        for token in bundle.tokens(update=row["update"]).to_pylist():
            generated = trainers[row["attempt"]].generated[token["rollout"] - first * row["attempt"]]
            assert token["ids"] == generated["completion_ids"][token["row"], token["position"]]
            compared += 1
    print(f"{compared} tokens are those the trainer sampled")
    assert compared > 100
