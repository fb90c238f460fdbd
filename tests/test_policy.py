import numpy as np
import pytest
import records
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from unipo_hooks.errors import PolicyError
from unipo_hooks.policy import CapturePolicy, Pacing, SharedPacing, kept_rows, policy_from

KEPT_OF_16 = [13, 14, 15]


def paced(total, cost, *, known=True, **policy):
    """Rollouts kept of a run of `total` rollouts that cost `cost(rollout)` bytes each."""
    pacing = Pacing(CapturePolicy(**policy))
    used, kept = 0.0, []
    for rollout in range(total):
        if pacing.admits(rollout, used_bytes=used, progress=rollout / total if known else None):
            used += cost(rollout)
            kept.append(rollout)
    return kept, used


def test_a_short_run_is_kept_whole():
    kept, _ = paced(100, lambda _: 1000.0, max_bytes=200_000)
    assert kept == list(range(100))


def test_a_long_run_stays_within_its_budget_and_is_spread_evenly():
    kept, used = paced(10_000, lambda _: 1000.0, max_bytes=1_000_000)
    assert 500_000 < used <= 1_000_000
    assert kept[0] == 0
    assert kept[-1] > 9_900
    assert np.diff(kept).max() < 30  # one in ten on average


@given(
    total=st.integers(1, 400),
    costs=st.lists(st.floats(1, 1e6), min_size=1, max_size=20),
    budget=st.integers(1, 10**7),
    known=st.booleans(),
)
def test_the_budget_is_passed_by_less_than_the_dearest_rollout(total, costs, budget, known):
    _, used = paced(total, lambda rollout: costs[rollout % len(costs)], known=known, max_bytes=budget)
    assert used <= budget + max(costs)


def test_without_a_known_length_the_stride_grows_and_the_budget_holds():
    kept, used = paced(5_000, lambda _: 1000.0, known=False, max_bytes=200_000)
    assert used <= 200_000
    assert kept[:20] == list(range(20))
    assert kept[-1] > 2_500


def test_every_keeps_one_rollout_in_n():
    kept, _ = paced(10, lambda _: 1.0, every=3)
    assert kept == [0, 3, 6, 9]


def test_groups_are_chosen_by_a_hash_all_ranks_agree_on():
    policy = CapturePolicy(max_groups=3)
    assert policy.kept_groups(5, 16) == KEPT_OF_16  # written down: another process, or rank, must come to the same
    assert CapturePolicy(max_groups=3, seed=1).kept_groups(5, 16) != KEPT_OF_16
    assert policy.kept_groups(5, 3) is None  # all of them


def test_a_resumed_run_whose_budget_is_spent_keeps_nothing_more():
    pacing = Pacing(CapturePolicy(max_bytes=1000), kept=10)
    assert not pacing.admits(10, used_bytes=990.0, progress=None)
    assert Pacing(CapturePolicy(max_bytes=2000), kept=10).admits(10, used_bytes=990.0, progress=None)


def test_every_group_is_as_likely_to_be_kept():
    counts = np.zeros(8)
    for rollout in range(4000):
        counts[CapturePolicy(max_groups=2).kept_groups(rollout, 8)] += 1
    assert np.allclose(counts / 4000, 2 / 8, atol=0.03)


def test_groups_are_kept_whole():
    assert kept_rows(np.array([0, 0, 1, 1, 2]), [0, 2]).tolist() == [True, True, False, False, True]
    assert kept_rows(np.array([0, 1]), None).all()


@pytest.mark.parametrize("wrong", [{"every": 0}, {"max_groups": 0}, {"max_bytes": -1}, {"evry": 2}])
def test_a_policy_that_makes_no_sense_is_refused_by_name(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        CapturePolicy(**wrong)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"evry": 2}, "unknown setting evry; did you mean every? (settings: every, max_groups, max_bytes, seed)"),
        ({"every": -1}, "every=-1: input should be greater than or equal to 1"),
        (
            {"max_bytes": "1GB"},
            "max_bytes='1GB': input should be a valid integer, unable to parse string as an integer",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_what_was_found(settings, line):
    with pytest.raises(PolicyError) as error:
        policy_from(settings)
    assert str(error.value) == line


def rank_rollouts(rank, total):
    """What a rank of two sees of a run: rollouts whose lengths are its own and whose tokens in all are both ranks'."""
    return [
        records.rollout(number, seed=2 * number + rank, tokens_over_ranks=50.0 + 10 * (number % 3))
        for number in range(total)
    ]


def shared(rank, total, *, dropped=(), known=True, **policy):
    """Rollouts a rank of two keeps, and what it takes them to cost."""
    pacing, kept = SharedPacing(CapturePolicy(**policy), 2), []
    for rollout in rank_rollouts(rank, total):
        if rollout.rollout not in dropped and pacing.admits(rollout, total if known else None):
            kept.append(rollout.rollout)
            pacing.trained(records.update(rollout.rollout, rollout, seed=rank), {rollout.rollout: rollout})
    return kept, pacing._used


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("policy", [{}, {"every": 3}, {"max_groups": 1}, {"max_bytes": 40_000, "every": 2}])
def test_ranks_keep_the_same_rollouts_without_a_word(known, policy):
    policy = {"max_bytes": 60_000} | policy
    (first, used), (second, _) = (shared(rank, 300, known=known, **policy) for rank in (0, 1))
    print(f"{len(first)} of 300 kept, {used:.0f} of {policy['max_bytes']} bytes")
    assert first == second and 5 < len(first) < 300
    assert all(number % policy.get("every", 1) == 0 for number in first)
    assert used <= policy["max_bytes"]
    assert first[-1] > (250 if known else 100)


def test_a_rank_that_missed_rollouts_comes_back_to_what_the_others_keep():
    first, _ = shared(0, 400, max_bytes=60_000)
    second, _ = shared(1, 400, max_bytes=60_000, dropped=range(100, 130))
    apart = set(first) ^ set(second)
    inside = {number for number in apart if 100 <= number < 130}
    print(f"{len(first)} kept; apart in {sorted(apart)}")
    assert inside and len(apart - inside) <= len(first) // 10


def test_evaluations_of_several_ranks_share_a_tenth_of_the_budget():
    pacing = SharedPacing(CapturePolicy(max_bytes=100_000), 2)
    rollouts = [records.rollout(number, kind="eval", tokens_over_ranks=50.0) for number in range(40)]
    kept = [rollout.rollout for rollout in rollouts if pacing.admits(rollout, None)]
    assert kept == list(range(len(kept))) and 3 < len(kept) < 12
