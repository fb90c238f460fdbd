import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import records

from unipo_hooks.bundle import layout
from unipo_hooks.bundle.attempts import claim_folder
from unipo_hooks.bundle.reader import open_bundle
from unipo_hooks.bundle.verify import verify
from unipo_hooks.errors import BundleError
from unipo_hooks.policy import CapturePolicy
from unipo_hooks.recorder import Recorder
from unipo_hooks.schema import Trainer

WRITER = Path(__file__).parent / "endless_writer.py"


def faults(path):
    return [str(fault) for fault in verify(path) if fault.severity == "fault"]


def record(path, rollouts, updates_each=2, run=None, **settings):
    recorder = Recorder(path, run or records.run_info(), strict=True, **settings)
    for rollout in rollouts:
        recorder.rollout(rollout)
        for i in range(updates_each):
            recorder.update(records.update(updates_each * rollout.rollout + i, rollout, micro_batches=2))
    recorder.close()
    return recorder.path


def test_what_is_read_is_what_was_handed_over_bit_for_bit(tmp_path):
    rollout = records.rollout(rows=8)
    rollout.channels["old_log_probs"][0, 0] = np.nan
    update = records.update(0, rollout, micro_batches=3)
    recorder = Recorder(tmp_path / "run", records.run_info(), strict=True)
    recorder.rollout(rollout)
    recorder.update(update)
    recorder.close()
    assert faults(recorder.path) == []
    table = open_bundle(recorder.path).tokens(update=0).to_pylist()
    compared = 0
    for micro_batch in update.micro_batches:
        for i, row in enumerate(micro_batch.rows_b):
            tokens = [token for token in table if token["row"] == row]
            length = rollout.length_B[row]
            assert [token["position"] for token in tokens] == list(range(length))
            assert [token["ids"] for token in tokens] == rollout.ids_BT[row, :length].tolist()
            assert "".join(token["strings"] for token in tokens) == records.decode(rollout.ids_BT[row, :length])
            for name, values in (
                ("log_probs", micro_batch.channels["log_probs"][i]),
                ("entropies", micro_batch.channels["entropies"][i]),
                ("old_log_probs", rollout.channels["old_log_probs"][row]),
            ):
                stored = np.array([token[name] for token in tokens], np.float32)
                assert stored.tobytes() == values[:length].astype(np.float32).tobytes(), name
                compared += length
    assert compared == 3 * rollout.length_B.sum()


def test_tokens_of_groups_that_are_not_kept_are_left_out_but_not_their_responses(tmp_path):
    rollout = records.rollout(rows=16, group_size=4)
    path = record(tmp_path / "run", [rollout], policy=CapturePolicy(max_groups=1))
    bundle = open_bundle(path)
    (line,) = bundle.rollouts().to_pylist()
    assert line["weight"] == 4
    responses = bundle.responses(rollout=0).to_pylist()
    assert len(responses) == 16
    kept = {response["row"] for response in responses if response["kept"]}
    assert len(kept) == 4
    assert set(bundle.tokens(rollout=0).column("row").to_pylist()) == kept
    assert len(bundle.responses(update=0)) == 16
    assert faults(path) == []


def test_a_folder_that_holds_another_run_is_left_alone(tmp_path, caplog):
    first = record(tmp_path / "run", [records.rollout(0)])
    before = {file.name: file.read_bytes() for file in first.iterdir() if file.is_file()}
    second = record(tmp_path / "run", [records.rollout(0, seed=9)])
    third = record(tmp_path / "run", [records.rollout(0, seed=8)])
    assert [path.name for path in (first, second, third)] == ["run", "run-2", "run-3"]
    assert before == {file.name: file.read_bytes() for file in first.iterdir() if file.is_file()}
    assert "holds another run; this run goes to" in caplog.text


def test_a_path_that_is_a_file_is_left_alone(tmp_path):
    (tmp_path / "run").write_text("mine")
    assert record(tmp_path / "run", [records.rollout(0)]).name == "run-2"
    assert (tmp_path / "run").read_text() == "mine"


def test_two_runs_that_start_together_do_not_share_a_folder(tmp_path):
    assert [claim_folder(tmp_path / "run").name for _ in range(3)] == ["run", "run-2", "run-3"]


def test_a_resumed_run_never_goes_on_in_the_bundle_of_another(tmp_path):
    def run(output_dir, **changes):
        trainer = Trainer(library="test", version="1", trainer_class="T", settings={"output_dir": output_dir})
        return records.run_info(trainer=trainer, **changes)

    first = record(tmp_path / "run", [records.rollout(0)], run=run("a"))
    second = record(tmp_path / "run", [records.rollout(0)], run=run("b"))
    again = Recorder(tmp_path / "run", run("b", first_update=1), strict=True)
    again.close()
    assert again.path == second
    assert len(open_bundle(first).manifest.attempts) == 1
    other_rewards = Recorder(tmp_path / "run", run("b", first_update=1, reward_names=("x",)), strict=True)
    other_rewards.close()
    assert other_rewards.path == tmp_path / "run-3"


def test_a_resumed_run_whose_reward_names_were_found_goes_on_with_those_of_its_bundle(tmp_path):
    """A first batch says what its data source does: that of another start may say more, less, or nothing."""
    found = [("acc", "score"), ("score",), (), ("acc", "format", "score")]
    for number, names in enumerate(found):
        run = records.run_info(reward_names=names, reward_names_found=True, first_update=number)
        recorder = Recorder(tmp_path / "run", run, strict=True)
        assert recorder.reward_names == found[0]
        said = np.full((8, 2), number, np.float32)
        rollout = records.rollout(number, reward_components_BK=said)
        recorder.rollout(rollout)
        recorder.update(records.update(number, rollout))
        recorder.close()
        assert recorder.path == tmp_path / "run"
    bundle = open_bundle(tmp_path / "run")
    assert bundle.manifest.reward_names == list(found[0])
    assert len(bundle.manifest.attempts) == len(found)
    rows = bundle.responses()
    for column in ("reward_components.0", "reward_components.1"):
        assert rows[column].to_pylist() == [float(n) for n in range(len(found)) for _ in range(8)]
    assert "reward_components.2" not in rows.column_names
    assert faults(tmp_path / "run") == []


def test_a_resumed_run_that_knows_its_steps_alone_goes_on_at_the_update_its_bundle_had_come_to(tmp_path):
    """Three updates a step, then one, and never as many as the settings make one think."""

    def trained(first, updates, step_of, **changes):
        recorder = Recorder(tmp_path / "run", records.run_info(**changes), strict=True)
        assert recorder.first_update == first
        rollout = records.rollout(recorder.earlier.next_rollout["train"])
        recorder.rollout(rollout)
        for number in updates:
            recorder.update(records.update(number, rollout, step=step_of(number)))
        recorder.close()
        assert recorder.path == tmp_path / "run"

    trained(0, range(9), lambda update: 1 + update // 3)
    trained(6, range(6, 10), lambda update: 3 + update - 6, steps_before=2, first_update=99)
    trained(8, range(8, 9), lambda update: 5, steps_before=4, first_update=99)
    bundle = open_bundle(tmp_path / "run")
    assert bundle.updates().column("update").to_pylist() == list(range(9))
    assert bundle.updates().column("step").to_pylist() == [1, 1, 1, 2, 2, 2, 3, 4, 5]
    assert faults(tmp_path / "run") == []


def test_reward_names_that_were_set_are_those_of_the_run(tmp_path):
    run = records.run_info()
    recorder = Recorder(tmp_path / "run", run, strict=True)
    recorder.close()
    assert recorder.reward_names == run.reward_names


def test_a_resumed_run_takes_its_settings_along_and_ends_what_was_killed(tmp_path):
    path = record(tmp_path / "run", [records.rollout(0)])
    manifest = json.loads((path / layout.MANIFEST).read_text())
    manifest["attempts"][0]["status"] = "running"
    (path / layout.MANIFEST).write_text(json.dumps(manifest))
    policy = CapturePolicy(every=7)
    Recorder(path, records.run_info(first_update=2), policy, strict=True).close()
    resumed = open_bundle(path).manifest
    assert resumed.policy["every"] == 7
    assert [attempt.status for attempt in resumed.attempts] == ["interrupted", "finished"]


def test_a_damaged_bundle_is_not_continued_and_said_in_one_line(tmp_path, caplog):
    path = record(tmp_path / "run", [records.rollout(0)])
    (path / layout.metrics_name(0)).write_text("not json\n")
    recorder = Recorder(path, records.run_info(first_update=2), strict=True)
    recorder.close()
    assert recorder.path == tmp_path / "run-2"
    (line,) = caplog.messages
    assert "is damaged (see unipo-hooks validate" in line and line.endswith(f"this run goes to {recorder.path}")


def test_an_address_is_refused_in_one_line():
    with pytest.raises(BundleError, match="local folders"):
        Recorder("s3://bucket/run", records.run_info())


def test_a_half_line_of_any_length_is_dropped(tmp_path):
    path = record(tmp_path / "run", [records.rollout(0)])
    whole = (path / layout.index_name(0)).read_bytes()
    with (path / layout.index_name(0)).open("ab") as index:
        index.write(b"x" * 3_000_000)
    Recorder(path, records.run_info(first_update=2), strict=True).close()
    assert (path / layout.index_name(0)).read_bytes() == whole


def test_a_resumed_run_goes_on_in_its_folder_with_numbers_of_its_own(tmp_path):
    path = record(tmp_path / "run", [records.rollout(0), records.rollout(1)])
    with (path / layout.index_name(0)).open("a") as index:
        index.write('{"entry":"update","half')  # killed while it wrote
    resumed = Recorder(path, records.run_info(first_update=3), strict=True)
    assert resumed.earlier.next_rollout == {"train": 2, "eval": 0}
    rollout = records.rollout(2)
    resumed.rollout(rollout)
    resumed.update(records.update(3, rollout))
    resumed.close()
    assert resumed.path == path
    assert faults(path) == []
    bundle = open_bundle(path)
    assert bundle.updates().column("update").to_pylist() == [0, 1, 2, 3]
    assert [attempt.first_update for attempt in bundle.manifest.attempts] == [0, 3]
    assert len(list((path / layout.SEGMENTS).glob("*.responses.parquet"))) == 2


def test_bytes_a_token_stay_within_the_promise(tmp_path):
    """3.6 bytes a float channel and token, 5 for ids, mask and text, from 16k tokens a file up."""
    random = np.random.default_rng(0)
    rows, width = 64, 512
    shape = (rows, width)
    # log-probs as a policy gives them: many near 0, correlated between passes, all digits used
    old = -random.exponential(0.7, shape).astype(np.float32) * (random.random(shape) < 0.7)
    rollout = records.rollout(
        rows=rows,
        width=width,
        ids_BT=random.zipf(1.3, shape) % 49152,
        length_B=np.full(rows, width),
        mask_BT=np.ones(shape, bool),
        channels={"old_log_probs": old.astype(np.float32), "ref_log_probs": old + random.normal(0, 0.1, shape)},
    )
    update = records.update(0, rollout)
    drift = random.normal(0, 0.05, shape).astype(np.float32)
    update.micro_batches[0].channels["log_probs"] = old[update.micro_batches[0].rows_b] + drift
    words = [f" word{i % 9973}" for i in range(49152)]
    recorder = Recorder(
        tmp_path / "run", records.run_info(decode=lambda ids: "".join(words[i] for i in ids)), strict=True
    )
    recorder.rollout(rollout)
    recorder.update(update)
    recorder.close()
    tokens = rows * width

    def size(table):
        (file,) = (recorder.path / layout.SEGMENTS).glob(f"*.{table}.parquet")
        assert pq.read_metadata(file).num_rows == tokens
        return file.stat().st_size / tokens

    rollout_bytes, update_bytes = size(layout.ROLLOUT_TOKENS), size(layout.UPDATE_TOKENS)
    print(f"bytes a token: rollout {rollout_bytes:.2f} (2 floats), update {update_bytes:.2f} (2 floats)")
    assert rollout_bytes <= 2 * 3.6 + 5
    assert update_bytes <= 2 * 3.6


@pytest.mark.slow
def test_killed_at_20_random_moments_a_bundle_is_whole_up_to_its_last_index_line(tmp_path):
    random = np.random.default_rng(int(os.environ.get("PYTEST_KILL_SEED", "0")))
    survived = []
    for number in range(20):
        path = tmp_path / f"run{number}"
        writer = subprocess.Popen([sys.executable, str(WRITER), str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline().strip() == "writing"
        time.sleep(random.uniform(0.0, 0.5))
        writer.kill()
        said = [line for line in writer.stdout.read().splitlines() if line.endswith(".")]
        writer.wait()
        assert faults(path) == [], f"kill {number}"
        durable = int(said[-1].rstrip(".")) if said else -1  # the last update flush() called durable
        updates = open_bundle(path).updates().column("update").to_pylist()
        assert updates == list(range(len(updates)))
        assert len(updates) > durable, "something that was durable is gone"
        open_bundle(path).tokens()  # and can be read
        metrics = [json.loads(line) for line in (path / layout.metrics_name(0)).read_text().splitlines(True)[:-1]]
        assert len(metrics) + 1 >= len(updates)
        survived.append(len(updates))
    print("updates that survived each kill:", survived)
    assert max(survived) > 0
