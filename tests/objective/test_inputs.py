"""`Batch`: what its arrays run along, and what of them is compared exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from objective.batches import full_arrays

from unipo_hooks import algorithms, evaluate
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.evaluate import Evaluation
from unipo_hooks.objective.inputs import INPUTS, Batch, axes_of


def arrays_for(spec: AlgorithmSpec, seed: int = 0, B: int = 8, T: int = 7) -> dict[str, Any]:
    left_out = {"rewards"} - set(algorithms.needs(spec))
    return {name: values for name, values in full_arrays(seed, B, T).items() if name not in left_out}


def padded(arrays: dict[str, Any], columns: int) -> dict[str, Any]:
    """The same responses with further positions on their right that do not count."""
    return {
        name: np.pad(values, ((0, 0), (0, columns))) if "BT" in INPUTS[name].axes and values.ndim == 2 else values
        for name, values in arrays.items()
    }


def difference(a: Evaluation, b: Evaluation) -> float:
    """Largest difference of advantages and gradient weights, over the positions both have."""
    width = min(a.mask.shape[1], b.mask.shape[1])
    pairs = [(each.advantages[:, :width], each.gradient_weight[:, :width]) for each in (a, b)]
    return max(float(np.abs(x - y).max()) for x, y in zip(*pairs, strict=True))


@pytest.mark.parametrize("algorithm", ["gdpo", "gdpo.trl"])
def test_as_many_reward_functions_as_tokens_are_not_taken_for_tokens(algorithm):
    worst = 0.0
    for functions in (2, 4):
        arrays = arrays_for(algorithms.get(algorithm), 1, B=8, T=functions)
        arrays["mask"][1:, 1:] = 0
        arrays["reward_components"] = np.random.default_rng(2).random((8, functions))
        arrays["reward_weights"] = np.ones(functions)
        worst = max(worst, difference(evaluate(algorithm, arrays), evaluate(algorithm, padded(arrays, 1))))
    print(f"{algorithm}: largest difference {worst:.1e}")
    assert worst <= 1e-12


def test_as_many_reward_functions_as_responses_are_not_taken_for_responses():
    arrays = arrays_for(algorithms.get("gdpo"), 1, B=2, T=5)
    arrays["reward_weights"] = np.array([np.nan, 1.0])
    assert not evaluate("gdpo", arrays).invalid.any()


def test_axes_are_those_declared_and_shapes_tell_them_only_where_either_will_do():
    shape = (3, 3)
    assert axes_of("reward_components", np.zeros(shape), shape) == "BK"
    assert axes_of("reward_weights", np.zeros(3), shape) == "K"
    assert axes_of("is_weights", np.zeros(3), shape) == "B"
    assert axes_of("is_weights", np.zeros(shape), shape) == "BT"
    assert [axes_of("further", np.zeros(each), shape) for each in (shape, (3,), (3, 2))] == ["BT", "B", ""]


LARGE = 2**60
NAMES: dict[str, list[Any]] = {
    "texts": ["a", "b"],
    "integers beyond a float64": [LARGE, LARGE + 1],
    "negative integers": [-LARGE - 1, -LARGE],
    "unsigned integers": np.array([2**64 - 2, 2**64 - 1], np.uint64).tolist(),
    "texts that are numbers": ["10", "9"],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_groups_are_told_apart_by_any_name(names):
    arrays = arrays_for(algorithms.get("grpo"), 3)
    expected = evaluate("grpo", arrays)
    found = evaluate("grpo", arrays | {"group": [names[group] for group in arrays["group"].tolist()]})
    assert np.array_equal(found.advantages, expected.advantages)
    assert np.array_equal(found.gradient_weight, expected.gradient_weight)
    assert found.loss == expected.loss
    assert found.notes == expected.notes


def test_states_and_answers_are_told_apart_by_any_name():
    for algorithm, name in (("gigpo", "anchors"), ("copo", "answers")):
        arrays = arrays_for(algorithms.get(algorithm), 4)
        expected = evaluate(algorithm, arrays)
        for change in (arrays[name] + LARGE, np.char.add("state ", arrays[name].astype(str))):
            # What stands where no token counts is no state.
            change = np.where(arrays["mask"] > 0, change, change[0, 0]) if change.ndim == 2 else change
            found = evaluate(algorithm, arrays | {name: change})
            assert np.array_equal(found.advantages, expected.advantages), algorithm


def test_a_sampler_correction_of_whole_responses_is_not_summed_over_their_tokens():
    """VESPO's W takes one value a response as it is, and of token values their product."""
    recorded = {"correction": "recorded"}
    arrays = arrays_for(algorithms.get("vespo"), 8)
    mask_BT = arrays["mask"]
    weight_BT = np.where(mask_BT > 0, arrays["is_weights"], 99.0)
    per_token = evaluate("vespo", arrays | {"is_weights": weight_BT}, **recorded)
    product_B = np.prod(np.where(mask_BT > 0, weight_BT, 1.0), 1)
    per_response = evaluate("vespo", arrays | {"is_weights": product_B}, **recorded)
    print(f"largest difference {difference(per_token, per_response):.1e}")
    assert difference(per_token, per_response) <= 1e-12
    # One position does not make a token's value one of the response: a broken token's is left out.
    one = arrays_for(algorithms.get("vespo"), 8, 4, 1) | {"is_weights": np.full((4, 1), 1.3)}
    assert (
        difference(
            evaluate("vespo", one, **recorded), evaluate("vespo", one | {"is_weights": np.full(4, 1.3)}, **recorded)
        )
        <= 1e-12
    )


def test_token_ids_of_any_vocabulary_are_told_apart():
    arrays = arrays_for(algorithms.get("tempo"), 5)
    expected = evaluate("tempo", arrays)
    far = evaluate("tempo", arrays | {"ids": arrays["ids"] + 2**31})
    assert np.array_equal(far.advantages, expected.advantages)


def test_a_response_without_a_group_is_left_out_and_told():
    arrays = arrays_for(algorithms.get("grpo"), 6)
    group = arrays["group"].astype(float)
    group[2] = np.nan
    found = evaluate("grpo", arrays | {"group": group})
    rest = {name: values if name == "reward_weights" else np.delete(values, 2, 0) for name, values in arrays.items()}
    assert not found.advantages[2].any()
    assert not found.gradient_weight[2].any()
    assert np.allclose(np.delete(found.advantages, 2, 0), evaluate("grpo", rest).advantages, atol=1e-12)
    assert len(found.notes) == 2


def test_texts_are_taken_for_names_alone():
    arrays = arrays_for(algorithms.get("grpo"), 7)
    with pytest.raises(AlgorithmError, match="reward is not numeric"):
        Batch(**arrays | {"reward": ["a"] * 8})
    with pytest.raises(AlgorithmError, match="mine is not numeric"):
        Batch(**arrays, extra={"mine": ["a"] * 8})
    with pytest.raises(AlgorithmError, match=r"group has shape \(7,\)"):
        Batch(**arrays | {"group": ["a"] * 7})


def test_a_known_input_that_comes_as_a_further_one_is_held_to_its_axes():
    arrays = arrays_for(algorithms.get("grpo"), 8)
    reward = arrays.pop("reward")
    assert np.array_equal(Batch(**arrays, extra={"reward": reward})["reward"], reward)
    with pytest.raises(AlgorithmError, match=r"reward has shape \(3,\)"):
        Batch(**arrays, extra={"reward": reward[:3]})
