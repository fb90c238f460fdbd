"""Where definitions meet their limits: ties, nothing to average, huge numbers, broken numbers, wrong input."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from objective.batches import full_arrays

from unipo_hooks import algorithms, evaluate
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.errors import AlgorithmError, MissingInputError
from unipo_hooks.objective import describe
from unipo_hooks.objective.evaluate import CLIPPED, Evaluation
from unipo_hooks.objective.inputs import INPUTS, Batch

COMPUTED = [spec for spec in algorithms.every() if spec.display is None]
every_algorithm = pytest.mark.parametrize("spec", COMPUTED, ids=lambda spec: spec.id)
OUTPUTS = (
    "advantages",
    "ratio",
    "policy_objective",
    "constraint",
    "token_objective",
    "policy_weight",
    "constraint_weight",
    "gradient_weight",
    "mask",
    "aggregation",
)
CODES = {meaning: code for code, meaning in CLIPPED.items()}


def finite(found: Evaluation) -> bool:
    """Whether nothing in an evaluation is NaN or infinite."""
    arrays = all(np.isfinite(getattr(found, name)).all() for name in OUTPUTS)
    return arrays and all(np.isfinite(getattr(found, name)) for name in ("loss", "policy_loss", "constraint_loss"))


def spec_of(**slots: Any) -> AlgorithmSpec:
    parts = {
        "baseline": {"part": "recorded"},
        "bounds": {"part": "around_one"},
        "gate": {"part": "ppo_clip"},
        "aggregation": {"part": "token_mean"},
    }
    return AlgorithmSpec(id="edge", name="edge", parts=parts | slots)


def one_row(ratios: list[float], advantages: list[float], **slots: Any) -> Evaluation:
    """A response with these ratios and advantages, token by token."""
    old = np.full((1, len(ratios)), -3.0)
    batch = {"log_probs": old + np.log(ratios), "old_log_probs": old, "mask": np.ones(old.shape)}
    return evaluate(spec_of(**slots), batch | {"advantages": np.array([advantages])})


def whole(ratio: float) -> float:
    """A ratio as log and exp give it back."""
    return float(np.exp(-3.0 + np.log(ratio) + 3.0))


def arrays_for(spec: AlgorithmSpec, seed: int = 0, B: int = 8, T: int = 7) -> dict[str, Any]:
    left_out = {"rewards"} - set(algorithms.needs(spec))
    return {name: values for name, values in full_arrays(seed, B, T).items() if name not in left_out}


# --- ties ------------------------------------------------------------------------------------------------------------


def test_a_ratio_exactly_at_its_bound_is_not_clipped_and_still_pushes():
    high, low = whole(2.0), whole(0.5)
    found = one_row(
        [2.0, 0.5, 1.0], [1.0, -1.0, 0.0], bounds={"part": "absolute", "ratio_low": low, "ratio_high": high}
    )
    assert found.ratio.tolist() == [[high, low, 1.0]]
    assert not found.clipped.any()
    assert np.allclose(found.gradient_weight, [[-high / 3, low / 3, 0.0]], rtol=1e-15)


def test_an_advantage_of_zero_is_never_clipped_and_never_pushes():
    for gate in describe.parts("gate"):
        if gate == "squared_residual" or "group" in describe.describe("gate", gate).needs:
            # A target in place of an advantage, or none at all.
            continue
        found = one_row([0.01, 1.0, 50.0], [0.0, 0.0, 0.0], gate={"part": gate})
        assert not found.gradient_weight.any(), gate
        assert not np.isin(found.clipped, range(1, 5)).any() or gate == "capped_weight", gate
        assert found.loss == 0.0, gate


def test_a_dual_clip_exactly_reached_is_not_clipped():
    bounds, gate = {"part": "around_one"}, {"part": "ppo_clip", "dual_clip": 4.0}
    found = one_row([4.0, 8.0], [-1.0, -1.0], bounds=bounds, gate=gate)
    assert found.clipped.tolist() == [[0, CODES["dual clip"]]]
    assert found.gradient_weight.tolist() == [[2.0, 0.0]]
    assert found.policy_objective.tolist() == [[-4.0, -4.0]]


def test_a_delta_exactly_reached_is_not_clipped():
    found = one_row([4.0, 8.0, 8.0], [-1.0, -1.0, 1.0], gate={"part": "ppo_clip", "delta": 4.0})
    assert found.clipped.tolist() == [[0, CODES["upper cap"], CODES["above the range"]]]
    assert found.gradient_weight.tolist() == [[4.0 / 3, 0.0, 0.0]]


# --- nothing to average ----------------------------------------------------------------------------------------------


@every_algorithm
def test_a_batch_in_which_nothing_counts_has_loss_zero(spec):
    arrays = arrays_for(spec)
    arrays["mask"][:] = 0
    found = evaluate(spec, arrays)
    assert found.loss == 0.0
    assert finite(found)
    assert not found.gradient_weight.any()
    assert not found.aggregation.any()


@every_algorithm
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 1), (2, 2)])
def test_small_batches_are_defined(spec, shape):
    arrays = arrays_for(spec, 1, *shape)
    assert finite(evaluate(spec, arrays))
    arrays["mask"][0] = 0
    assert finite(evaluate(spec, arrays))


@every_algorithm
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_a_batch_of_no_rows_or_no_tokens_has_loss_zero(spec, shape):
    B, T = shape
    arrays = {}
    for name, values in arrays_for(spec, 1, 3, 4).items():
        axes = INPUTS[name].axes
        arrays[name] = values[:B, :T] if axes in ("BT", "B|BT") and values.ndim == 2 else values
        arrays[name] = values[:B] if axes in ("B", "BK", "B|BT") and arrays[name] is values else arrays[name]
    found = evaluate(spec, arrays)
    assert found.loss == 0.0
    assert found.gradient_weight.shape == shape


@every_algorithm
def test_groups_of_one_are_defined(spec):
    arrays = arrays_for(spec, 2)
    arrays["group"] = np.arange(len(arrays["group"]))
    assert finite(evaluate(spec, arrays))


def test_a_group_of_one_teaches_nothing_unless_it_is_told_to_compare_with_zero():
    batch = arrays_for(algorithms.get("grpo"), 2) | {"group": np.arange(8)}
    for baseline, scale in itertools.product(("group_mean", "leave_one_out", "length_weighted_mean"), (True, False)):
        for singleton in ("self", "zero"):
            spec = spec_of(
                baseline={"part": baseline, "singleton": singleton},
                scale=[{"part": "group_std", "eps": 0.0, "singleton": singleton}] if scale else [],
            )
            expected = np.where(batch["mask"] > 0, batch["reward"][:, None] * (singleton == "zero"), 0.0)
            assert np.array_equal(evaluate(spec, batch).advantages, expected), (baseline, scale, singleton)


@pytest.mark.parametrize("reward", [0.1 + 0.2, 1 / 3, 1e-300, 1e300, -7.1])
def test_equal_rewards_have_advantage_exactly_zero_even_without_epsilon(reward):
    batch = arrays_for(algorithms.get("grpo"), 3) | {"reward": np.full(8, reward)}
    batch["group"] = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    for baseline in ("group_mean", "leave_one_out", "length_weighted_mean"):
        for scale in (["group_std"], ["batch_std_of_rewards"], ["batch_whiten"], ["token_whiten"], []):
            spec = spec_of(baseline={"part": baseline}, scale=[{"part": name, "eps": 0.0} for name in scale])
            found = evaluate(spec, batch)
            assert not found.advantages.any(), (baseline, scale)
            assert found.loss == 0.0


@pytest.mark.parametrize("reward", [0.1 + 0.2, 1 / 3, -7.1])
def test_equal_rewards_of_a_batch_have_advantage_exactly_zero_where_the_batch_is_the_baseline(reward):
    batch = arrays_for(algorithms.get("grpo"), 3, B=7) | {"reward": np.full(7, reward)}
    for scale in ([], ["batch_std_of_rewards"], ["batch_whiten"], ["token_whiten"]):
        for eps in (0.0, 1e-8):
            spec = spec_of(baseline={"part": "batch_mean"}, scale=[{"part": name, "eps": eps} for name in scale])
            assert not evaluate(spec, batch).advantages.any(), (scale, eps)


# --- huge and broken numbers -----------------------------------------------------------------------------------------


@every_algorithm
@pytest.mark.parametrize("log", [50.0, -50.0, 1000.0, -1000.0])
def test_log_ratios_of_any_size_give_finite_numbers(spec, log):
    for name in ("old_log_probs", "ref_log_probs", "rollout_log_probs", "augmented_log_probs", "dpo_log_probs"):
        arrays = arrays_for(spec, 4)
        arrays[name] = arrays["log_probs"] - log
        assert finite(evaluate(spec, arrays)), name
    arrays = arrays_for(spec, 4)
    arrays["log_probs"] = arrays["log_probs"] + log
    assert finite(evaluate(spec, arrays))


@every_algorithm
def test_a_broken_number_at_a_counting_token_is_left_out_and_told(spec):
    clean = arrays_for(spec, 5)
    per_token = {name for name, each in INPUTS.items() if "BT" in each.axes}
    looked_at = {"log_probs", *describe.inputs(spec)} & per_token & clean.keys()
    before = evaluate(spec, clean)
    for name in sorted(looked_at):
        for value in (np.nan, np.inf, -np.inf):
            arrays = {key: values.astype(float) for key, values in clean.items()}
            if arrays[name].ndim == 1:
                arrays[name] = np.repeat(arrays[name][:, None], 7, axis=1)
            arrays[name][0, 0] = value
            found = evaluate(spec, arrays)
            assert finite(found), (name, value)
            assert found.invalid.sum() == 1 and found.invalid[0, 0], name
            assert found.gradient_weight[0, 0] == 0.0, name
            assert found.policy_objective[0, 0] == 0.0, name
            assert any("1 token" in note for note in found.notes), found.notes
            if not spec.parts.mask and not spec.parts.filter and not spec.mixture:
                assert np.array_equal(found.aggregation, before.aggregation), f"{name}: the token keeps its place"


@every_algorithm
def test_a_response_without_a_finite_reward_is_told_and_has_no_advantage(spec):
    if "reward" not in algorithms.needs(spec) and "reward_components" not in algorithms.needs(spec):
        return
    for value in (np.nan, np.inf, -np.inf):
        arrays = arrays_for(spec, 6)
        for name in ("reward", "reward_components", "rewards"):
            if name in arrays:
                arrays[name] = arrays[name].astype(float)
                arrays[name][2] = value
        found = evaluate(spec, arrays)
        assert finite(found), value
        if "rewards" not in algorithms.needs(spec):
            assert any("1 response" in note for note in found.notes), found.notes


@every_algorithm
def test_a_broken_number_of_a_response_is_left_out_and_told(spec):
    clean = arrays_for(spec, 5)
    per_response = {name for name, each in INPUTS.items() if each.axes in ("B", "B|BT")} - {"reward"}
    for name in sorted(set(describe.inputs(spec)) & per_response & clean.keys()):
        for value in (np.nan, np.inf, -np.inf):
            arrays = {key: values.astype(float) for key, values in clean.items()}
            if arrays[name].ndim == 2:
                arrays[name] = arrays[name].mean(1)
            arrays[name][2] = value
            found = evaluate(spec, arrays)
            assert finite(found), (name, value)
            assert np.array_equal(found.invalid[2], arrays["mask"][2] > 0), name
            assert not found.policy_objective[2].any(), name
            assert not np.delete(found.invalid, 2, 0).any(), name
            assert found.notes, name


@every_algorithm
@pytest.mark.parametrize("rows", [slice(0, 4), slice(0, 8)], ids=["a group", "every group"])
def test_a_group_without_a_finite_reward_is_defined(spec, rows):
    arrays = arrays_for(spec, 6)
    for name in ("reward", "reward_components", "rewards"):
        if name in arrays:
            arrays[name] = arrays[name].astype(float)
            arrays[name][rows] = np.nan
    found = evaluate(spec, arrays)
    assert finite(found)
    if "reward" in algorithms.needs(spec):
        assert not found.advantages[rows].any() or spec.mixture or spec.parts.baseline.part == "unit"


def test_a_response_without_a_reward_leaves_its_group_to_the_others():
    for baseline in ("group_mean", "leave_one_out", "length_weighted_mean", "batch_mean"):
        spec = spec_of(baseline={"part": baseline}, scale=[{"part": "group_std"}])
        arrays = arrays_for(spec, 7)
        arrays["reward"][2] = np.nan
        found = evaluate(spec, arrays)
        rest = {
            name: values if name == "reward_weights" else np.delete(values, 2, 0) for name, values in arrays.items()
        }
        assert not found.advantages[2].any()
        assert np.allclose(np.delete(found.advantages, 2, 0), evaluate(spec, rest).advantages, atol=1e-12), baseline


def test_a_broken_array_that_is_not_looked_at_matters_not():
    arrays = arrays_for(algorithms.get("grpo"), 8)
    before = evaluate("grpo", arrays)
    after = evaluate("grpo", arrays | {"values": np.full(arrays["mask"].shape, np.nan)})
    assert after.loss == before.loss
    assert not after.invalid.any()


# --- wrong input -----------------------------------------------------------------------------------------------------


def test_numbers_of_any_type_are_taken():
    arrays = arrays_for(algorithms.get("grpo"), 9)
    arrays["reward"] = np.round(arrays["reward"])
    single = {name: values.astype(np.float32) for name, values in arrays.items()}
    double = {name: values.astype(np.float64) for name, values in single.items()}
    other = single | {
        "mask": arrays["mask"].astype(bool),
        "reward": arrays["reward"].astype(np.int8),
        "group": arrays["group"].astype(np.uint16),
    }
    lists = {name: values.tolist() for name, values in double.items()}
    expected = evaluate("grpo", double)
    for each in (single, other, lists):
        found = evaluate("grpo", each)
        assert found.loss == expected.loss
        assert np.array_equal(found.gradient_weight, expected.gradient_weight)
        assert found.gradient_weight.dtype == np.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_prob": np.zeros((8, 7))}, "unknown input log_prob; did you mean log_probs?"),
        ({"log_probs": np.zeros(8)}, r"log_probs has shape \(8,\); \(responses, tokens\) is needed"),
        ({"mask": np.ones((8, 6))}, r"mask has shape \(8, 6\); \(8, 7\) is needed"),
        ({"reward": np.zeros((8, 1))}, r"reward has shape \(8, 1\); \(8,\) is needed"),
        ({"group": np.zeros(7)}, r"group has shape \(7,\); \(8,\) is needed"),
        ({"advantages": np.zeros((8, 1))}, r"advantages has shape \(8, 1\); \(8,\) or \(8, 7\) is needed"),
        ({"reward_components": np.zeros(8)}, r"reward_components has shape \(8,\); \(8, reward functions\)"),
        ({"old_log_probs": np.full((8, 7), "a")}, "old_log_probs is not numeric"),
    ],
)
def test_a_wrong_array_is_named(change, message):
    arrays = arrays_for(algorithms.get("grpo"), 9)
    with pytest.raises(AlgorithmError, match=message):
        Batch(**arrays | change)


def test_a_batch_without_log_probs_or_mask_is_none():
    with pytest.raises(MissingInputError, match="a batch needs mask"):
        Batch(log_probs=np.zeros((1, 1)))
    with pytest.raises(MissingInputError, match="a batch needs log_probs"):
        Batch(mask=np.zeros((1, 1)))


@every_algorithm
def test_every_missing_input_is_named_with_the_algorithm_and_the_way_to_have_it(spec):
    arrays = arrays_for(spec)
    for name in algorithms.needs(spec):
        without = {key: values for key, values in arrays.items() if key != name}
        if name == "reward" and "rewards" in without:
            continue
        with pytest.raises(MissingInputError) as raised:
            evaluate(spec, without)
        assert str(raised.value).startswith(f"{spec.id} needs {name} ("), raised.value
        assert str(raised.value).endswith(INPUTS[name].capture)
