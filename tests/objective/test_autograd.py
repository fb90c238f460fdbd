"""Loss and gradient weights equal what autograd makes of the same losses written in torch (torch_objective.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from objective.batches import full_arrays
from objective.torch_objective import TABLES, oracle, unknown

from unipo_hooks import algorithms
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.objective.describe import describe, inputs, needs, parts
from unipo_hooks.objective.evaluate import evaluate
from unipo_hooks.objective.inputs import Batch, Normalisers

TOLERANCE = 1e-9
UPDATE = Normalisers(accumulation_steps=3, tokens=151.0, rows=17.0, length=32.0, data_parallel_size=2)


def on_policy(seed: int) -> dict[str, Any]:
    arrays = full_arrays(seed)
    return arrays | {"log_probs": arrays["old_log_probs"].copy()}


def near(seed: int) -> dict[str, Any]:
    return full_arrays(seed)


def off_policy(seed: int) -> dict[str, Any]:
    """Ratios from 0.01 to 50, towards every other policy."""
    rng, arrays = np.random.default_rng(seed + 100), full_arrays(seed)
    shape = arrays["mask"].shape
    old_BT = -rng.exponential(1.0, shape) - 4.0
    arrays["old_log_probs"] = old_BT
    arrays["log_probs"] = np.minimum(old_BT + rng.uniform(np.log(0.01), np.log(50), shape), -1e-3)
    for name in ("ref_log_probs", "rollout_log_probs", "augmented_log_probs", "dpo_log_probs"):
        arrays[name] = old_BT + rng.uniform(-1.5, 1.5, shape)
    return arrays


def long_tail(seed: int) -> dict[str, Any]:
    """Short responses beside one ten times as long."""
    arrays = full_arrays(seed, B=6, T=60)
    mask_BT = arrays["mask"]
    mask_BT[1:, 6:] = 0
    return arrays


def empty_rows(seed: int) -> dict[str, Any]:
    """Responses without a token; advantages per token, many of them 0."""
    arrays = off_policy(seed)
    arrays["mask"][[1, 6]] = 0
    arrays["advantages"] = np.round(np.random.default_rng(seed).normal(size=arrays["mask"].shape), 0)
    return arrays


def broken(seed: int) -> dict[str, Any]:
    """NaN and infinities at tokens that count, and a response without a finite reward."""
    arrays = near(seed)
    arrays["mask"][:4, :4] = 1
    for row, (name, value) in enumerate(
        (("log_probs", np.nan), ("old_log_probs", np.inf), ("entropies", -np.inf), ("ref_log_probs", np.nan))
    ):
        arrays[name][row, 2] = value
    arrays["reward"][5] = np.nan
    return arrays


BATCHES = {each.__name__: each for each in (on_policy, near, off_policy, long_tail, empty_rows, broken)}


COUPLED = {"discriminative", "group_logistic"}
"""Gates whose rows share one value of their group. They spread it evenly over the group's responses; where a broken
token takes a part of a response's share away, loss and weights are no longer of one function, and are not compared."""


def compare(spec: AlgorithmSpec, arrays: dict[str, Any], normalisers: Normalisers | None) -> dict[str, float]:
    """Largest errors: of a loss over max(1, magnitude), of a weight over max(1, the largest weight)."""
    batch = Batch(normalisers=normalisers, **arrays)
    mine, theirs = evaluate(spec, batch), oracle(spec, batch)
    found = {}
    for name in ("loss", "policy_loss", "constraint_loss", "entropy_loss"):
        found[name] = abs(getattr(mine, name) - getattr(theirs, name)) / max(1.0, mine.magnitude)
    for name in ("policy_weight", "constraint_weight", "gradient_weight"):
        expected = getattr(theirs, name)
        found[name] = np.abs(getattr(mine, name) - expected).max() / max(1.0, np.abs(expected).max())
    live = mine.aggregation != 0
    difference = np.abs(mine.policy_objective - theirs.policy_objective) * live
    found["policy_objective"] = difference.max() / max(1.0, np.abs(theirs.policy_objective).max())
    return found


def agree(spec: AlgorithmSpec, seeds: range = range(2)) -> None:
    lacking = unknown(spec)
    assert not lacking, f"{spec.id} uses {', '.join(lacking)}, which tests/objective/torch_objective.py does not state"
    optional = [{"rewards"} - set(needs(spec))]
    if "selected" in set(inputs(spec)) - set(needs(spec)):
        optional.append(optional[0] | {"selected"})
    worst: dict[str, float] = {}
    for kind, make in BATCHES.items():
        if kind == "broken" and spec.parts.gate.part in COUPLED:
            continue
        for seed in seeds:
            for normalisers in (None, UPDATE):
                for left_out in optional:
                    arrays = {name: values for name, values in make(seed).items() if name not in left_out}
                    for name, error in compare(spec, arrays, normalisers).items():
                        worst[name] = max(worst.get(name, 0.0), error)
                        assert error <= TOLERANCE, f"{kind}, seed {seed}: {name} is off by {error:.1e}"
    print(f"{spec.id}: largest errors {', '.join(f'{name} {error:.1e}' for name, error in worst.items())}")


@pytest.mark.parametrize(
    "spec", [spec for spec in algorithms.every() if spec.display is None], ids=lambda spec: spec.id
)
def test_loss_and_gradient_weight_equal_autograd(spec):
    agree(spec)


def variants(slot: str, name: str) -> list[dict[str, Any]]:
    """A part with each of its choices, once with what is null by default and once with a number there."""
    described = describe(slot, name).parameters
    found = [{}]
    for key, parameter in described.items():
        if parameter.choices:
            found += [{key: choice} for choice in parameter.choices]
        elif isinstance(parameter.default, bool):
            found += [{key: not parameter.default}]
        elif parameter.default is None:
            found += [{key: {"delta": 1.1, "dual_clip": 1.5, "clamp": 0.3, "length": 11}.get(key, 2.0)}]
    return [{"part": name, **values} for values in found]


BASE: dict[str, Any] = {
    "baseline": {"part": "group_mean"},
    "bounds": {"part": "around_one"},
    "gate": {"part": "ppo_clip"},
    "aggregation": {"part": "token_mean"},
}
COMPANIONS: dict[str, dict[str, Any]] = {
    "gate.discriminative": {"ratio": {"part": "mean_log_prob"}, "aggregation": {"part": "sequence_mean_token_mean"}},
    "gate.group_logistic": {
        "ratio": {"part": "sequence_mean"},
        "aggregation": {"part": "sequence_mean_token_mean"},
    },
    "gate.gamma_weight": {"ratio": {"part": "sequence_product"}},
    "ratio.hybrid": {"gate": {"part": "plain_ratio"}},
    "ratio.clipped_sequence_mean": {"gate": {"part": "plain_ratio"}, "bounds": {"part": "unbounded"}},
}
LISTS = ("filter", "weight", "mask", "constraint")


def part_specs() -> list[AlgorithmSpec]:
    found = []
    for slot in TABLES:
        for name in parts(slot):
            for number, use in enumerate(variants(slot, name)):
                chosen = BASE | COMPANIONS.get(f"{slot}.{name}", {}) | {slot: [use] if slot in LISTS else use}
                found.append(AlgorithmSpec(id=f"{slot}.{name}.{number}", name=name, parts=chosen))
    return found


@pytest.mark.parametrize("spec", part_specs(), ids=lambda spec: spec.id)
def test_every_part_with_each_of_its_choices_equals_autograd(spec):
    agree(spec, range(1))


def random_spec(seed: int) -> AlgorithmSpec:
    """Parts drawn from every slot, as users may combine them."""
    rng = np.random.default_rng(seed)

    def draw(slot: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
        names = [name for name in parts(slot) if name not in without]
        each = variants(slot, names[rng.integers(len(names))])
        return each[rng.integers(len(each))]

    chosen = {
        "baseline": {"part": ("group_mean", "recorded")[rng.integers(2)]},
        "ratio": draw("ratio", ("mean_log_prob",)),
        "bounds": draw("bounds"),
        "gate": draw("gate", ("discriminative", "group_logistic")),
        "aggregation": draw("aggregation"),
    }
    for slot in LISTS:
        chosen[slot] = [draw(slot) for _ in range(rng.integers(0, 3))]
    return AlgorithmSpec(id=f"random.{seed}", name="random", parts=chosen)


@pytest.mark.parametrize("seed", range(60))
def test_parts_drawn_at_random_equal_autograd(seed):
    agree(random_spec(seed), range(1))


def test_a_mixture_equals_autograd():
    own = {"part": "ppo_clip"}
    imitation = {"baseline": {"part": "unit"}, "gate": {"part": "log_prob"}, "weight": [{"part": "indecision"}]}
    for denominator in ("own", "all"):
        for statistics in ("own", "all"):
            spec = AlgorithmSpec(
                id="mixture",
                name="mixture",
                parts=BASE | {"gate": own, "scale": [{"part": "group_std"}]},
                mixture=[
                    {"source": 0, "coefficient": 0.9, "denominator": denominator, "statistics": statistics},
                    {"source": 1, "coefficient": 0.1, "denominator": denominator, "parts": imitation},
                ],
            )
            agree(spec)
