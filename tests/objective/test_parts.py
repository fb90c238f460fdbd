"""Every part is described as it is, and every description is of a part."""

import inspect
import json
import re
from importlib import resources
from pathlib import Path

import pytest
from vectors.format import sections

from unipo_hooks import algorithms
from unipo_hooks.algorithm_spec import SLOTS, AlgorithmSpec, Parts, PartUse
from unipo_hooks.objective.describe import check, merged, parts, uses
from unipo_hooks.objective.inputs import INPUTS
from unipo_hooks.objective.parts import FUNCTIONS

EVERY = [
    (slot, name)
    for slot in SLOTS
    for name in json.loads(
        (resources.files("unipo_hooks.objective.registry") / "parts" / f"{slot}.json").read_text(encoding="utf-8")
    )
]

FIRST = {
    "filter": ["batch"],
    "reward": ["batch", "rewards"],
    "baseline": ["batch", "rewards"],
    "scale": ["batch", "rewards", "advantages"],
    "modulation": ["batch", "advantages"],
    "bounds": ["batch", "advantages"],
    "ratio": ["batch", "advantages", "bounds"],
    "gate": ["batch", "advantages", "ratio", "bounds"],
    "weight": ["batch"],
    "mask": ["batch", "advantages", "ratio"],
    "constraint": ["batch", "advantages", "ratio"],
    "aggregation": ["batch", "counted_BT"],
}
"""Slot → positional arguments of its parts."""

COMMANDS = set(
    re.findall(
        r"\w+",
        """
        alpha beta gamma delta Delta epsilon varepsilon eta theta lambda mu pi rho sigma tau phi ell
        frac tfrac sqrt sum prod log exp min max arg operatorname mathbf mathrm mathcal text textstyle
        hat bar overline widehat cdot times le ge neq in notin mid infty dots leftarrow quad qquad
        left right big Big langle rangle lceil rceil begin end
        """,
    )
)
"""What formulas may be made of: all of it is known to KaTeX and to Temml."""

ROOT = Path(__file__).parents[2]
BUILT = ("adapters/trl/algorithm.py", "adapters/verl/algorithm.py", "unipo_hooks/objective/*.py")
"""Code that composes algorithms out of parts: from a trainer's settings, or from what was recorded."""


def description(slot, name):
    """The part's description."""
    return parts(slot)[name]


def keywords(slot, name):
    """Names of the keyword-only arguments of a part's function."""
    signature = inspect.signature(FUNCTIONS[slot][name]).parameters.values()
    return [each.name for each in signature if each.kind is each.KEYWORD_ONLY]


@pytest.mark.parametrize("slot", SLOTS)
def test_every_part_that_is_code_is_described_and_the_reverse(slot):
    described = {name for each, name in EVERY if each == slot}
    assert described == {
        name for name in FUNCTIONS[slot] if inspect.getmodule(FUNCTIONS[slot][name]).__name__.startswith("unipo_hooks.")
    }


@pytest.mark.parametrize("slot,name", EVERY, ids=lambda value: value)
def test_a_parts_arguments_are_those_of_its_slot_and_its_hyper_parameters(slot, name):
    signature = inspect.signature(FUNCTIONS[slot][name]).parameters.values()
    assert [each.name for each in signature if each.kind is not each.KEYWORD_ONLY] == FIRST[slot]
    assert keywords(slot, name) == list(description(slot, name).parameters)
    assert all(each.default is each.empty for each in signature), "defaults stand in the description alone"


@pytest.mark.parametrize("slot,name", EVERY, ids=lambda value: value)
def test_a_parts_defaults_are_allowed(slot, name):
    part = description(slot, name)
    use = PartUse(part=name, **{key: value.default for key, value in part.parameters.items()})
    base = {"gate": {"part": "log_prob"}, "aggregation": {"part": "token_mean"}}
    single = isinstance(getattr(Parts.model_validate(base), slot), PartUse)
    check(AlgorithmSpec(id="x", name="x", parts=Parts.model_validate(base | {slot: use if single else [use]})))


@pytest.mark.parametrize("slot,name", EVERY, ids=lambda value: value)
def test_a_part_says_what_it_does_to_a_learner(slot, name):
    part = description(slot, name)
    assert 1 <= len(part.title.split()) <= 4
    assert 60 <= len(part.explanation) <= 700
    assert part.explanation.endswith(".")
    assert part.source
    for key, parameter in part.parameters.items():
        assert parameter.symbol, f"{key} has no symbol"
        assert parameter.meaning.endswith("."), key
        assert 10 <= len(parameter.meaning) <= 260, key
        assert all(f"`{choice}`" in parameter.meaning for choice in parameter.choices or ()), f"{key}: name each choice"


@pytest.mark.parametrize("slot,name", EVERY, ids=lambda value: value)
def test_a_parts_formulas_can_be_typeset(slot, name):
    part = description(slot, name)
    assert part.latex
    for formula in (part.latex, *(each.symbol for each in part.parameters.values())):
        assert balanced(formula), formula
        unknown = set(re.findall(r"\\([A-Za-z]+)", formula)) - COMMANDS
        assert not unknown, f"{formula}: {unknown}"
        assert formula.count(r"\left") - formula.count(r"\leftarrow") == formula.count(r"\right")
        assert re.findall(r"\\begin\{(\w+)\}", formula) == re.findall(r"\\end\{(\w+)\}", formula)


def balanced(formula):
    """Whether braces open and close in order; `\\{` and `\\}` are signs."""
    depth = 0
    for sign in re.sub(r"\\[{}]", "", formula):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth < 0:
            return False
    return depth == 0


def test_a_brace_that_closes_before_it_opens_is_noticed():
    assert balanced(r"\frac{1}{2} \{x\}")
    assert not balanced("}{")
    assert not balanced(r"\sqrt{x")


@pytest.mark.parametrize("slot,name", EVERY, ids=lambda value: value)
def test_what_a_part_needs_is_an_input_or_a_hyper_parameter_that_names_one(slot, name):
    part = description(slot, name)
    for need in (*part.needs, *part.uses):
        if need.startswith("$"):
            assert part.parameters[need[1:]].default in INPUTS
        else:
            assert need in INPUTS


@pytest.mark.parametrize("slot,name", EVERY, ids=lambda value: value)
def test_a_parts_needs_are_what_its_code_reads(slot, name):
    part = description(slot, name)
    source = inspect.getsource(FUNCTIONS[slot][name])
    read = set(re.findall(r'batch(?:\.column\(|\.get\(|\[)"(\w+)"', source)) - {"log_probs", "mask"}
    assert read <= {*part.needs, *part.uses}, "named in needs or uses"


def used():
    """(slot, part) of every registered algorithm, mixtures included."""
    found = set()
    for spec in algorithms.every():
        if spec.display is not None:
            continue
        for each in (spec.parts, *(merged(spec.parts, component.parts) for component in spec.mixture)):
            found |= {(slot, use.part) for slot, _, use in uses(each)}
    return found


def test_every_part_is_used_by_an_algorithm_a_trainers_settings_or_a_comparison_with_a_library():
    code = "".join(file.read_text(encoding="utf-8") for path in BUILT for file in sorted(ROOT.glob(path)))
    specs = [case["algorithm"] for cases in sections().values() for case in cases if case["against"]]
    compared = "".join(json.dumps(spec) for spec in specs if isinstance(spec, dict))
    idle = [
        f"{slot}.{name}"
        for slot, name in EVERY
        if (slot, name) not in used() and f'"{name}"' not in code and f'"{name}"' not in compared
    ]
    assert idle == []
