"""`evaluate`: what it takes, what it gives, and what it says when it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from objective.batches import full_arrays
from objective.registries import clean_registry

from unipo_hooks import algorithms, evaluate
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.errors import AlgorithmError, MissingInputError
from unipo_hooks.objective.describe import parts
from unipo_hooks.objective.inputs import Batch, Normalisers

ARRAYS = {
    "log_probs": np.log([[0.5, 0.25, 0.2], [0.3, 0.9, 0.5]]),
    "old_log_probs": np.log([[0.4, 0.5, 0.2], [0.3, 0.6, 0.1]]),
    "mask": np.array([[1, 1, 0], [1, 1, 1]]),
    "reward": np.array([1.0, 0.0]),
    "group": np.array([0, 0]),
}
LOSSES = ("policy", "constraint", "entropy")
SQUARING = ("group_std", "batch_std_of_rewards", "batch_whiten", "token_whiten")
PLAIN = {"constraint": [], "scale": [], "aggregation": {"part": "token_mean"}}


def plain(**slots):
    """GRPO without KL and deviation, over all tokens alike: numbers one can do by hand."""
    tree = algorithms.get("grpo").model_dump()
    return tree | {"id": "plain", "parts": tree["parts"] | PLAIN | slots}


def test_numbers_done_by_hand():
    found = evaluate(plain(), Batch(**ARRAYS))
    ratio = np.array([[1.25, 0.5, 0.0], [1.0, 1.5, 5.0]])
    assert np.allclose(found.ratio, ratio)
    assert np.allclose(found.advantages, [[0.5, 0.5, 0], [-0.5, -0.5, -0.5]])
    # A > 0: min(1.25, 1.2), 0.5; A < 0: the ratio above 1.2 is not clipped
    assert np.allclose(found.policy_objective, [[0.6, 0.25, 0], [-0.5, -0.75, -2.5]])
    assert found.clipped.tolist() == [[2, 0, 0], [0, 0, 0]]
    assert np.allclose(found.aggregation, ARRAYS["mask"] / 5)
    assert np.allclose(found.gradient_weight, [[0, -0.05, 0], [0.1, 0.15, 0.5]])
    assert found.loss == pytest.approx(-(0.6 + 0.25 - 0.5 - 0.75 - 2.5) / 5)
    assert found.magnitude == pytest.approx((0.6 + 0.25 + 0.5 + 0.75 + 2.5) / 5)


def test_an_algorithm_is_named_or_written_out_or_given():
    spec = algorithms.get(plain())
    loss = evaluate(spec, ARRAYS).loss
    assert evaluate(plain(), ARRAYS).loss == loss
    assert evaluate("grpo", ARRAYS | {"ref_log_probs": ARRAYS["old_log_probs"]}).spec.id == "grpo"


def test_hyper_parameters_are_changed_by_name_or_by_path_and_are_told():
    wide = evaluate(plain(), ARRAYS, epsilon_high=0.3)
    assert not wide.clipped.any()
    assert wide.spec.parts.bounds.parameters["epsilon_high"] == 0.3
    assert evaluate(plain(), ARRAYS, **{"bounds.epsilon_high": 0.3}).loss == wide.loss
    two = plain(constraint=[{"part": "kl", "beta": 0.1}, {"part": "kl", "beta": 0.2, "reference": "old_log_probs"}])
    batch = ARRAYS | {"ref_log_probs": ARRAYS["old_log_probs"] - 0.3}
    with pytest.raises(AlgorithmError, match=r"beta more than once.*constraint\.0\.beta, constraint\.1\.beta"):
        evaluate(two, batch, beta=0.0)
    off = evaluate(two, batch, **{"constraint.0.beta": 0.0, "constraint.1.beta": 0.0})
    assert off.constraint_loss == 0.0
    assert off.policy_loss == evaluate(plain(), batch).policy_loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon_hihg": 0.3}, "no hyper-parameter epsilon_hihg; did you mean epsilon_high?"),
        ({"zzz": 0.3}, "no hyper-parameter zzz; it has"),
        ({"gate.epsilon_high": 0.3}, "no hyper-parameter gate.epsilon_high"),
        ({"epsilon_high": "wide"}, "epsilon_high: a number is needed, not 'wide'"),
        ({"epsilon_high": None}, "epsilon_high: a number is needed, not null"),
        ({"epsilon_high": True}, "epsilon_high: a number is needed, not True"),
        ({"singleton": "other"}, "singleton: 'other' is not one of self, zero"),
    ],
)
def test_a_wrong_hyper_parameter_is_named(change, message):
    with pytest.raises(AlgorithmError) as raised:
        evaluate(plain(), ARRAYS, **change)
    assert message in str(raised.value)


def test_policy_and_constraint_are_kept_apart():
    batch = ARRAYS | {"ref_log_probs": ARRAYS["log_probs"] - 0.7}
    alone, both = evaluate(plain(), batch), evaluate(plain(constraint=[{"part": "kl", "beta": 0.5}]), batch)
    assert both.policy_loss == alone.policy_loss
    assert np.array_equal(both.policy_weight, alone.policy_weight)
    assert both.constraint_loss == pytest.approx(0.5 * (np.exp(-0.7) + 0.7 - 1))
    assert np.allclose(both.constraint_weight, ARRAYS["mask"] / 5 * 0.5 * (1 - np.exp(-0.7)))
    assert both.loss == both.policy_loss + both.constraint_loss
    assert np.allclose(both.token_objective, both.policy_objective - both.constraint)


def test_an_entropy_bonus_has_no_share_in_the_weight_of_a_sampled_token():
    entropies = np.full((2, 3), 0.4)
    bonus = [{"part": "entropy_bonus", "coefficient": 0.01}]
    found = evaluate(plain(constraint=bonus), ARRAYS | {"entropies": entropies})
    assert found.entropy_loss == pytest.approx(-0.004)
    assert not found.constraint_weight.any()
    assert found.loss == pytest.approx(evaluate(plain(), ARRAYS).loss - 0.004)


def test_a_missing_input_is_named_with_the_way_to_have_it():
    with pytest.raises(MissingInputError, match=r"grpo needs ref_log_probs \(Log-probability under the reference"):
        evaluate("grpo", ARRAYS)
    batch = {name: values for name, values in ARRAYS.items() if name != "old_log_probs"}
    with pytest.raises(MissingInputError, match="pass old_log_probs=log_probs"):
        evaluate(plain(), batch)


def test_a_constraint_with_coefficient_zero_needs_nothing():
    off = evaluate("grpo", ARRAYS, beta=0.0)
    assert off.constraint_loss == 0.0
    assert not off.constraint.any()


def test_a_mixture_adds_up_its_components():
    imitation = {
        "baseline": {"part": "unit"},
        "ratio": {"part": "one"},
        "bounds": {"part": "unbounded"},
        "gate": {"part": "log_prob"},
    }
    spec = plain() | {
        "mixture": [{"source": 0, "coefficient": 0.9}, {"source": 1, "coefficient": 0.1, "parts": imitation}]
    }
    batch = ARRAYS | {"source": np.array([0, 1])}
    found = evaluate(spec, batch)
    assert np.allclose(found.gradient_weight[1], -0.1 / 3)
    assert np.allclose(found.gradient_weight[0], 0.9 * np.array([0, -0.5 * 0.5 / 2, 0]))
    assert found.loss == pytest.approx(-(found.aggregation * found.token_objective).sum())
    with pytest.raises(MissingInputError, match="needs source"):
        evaluate(spec, ARRAYS)


def test_normalisers_of_the_update_are_used_where_they_are_given():
    update = Normalisers(tokens=50, data_parallel_size=2)
    found = evaluate(plain(), Batch(normalisers=update, **ARRAYS))
    alone = evaluate(plain(), ARRAYS)
    assert found.loss == pytest.approx(alone.loss / 10)
    assert np.allclose(found.gradient_weight, alone.gradient_weight / 20)


IMITATION = {"gate": {"part": "shaped_probability"}, "bounds": {"part": "around_one", "epsilon_low": 0.1}}


def mixed() -> AlgorithmSpec:
    components = [{"source": 0, "parts": {"mask": []}}, {"source": 1, "parts": IMITATION | {"mask": []}}]
    masks = [{"part": "prefix"}]
    kl = [{"part": "kl", "beta": 0.1}]
    return algorithms.get(plain(mask=masks, constraint=kl) | {"mixture": components})


def test_a_hyper_parameter_of_a_component_is_changed_by_its_path_or_where_it_alone_has_it():
    batch = ARRAYS | {"source": np.array([0, 1]), "ref_log_probs": ARRAYS["old_log_probs"]}
    before, found = evaluate(mixed(), batch), evaluate(mixed(), batch, gamma=0.7)
    assert found.spec.mixture[1].parts["gate"]["gamma"] == 0.7
    assert evaluate(mixed(), batch, **{"mixture.1.gate.gamma": 0.7}).loss == found.loss
    assert np.array_equal(found.gradient_weight[0], before.gradient_weight[0])
    assert not np.allclose(found.gradient_weight[1], before.gradient_weight[1])
    own = evaluate(mixed(), batch, **{"bounds.epsilon_high": 3.0})
    other = evaluate(mixed(), batch, **{"mixture.1.bounds.epsilon_high": 3.0})
    assert own.spec.parts.bounds.parameters["epsilon_high"] == 3.0
    assert "epsilon_high" not in own.spec.mixture[1].parts["bounds"]
    assert other.spec.mixture[1].parts["bounds"] == {"part": "around_one", "epsilon_low": 0.1, "epsilon_high": 3.0}
    assert other.spec.parts.bounds == mixed().parts.bounds
    assert evaluate(mixed(), batch, beta=0.2).constraint_loss == pytest.approx(2 * before.constraint_loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon_low": 0.3}, "epsilon_low more than once; say which: bounds.epsilon_low, mixture.1.bounds.epsilon_"),
        ({"mixture.0.gate.gamma": 0.3}, "no hyper-parameter mixture.0.gate.gamma; did you mean mixture.1.gate.gamma?"),
        ({"gate.gamma": 0.3}, "no hyper-parameter gate.gamma"),
        ({"gamma": "a"}, "gamma: a number is needed, not 'a'"),
        # Every component has masks of its own: the algorithm's are used by none.
        ({"share": 0.3}, "no hyper-parameter share"),
    ],
)
def test_a_wrong_hyper_parameter_of_a_mixture_is_named(change, message):
    with pytest.raises(AlgorithmError) as raised:
        evaluate(mixed(), ARRAYS | {"source": np.array([0, 1])}, **change)
    assert message in str(raised.value)


def filtered(aggregation: dict[str, Any], filters: list[dict[str, Any]]) -> AlgorithmSpec:
    """Advantages that are given, with a KL penalty and an entropy bonus."""
    constraint = [
        {"part": "kl", "beta": 0.1, "reference": "old_log_probs"},
        {"part": "entropy_bonus", "coefficient": 0.01, "token_mean": True},
        {"part": "entropy_bonus", "coefficient": 0.02},
    ]
    masks = [{"part": "recorded_mask", "denominator": True}]
    slots = {"aggregation": aggregation, "filter": filters, "mask": masks, "constraint": constraint}
    return algorithms.get(plain(baseline={"part": "recorded"}, modulation=[], **slots))


def aggregations() -> list[dict[str, Any]]:
    """Every one there is, with each way to count responses."""
    found: list[dict[str, Any]] = []
    for name, part in parts("aggregation").items():
        rows = part.parameters.get("rows")
        found += [{"part": name, "rows": choice} for choice in (rows and rows.choices) or ()] or [{"part": name}]
    return found


def as_told(batch):
    """As often as the batch says."""
    return batch["difficulty"]


@pytest.mark.usefixtures(clean_registry.__name__)
@pytest.mark.parametrize("aggregation", aggregations(), ids=lambda use: "-".join(use.values()))
def test_a_response_that_counts_twice_is_as_good_as_one_that_stands_there_twice(aggregation):
    algorithms.register_part("filter", as_told, needs=["difficulty"])
    worst = 0.0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = int(rng.integers(1, 9))
        arrays = {name: values for name, values in full_arrays(seed, rows, 5).items() if name != "rewards"}
        often_B = rng.integers(0, 4, rows)
        often_B[rng.integers(rows)] = 2
        arrays["mask"][rng.random(rows) < 0.2] = 0
        arrays["policy_mask"] = (rng.random((rows, 5)) < 0.7).astype(float)
        found = evaluate(filtered(aggregation, [{"part": "as_told"}]), arrays | {"difficulty": often_B})
        copied = {
            name: values if name == "reward_weights" else np.repeat(values, often_B, 0)
            for name, values in arrays.items()
        }
        expected = evaluate(filtered(aggregation, []), copied)
        pushed_BT = np.zeros((rows, 5))
        np.add.at(pushed_BT, np.repeat(np.arange(rows), often_B), expected.gradient_weight)
        errors = [np.abs(found.gradient_weight - pushed_BT).max()]
        errors += [abs(getattr(found, f"{name}_loss") - getattr(expected, f"{name}_loss")) for name in LOSSES]
        worst = max(worst, *errors)
    print(f"largest error {worst:.1e}")
    assert worst <= 1e-12


def test_responses_drawn_by_reward_count_in_proportion_whatever_the_aggregation():
    batch = ARRAYS | {"reward": np.array([1.0, 3.0]), "advantages": np.array([0.5, 1.0]), "mask": np.ones((2, 3))}
    drawn = [{"part": "reward_power", "power": 1.0}]
    for aggregation in aggregations():
        found = evaluate(plain(filter=drawn, baseline={"part": "recorded"}, aggregation=aggregation), batch)
        share_B = found.aggregation.sum(1) / found.aggregation.sum()
        assert np.allclose(share_B, [0.25, 0.75], atol=1e-7), aggregation


def test_rewards_too_large_to_be_squared_are_told():
    for size in (1e200, 1e308):
        reward = np.array([size, -size])
        told = [evaluate(plain(scale=[{"part": scale}]), ARRAYS | {"reward": reward}) for scale in SQUARING]
        told += [evaluate(plain(baseline={"part": "none"}, scale=[{"part": "group_std"}]), ARRAYS | {"reward": reward})]
        for each in told:
            assert any("rewards of this size (up to 1e+" in note for note in each.notes), each.notes
            assert np.isfinite(each.loss), each.notes
    small = evaluate(plain(scale=[{"part": "group_std"}]), ARRAYS | {"reward": np.array([1e100, -1e100])})
    assert not small.notes
    assert np.allclose(np.abs(small.advantages), ARRAYS["mask"] / np.sqrt(2))


def test_drawing_by_reward_knows_no_reward_that_is_too_large():
    drawn = [{"part": "reward_power", "power": 2.0}]
    found = evaluate(plain(filter=drawn), ARRAYS | {"reward": np.array([1e308, 5e307])})
    assert np.allclose(found.aggregation[:, 0] * 5, np.array([1.6, 0.4]) * 5 / (1.6 * 2 + 0.4 * 3))


def test_what_is_not_finite_in_the_end_is_named():
    huge = ARRAYS | {"advantages": np.array([1e308, -1e308])}
    found = evaluate(plain(baseline={"part": "recorded"}), huge)
    assert not np.isfinite(found.loss)
    (note,) = found.notes
    assert note.startswith("not finite, as numbers of this size overflow: policy_loss")
    mixture = [{"source": 0}, {"source": 1}]
    spec = plain(baseline={"part": "recorded"}) | {"mixture": mixture}
    assert evaluate(spec, huge | {"source": np.array([0, 1])}).notes
    assert not evaluate(plain(), ARRAYS).notes


def test_whitening_is_over_responses_or_over_the_tokens_that_count_where_each_has_an_advantage_of_its_own():
    arrays = ARRAYS | {"mask": np.array([[0, 1, 0], [1, 1, 1]]), "old_log_probs": ARRAYS["log_probs"]}
    whiten = [{"part": "batch_whiten", "eps": 0.0}]
    rewards = np.array([[9.0, 0.25, 9.0], [0.5, 0.0, 1.5]])
    found = evaluate(
        plain(baseline={"part": "return_to_go", "gamma": 0.5}, scale=whiten), arrays | {"rewards": rewards}
    )
    counted = np.array([0.25, 0.875, 0.75, 1.5])
    expected = (counted - counted.mean()) / counted.std(ddof=1)
    assert np.allclose(found.advantages, [[0, expected[0], 0], expected[1:]])
    by_response = evaluate(plain(baseline={"part": "none"}, scale=whiten), arrays)
    assert np.allclose(by_response.advantages, arrays["mask"] * np.array([[0.5], [-0.5]]) / np.sqrt(0.5))


@pytest.mark.parametrize("gate", ["group_logistic", "discriminative"])
def test_a_gate_on_whole_responses_needs_a_ratio_of_whole_responses(gate):
    spec = plain(gate={"part": gate}, ratio={"part": "token"})
    with pytest.raises(AlgorithmError, match="a ratio of whole responses is needed"):
        evaluate(spec, ARRAYS)
    assert np.isfinite(evaluate(plain(gate={"part": gate}, ratio={"part": "one"}), ARRAYS).loss)


def test_a_baseline_per_token_filters_by_the_first_token_that_counts():
    arrays = ARRAYS | {"mask": np.array([[0, 1, 1], [1, 1, 1]])}
    keep = [{"part": "positive_advantages"}]
    for baselines, kept in (([[0, 2, 0], [-1, 9, 9]], [False, True]), ([[9, 0, 9], [0, -1, -1]], [True, False])):
        found = evaluate(plain(filter=keep), arrays | {"baselines": np.array(baselines, float)})
        assert found.aggregation.any(1).tolist() == kept


def test_what_is_only_shown_cannot_be_computed():
    shown = algorithms.from_unipo({"id": "cards", "name": "Cards", "cards": []})
    with pytest.raises(AlgorithmError, match="cards is only shown"):
        evaluate(shown, ARRAYS)


def test_a_ring_is_computed_where_the_ratio_has_fewer_axes_than_the_advantages():
    advantages = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 1.0]])
    ring = {"part": "hard_mask", "sides": "ring", "ring_low": 0.5, "ring_high": 0.5}
    found = evaluate(
        plain(baseline={"part": "recorded"}, ratio={"part": "one"}, gate=ring), Batch(**ARRAYS, advantages=advantages)
    )
    assert np.allclose(found.policy_weight, -advantages / 5 * ARRAYS["mask"])
