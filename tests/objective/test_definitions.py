"""Definitions and hyper-parameters that are wrong are refused in one line that says where, and what was meant."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from objective.registries import GOOD, clean_registry, edited, without
from objective.test_edges import arrays_for, every_algorithm

from unipo_hooks import algorithms, evaluate
from unipo_hooks.algorithm_spec import SLOTS, Parts
from unipo_hooks.errors import AlgorithmError, MissingInputError
from unipo_hooks.objective import describe
from unipo_hooks.objective.checks import _EXAMPLES, LISTS, allowed

pytestmark = pytest.mark.usefixtures(clean_registry.__name__)

PARAMETERS = [
    pytest.param(slot, name, key, parameter, id=f"{slot}-{name}-{key}")
    for slot in SLOTS
    for name, part in describe.parts(slot).items()
    for key, parameter in part.parameters.items()
]
every_parameter = pytest.mark.parametrize(("slot", "name", "key", "parameter"), PARAMETERS)


def refused(definition: Any) -> str:
    """What is said of a definition that is wrong."""
    with pytest.raises(AlgorithmError) as raised:
        algorithms.register(definition)
    said = str(raised.value)
    assert "\n" not in said
    return said


def using(slot: str, name: str, **parameters: Any) -> dict[str, Any]:
    use = {"part": name, **parameters}
    return edited(f"parts.{slot}", [use] if slot in LISTS else use) if parameters or name else GOOD


def is_number(parameter: describe.Parameter) -> bool:
    return parameter.choices is None and not isinstance(parameter.default, bool | str)


# --- hyper-parameters ------------------------------------------------------------------------------------------------


@every_parameter
def test_a_hyper_parameter_is_null_where_its_text_says_what_null_is(slot, name, key, parameter):
    assert parameter.nullable == ("null" in parameter.meaning)
    if parameter.nullable:
        algorithms.get(using(slot, name, **{key: None}))
    else:
        with pytest.raises(AlgorithmError, match=rf"\.{key}: .*(None|null)"):
            algorithms.get(using(slot, name, **{key: None}))


@every_parameter
def test_a_range_stands_in_the_text_and_holds_the_default(slot, name, key, parameter):
    limits = (parameter.minimum, parameter.maximum, parameter.above, parameter.below)
    if not is_number(parameter):
        assert limits == (None,) * 4 and not parameter.integer
        return
    algorithms.get(using(slot, name, **{key: parameter.default}))
    words = allowed(parameter).replace(" and ", ", ")
    meant = parameter.meaning.replace(" and ", ", ")
    if limits == (None,) * 4:
        assert not re.search(r"or more|or less|from 0 to 1|above \d", parameter.meaning)
    elif not parameter.integer:
        assert all(each in meant for each in words.split(", ")), (words, parameter.meaning)


@every_parameter
def test_a_number_that_is_not_finite_or_out_of_range_is_refused(slot, name, key, parameter):
    if not is_number(parameter):
        return
    wrong: list[tuple[Any, str]] = [
        (math.nan, "a finite number is needed, not nan"),
        (math.inf, "a finite number is needed, not inf"),
        (-math.inf, "a finite number is needed, not -inf"),
        (10**400, "a finite number is needed, not inf"),
        ("1", "a number is needed, not '1'"),
        (True, "a number is needed, not True"),
        ([1], r"a number is needed, not [1]"),
    ]
    for limit, outside in ((parameter.minimum, -1e-9), (parameter.maximum, 1e-9), (parameter.above, 0.0)):
        if limit is not None:
            value = limit + outside
            words = "an integer is needed" if parameter.integer else f"must be {allowed(parameter)},"
            wrong.append((value, words))
    if parameter.integer:
        wrong += [(0.5, "an integer is needed, not 0.5"), (2, "must be from 0 to 1, not 2"), (-1, "not -1")]
    for value, words in wrong:
        with pytest.raises(AlgorithmError) as raised:
            algorithms.get(using(slot, name, **{key: value}))
        place = f"parts.{slot}.0.{key}" if slot in LISTS else f"parts.{slot}.{key}"
        assert f"{place}: " in str(raised.value)
        assert words in str(raised.value), value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("parts.bounds.epsilon_high", -0.1, "parts.bounds.epsilon_high: must be 0 or more, not -0.1"),
        ("parts.bounds.epsilon_high", math.nan, "parts.bounds.epsilon_high: a finite number is needed, not nan"),
        ("parts.gate.dual_clip", 0.5, "parts.gate.dual_clip: must be 1 or more, or null, not 0.5"),
        ("parts.gate.dual_clip", "3", "parts.gate.dual_clip: a number is needed, not '3'"),
        (
            "parts.mask",
            [{"part": "prefix", "share": 0}],
            "parts.mask.0.share: must be above 0 and at most 1, not 0",
        ),
        ("parts.scale", [{"part": "group_std", "ddof": 2}], "parts.scale.0.ddof: must be from 0 to 1, not 2"),
        (
            "parts.aggregation.span",
            "updates",
            "parts.aggregation.span: 'updates' is not one of update, micro_batch; did you mean update?",
        ),
        (
            "parts.constraint",
            [{"part": "kl", "times_ratio": 1}],
            "parts.constraint.0.times_ratio: true or false is needed, not 1",
        ),
        (
            "parts.ratio",
            {"part": "token", "reference": "old_log_prob"},
            "parts.ratio.reference: no channel 'old_log_prob'; did you mean old_log_probs?",
        ),
        (
            "parts.constraint",
            [{"part": "kl", "reference": "reward"}],
            "parts.constraint.0.reference: reward has no value a token; there are log_probs, old_log_probs, ",
        ),
        (
            "parts.constraint",
            [{"part": "kl", "reference": None}],
            "parts.constraint.0.reference: the name of a channel is needed, not null",
        ),
    ],
)
def test_a_wrong_value_is_told_in_one_line(path, value, said):
    assert said in refused(edited(path, value))


def test_a_hyper_parameter_of_a_call_is_checked_like_that_of_a_file():
    batch = arrays_for(algorithms.get("dapo"))
    for changes, said in (
        ({"epsilon_high": math.nan}, "epsilon_high: a finite number is needed, not nan"),
        ({"epsilon_high": -1}, "epsilon_high: must be 0 or more, not -1"),
        ({"epsilon_high": None}, "epsilon_high: a number is needed, not null"),
        ({"reference": "old_log_prob"}, "reference: no channel 'old_log_prob'; did you mean old_log_probs?"),
    ):
        with pytest.raises(AlgorithmError) as raised:
            evaluate("dapo", batch, **changes)
        assert str(raised.value) == said


def test_a_channel_that_is_one_of_a_few_is_checked_and_asked_for():
    batch = arrays_for(algorithms.get("gmpo")) | {"policy_mask": None}
    with pytest.raises(AlgorithmError, match="over: 'entropies' is not one of mask, policy_mask"):
        evaluate("gmpo", batch, over="entropies")
    with pytest.raises(MissingInputError, match="gmpo needs policy_mask .*: capture an update"):
        evaluate("gmpo", batch, over="policy_mask")


def test_null_is_taken_where_it_is_documented():
    batch = arrays_for(algorithms.get("dapo"))
    free, floored = (evaluate("dapo", batch, floor=floor, max_length=2, cache=1) for floor in (None, -1.0))
    assert math.isfinite(free.loss) and math.isfinite(floored.loss)
    assert not np.array_equal(free.advantages, floored.advantages)
    for name, key in (("hapo.released", "limit"), ("dppo_tv", "ratio_cap"), ("rto", "limit")):
        assert math.isfinite(evaluate(name, arrays_for(algorithms.get(name)), **{key: None}).loss)


@every_parameter
def test_a_part_can_be_computed_with_every_null_it_allows(slot, name, key, parameter):
    if parameter.nullable:
        spec = algorithms.get(using(slot, name, **{key: None}))
        assert math.isfinite(evaluate(spec, arrays_for(spec)).loss)


def test_numbers_of_numpy_are_numbers():
    batch = arrays_for(algorithms.get("grpo"))
    expected = evaluate("grpo", batch, epsilon_high=0.5, ddof=0).loss
    assert evaluate("grpo", batch, epsilon_high=np.float32(0.5), ddof=np.int64(0)).loss == expected
    with pytest.raises(AlgorithmError, match="epsilon_high: a finite number is needed, not nan"):
        evaluate("grpo", batch, epsilon_high=np.float32("nan"))


@every_algorithm
def test_every_algorithm_is_allowed_as_it_is(spec):
    assert describe.check(spec) is spec


def test_a_spec_made_by_hand_is_looked_at_before_it_is_computed():
    spec = algorithms.get("grpo")
    wrong = spec.model_copy(update={"parts": Parts.model_validate(edited("parts.bounds.epsilon", 0.1)["parts"])})
    with pytest.raises(AlgorithmError, match="parts.bounds.epsilon: around_one has no such hyper-parameter; did you"):
        evaluate(wrong, arrays_for(spec))


# --- form ------------------------------------------------------------------------------------------------------------


def test_the_slots_that_hold_lists_are_those_of_the_form():
    assert {slot for slot in SLOTS if isinstance(getattr(Parts.model_validate(GOOD["parts"]), slot), list)} == LISTS
    for slot, name in _EXAMPLES.items():
        assert name in describe.parts(slot)


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        (edited("id", 3), "id: a text is needed, not 3"),
        (edited("id", " "), "id: a text is needed that is not empty"),
        (edited("year", "x"), "year: an integer is needed, not 'x'"),
        (edited("exact", "perhaps"), "exact: true or false is needed, not 'perhaps'"),
        (edited("colour", "red"), "colour: no such field (there are id, name, "),
        (edited("famly", "PPO"), "famly: no such field; did you mean family?"),
        (edited("parts", []), "parts: an object { } is needed, not []"),
        (without("id"), "id: every algorithm needs one"),
        (without("parts"), "parts: every algorithm needs them"),
        (without("parts.gate"), "parts.gate: every algorithm needs one"),
        (without("parts.aggregation"), "parts.aggregation: every algorithm needs one"),
        (
            edited("parts.baselin", {"part": "group_mean"}),
            "parts.baselin: no such slot; did you mean baseline?",
        ),
        (
            edited("parts.gaet", {"part": "ppo_clip"}, without("parts.gate")),
            "parts.gaet: no such slot; did you mean gate?",
        ),
        (edited("parts.zzz", {}), "parts.zzz: no such slot (there are filter, reward, "),
        (edited("parts.baseline", "group_mean"), 'parts.baseline: write {"part": "group_mean"}'),
        (edited("parts.gate", {}), 'parts.gate.part: name the part, as in {"part": "ppo_clip"}'),
        (edited("parts.gate", 3), 'parts.gate: an object is needed, as in {"part": "ppo_clip"}, not 3'),
        (edited("parts.gate", None), 'parts.gate: an object is needed, as in {"part": "ppo_clip"}, not null'),
        (edited("parts.gate", [{"part": "ppo_clip"}]), "parts.gate: one part is needed here, not a list"),
        (edited("parts.gate.part", 3), "parts.gate.part: a text is needed, not 3"),
        (edited("parts.mask", {"part": "prefix"}), "parts.mask: write it in [ ]"),
        (edited("parts.mask", "prefix"), 'parts.mask: a list is needed, as in [{"part": "prefix"}], or [] for none'),
        (
            edited("parts.mask", None),
            'parts.mask: a list is needed, as in [{"part": "truncated_responses"}], or [] for none',
        ),
        (edited("parts.mask", ["prefix"]), 'parts.mask.0: write {"part": "prefix"}'),
        (edited("parts.mask", [{"share": 0.5}]), "parts.mask.0.part: name the part, as in"),
        (
            edited("parts.mask", [{"part": "prefix", "shere": 1}]),
            "parts.mask.0.shere: prefix has no such hyper-parameter; did you mean share?",
        ),
        (
            edited("parts.gate", {"part": "ppo_klip"}),
            "parts.gate.part: no part 'ppo_klip' for the slot gate; did you mean ppo_clip? A part of your own must be "
            "registered in Python first (algorithms.register_part)",
        ),
        (edited("parts.gate", {"part": "zzz"}), "); a part of your own must be registered in Python first"),
        (edited("mixture", {}), "mixture: a list is needed, not {}"),
        (edited("mixture", [3]), "mixture.0: an object { } is needed, not 3"),
        (edited("mixture", [{"parts": {}}]), "mixture.0.source: every component needs one"),
        (edited("mixture", [{"source": "web"}]), "mixture.0.source: an integer is needed, not 'web'"),
        (
            edited("mixture", [{"source": -1}]),
            "mixture.0.source: 0 (sampled by the policy) or above is needed, not -1",
        ),
        (edited("mixture", [{"source": 0, "part": {}}]), "mixture.0.part: no such field; did you mean parts?"),
        (edited("mixture", [{"source": 0, "parts": None}]), "mixture.0.parts: an object { } is needed, not null"),
        (edited("mixture", [{"source": 0, "parts": {"gaet": {}}}]), "mixture.0.parts.gaet: no such slot; did you mean"),
        (
            edited("mixture", [{"source": 0, "parts": {"gate": "ppo_clip"}}]),
            'mixture.0.parts.gate: write {"part": "ppo_clip"}',
        ),
        (
            edited("mixture", [{"source": 0, "parts": {"gate": {"part": "ppo_klip"}}}]),
            "mixture.0.parts.gate.part: no part 'ppo_klip'",
        ),
        (
            edited("mixture", [{"source": 0, "parts": {"gate": {"part": "ppo_clip", "delta": -1}}}]),
            "mixture.0.parts.gate.delta: must be above 0, or null, not -1",
        ),
        (
            edited("mixture", [{"source": 0, "coefficient": math.inf}]),
            "mixture.0.coefficient: a finite number is needed, not inf",
        ),
        (
            edited("mixture", [{"source": 0, "denominator": "mine"}]),
            "mixture.0.denominator: 'mine' is not one of own, all",
        ),
        (edited("id", "grpo"), "id: 'grpo' is an algorithm that is shipped; choose another id"),
        (edited("parent", "grppo"), "parent: no algorithm 'grppo'; did you mean grpo"),
        (edited("parent", "zzzzzz"), "parent: no algorithm 'zzzzzz'; name the algorithm it changed, or leave it out"),
    ],
)
def test_a_wrong_definition_names_its_file_and_json_path(definition, said, tmp_path):
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(definition))
    for given, where in ((file, str(file)), (definition, "the definition")):
        assert refused(given).startswith(f"{where}: ")
        assert said in refused(given)
    assert algorithms.get("grpo").name == "GRPO"
    assert "mine" not in algorithms.ids()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[]", "an object is needed, with id, name and parts; found a list"), ("\0", "not JSON")],
)
def test_a_file_that_is_no_definition_is_named(text, message, tmp_path):
    file = tmp_path / "wrong.json"
    file.write_text(text)
    assert f"wrong.json: {message}" in refused(file)
    assert "nowhere.json: cannot be read" in refused(tmp_path / "nowhere.json")


def test_what_is_no_definition_at_all_is_told():
    for given in (3, None, [GOOD]):
        assert "a spec, its JSON or a path to a JSON file is needed" in refused(given)
        with pytest.raises(AlgorithmError, match="an algorithm is an id, a spec or its JSON, not"):
            algorithms.get(given)


# --- notes -----------------------------------------------------------------------------------------------------------


def test_log_probabilities_above_zero_are_told():
    spec = algorithms.get(GOOD)
    arrays = arrays_for(spec)
    assert evaluate(spec, arrays).notes == ()
    counted = int((arrays["mask"] > 0).sum())
    note = f"{counted} tokens have a log-probability above 0: is a sign swapped?"
    assert evaluate(spec, arrays | {"log_probs": -arrays["log_probs"]}).notes == (note,)
    swapped = evaluate(spec, arrays | {"old_log_probs": -arrays["old_log_probs"]})
    assert swapped.notes == (note.replace("above 0", "above 0 in old_log_probs"),)
    rounding = np.where(arrays["mask"] > 0, np.minimum(arrays["log_probs"], 0) * 0 + 9e-7, 5.0)
    assert evaluate(spec, arrays | {"log_probs": rounding}).notes == ()


def test_rows_of_a_source_that_no_component_is_for_are_told():
    spec = algorithms.get(edited("mixture", [{"source": 0}, {"source": 2}]))
    arrays = arrays_for(spec)
    count = int((arrays["source"] == 1).sum())
    found = evaluate(spec, arrays)
    assert found.notes == (f"{count} responses are of a source mine has no component for: they contribute nothing",)
    assert not found.gradient_weight[arrays["source"] == 1].any()
