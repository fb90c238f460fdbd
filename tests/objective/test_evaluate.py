"""`evaluate`: what it takes, what it gives, and what it says when it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from unipo_hooks import algorithms, evaluate
from unipo_hooks.errors import AlgorithmError, MissingInputError
from unipo_hooks.objective.inputs import Batch, Normalisers

ARRAYS = {
    "log_probs": np.log([[0.5, 0.25, 0.2], [0.3, 0.9, 0.5]]),
    "old_log_probs": np.log([[0.4, 0.5, 0.2], [0.3, 0.6, 0.1]]),
    "mask": np.array([[1, 1, 0], [1, 1, 1]]),
    "reward": np.array([1.0, 0.0]),
    "group": np.array([0, 0]),
}
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


def test_what_is_only_shown_cannot_be_computed():
    shown = algorithms.from_unipo({"id": "cards", "name": "Cards", "cards": []})
    with pytest.raises(AlgorithmError, match="cards is only shown"):
        evaluate(shown, ARRAYS)
