"""Micro-batches of a bundle as batches for `evaluate`: what is in them, and that their weights are those of the run."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from bundle.builder import Builder, attempt, log_prob, response, token
from records import rollout, run_info, update

from unipo_hooks import CapturePolicy, Recorder, algorithms, evaluate, open_bundle
from unipo_hooks.objective.recorded import TRUNCATED, as_recorded, batch_of


def recorded(path, of, *updates, algorithm="grpo.trl", **settings):
    """The bundle of a rollout and its updates."""
    run = run_info(algorithm=algorithms.get(algorithm))
    recorder = Recorder(path, run, policy=CapturePolicy(**settings))
    recorder.rollout(of)
    for each in updates:
        recorder.update(each)
    recorder.close()
    return open_bundle(recorder.path)


def live(of, made, number=0):
    """A micro-batch as the run itself had it."""
    return batch_of(made.micro_batches[number], of, made)


def test_a_batch_holds_what_the_run_had(tmp_path):
    of = rollout()
    made = update(0, of, micro_batches=2)
    for number, part in enumerate(recorded(tmp_path / "run", of, made).micro_batches(0)):
        own = live(of, made, number)
        assert (part.attempt, part.update, part.rank, part.micro_batch, part.whole) == (0, 0, 0, number, True)
        assert part.row_B.tolist() == made.micro_batches[number].rows_b.tolist()
        assert set(part.batch.arrays) == set(own.arrays)
        counted = part.batch["mask"] > 0
        width = counted.shape[1]
        for name, values in own.arrays.items():
            theirs = part.batch[name]
            if values.ndim == 2 and values.shape == own.shape:
                assert np.array_equal(theirs[counted], values[:, :width][counted]), name
            else:
                assert np.array_equal(theirs, values), name


@pytest.mark.parametrize("micro_batch", [0, 1])
@pytest.mark.parametrize("lengths", ["none of its tokens counts", "it has no tokens"])
def test_a_micro_batch_without_a_token_that_counts_has_every_channel(tmp_path, lengths, micro_batch):
    of = rollout()
    made = update(0, of, micro_batches=2)
    dead = made.micro_batches[micro_batch].rows_b
    mask_BT, length_B = of.mask_BT.copy(), of.length_B.copy()
    mask_BT[dead] = False
    if lengths == "it has no tokens":
        length_B[dead] = 0
    old = np.where(mask_BT, of.channels["old_log_probs"], np.nan)
    of = dataclasses.replace(of, mask_BT=mask_BT, length_B=length_B, channels={**of.channels, "old_log_probs": old})
    parts = recorded(tmp_path / "run", of, made).micro_batches(0)
    assert {frozenset(part.batch.arrays) for part in parts} == {frozenset(live(of, made).arrays)}
    spec = as_recorded(algorithms.get("grpo.trl"), parts[0].batch.arrays)
    losses = [evaluate(spec, part.batch).loss for part in parts]
    assert losses[micro_batch] == 0
    other = 1 - micro_batch
    assert losses[other] == pytest.approx(evaluate(spec, live(of, made, other)).loss, abs=1e-7)


def test_an_update_without_a_single_token_has_its_channels_and_no_loss(tmp_path):
    nothing = rollout(length_B=np.zeros(8, int), mask_BT=np.zeros((8, 6), bool))
    nothing = dataclasses.replace(
        nothing,
        channels={"advantages": nothing.channels["advantages"]},
        aliases={"old_log_probs": "log_probs"},
        mask_reason_BT=np.full((8, 6), TRUNCATED, np.uint8),
    )
    (part,) = recorded(tmp_path / "run", nothing, update(0, nothing)).micro_batches(0)
    assert part.batch.shape == (8, 0)
    assert {"log_probs", "old_log_probs", "entropies", "advantages", "truncated"} <= set(part.batch.arrays)
    assert evaluate(as_recorded(algorithms.get("grpo.trl"), part.batch.arrays), part.batch).loss == 0


def test_a_channel_without_a_value_that_counts_is_not_there(tmp_path):
    of = rollout()
    of = dataclasses.replace(of, channels={**of.channels, "ref_log_probs": np.where(of.mask_BT, np.nan, -1.0)})
    (part,) = recorded(tmp_path / "run", of, update(0, of)).micro_batches(0)
    assert "ref_log_probs" not in part.batch and "values" not in part.batch


def test_an_alias_is_a_channel(tmp_path):
    of = rollout(aliases={"old_log_probs": "log_probs"})
    of = dataclasses.replace(of, channels={"advantages": of.channels["advantages"]})
    for part in recorded(tmp_path / "run", of, update(0, of, micro_batches=2)).micro_batches(0):
        counted = part.batch["mask"] > 0
        assert np.array_equal(part.batch["old_log_probs"][counted], part.batch["log_probs"][counted])


@pytest.mark.parametrize("level", ["response", "token"])
def test_channels_have_the_level_the_trainer_gave_them(tmp_path, level):
    of = rollout()
    random = np.random.default_rng(0)
    shape = (8,) if level == "response" else (8, 6)
    given = {name: np.exp(random.normal(size=shape)).astype(np.float32) for name in ("advantages", "is_weights")}
    of = dataclasses.replace(of, channels={**of.channels, **given})
    made = update(0, of, micro_batches=2)
    for number, part in enumerate(recorded(tmp_path / "run", of, made).micro_batches(0)):
        own = live(of, made, number)
        width = part.batch.shape[1]
        for name in given:
            assert part.batch[name].ndim == len(shape), name
            expected = own[name][..., :width] if level == "token" else own[name]
            counted = part.batch["mask"] > 0 if level == "token" else slice(None)
            assert np.array_equal(part.batch[name][counted], expected[counted]), name


@pytest.mark.parametrize("shape", [(8,), (8, 6)])
def test_a_sum_over_sampler_weights_is_that_of_the_run(tmp_path, shape):
    tree = algorithms.get("vespo.trl").model_dump()
    tree["parts"]["gate"]["correction"] = "recorded"
    spec = algorithms.get({**tree, "id": "tested"})
    weights = np.exp(np.random.default_rng(0).normal(size=shape) * 0.3).astype(np.float32)
    of = rollout()
    of = dataclasses.replace(of, channels={**of.channels, "is_weights": weights})
    made = update(0, of)
    (part,) = recorded(tmp_path / "run", of, made).micro_batches(0)
    here, there = (evaluate(as_recorded(spec, b.arrays), b).loss for b in (part.batch, live(of, made)))
    print(f"largest error of the loss {abs(here - there):.1e}")
    assert here == pytest.approx(there, abs=1e-12)


def test_the_constant_length_is_the_width_the_run_padded_to(tmp_path):
    of = rollout(width=9)
    mask_BT = of.mask_BT.copy()
    mask_BT[:, 6:] = False
    of = dataclasses.replace(of, mask_BT=mask_BT, length_B=np.minimum(of.length_B, 6))
    made = update(0, of, micro_batches=3)
    spec = algorithms.given_advantages(algorithms.get("dr_grpo"))
    for number, part in enumerate(recorded(tmp_path / "run", of, made).micro_batches(0)):
        assert part.batch.shape[1] <= 6 and part.batch.normalisers.length == 9
        assert evaluate(spec, part.batch).loss == pytest.approx(evaluate(spec, live(of, made, number)).loss, abs=1e-12)
    fixed = recorded(tmp_path / "fixed", of, update(0, of, length_constant=32)).micro_batches(0)[0]
    assert fixed.batch.normalisers.length == 32


def with_dead_rows(rows=(1, 2)):
    """A rollout of four groups with responses that do not count, of one group all of them."""
    of = rollout(rows=16, seed=5)
    mask_BT = of.mask_BT.copy()
    mask_BT[[*rows, 12, 13, 14, 15]] = False
    # Further channels that some algorithms need.
    random = np.random.default_rng(3)
    more = {
        name: -random.random((16, 6), np.float32)
        for name in ("ref_log_probs", "rollout_log_probs", "values", "rewards")
    }
    return dataclasses.replace(of, mask_BT=mask_BT, channels={**of.channels, **more})


LINES = ("width", "counted_rows", "groups")


def test_index_lines_count_what_counts(tmp_path):
    of = with_dead_rows()
    made = update(0, of, micro_batches=2)
    lines = recorded(tmp_path / "run", of, made).updates().to_pylist()[0]["micro_batches"]
    for part, line in zip(made.micro_batches, lines, strict=True):
        counted = of.mask_BT[part.rows_b].any(1)
        groups = len(set(of.group_B[part.rows_b][counted]))
        assert [line[name] for name in LINES] == [6, counted.sum(), groups]
    assert sum(line["counted_rows"] for line in lines) == 10


def fed(spec, batch):
    """Whether a batch has what an algorithm needs, and of the other responses no more than numbers of them."""
    tree = spec.model_dump()
    # A mean over tokens is over those of the batch, but needs nothing of them except how many they are.
    tree["parts"]["aggregation"] = {"part": "sequence_sum_token_mean"}
    by_response = algorithms.scope(algorithms.get(tree)) in ("token", "response", "group")
    narrow = algorithms.scope(spec) in ("token", "response", "group") or spec.parts.aggregation.part == "token_mean"
    return by_response and narrow and set(algorithms.needs(spec)) <= set(batch.arrays)


@pytest.mark.parametrize(("micro_batches", "max_groups"), [(1, 1), (1, 3), (2, 2), (4, 1)])
def test_weights_of_kept_groups_are_those_of_the_whole_micro_batch(tmp_path, micro_batches, max_groups):
    of = with_dead_rows()
    made = update(0, of, seed=1, micro_batches=micro_batches, accumulation_steps=micro_batches)
    parts = recorded(tmp_path / "run", of, made, max_groups=max_groups).micro_batches(0)
    assert parts and not any(part.whole for part in parts)
    exact, approximate, worst = set(), set(), 0.0
    for part in parts:
        batch = live(of, made, part.micro_batch)
        order = made.micro_batches[part.micro_batch].rows_b.tolist()
        rows = [order.index(row) for row in part.row_B]
        for spec in algorithms.every():
            if spec.display is not None or spec.mixture or algorithms.is_own_code(spec):
                continue
            given = as_recorded(spec, batch.arrays)
            if not fed(given, batch):
                continue
            whole, mine = evaluate(given, batch), evaluate(given, part.batch)
            theirs = whole.gradient_weight[rows][:, : mine.mask.shape[1]]
            shortened = ((whole.aggregation == 0) & (batch["mask"] > 0)).any()
            if shortened and given.parts.aggregation.part == "token_mean":
                # How many of the missing tokens the mask leaves out is not known, so one factor is wrong: that of all.
                approximate.add(spec.id)
                there = np.abs(theirs) > 1e-9
                assert np.ptp(mine.gradient_weight[there] / theirs[there]) < 1e-9 if there.any() else True, spec.id
                continue
            exact.add(spec.id)
            gap = np.abs(mine.gradient_weight - theirs).max(initial=0)
            worst = max(worst, gap)
            assert gap < 1e-12, spec.id
    print(f"{len(exact)} algorithms, largest error of a weight {worst:.1e}; approximate: {sorted(approximate)}")
    assert {"dapo", "cispo", "gmpo.verl", "dr_grpo", "dapo.trl", "bnpo_trl", "grpo", "gspo"} <= exact
    assert len(exact) > 100 > 10 > len(approximate)


def test_normalisers_of_a_part_say_what_is_not_there(tmp_path):
    of = with_dead_rows()
    (part,) = recorded(tmp_path / "run", of, update(0, of), max_groups=1).micro_batches(0)
    given = part.batch.normalisers
    assert (given.micro_batch_rows, given.micro_batch_counted_rows, given.micro_batch_groups) == (16, 10, 3)
    assert given.micro_batch_tokens == of.mask_BT.sum() and given.tokens is given.rows is None
    (whole,) = recorded(tmp_path / "whole", of, update(0, of)).micro_batches(0)
    assert whole.batch.normalisers.micro_batch_rows is whole.batch.normalisers.micro_batch_groups is None


def test_bundles_without_the_newer_counts_read_as_before(tmp_path):
    for name, counts in (("old", {}), ("new", {"width": 9, "counted_rows": 4, "groups": 2})):
        rows = [
            response(row, [token(row, old_log_probs=-0.5)] * (row + 1), group=row // 2, kept=row < 2, advantages=row)
            for row in range(4)
        ]
        built = Builder(tmp_path / name).rollout(0, rows, kept=[0], weight=2.0).update(0, [(0, row) for row in rows])
        built.index[0][-1]["micro_batches"] = [{"rollout": 0, "rows": 4, "tokens": 10, "loss": 0.25, **counts}]
        (part,) = open_bundle(built.write()).micro_batches(0)
        given = part.batch.normalisers
        assert not part.whole and given.micro_batch_tokens == 10 and given.micro_batch_rows == 4
        assert given.length == counts.get("width")
        means = {
            aggregation: evaluate(spec_of({"part": aggregation, **more}), part.batch).aggregation.max()
            for aggregation, more in (
                ("token_mean", {}),
                ("sequence_mean_token_sum", {"rows": "all"}),
                ("sequence_mean_token_sum", {"rows": "nonempty"}),
                ("group_token_mean", {}),
            )
        }
        groups = 2 if counts else 1
        assert means == {"token_mean": 1 / 10, "sequence_mean_token_sum": 1 / 4, "group_token_mean": 1 / 3 / groups}


def spec_of(aggregation):
    """The plainest algorithm with an aggregation."""
    return {"id": "tested", "name": "Tested", "parts": {"gate": {"part": "log_prob"}, "aggregation": aggregation}}


def test_attempts_at_one_update_are_told_apart(tmp_path: Path):
    built = Builder(tmp_path / "run", attempts=[attempt(0, status="interrupted"), attempt(1)], reward_names=("right",))
    for number, weight in enumerate((1.0, 2.0)):
        built.manifest["attempts"][number]["reward_weights"] = [weight]
        rows = [
            response(row, [token(row)] * (1 + number), advantages=number, reward=1.0, **{"reward_components.0": 1.0})
            for row in range(2)
        ]
        built.rollout(0, rows, segment=number, attempt=number)
        built.update(0, [(0, row) for row in rows], segment=number, attempt=number, micro_batches=2)
        built.index[0][-1]["micro_batches"] = [{"rollout": 0, "rows": 1, "tokens": 1 + number}] * 2
    bundle = open_bundle(built.write())
    hidden, every = bundle.micro_batches(0), bundle.micro_batches(0, superseded=True)
    assert [(part.attempt, part.micro_batch) for part in hidden] == [(1, 0), (1, 1)]
    assert [(part.attempt, part.micro_batch) for part in every] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for part in every:
        expected = [log_prob(0, part.micro_batch, place) - part.micro_batch / 4 for place in range(part.attempt + 1)]
        assert part.batch["log_probs"].tolist() == [expected] and part.whole
        assert part.batch["advantages"].tolist() == [part.attempt]
        assert part.batch["reward_weights"].tolist() == [part.attempt + 1]


def test_ranks_are_told_apart(tmp_path: Path):
    built = Builder(tmp_path / "run", ranks=2)
    for rank in range(2):
        rows = [response(row, [token(row)], group=rank, advantages=rank) for row in range(2)]
        built.rollout(0, rows, rank=rank)
        built.update(0, [(0, row) for row in rows], rank=rank, micro_batches=2, data_parallel_size=2)
    parts = open_bundle(built.write()).micro_batches(0)
    assert [(part.rank, part.micro_batch) for part in parts] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [part.batch["advantages"].tolist() for part in parts] == [[0], [0], [1], [1]]
    assert [part.row_B.tolist() for part in parts] == [[0], [1], [0], [1]]
    assert {part.batch.normalisers.data_parallel_size for part in parts} == {2}
