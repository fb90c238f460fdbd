"""The reader against bundles written by hand: what each table holds."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest
from bundle.builder import Builder, response, simple, token

from unipo_hooks.bundle import files
from unipo_hooks.bundle.reader import open_bundle
from unipo_hooks.channels import DEVIATIONS
from unipo_hooks.errors import BundleError


def test_responses_of_a_rollout_keep_those_whose_tokens_were_not_stored(tmp_path: Path):
    built = Builder(tmp_path, reward_names=("right", "short"))
    rows = [
        response(0, [token(1)], reward=1.0, **{"reward_components.0": 1.0, "reward_components.1": 0.0}, messages="[]"),
        response(1, [token(2), token(3, mask=0)], group=1, kept=False, reward=2.0, **{"reward_components.0": 2.0}),
    ]
    responses = open_bundle(built.rollout(0, rows).write()).responses(rollout=0)
    keys = ["rank", "attempt", "kind", "rollout", "step", "row", "group"]
    of_it = ["prompt", "messages", "length", "counted", "kept", "reward", "reward_components.0", "reward_components.1"]
    assert responses.column_names == keys + of_it
    assert responses["length"].to_pylist() == [1, 2]
    assert responses["counted"].to_pylist() == [1, 1]
    assert responses["kept"].to_pylist() == [True, False]
    assert responses["prompt"].to_pylist() == ["prompt 0", "prompt 1"]
    assert responses["reward_components.0"].to_pylist() == [1.0, 2.0]
    assert math.isnan(responses["reward_components.1"][1].as_py())


def test_responses_of_an_update_are_those_it_trained_on_with_its_own_sums(tmp_path: Path):
    bundle = open_bundle(simple(tmp_path).write())
    responses = bundle.responses(update=0)
    assert responses["row"].to_pylist() == [3, 0]
    assert responses["reward"].to_pylist() == [1.0, 1.0]
    assert responses["group"].to_pylist() == [1, 0]
    assert responses["micro_batch"].to_pylist() == [0, 1]
    assert responses["log_ratio_sum"].to_pylist() == [0.5, 1.5]
    assert responses["update_counted"].to_pylist() == [2, 2]
    assert responses["update"].to_pylist() == [0, 0]
    assert "token_kl_sum" not in responses.column_names
    assert bundle.responses(update=2)["kept"].to_pylist() == [False, True]
    assert bundle.responses(rollout=1, update=0).num_rows == 0
    assert bundle.responses(rollout=0, update=0).num_rows == 2


def test_groups_have_their_rewards_and_their_sampling_weight(tmp_path: Path):
    groups = open_bundle(simple(tmp_path).write()).groups()
    assert groups["rollout"].to_pylist() == [0, 0, 1, 1]
    assert groups["group"].to_pylist() == [0, 1, 0, 1]
    assert groups["prompt"].to_pylist() == ["prompt 0", "prompt 1", "prompt 0", "prompt 1"]
    assert groups["size"].to_pylist() == [2, 2, 1, 1]
    assert groups["kept"].to_pylist() == [True, True, True, False]
    assert groups["weight"].to_pylist() == [1.0, 1.0, 2.0, 0.0]
    assert groups["reward_mean"].to_pylist() == [0.5, 1.0, 0.25, 0.75]
    assert groups["reward_std"].to_pylist()[:2] == [pytest.approx(statistics.stdev([1, 0])), 0.0]
    assert all(math.isnan(x) for x in groups["reward_std"].to_pylist()[2:])
    assert open_bundle(tmp_path).groups(rollout=1).num_rows == 2


def test_a_reward_nobody_gave_is_left_out_of_its_group(tmp_path: Path):
    rewards = [1.0, math.nan, 0.0]
    rows = [response(n, [token(n)], reward=reward) for n, reward in enumerate(rewards)]
    rows.append(response(3, [token(3)], group=1, reward=math.nan))
    groups = open_bundle(Builder(tmp_path).rollout(0, rows).write()).groups()
    assert groups["size"].to_pylist() == [3, 1]
    assert groups["reward_mean"][0].as_py() == 0.5
    assert groups["reward_std"][0].as_py() == pytest.approx(statistics.stdev([1, 0]))
    assert math.isnan(groups["reward_mean"][1].as_py())


def test_updates_have_one_row_each_and_read_no_parquet(tmp_path: Path):
    path = simple(tmp_path).write()
    for file in (path / "segments").iterdir():
        file.unlink()
    updates = open_bundle(path).updates()
    assert updates["update"].to_pylist() == [0, 1, 2]
    assert updates["step"].to_pylist() == [1, 2, 3]
    assert updates["rollouts"].to_pylist() == [[0], [0], [1]]
    assert updates["is_first_step_after_rollout_phase"].to_pylist() == [True, False, True]
    assert updates["responses"].to_pylist() == [2, 2, 2]
    assert updates["tokens"].to_pylist() == [5, 1, 2]
    assert [len(x) for x in updates["micro_batches"].to_pylist()] == [2, 1, 1]
    assert updates["micro_batches"][0].as_py()[1]["micro_batch"] == 1
    assert updates["micro_batches"][0].as_py()[1]["loss"] == 0.25
    rollouts = open_bundle(path).rollouts()
    assert rollouts["rollout"].to_pylist() == [0, 1]
    assert rollouts["kept"].to_pylist() == [None, [0]]
    assert rollouts["weight"].to_pylist() == [1.0, 2.0]
    assert rollouts["tokens"].to_pylist() == [6, 2]
    assert dict(rollouts["aliases"][0].as_py()) == {"old_log_probs": "log_probs"}


def test_tokens_of_an_update_read_only_the_segments_they_need(tmp_path: Path):
    path = simple(tmp_path).write()
    for file in (path / "segments").glob("r0-000001.*"):
        file.write_bytes(b"")
    assert open_bundle(path).tokens(update=0).num_rows == 5
    with pytest.raises(BundleError, match=r"r0-000001\.\w+\.parquet is truncated or damaged .*unipo-hooks validate"):
        open_bundle(path).tokens(update=2)


def test_a_segment_is_read_once_for_all_that_is_asked_of_it(tmp_path: Path):
    path = simple(tmp_path).write()
    bundle = open_bundle(path)
    tokens, responses = bundle.tokens(update=0), bundle.responses(update=0)
    for file in (path / "segments").iterdir():
        file.unlink()
    assert bundle.tokens(update=0).equals(tokens)
    assert bundle.responses(update=0).equals(responses)
    assert bundle.tokens(update=1)["ids"].to_pylist() == [4]


def test_tables_that_were_read_take_no_more_memory_than_they_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "RECENT_BYTES", 1)
    path = simple(tmp_path).write()
    bundle = open_bundle(path)
    assert bundle.tokens(update=0).num_rows == 5
    for file in (path / "segments").iterdir():
        file.unlink()
    with pytest.raises(BundleError, match="is missing"):
        bundle.tokens(update=0)


def test_a_bundle_shows_what_it_is(tmp_path: Path):
    built = simple(tmp_path).metrics(3, {}, captured=False).log(9, {"train_runtime": 1.0})
    built.manifest["header"]["model_name"] = "digits-llama"
    path = built.write()
    shown = f"<Bundle {path}: grpo on digits-llama, 3 updates captured of 4, finished>"
    assert repr(open_bundle(path)) == shown
    with (path / "index.r0.jsonl").open("a") as file:
        file.write("{\n")
    assert repr(open_bundle(path)) == f"<Bundle {path}: grpo on digits-llama, damaged, finished>"


def test_two_ranks_are_merged(tmp_path: Path):
    built = Builder(tmp_path, ranks=2)
    halves = [[response(0, [token(10 * rank + 1)], reward=float(rank))] for rank in range(2)]
    for rank, half in enumerate(halves):
        built.rollout(0, half, rank=rank, groups=1, kept=[0])
        built.update(0, [(0, half[0])], rank=rank)
        built.metrics(0, {"reward": [rank + 1.0, rank + 1.0, 9.0], "entropy": [1.0, 0.0, 0.0]}, rank=rank)
    bundle = open_bundle(built.write())
    assert bundle.updates()["responses"].to_pylist() == [2]
    assert bundle.updates()["ranks"].to_pylist() == [2]
    assert [x["rank"] for x in bundle.updates()["micro_batches"][0].as_py()] == [0, 1]
    assert bundle.rollouts()["responses"].to_pylist() == [2]
    assert bundle.groups()["size"].to_pylist() == [2], "a group may lie on several ranks"
    assert bundle.groups()["reward_mean"].to_pylist() == [0.5]
    assert bundle.tokens(update=0)["rank"].to_pylist() == [0, 1]
    assert bundle.tokens(update=0)["ids"].to_pylist() == [1, 11], "row 0 of each rank is its own"
    assert bundle.responses(update=0)["reward"].to_pylist() == [0.0, 1.0]
    assert bundle.metrics()["reward"].to_pylist() == [1.0]
    assert bundle.metrics()["entropy"].to_pylist() == [None], "nothing counted"
    assert bundle.metrics()["ranks"].to_pylist() == [2]


def test_a_rank_that_wrote_nothing_yet_is_no_obstacle(tmp_path: Path):
    path = simple(tmp_path).write()
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "ranks": 3, "status": "running"}))
    assert open_bundle(path).tokens(update=0).num_rows == 5


def test_metrics_are_means_over_ranks_with_the_trainers_own_names_beside_them(tmp_path: Path):
    built = Builder(tmp_path, ranks=2)
    values = [[1.0, 4.0], [2.0, 2.0, 6.0]]
    for rank, part in enumerate(values):
        sums = [sum(part), len(part), sum(x * x for x in part)]
        built.metrics(
            1, {"advantage_mean": sums, "policy_loss": sums}, rank=rank, scalars={"learning_rate": 0.5, "step": 7.0}
        )
    built.metrics(0, {"reward": [1, 2, 1]}, captured=False, rollouts=[])
    built.update(1, [(1, response(0, []))])
    built.log(1, {"reward": 0.75, "frac_reward_zero_std": 0.5, "grad_norm": None, "step": 3, "learning_rate": 0.25})
    built.log(1, {"frac_reward_zero_std": 0.25})
    built.log(4, {"train_runtime": 12.0})
    metrics = open_bundle(built.write()).metrics()
    rows = metrics.to_pylist()
    assert [row["update"] for row in rows] == [0, 1, 4]
    assert [row["step"] for row in rows] == [1, 2, 5]
    assert [row["captured"] for row in rows] == [False, True, False]
    assert [row["rollouts"] for row in rows] == [[], [1], []]
    assert rows[0]["reward"] == 0.5
    assert rows[0]["reward_std"] == pytest.approx(statistics.stdev([0, 1]))
    assert rows[1]["reward"] is rows[1]["reward_std"] is None
    assert rows[0]["advantage_std"] is None
    everything = values[0] + values[1]
    assert rows[1]["advantage_mean"] == pytest.approx(statistics.mean(everything))
    assert rows[1]["advantage_std"] == pytest.approx(statistics.stdev(everything))
    assert "policy_loss_std" not in rows[1]
    assert rows[1]["trainer/reward"] == 0.75, "the trainer's reward is not the metric of that name"
    assert rows[1]["learning_rate"] == 0.5
    assert rows[1]["trainer/learning_rate"] == 0.25
    assert rows[1]["frac_reward_zero_std"] == 0.25, "the last one logged"
    assert rows[1]["trainer/step"] in (3.0, 7.0)
    assert rows[1]["grad_norm"] is None
    assert rows[2]["train_runtime"] == 12.0
    assert metrics.column_names.index("reward") < metrics.column_names.index("frac_reward_zero_std")


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        ([0.5, 1, 0.25], None),
        ([0, 0, 0], None),
        ([0.3, 3, 0.03], 0.0),
        ([None, 2, None], math.nan),
        ([4.0, 4, 8.0], math.sqrt(4 / 3)),
    ],
)
@pytest.mark.parametrize(("name", "source"), DEVIATIONS.items())
def test_a_deviation_is_unbiased_and_null_for_fewer_than_two_values(
    tmp_path: Path, sums: list[float | None], expected: float | None, name: str, source: str
):
    row = open_bundle(Builder(tmp_path).metrics(0, {source: sums}).write()).metrics().to_pylist()[0]
    if expected is None:
        assert row[name] is None
    else:
        assert row[name] == pytest.approx(expected, abs=1e-8, nan_ok=True)


def test_an_update_counts_as_captured_only_where_the_index_has_it(tmp_path: Path):
    built = simple(tmp_path).metrics(3, {}, captured=True)
    built.metric_lines[0][0]["captured"] = False
    del built.index[0][2]
    assert open_bundle(built.write()).metrics()["captured"].to_pylist() == [True, False, True, False]


def test_a_metric_that_was_not_finite_is_nan_and_loses_no_other(tmp_path: Path):
    built = Builder(tmp_path).metrics(0, {"policy_loss": [None, 1.0, None], "reward": [1.0, 1.0, 1.0]})
    row = open_bundle(built.write()).metrics().to_pylist()[0]
    assert math.isnan(row["policy_loss"])
    assert row["reward"] == 1.0


def test_evaluations_count_apart(tmp_path: Path):
    built = simple(tmp_path)
    rows = [response(0, [token(77)], reward=0.125)]
    built.rollout(0, rows, kind="eval", segment=2).update(0, [(0, rows[0])], kind="eval", segment=2)
    built.metrics(0, {"reward": [1.0, 8.0, 0.0]}, kind="eval")
    bundle = open_bundle(built.write())
    assert bundle.tokens(update=0, kind="eval")["ids"].to_pylist() == [77]
    assert bundle.tokens(update=0).num_rows == 5
    assert bundle.responses(kind="eval")["reward"].to_pylist() == [0.125]
    assert bundle.groups(kind="eval")["size"].to_pylist() == [1]
    assert bundle.updates(kind="eval").num_rows == bundle.rollouts(kind="eval").num_rows == 1
    assert bundle.metrics(kind="eval")["reward"].to_pylist() == [0.125]
    assert bundle.metrics()["reward"].to_pylist() == [0.5, 0.5, 0.5]


def test_an_empty_bundle_gives_empty_tables_with_their_columns(tmp_path: Path):
    bundle = open_bundle(Builder(tmp_path).write())
    for table in (bundle.rollouts(), bundle.updates(), bundle.metrics(), bundle.groups(), bundle.responses()):
        assert table.num_rows == 0
        assert "kind" in table.column_names
    for table in (bundle.tokens(), bundle.tokens(update=0), bundle.responses(update=0)):
        assert table.num_rows == 0
        assert {"rank", "rollout", "row", "group"} <= set(table.column_names)
    assert "log_probs" in bundle.tokens(update=0).column_names
    assert bundle.attempts().num_rows == 1
    assert bundle.header.algorithm == "grpo"
    assert bundle.manifest.trainer.library == "trl"
    assert bundle.path == tmp_path


def test_a_bundle_whose_writer_has_written_only_the_manifest_opens(tmp_path: Path):
    path = Builder(tmp_path, status="running").write()
    for file in path.glob("*.jsonl"):
        file.unlink()
    assert open_bundle(str(path)).updates().num_rows == 0
    assert open_bundle(path).metrics().num_rows == 0


def test_a_half_written_last_line_is_ignored(tmp_path: Path):
    path = simple(tmp_path).write()
    for name in ("index.r0.jsonl", "metrics.r0.jsonl"):
        text = (path / name).read_text()
        (path / name).write_text(text + text.splitlines()[0][:40])
        with (path / name).open("a") as file:
            file.write("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"))
    assert open_bundle(path).updates().num_rows == 3
    assert open_bundle(path).metrics().num_rows == 3


def test_an_entry_of_a_later_minor_version_is_ignored(tmp_path: Path):
    built = simple(tmp_path)
    built.manifest["version"] = "1.7"
    built.index[0].insert(1, {"entry": "checkpoint", "novel": True})
    assert open_bundle(built.write()).updates().num_rows == 3
