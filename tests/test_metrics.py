from dataclasses import replace

import numpy as np
import pytest
import records

from unipo_hooks import algorithms
from unipo_hooks.metrics import group_stds, update_sums


def mean(sums, name):
    total, count, _ = sums[name]
    return total / count


def naive(update, rollout):
    """Every metric with plain loops over responses and tokens."""
    ratios, entropies, low, high, advantages = [], [], [], [], []
    for batch in update.micro_batches:
        for i, row in enumerate(batch.rows_b):
            advantage = rollout.channels["advantages"][row]
            advantages.append(advantage)
            for t in range(rollout.length_B[row]):
                if not rollout.mask_BT[row, t]:
                    continue
                old = rollout.channels["old_log_probs"][row, t]
                ratio = np.exp(np.float64(batch.channels["log_probs"][i, t]) - old)
                ratios.append(ratio)
                entropies.append(batch.channels["entropies"][i, t])
                low.append(ratio < 0.8 and advantage < 0)
                high.append(ratio > 1.2 and advantage > 0)
    return {
        "importance_sampling_ratio": np.mean(ratios),
        "entropy": np.mean(entropies),
        "clip_fraction_low": np.mean(low),
        "clip_fraction_high": np.mean(high),
        "clip_fraction": np.mean(low) + np.mean(high),
        "advantage_mean": np.mean(advantages),
        "reward": rollout.reward_B.mean(),
        "response_length": rollout.length_B.mean(),
        "policy_loss": sum(m.loss for m in update.micro_batches),
        "policy_objective": -sum(m.loss for m in update.micro_batches),
    }


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_metrics_equal_plain_loops_over_the_tokens_that_count(micro_batches):
    rollout = records.rollout(rows=12)
    rollout.mask_BT[3] = False
    update = records.update(0, rollout, rows=9, micro_batches=micro_batches)
    sums = update_sums(update, {0: rollout}, records.run_info())
    expected = naive(update, rollout)
    errors = {name: abs(mean(sums, name) - value) for name, value in expected.items()}
    print("largest error", max(errors.values()))
    assert max(errors.values()) < 1e-6


def test_sums_of_two_halves_add_up_to_those_of_the_whole():
    rollout = records.rollout(rows=8)
    whole = records.update(0, rollout, micro_batches=2)
    first, second = (
        update_sums(replace(whole, micro_batches=[micro_batch]), {0: rollout}, records.run_info())
        for micro_batch in whole.micro_batches
    )
    together = update_sums(whole, {0: rollout}, records.run_info())
    for name in ("importance_sampling_ratio", "entropy", "clip_fraction", "advantage_mean"):
        assert np.allclose(np.add(first[name], second[name]), together[name])


def test_at_sequence_level_a_response_counts_once():
    rollout = records.rollout(rows=4)
    update = records.update(0, rollout)
    sums = update_sums(update, {0: rollout}, records.run_info(ratio_level="sequence"))
    assert sums["importance_sampling_ratio"][1] == 4
    assert sums["entropy"][1] == rollout.length_B.sum()


def test_at_sequence_level_clip_fractions_are_of_all_responses_as_in_trl():
    rollout = records.rollout(rows=8)
    rollout.mask_BT[:6] = False
    sums = update_sums(records.update(0, rollout), {0: rollout}, records.run_info(ratio_level="sequence"))
    assert sums["clip_fraction"][1] == 8
    assert sums["importance_sampling_ratio"][1] == 2


def test_where_the_old_log_probs_are_unknown_there_is_no_ratio():
    rollout = records.rollout(channels={"advantages": np.ones(8, np.float32)})
    sums = update_sums(records.update(0, rollout), {0: rollout}, records.run_info())
    for name in ("importance_sampling_ratio", "clip_fraction"):
        assert sums.get(name, (0.0, 0.0, 0.0))[1] == 0


def test_where_old_log_probs_are_the_current_ones_every_ratio_is_one():
    rollout = records.rollout(channels={"advantages": np.ones(8, np.float32)}, aliases={"old_log_probs": "log_probs"})
    sums = update_sums(records.update(0, rollout), {0: rollout}, records.run_info())
    assert mean(sums, "importance_sampling_ratio") == 1
    assert mean(sums, "clip_fraction") == 0


def test_a_group_with_equal_rewards_has_no_spread_and_unscored_responses_are_left_out():
    stds = group_stds(np.array([1, 1, 1, 0, 2, np.nan, np.nan, 5.0]), np.array([0, 0, 0, 1, 1, 1, 2, 2]))
    assert stds[0] == 0
    assert stds[1] == pytest.approx(np.sqrt(2))
    assert np.isnan(stds[2])  # one scored response has no spread


def test_numbers_that_are_not_finite_never_reach_a_metric():
    rollout = records.rollout()
    update = records.update(0, rollout)
    update.micro_batches[0].channels["log_probs"][0] = np.nan
    update.micro_batches[0].channels["log_probs"][1] = 500.0
    sums = update_sums(update, {0: rollout}, records.run_info())
    assert all(np.isfinite(values).all() for values in sums.values())


def test_empty_responses_are_counted_as_responses_and_have_no_tokens():
    rollout = records.rollout(length_B=np.zeros(8, int), mask_BT=np.zeros((8, 6), bool))
    sums = update_sums(records.update(0, rollout), {0: rollout}, records.run_info())
    assert sums["response_length"][:2] == (0, 8)
    assert sums["entropy"] == (0, 0, 0)


@pytest.mark.parametrize("level", ["sequence", "product"])
def test_a_ratio_of_a_response_is_the_mean_or_the_product_of_its_tokens_ratios(level):
    rollout = records.rollout(rows=6)
    rollout.mask_BT[2] = False
    update = records.update(0, rollout)
    (batch,) = update.micro_batches
    mask, advantages = rollout.mask_BT[batch.rows_b], rollout.channels["advantages"][batch.rows_b]
    log_ratio = np.where(mask, batch.channels["log_probs"] - rollout.channels["old_log_probs"][batch.rows_b], 0)
    lengths = mask.sum(1)
    each = np.exp(log_ratio.sum(1) / (np.maximum(lengths, 1) if level == "sequence" else 1))
    sums = update_sums(update, {0: rollout}, records.run_info(ratio_level=level))
    assert mean(sums, "importance_sampling_ratio") == pytest.approx(each[lengths > 0].mean(), rel=1e-6)
    clipped = ((each < 0.8) & (advantages < 0)) | ((each > 1.2) & (advantages > 0))
    assert mean(sums, "clip_fraction") == clipped.mean()
    assert 0 < clipped.mean() < 1


@pytest.mark.parametrize("level", ["token", "sequence", "product"])
def test_entropy_needs_no_ratio_and_an_unknown_ratio_is_no_clip_fraction_of_zero(level):
    rollout = records.rollout(channels={"advantages": np.ones(8, np.float32)})
    sums = update_sums(records.update(0, rollout), {0: rollout}, records.run_info(ratio_level=level))
    assert sums["entropy"][1] == rollout.length_B.sum()
    assert sums["clip_fraction"][1] == sums["importance_sampling_ratio"][1] == 0


def test_a_group_that_spans_ranks_counts_once_and_whole():
    reward_R = np.array([1.0, 2.0, 4.0, 8.0, 3.0, 3.0, 0.0, 1.0, 5.0, 9.0, 2.0, 2.0], np.float32)  # 3 groups of 4
    found, counts = {}, []
    for rank in (0, 1):
        rows = slice(6 * rank, 6 * rank + 6)
        changes = {"reward_B": reward_R[rows], "reward_R": reward_R, "group_B": np.arange(12)[rows] // 4, "groups": 3}
        rollout = records.rollout(0, rows=6, **changes)
        sums = update_sums(records.update(0, rollout), {0: rollout}, records.run_info(rank=rank, ranks=2))
        counts.append(sums["group_reward_std"][1])
        found[rank] = sums["group_reward_std"][0]
    expected = [float(np.std(reward_R[start : start + 4], ddof=1)) for start in (0, 4, 8)]
    assert counts == [2, 1]  # the one in the middle begins on rank 0
    assert found[0] == pytest.approx(expected[0] + expected[1]) and found[1] == pytest.approx(expected[2])


def difference(a, b):
    """Largest relative difference of any sum of two sets of metrics, which have the same names."""
    assert a.keys() == b.keys()
    return max(abs(x - y) / max(1.0, abs(x)) for name in a for x, y in zip(a[name], b[name], strict=True))


@pytest.mark.parametrize("level", ["token", "sequence", "product"])
@pytest.mark.parametrize("kept", [(), (1,), (0, 2)])
def test_metrics_of_an_update_that_left_rows_behind_are_those_of_the_whole(level, kept):
    random = np.random.default_rng(5)
    whole = records.rollout(rows=12)
    whole.mask_BT[4] = False
    for per_token in (False, True):
        if per_token:
            whole.channels["advantages"] = random.normal(size=(12, 6)).astype(np.float32)
        run = records.run_info(ratio_level=level)
        update = records.update(0, whole, micro_batches=3)
        part = records.handing_over(update, whole, kept, run)
        expected = update_sums(update, {0: whole}, run)
        found = update_sums(part, {0: records.without(whole, kept)}, run)
        error = difference(expected, found)
        print("largest error", error)
        assert error < 1e-12


def test_the_loss_of_several_data_parallel_ranks_is_their_mean():
    rollout = records.rollout()
    update = records.update(0, rollout, micro_batches=4, data_parallel_size=2)
    parts = [replace(part, rank=number % 2, loss=float(number)) for number, part in enumerate(update.micro_batches)]
    sums = update_sums(replace(update, micro_batches=parts), {0: rollout}, records.run_info())
    assert sums["policy_loss"] == (6.0, 2.0, 4.0 + 16.0)  # 0 + 2 on one, 1 + 3 on the other
    assert mean(sums, "total_loss") == sum(part.loss for part in parts) / update.data_parallel_size
    shares = [replace(update, micro_batches=[part for part in parts if part.rank == rank]) for rank in (0, 1)]
    apart = [update_sums(share, {0: rollout}, records.run_info()) for share in shares]
    assert tuple(np.add(apart[0]["policy_loss"], apart[1]["policy_loss"])) == sums["policy_loss"]


@pytest.mark.parametrize("part", ["sequence_kl_penalty", "token_kl_penalty"])
def test_a_penalty_in_the_reward_has_its_divergence_among_the_metrics(part):
    grpo = algorithms.get("grpo")
    parts = grpo.parts.model_copy(update={"reward": [grpo.parts.ratio.model_copy(update={"part": part})]})
    run = records.run_info(algorithm=grpo.model_copy(update={"parts": parts}))
    rollout = records.rollout()
    rollout.channels["ref_log_probs"] = rollout.channels["old_log_probs"] - 0.25
    update = records.update(0, rollout)
    sums = update_sums(update, {0: rollout}, run)
    assert mean(sums, "kl") == pytest.approx(0.25) and sums["kl"][1] == rollout.length_B.sum()
    assert "kl" not in update_sums(update, {0: rollout}, records.run_info(algorithm=grpo))


def test_old_log_probs_that_are_the_samplers_make_the_ratio():
    rollout = records.rollout()
    channels = dict(rollout.channels)
    channels["rollout_log_probs"] = channels.pop("old_log_probs")
    aliased = replace(rollout, channels=channels, aliases={"old_log_probs": "rollout_log_probs"})
    update = records.update(0, rollout)
    expected, found = (update_sums(update, {0: of}, records.run_info()) for of in (rollout, aliased))
    assert found == expected
