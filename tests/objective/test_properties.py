"""What must hold of every objective, whatever the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objective.batches import full_arrays

from unipo_hooks import algorithms
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.objective.describe import given_advantages, merged, needs, parts
from unipo_hooks.objective.evaluate import Evaluation, evaluate
from unipo_hooks.objective.inputs import Batch, Normalisers

seeds = st.integers(0, 10_000)
shapes = st.tuples(st.integers(2, 9), st.integers(1, 8))
few = settings(max_examples=4, derandomize=True, deadline=None)
some = settings(max_examples=30, derandomize=True, deadline=None)
every_algorithm = pytest.mark.parametrize(
    "spec", [spec for spec in algorithms.every() if spec.display is None], ids=lambda spec: spec.id
)

ARRAYS = (
    "advantages",
    "ratio",
    "policy_objective",
    "constraint",
    "policy_weight",
    "constraint_weight",
    "clipped",
    "mask",
    "aggregation",
    "invalid",
)
LOSSES = ("policy_loss", "constraint_loss", "entropy_loss", "loss")


def spec_of(base: AlgorithmSpec | str = "grpo", **slots: Any) -> AlgorithmSpec:
    """An algorithm with some slots replaced."""
    tree = algorithms.get(base).model_dump()
    return AlgorithmSpec.model_validate(tree | {"id": "edited", "parts": tree["parts"] | slots})


def arrays_for(spec: AlgorithmSpec, seed: int, B: int = 8, T: int = 7) -> dict[str, Any]:
    left_out = {"rewards"} - set(needs(spec))
    return {name: values for name, values in full_arrays(seed, B, T).items() if name not in left_out}


def same(a: Evaluation, b: Evaluation, *, rows: Any = slice(None), tolerance: float = 1e-10) -> float:
    """Largest difference of two evaluations, `rows` of a being all of b; each beside the largest value."""
    worst = 0.0
    for name in ARRAYS:
        x, y = np.asarray(getattr(a, name), float)[rows], np.asarray(getattr(b, name), float)
        error = np.abs(x - y).max(initial=0.0) / max(1.0, np.abs(y).max(initial=0.0))
        assert error <= tolerance, f"{name}: {error:.1e}"
        worst = max(worst, error)
    for name in LOSSES:
        error = abs(getattr(a, name) - getattr(b, name)) / max(1.0, a.magnitude)
        assert error <= tolerance, f"{name}: {error:.1e}"
        worst = max(worst, error)
    return worst


@every_algorithm
@few
@given(seed=seeds, garbage=st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -7.0]))
def test_what_stands_at_positions_that_do_not_count_never_matters(spec, seed, garbage):
    arrays = arrays_for(spec, seed)
    dirty = {}
    for name, values in arrays.items():
        if values.shape == arrays["mask"].shape and name != "mask":
            values = np.where(arrays["mask"] > 0, values.astype(float), garbage)
        dirty[name] = values
    clean, other = evaluate(spec, Batch(**arrays)), evaluate(spec, Batch(**dirty))
    for name in ARRAYS:
        assert np.array_equal(getattr(clean, name), getattr(other, name)), name
    for name in LOSSES:
        assert getattr(clean, name) == getattr(other, name), name
    for name in set(ARRAYS) - {"invalid", "clipped"}:
        assert not getattr(clean, name)[arrays["mask"] == 0].any(), name


@every_algorithm
@few
@given(seed=seeds)
def test_the_order_of_responses_and_groups_does_not_matter(spec, seed):
    arrays = arrays_for(spec, seed)
    order = np.random.default_rng(seed).permutation(len(arrays["mask"]))
    shuffled = {name: values if name == "reward_weights" else values[order] for name, values in arrays.items()}
    same(evaluate(spec, Batch(**arrays)), evaluate(spec, Batch(**shuffled)), rows=order)


@every_algorithm
def test_the_names_of_groups_do_not_matter(spec):
    arrays = arrays_for(spec, 1)
    same(evaluate(spec, Batch(**arrays)), evaluate(spec, Batch(**arrays | {"group": 90 - 7 * arrays["group"]})))


@every_algorithm
def test_padding_on_the_right_changes_nothing_but_a_constant_length(spec):
    arrays = arrays_for(spec, 2)
    B, T = arrays["mask"].shape
    wide = {
        name: np.concatenate([values, np.zeros((B, 3))], 1) if values.shape == (B, T) else values
        for name, values in arrays.items()
    }
    normalisers = Normalisers(length=T)
    narrow = evaluate(spec, Batch(normalisers=normalisers, **arrays))
    padded = evaluate(spec, Batch(normalisers=normalisers, **wide))
    for name in ARRAYS:
        assert np.abs(getattr(padded, name)[:, :T].astype(float) - getattr(narrow, name)).max() <= 1e-10, name
        assert not getattr(padded, name)[:, T:].any(), name
    assert padded.loss == pytest.approx(narrow.loss, abs=1e-10)


@every_algorithm
@few
@given(seed=seeds)
def test_the_loss_is_what_its_tokens_say(spec, seed):
    found = evaluate(spec, Batch(normalisers=Normalisers(accumulation_steps=2), **arrays_for(spec, seed)))
    of_tokens = -(found.aggregation * found.token_objective).sum() + found.entropy_loss
    assert abs(found.loss - of_tokens) <= 1e-10 * max(1.0, found.magnitude)
    assert found.loss == found.policy_loss + found.constraint_loss + found.entropy_loss
    assert np.array_equal(found.gradient_weight, found.policy_weight + found.constraint_weight)


@every_algorithm
def test_more_ranks_divide_the_gradient_weight_and_leave_the_loss(spec):
    arrays = arrays_for(spec, 3)
    one = evaluate(spec, Batch(**arrays))
    four = evaluate(spec, Batch(normalisers=Normalisers(data_parallel_size=4), **arrays))
    every = [merged(spec.parts, component.parts) for component in spec.mixture] or [spec.parts]
    sums = {parts.aggregation.part == "token_sum" for parts in every}
    if sums == {False}:
        assert four.loss == one.loss
        assert np.array_equal(four.gradient_weight, one.gradient_weight / 4)
    else:
        # A sum over the update is to be left when the ranks have averaged: each takes its own times their number.
        summed = four.gradient_weight == one.gradient_weight
        divided = four.gradient_weight == one.gradient_weight / 4
        assert (summed | divided).all()
        assert sums == {True, False} or (summed.all() and four.loss == 4 * one.loss)


@every_algorithm
def test_nothing_a_caller_passed_is_changed_and_nothing_shared(spec):
    arrays = arrays_for(spec, 4)
    for values in arrays.values():
        values.flags.writeable = False
    first = evaluate(spec, Batch(**arrays))
    second = evaluate(spec, arrays)
    assert same(first, second) == 0.0
    for name in set(ARRAYS) - {"invalid"}:
        values = getattr(first, name)
        assert values.shape == arrays["mask"].shape, name
        assert values.dtype == (np.uint8 if name == "clipped" else np.float64), name
        assert not any(np.shares_memory(values, given) for given in arrays.values()), name


# --- identities ------------------------------------------------------------------------------------------------------


@some
@given(seed=seeds, shape=shapes)
def test_at_ratio_one_grpo_is_reinforce_with_a_group_baseline(seed, shape):
    for scale in ([], [{"part": "group_std"}]):
        grpo = spec_of(constraint=[], scale=scale)
        reinforce = spec_of(grpo, ratio={"part": "one"}, bounds={"part": "unbounded"}, gate={"part": "log_prob"})
        arrays = arrays_for(grpo, seed, *shape)
        arrays["log_probs"] = arrays["old_log_probs"]
        a, b = evaluate(grpo, Batch(**arrays)), evaluate(reinforce, Batch(**arrays))
        assert np.abs(a.gradient_weight - b.gradient_weight).max() <= 1e-12
        assert np.array_equal(a.advantages, b.advantages)
        assert not a.clipped.any()


@some
@given(seed=seeds, shape=shapes)
def test_gspo_pushes_like_gspo_token_where_a_response_has_one_advantage(seed, shape):
    of_sequence = spec_of(ratio={"part": "sequence_mean"}, constraint=[])
    of_token = spec_of(ratio={"part": "sequence_mean_detached"}, constraint=[])
    batch = Batch(**arrays_for(of_sequence, seed, *shape))
    error = same(evaluate(of_sequence, batch), evaluate(of_token, batch), tolerance=1e-12)
    assert error <= 1e-12


@some
@given(seed=seeds, shape=shapes)
def test_bounds_far_away_never_clip(seed, shape):
    wide = {"part": "around_one", "epsilon_low": 1.0, "epsilon_high": 1e12}
    clip = spec_of(bounds=wide, gate={"part": "ppo_clip"})
    plain = spec_of(bounds={"part": "unbounded"}, gate={"part": "plain_ratio"})
    batch = Batch(**arrays_for(clip, seed, *shape))
    a, b = evaluate(clip, batch), evaluate(plain, batch)
    assert same(a, b) == 0.0
    keeps = evaluate(spec_of(clip, gate={"part": "gradient_preserving_clip"}), batch)
    assert same(keeps, b) == 0.0
    one = evaluate(spec_of(bounds=wide, gate={"part": "hard_mask", "importance": True}), batch)
    capped = evaluate(spec_of(bounds=wide, gate={"part": "capped_weight"}), batch)
    assert np.array_equal(one.policy_weight, b.policy_weight)
    assert np.array_equal(capped.policy_weight, b.policy_weight)


@some
@given(seed=seeds, rows=st.integers(1, 9))
def test_responses_of_one_token_know_no_levels(seed, rows):
    arrays = arrays_for(algorithms.get("grpo"), seed, rows, 1)
    arrays["segments"] = np.zeros((rows, 1))
    batch = Batch(**arrays)
    token = evaluate(spec_of(), batch)
    for level in ("sequence_mean", "sequence_product", "sequence_mean_detached", "segment"):
        same(token, evaluate(spec_of(ratio={"part": level}), batch), tolerance=1e-12)
    for aggregation in ("token_mean", "sequence_mean_token_sum", "sequence_mean_constant_length"):
        same(token, evaluate(spec_of(aggregation={"part": aggregation}), batch), tolerance=1e-12)


CENTRED = ("group_mean", "leave_one_out", "length_weighted_mean", "batch_mean", "second_best", "shifted_group_mean")


@some
@given(seed=seeds, shape=shapes, shift=st.sampled_from([-3.0, 0.1, 0.7, 1e3]))
def test_a_constant_on_all_rewards_changes_no_centred_advantage(seed, shape, shift):
    for baseline in CENTRED:
        for scale in ([], [{"part": "group_std", "eps": 0.0}], [{"part": "batch_whiten"}]):
            spec = spec_of(baseline={"part": baseline}, scale=scale)
            arrays = arrays_for(spec, seed, *shape)
            before = evaluate(spec, Batch(**arrays))
            after = evaluate(spec, Batch(**arrays | {"reward": arrays["reward"] + shift}))
            assert np.abs(before.advantages - after.advantages).max() <= 1e-7, (baseline, scale)


@some
@given(seed=seeds, shape=shapes)
def test_a_constant_on_the_rewards_of_one_group_changes_nothing_for_its_own_baseline(seed, shape):
    for baseline in ("group_mean", "leave_one_out", "length_weighted_mean", "second_best"):
        spec = spec_of(baseline={"part": baseline})
        arrays = arrays_for(spec, seed, *shape)
        before = evaluate(spec, Batch(**arrays))
        moved = arrays["reward"] + np.where(arrays["group"] == 0, 2.5, 0.0)
        after = evaluate(spec, Batch(**arrays | {"reward": moved}))
        assert np.abs(before.advantages - after.advantages).max() <= 1e-8, baseline


@some
@given(seed=seeds, shape=shapes, factor=st.sampled_from([1e-3, 0.3, 7.0, 1e4]))
def test_the_unit_of_the_reward_does_not_matter_after_division_by_a_deviation(seed, shape, factor):
    for scale in ("group_std", "batch_std_of_rewards", "batch_whiten", "token_whiten"):
        spec = spec_of(scale=[{"part": scale, "eps": 0.0}])
        arrays = arrays_for(spec, seed, *shape)
        before = evaluate(spec, Batch(**arrays))
        after = evaluate(spec, Batch(**arrays | {"reward": arrays["reward"] * factor}))
        assert np.abs(before.advantages - after.advantages).max() <= 1e-8, scale


@some
@given(seed=seeds, groups=st.integers(1, 4))
def test_leave_one_out_is_the_group_mean_times_n_over_n_minus_one(seed, groups):
    arrays = arrays_for(algorithms.get("grpo"), seed, 4 * groups)
    mean = evaluate(spec_of(scale=[]), Batch(**arrays)).advantages
    others = evaluate(spec_of(baseline={"part": "leave_one_out"}, scale=[]), Batch(**arrays)).advantages
    assert np.abs(others - mean * 4 / 3).max() <= 1e-12


@some
@given(seed=seeds, low=st.floats(0.01, 0.99), high=st.floats(0.01, 5.0))
def test_clipped_says_where_the_policy_term_is_silent(seed, low, high):
    bounds = {"part": "around_one", "epsilon_low": low, "epsilon_high": high}
    spec = spec_of(bounds=bounds, gate={"part": "ppo_clip", "dual_clip": 1.2})
    found = evaluate(spec, Batch(**arrays_for(spec, seed)))
    live = (found.mask > 0) & (found.advantages != 0)
    assert np.array_equal(found.clipped[live] > 0, found.policy_weight[live] == 0)


# --- accumulation ----------------------------------------------------------------------------------------------------

ADDS_UP = {
    "sequence_mean_token_mean": {"rows": 8},
    "sequence_mean_token_sum": {"rows": 8},
    "sequence_mean_constant_length": {"rows": 8, "length": 7},
    "token_mean": {"tokens": None},
    "group_token_mean": {"accumulation_steps": 2},
    "token_sum": {},
    "sequence_sum_token_mean": {},
}


def test_every_aggregation_is_known_here():
    assert set(ADDS_UP) >= {name for name in parts("aggregation")}


@pytest.mark.parametrize("aggregation", ADDS_UP)
@few
@given(seed=seeds)
def test_micro_batches_add_up_to_their_update(aggregation, seed):
    kl = {"part": "kl", "beta": 0.1}
    spec = given_advantages(spec_of(aggregation={"part": aggregation}, constraint=[kl]))
    arrays = arrays_for(spec, seed)
    known = dict(ADDS_UP[aggregation])
    if "tokens" in known:
        known["tokens"] = arrays["mask"].sum()
    normalisers = Normalisers(**known)
    whole = evaluate(spec, Batch(**arrays))
    halves = []
    for rows in (slice(0, 4), slice(4, 8)):
        own = {name: values if name == "reward_weights" else values[rows] for name, values in arrays.items()}
        halves.append(evaluate(spec, Batch(normalisers=normalisers, **own)))
    assert sum(each.loss for each in halves) == pytest.approx(whole.loss, abs=1e-12)
    joined = np.concatenate([each.gradient_weight for each in halves])
    assert np.abs(joined - whole.gradient_weight).max() <= 1e-12


@few
@given(seed=seeds)
def test_equal_micro_batches_need_no_normalisers_but_their_number(seed):
    arrays = arrays_for(algorithms.get("grpo"), seed, 4)
    for aggregation in ("sequence_mean_token_mean", "sequence_mean_constant_length", "token_mean"):
        spec = spec_of(aggregation={"part": aggregation})
        whole = evaluate(spec, Batch(**arrays))
        thrice = evaluate(spec, Batch(normalisers=Normalisers(accumulation_steps=3), **arrays))
        assert 3 * thrice.loss == pytest.approx(whole.loss, abs=1e-12)
        assert np.abs(3 * thrice.gradient_weight - whole.gradient_weight).max() <= 1e-12
