"""Rows whose tokens never left where they were computed: the bundle is that of a run which handed over everything."""

import dataclasses
import json

import numpy as np
import pytest
from records import handing_over, rollout, run_info, update, without

from unipo_hooks import CapturePolicy, Recorder, algorithms, evaluate, open_bundle
from unipo_hooks.bundle.verify import verify
from unipo_hooks.objective.recorded import as_recorded, batch_of

SPEC = algorithms.get("grpo.trl")
RUN = run_info(algorithm=SPEC)


def trained(of, number=0, **changes):
    """An update whose losses are what its tokens come to."""
    made = update(number, of, **{"micro_batches": 4} | changes)
    batches = [(part, batch_of(part, of, made)) for part in made.micro_batches]
    losses = [evaluate(as_recorded(SPEC, batch.arrays), batch).loss for _, batch in batches]
    parts = [dataclasses.replace(p, loss=loss) for p, loss in zip(made.micro_batches, losses, strict=True)]
    return dataclasses.replace(made, micro_batches=parts)


def recorded(path, of, *updates, **settings):
    recorder = Recorder(path, RUN, policy=CapturePolicy(**settings), strict=True)
    recorder.rollout(of)
    for each in updates:
        recorder.update(each)
    recorder.close()
    return open_bundle(recorder.path)


def lines(bundle, name):
    """Lines of a file, without when they were written."""
    text = (bundle.path / name).read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in text]


@pytest.fixture
def pair(tmp_path):
    """A run that handed over all rows of which two groups were kept, and one that handed over these alone."""
    of = rollout(rows=24)
    of.mask_BT[5] = False
    policy = CapturePolicy(max_groups=2)
    groups = policy.kept_groups(0, of.groups)
    made = trained(of)
    whole = recorded(tmp_path / "whole", of, made, max_groups=2)
    part = recorded(tmp_path / "part", without(of, groups), handing_over(made, of, groups, RUN, SPEC), max_groups=2)
    return whole, part


def test_index_and_metrics_are_those_of_the_whole(pair):
    whole, part = pair
    (rollout_line, expected), found = lines(whole, "index.r0.jsonl"), lines(part, "index.r0.jsonl")
    assert found[0] == rollout_line
    for ours, theirs in zip(found[1].pop("micro_batches"), expected.pop("micro_batches"), strict=True):
        ours.pop("token_gap", None), theirs.pop("token_gap", None)
        assert ours == theirs
    assert found[1] == expected
    (ours,), (theirs,) = lines(part, "metrics.r0.jsonl"), lines(whole, "metrics.r0.jsonl")
    ours, theirs = ours.pop("sums"), theirs.pop("sums")
    assert ours.keys() == theirs.keys()
    error = max(abs(a - b) / max(1.0, abs(b)) for n in ours for a, b in zip(ours[n], theirs[n], strict=True))
    print("largest error", error)
    assert error < 1e-12


def test_it_is_whole_to_whoever_validates_it(pair):
    _, part = pair
    assert [str(fault) for fault in verify(part.path)] == []


def test_every_response_has_its_row_and_a_kept_one_its_tokens(pair):
    whole, part = pair
    names = ["row", "group", "length", "counted", "kept", "reward", "advantages", "reward_components.0"]
    assert part.responses().select(names) == whole.responses().select(names)
    assert part.tokens(0).num_rows == whole.tokens(0).num_rows > 0
    order = [("micro_batch", "ascending"), ("row", "ascending"), ("position", "ascending")]
    assert part.tokens(0).sort_by(order) == whole.tokens(0).sort_by(order)
    ours, theirs = (bundle.responses(update=0).sort_by(order[:2]) for bundle in (part, whole))
    assert ours.select(["row", "micro_batch", "kept"]) == theirs.select(["row", "micro_batch", "kept"])
    kept = ours["kept"].to_numpy()
    sums = ours["log_ratio_sum"].to_numpy()
    assert np.array_equal(np.isnan(sums), ~kept)
    assert np.array_equal(sums[kept], theirs["log_ratio_sum"].to_numpy()[kept])


def test_a_token_weighs_what_it_did_in_the_whole_pass(pair):
    weights = []
    for bundle in pair:
        found = {}
        for each in bundle.micro_batches(0):
            evaluation = evaluate(as_recorded(SPEC, each.batch.arrays), each.batch)
            for row, values in zip(each.row_B, evaluation.gradient_weight, strict=True):
                found[each.micro_batch, row] = values
        weights.append(found)
    assert weights[0].keys() == weights[1].keys()
    error = max(np.abs(weights[0][key] - weights[1][key]).max() for key in weights[0])
    print("largest error", error)
    assert error < 1e-15


def test_the_gap_is_the_one_that_was_found_there(tmp_path, caplog):
    of = rollout(rows=16)
    made = handing_over(trained(of), of, (0,), RUN, SPEC)
    off = dataclasses.replace(made.micro_batches[0].left_behind, gap=(0.5, 1e-6))
    parts = [dataclasses.replace(made.micro_batches[0], left_behind=off), *made.micro_batches[1:]]
    bundle = recorded(tmp_path / "run", without(of, (0,)), dataclasses.replace(made, micro_batches=parts))
    passes = bundle.updates().to_pylist()[0]["micro_batches"]
    assert [passes[0]["loss_gap"], passes[0]["loss_tolerance"]] == [0.5, 1e-6]
    assert all(abs(each["loss_gap"]) < 1e-12 for each in passes[1:])
    assert "5.0e-01 away" in caplog.text


def test_a_rollout_of_which_nothing_was_handed_over_has_its_metrics_and_no_tokens(tmp_path):
    of = rollout(rows=16)
    made = trained(of)
    bundle = recorded(tmp_path / "run", without(of, ()), handing_over(made, of, (), RUN))
    whole = recorded(tmp_path / "whole", of, made)
    assert len(bundle.updates()) == len(bundle.rollouts()) == 0
    (row,), (expected,) = bundle.metrics().to_pylist(), whole.metrics().to_pylist()
    for name in ("entropy", "importance_sampling_ratio", "reward", "policy_loss", "advantage_mean"):
        assert row[name] == pytest.approx(expected[name], rel=1e-12)
    assert row["captured"] is False
    assert bundle.manifest.lost.rollouts == bundle.manifest.lost.updates == 0


def test_what_was_not_handed_over_is_never_kept_whatever_the_policy(tmp_path):
    of = rollout(rows=16)
    bundle = recorded(tmp_path / "run", without(of, (1, 3)), handing_over(trained(of), of, (1, 3), RUN, SPEC))
    (line,) = bundle.rollouts().to_pylist()
    assert line["kept"] == [1, 3] and line["weight"] == 2.0
    assert [str(fault) for fault in verify(bundle.path)] == []
