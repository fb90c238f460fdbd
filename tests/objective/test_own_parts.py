"""Parts that users write: functions that can be none are refused, and so is what cannot be used of what they give."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from objective.registries import GOOD, clean_registry, edited
from objective.test_edges import arrays_for

from unipo_hooks import algorithms, evaluate
from unipo_hooks.algorithm_spec import SLOTS
from unipo_hooks.errors import AlgorithmError, MissingInputError
from unipo_hooks.objective.inputs import Batch
from unipo_hooks.objective.own import ARGUMENTS
from unipo_hooks.objective.parts.types import FUNCTIONS, Constraint, Gate, Mask, Ratio, Rewards

pytestmark = pytest.mark.usefixtures(clean_registry.__name__)
LISTS = {"filter", "reward", "scale", "modulation", "weight", "mask", "constraint"}


def used(slot, name, **parameters):
    """A definition that uses one part in place of what stands in its slot."""
    use = {"part": name, **parameters}
    return edited(f"parts.{slot}", [use] if slot in LISTS else use)


# --- functions -------------------------------------------------------------------------------------------------------


def test_a_python_function_is_a_part():
    def halved(batch, advantages, *, by=2.0):
        """Half of it."""
        return advantages / by

    algorithms.register_part("modulation", halved)
    spec = algorithms.register(used("modulation", "halved", by=4.0))
    assert algorithms.is_own_code(spec)
    assert not algorithms.is_own_code(algorithms.get("grpo"))
    batch = arrays_for(spec)
    assert np.allclose(evaluate("mine", batch).advantages, evaluate(GOOD, batch).advantages / 4)
    assert np.allclose(evaluate("mine", batch, by=1.0).advantages, evaluate(GOOD, batch).advantages)
    with pytest.raises(
        AlgorithmError, match=r"modulation\.0\.bye: halved has no such hyper-parameter; did you mean by"
    ):
        algorithms.register(used("modulation", "halved", bye=4.0))
    with pytest.raises(AlgorithmError, match=r"modulation\.0\.by: a finite number is needed, not nan"):
        algorithms.register(used("modulation", "halved", by=math.nan))


def test_a_part_that_is_shipped_keeps_its_name():
    def ppo_clip(batch, advantages, ratio, bounds):
        return None

    with pytest.raises(AlgorithmError, match="gate already has a part ppo_clip"):
        algorithms.register_part("gate", ppo_clip)
    with pytest.raises(AlgorithmError, match="no slot 'gates'; did you mean gate?"):
        algorithms.register_part("gates", ppo_clip)
    with pytest.raises(AlgorithmError, match="no slot 3 "):
        algorithms.register_part(3, ppo_clip)


def test_what_is_no_function_with_a_name_is_no_part():
    def named(batch):
        return 1.0

    for function, words in (
        (3, "a part is a function, not int"),
        (None, "a part is a function, not NoneType"),
        (lambda batch: 1.0, "has none: write a def"),
        (functools.partial(named), "has none: write a def"),
        (int, "has none: write a def"),
    ):
        with pytest.raises(AlgorithmError, match=words):
            algorithms.register_part("weight", function)


def test_the_arguments_of_a_slot_are_those_its_shipped_parts_have():
    assert ARGUMENTS.keys() == SLOTS.keys()
    for slot, functions in FUNCTIONS.items():
        for function in functions.values():
            code = function.__code__
            assert code.co_varnames[: code.co_argcount] == ARGUMENTS[slot]


def test_a_function_with_other_arguments_than_its_slot_gives_is_refused():
    def few(batch):
        return batch

    def many(batch, advantages, by=2.0):
        return advantages

    def swapped(advantages, batch):
        return advantages

    def keyword(*, batch, advantages):
        return advantages

    for function, found in ((few, "batch"), (many, "batch, advantages, by"), (swapped, "advantages, batch")):
        with pytest.raises(AlgorithmError) as raised:
            algorithms.register_part("modulation", function)
        assert str(raised.value) == (
            f"modulation part {function.__name__}: its arguments are ({found}); needed are (batch, advantages), "
            "in this order, and hyper-parameters after *"
        )
    with pytest.raises(AlgorithmError, match=r"keyword: its arguments are \(\); needed are"):
        algorithms.register_part("modulation", keyword)


def test_arguments_may_have_other_names():
    def doubled(b, a, /):
        return 2 * a

    def doubled_too(*given):
        return 2 * given[1]

    for function in (doubled, doubled_too):
        algorithms.register_part("modulation", function)
        spec = algorithms.get(used("modulation", function.__name__))
        batch = arrays_for(spec)
        assert np.allclose(evaluate(spec, batch).advantages, 2 * evaluate(GOOD, batch).advantages)


def test_hyper_parameters_are_what_json_can_hold():
    def listed(batch, *, steps=(1, 2)):
        return 1.0

    def called(batch, *, part="x"):
        return 1.0

    with pytest.raises(AlgorithmError, match="the default of steps must be a number, a text, True, False or None"):
        algorithms.register_part("weight", listed)
    with pytest.raises(AlgorithmError, match="a hyper-parameter cannot be called part"):
        algorithms.register_part("weight", called)


def test_a_hyper_parameter_that_is_none_may_become_a_number_or_a_text():
    def named(batch, *, mode=None):
        return {None: 1.0, "double": 2.0, 3: 3.0}[mode]

    algorithms.register_part("weight", named)
    losses = []
    for mode in (None, "double", 3):
        spec = algorithms.get(used("weight", "named", mode=mode))
        losses.append(evaluate(spec, arrays_for(spec)).loss)
    assert np.allclose(losses, np.array([1.0, 2.0, 3.0]) * losses[0])
    with pytest.raises(AlgorithmError, match=r"weight\.0\.mode: a finite number is needed, not inf"):
        algorithms.get(used("weight", "named", mode=math.inf))


def test_a_scope_and_needs_are_taken_as_they_are_meant():
    def by_entropy(batch):
        return batch["entropies"]

    with pytest.raises(AlgorithmError, match="scope: 'tokens' is not one of token, response, group, batch, history"):
        algorithms.register_part("weight", by_entropy, scope="tokens")
    algorithms.register_part("weight", by_entropy, needs="entropies")
    assert "entropies" in algorithms.needs(algorithms.get(used("weight", "by_entropy")))


def test_a_channel_of_a_users_part_may_be_one_nobody_else_knows():
    def pulled(batch, *, reference="ref_log_probs"):
        return np.exp(batch[reference])

    algorithms.register_part("weight", pulled, needs=["$reference"])
    spec = algorithms.get(used("weight", "pulled", reference="another_teacher"))
    arrays = arrays_for(algorithms.get(GOOD))
    batch = Batch(**arrays, extra={"another_teacher": np.full(arrays["mask"].shape, -1.0)})
    assert math.isfinite(evaluate(spec, batch).loss)
    with pytest.raises(MissingInputError, match="mine needs another_teacher"):
        evaluate(spec, arrays)


def test_a_part_described_but_not_there_is_told():
    def elsewhere(batch, advantages):
        return advantages

    algorithms.register_part("modulation", elsewhere)
    spec = algorithms.register(used("modulation", "elsewhere"))
    del FUNCTIONS["modulation"]["elsewhere"]
    with pytest.raises(AlgorithmError, match="no code for the modulation part elsewhere here: register its function"):
        evaluate(spec, arrays_for(spec))


# --- what they give back ---------------------------------------------------------------------------------------------

ONE, TOKENS = np.ones((8, 1)), np.ones((8, 7))
RIGHT = {
    "filter": [np.ones(8), np.ones(8, bool), [1] * 8],
    "reward": [Rewards(np.ones(8)), Rewards(np.ones(8), TOKENS)],
    "baseline": [ONE, TOKENS, TOKENS.tolist()],
    "scale": [ONE, TOKENS],
    "modulation": [ONE, TOKENS],
    "bounds": [(0.8, 1.2), [np.array(0.8), 1.2 * TOKENS], (0.8 * ONE, 1.2 * np.ones((1, 7)))],
    "ratio": [Ratio(0 * ONE, lambda d_BT: d_BT), Ratio(0 * TOKENS, lambda d_BT: d_BT)],
    "gate": [Gate(ONE), Gate(TOKENS, d_log_ratio=ONE, d_log_prob=TOKENS, clipped=np.zeros((8, 7), np.uint8))],
    "weight": [2.0, ONE, TOKENS],
    "mask": [Mask(TOKENS, True), Mask(ONE > 0, False)],
    "constraint": [Constraint(ONE), Constraint(TOKENS, d_log_prob=TOKENS, among=TOKENS)],
    "aggregation": [TOKENS],
}
WRONG = {
    "filter": [(ONE, "shape (8, 1) is not (8,)"), (None, "an array of numbers is needed, not None")],
    "reward": [
        (np.ones(8), "a Rewards is needed (unipo_hooks.objective.parts.types), not a ndarray"),
        (Rewards(ONE), "response_B: shape (8, 1) is not (8,)"),
    ],
    "baseline": [(np.ones(8), "shape (8,) is not (8, 1) or (8, 7): 8 responses, 7 tokens")],
    "scale": [(np.ones((7, 8)), "shape (7, 8) is not (8, 1) or (8, 7)"), ("a", "an array of numbers is needed")],
    "modulation": [(None, "an array of numbers is needed, not None"), (1.0, "shape () is not (8, 1) or (8, 7)")],
    "bounds": [
        (0.2, "two arrays are needed, the lowest and the highest ratio, not a float"),
        ((np.ones(7), 1.2), "shape (7,) is not (8, 1) or (8, 7)"),
    ],
    "ratio": [(ONE, "a Ratio is needed"), (Ratio(ONE, None), "pull: a function is needed, not None")],
    "gate": [(TOKENS, "a Gate is needed"), (Gate(np.ones((3, 3))), "objective: shape (3, 3) is not (8, 1) or (8, 7)")],
    "weight": [(np.ones(8), "shape (8,) is not (8, 1) or (8, 7)"), ([[1], [1, 2]], "an array of numbers is needed")],
    "mask": [(TOKENS, "a Mask is needed"), (Mask(np.ones(8), True), "keep: shape (8,) is not")],
    "constraint": [((1, 2), "a Constraint is needed"), (Constraint("a"), "penalty: an array of numbers is needed")],
    "aggregation": [(ONE, "shape (8, 1) is not (8, 7)")],
}


def giving(slot, value):
    """An algorithm with a part that gives back a value, whatever it is given."""

    def own_part(*given):
        return value

    algorithms.register_part(slot, own_part)
    return algorithms.get(used(slot, "own_part"))


@pytest.mark.parametrize("slot", SLOTS)
def test_what_fits_is_used(slot):
    for value in RIGHT[slot]:
        spec = giving(slot, value)
        assert math.isfinite(evaluate(spec, arrays_for(spec)).loss), value


@pytest.mark.parametrize("slot", SLOTS)
def test_what_does_not_fit_is_told_with_slot_part_and_what_is_needed(slot):
    for value, words in WRONG[slot]:
        spec = giving(slot, value)
        with pytest.raises(AlgorithmError) as raised:
            evaluate(spec, arrays_for(spec))
        assert str(raised.value).startswith(f"{slot} part own_part: ")
        assert words in str(raised.value)


def test_as_many_responses_as_tokens_hide_no_mistake():
    spec = giving("weight", np.ones(8))
    with pytest.raises(AlgorithmError, match=r"weight part own_part: shape \(8,\) is not \(8, 1\) or \(8, 8\)"):
        evaluate(spec, arrays_for(spec, T=8))
