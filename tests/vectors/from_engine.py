"""Test vectors for a port of the engine: where definitions meet their limits.

    python tests/vectors/from_engine.py

What is expected is what the engine gives, so these cases confirm nothing about an algorithm (`against` is empty). They
say what a port has to give at ties, with nothing to average, with numbers that are broken or huge, for algorithms
written as JSON, and in which words it refuses. Loss and gradient weights of every case are compared with autograd
before they are written. Ties are at ratio 1, whose exponential is exact everywhere.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from objective.torch_objective import oracle

from unipo_hooks.algorithms import get
from unipo_hooks.objective.describe import given_advantages, with_hyper_parameters
from unipo_hooks.objective.evaluate import Evaluation
from unipo_hooks.objective.inputs import Batch, Normalisers
from vectors.format import case, decoded, evaluated, write_section

TOLERANCE = 1e-9
NAN, INF = np.nan, np.inf
WANTED = ("loss", "policy_loss", "gradient_weight", "advantages", "token_objective", "ratio", "aggregation", "clipped")

DUAL_TIE = "ratio exactly at a dual clip"
CLIP = {"part": "ppo_clip"}
AROUND_ONE = {"part": "around_one"}
TOKEN_MEAN = {"part": "token_mean"}
GROUP = {"baseline": {"part": "group_mean"}, "scale": [{"part": "group_std", "eps": 1e-6}]}


def arrays(**changes: Any) -> dict[str, Any]:
    """Four responses to two prompts, with a hole and of different lengths."""
    rng = np.random.default_rng(7)
    old_BT = (-rng.exponential(0.8, (4, 4)) - 0.1).round(3)
    found = {
        "log_probs": (old_BT + rng.normal(0.0, 0.3, (4, 4))).round(3),
        "old_log_probs": old_BT,
        "mask": np.array([[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]]),
        "reward": np.array([1.0, 0.0, 0.25, 0.75]),
        "group": np.array([4, 4, -2, -2]),
    }
    return found | changes


def extra(name: str, seed: int = 0) -> np.ndarray:
    """A further channel."""
    rng = np.random.default_rng(seed)
    if name.endswith("log_probs"):
        return (arrays()["old_log_probs"] + rng.normal(0, 0.2, (4, 4))).round(3)
    if name == "ids":
        return np.array([[1, 2, 3, 9], [1, 9, 3, 0], [5, 6, 0, 0], [5, 5, 6, 0]])
    if name in ("segments", "turns"):
        return np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]])
    return rng.uniform(0.2, 1.0, (4, 4)).round(3)


def broken(name: str, value: float, at: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    """The batch with one number replaced."""
    found = arrays()
    values = found[name].astype(float)
    values[at] = value
    return found | {name: values}


def user(**parts: Any) -> dict[str, Any]:
    """An algorithm as a user writes it."""
    return {"id": "mine", "name": "Mine", "parts": {**GROUP, "bounds": AROUND_ONE, "gate": CLIP} | parts}


def over_tokens(**parts: Any) -> dict[str, Any]:
    return user(aggregation=TOKEN_MEAN, **parts)


def tied(A: float, **parts: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every ratio exactly 1, and bounds there."""
    same = arrays()
    same |= {"log_probs": same["old_log_probs"], "advantages": np.full(4, A)}
    bounds = {"part": "absolute", "ratio_low": 1.0, "ratio_high": 1.0}
    return over_tokens(**{"bounds": bounds, "baseline": {"part": "recorded"}, "scale": []} | parts), same


def far(log: float, A: float, **parts: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every log ratio the same, far out."""
    there = arrays()
    there |= {"log_probs": there["old_log_probs"] + log, "advantages": np.full(4, A)}
    return over_tokens(**{"baseline": {"part": "recorded"}, "scale": []} | parts), there


def good() -> list[dict[str, Any]]:
    """Cases that give numbers: name, algorithm, batch, and what else."""
    found: list[tuple[Any, ...]] = []

    def add(name: str, algorithm: Any, batch: dict[str, Any], without: tuple[str, ...] = (), **further: Any) -> None:
        found.append((name, algorithm, batch, without, further))

    for A in (1.0, -1.0, 0.0):
        add(f"ratio exactly at both bounds, A = {A:g}", *tied(A))
    add(DUAL_TIE, *tied(-1.0, gate={"part": "ppo_clip", "dual_clip": 1.0}, bounds=AROUND_ONE))
    add("ratio exactly at delta", *tied(1.0, gate={"part": "ppo_clip", "delta": 1.0}, bounds=AROUND_ONE))
    add("capped weight at its bounds", *tied(1.0, gate={"part": "capped_weight"}))
    add("hard mask at its bounds", *tied(-1.0, gate={"part": "hard_mask", "sides": "two"}))
    add("clip before the mean, A = 0 here and there", *mixed_signs())

    grpo = over_tokens()
    add("nothing counts", grpo, arrays(mask=np.zeros((4, 4))))
    add("a response without a token", grpo, arrays(mask=arrays()["mask"] * [[1], [0], [1], [1]]))
    row_mean = user(aggregation={"part": "sequence_mean_token_mean", "rows": "nonempty"})
    add(
        "a response without a token, rows that are not empty",
        row_mean,
        arrays(mask=arrays()["mask"] * [[1], [0], [1], [1]]),
    )
    one = {name: values[:1, :1] if values.ndim == 2 else values[:1] for name, values in arrays().items()}
    add("one response of one token", grpo, one)
    add("positions there are none", grpo, {name: v[:, :0] if v.ndim == 2 else v for name, v in arrays().items()})
    add("groups of one", grpo, arrays(group=np.arange(4)))
    zero = {"part": "group_mean", "singleton": "zero"}
    scaled = [{"part": "group_std", "singleton": "zero"}]
    add("groups of one compared with zero", over_tokens(baseline=zero, scale=scaled), arrays(group=np.arange(4)))
    no_eps = [{"part": "group_std", "eps": 0.0}]
    add(
        "equal rewards that do not add up exactly, without epsilon",
        over_tokens(scale=no_eps),
        arrays(reward=[0.1 + 0.2] * 4),
    )
    whiten = [{"part": "token_whiten", "eps": 0.0}]
    add("nothing to whiten", over_tokens(scale=whiten), arrays(reward=[1 / 3] * 4))

    for name, value in (("log_probs", NAN), ("old_log_probs", INF), ("log_probs", -INF)):
        add(f"{value} in {name} at a token that counts", grpo, broken(name, value))
        add(f"{value} in {name} where nothing counts", grpo, broken(name, value, (2, 3)))
    of_response = over_tokens(ratio={"part": "sequence_mean"})
    add("NaN in log_probs under a ratio of responses", of_response, broken("log_probs", NAN))
    for value in (NAN, INF):
        add(f"reward {value}", grpo, broken("reward", value, (1,)))
    add(
        "NaN among rewards that are whitened over tokens",
        over_tokens(scale=whiten),
        arrays(reward=[1.0, NAN, 0.5, 0.0]),
    )
    greedy = over_tokens(baseline={"part": "greedy"}, scale=[{"part": "batch_whiten", "eps": 1e-8}])
    add("infinity in a channel of responses", greedy, arrays(greedy_reward=[0.5, 0.5, INF, 0.25]))
    add("an advantage that is NaN", over_tokens(), arrays(advantages=[1.0, NAN, -1.0, 0.5]), given=True)
    add("no response of a group has a reward", grpo, arrays(reward=[1.0, 0.0, NAN, -INF]))
    entropic = over_tokens(mask=[{"part": "high_entropy", "quantile": 0.5}])
    entropies = extra("entropies")
    entropies[0, 0] = NAN
    add("NaN among entropies of which a quantile is taken", entropic, arrays(entropies=entropies))

    for log in (50.0, 1000.0):
        add(f"log ratio {log:g}, A = 1", *far(log, 1.0), without=("ratio",))
        add(f"log ratio {-log:g}, A = -1", *far(-log, -1.0))
        dual = {"part": "ppo_clip", "dual_clip": 3.0}
        add(f"log ratio {log:g}, A = -1, dual clip", *far(log, -1.0, gate=dual), without=("ratio",))
        sigmoid = {"part": "sigmoid"}
        add(f"log ratio {log:g}, sigmoid gate", *far(log, 1.0, gate=sigmoid), without=("ratio",))

    kl = {"part": "kl", "beta": 0.1}
    ref = {"ref_log_probs": extra("ref_log_probs", 1)}
    micro = {"accumulation_steps": 3, "tokens": 31, "rows": 13, "length": 16, "data_parallel_size": 2}
    for aggregation in ("token_mean", "sequence_mean_token_mean", "sequence_mean_constant_length", "group_token_mean"):
        spec = user(constraint=[kl], aggregation={"part": aggregation})
        add(f"part of an update, {aggregation}", spec, arrays(**ref), normalisers=micro)
        add(f"{aggregation} of a hole", spec, arrays(**ref))
    two = over_tokens(constraint=[kl, {"part": "kl", "reference": "old_log_probs", "estimator": "k2"}])
    paths = {"constraint.0.beta": 0.5, "constraint.1.beta": 0.25, "epsilon_low": 0.1}
    add("hyper-parameters by name and by path", two, arrays(**ref), hyper_parameters=paths)
    add(
        "a constraint with coefficient 0 needs nothing",
        over_tokens(constraint=[kl]),
        arrays(),
        hyper_parameters={"beta": 0},
    )
    unbiased = over_tokens(ratio={"part": "sequence_mean"}, constraint=[{**kl, "times_ratio": True}])
    add("KL times the ratio of a response", unbiased, arrays(**ref))
    bonus = over_tokens(constraint=[{"part": "entropy_bonus", "coefficient": 0.01}])
    add("an entropy bonus beside the gradient weight", bonus, arrays(entropies=extra("entropies")))
    per_token = np.round(np.random.default_rng(3).normal(size=(4, 4)), 2)
    add("advantages given, token by token", over_tokens(), arrays(advantages=per_token), given=True)
    conflicts = over_tokens(mask=[{"part": "conflict_tokens"}])
    add("conflict tokens across a hole", conflicts, arrays(ids=extra("ids")))
    masks = over_tokens(mask=[{"part": "prefix", "share": 0.5}, {"part": "recorded_mask", "denominator": False}])
    add("masks in and out of the denominator", masks, arrays(policy_mask=extra("ids") % 2))
    segments = over_tokens(ratio={"part": "segment"})
    add("ratios of segments", segments, arrays(segments=extra("segments")))
    critic = over_tokens(baseline={"part": "gae", "gamma": 0.9, "lam": 0.8}, scale=[])
    add("a critic that steps over a hole", critic, arrays(values=extra("values")))
    apart = {"ratio": {"part": "mean_log_prob"}, "gate": {"part": "discriminative"}}
    hinge = [{"part": "kl_hinge", "beta": 10.0, "limit": 0.001}]
    disco = user(**apart, constraint=hinge, aggregation={"part": "sequence_mean_token_mean"})
    add("good and bad responses, and a hinge", disco, arrays(reward=[1.0, 0.0, 0.0, 1.0]))
    imitation = {"baseline": {"part": "unit"}, "scale": [], "ratio": {"part": "one"}, "gate": {"part": "log_prob"}}
    for denominator in ("own", "all"):
        mixture = [
            {"source": 0, "coefficient": 0.9, "denominator": denominator, "statistics": "own"},
            {"source": 1, "coefficient": 0.1, "denominator": denominator, "parts": imitation},
        ]
        add(f"a mixture, denominator {denominator}", over_tokens() | {"mixture": mixture}, arrays(source=[0, 0, 1, 0]))
    return [checked(*each) for each in found]


def mixed_signs() -> tuple[dict[str, Any], dict[str, Any]]:
    """Advantages of both signs and of 0 in one response, under a ratio that clips before it averages."""
    advantages = np.array([[1.0, -1.0, 0.0, 2.0], [0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.5, 0.0, -0.5, 0.0]])
    ratio = {"part": "clipped_sequence_mean", "log_low": 0.1, "log_high": 0.1}
    parts = {"ratio": ratio, "gate": {"part": "plain_ratio"}, "baseline": {"part": "recorded"}, "scale": []}
    return over_tokens(**parts), arrays(advantages=advantages)


def checked(
    name: str, algorithm: Any, batch: dict[str, Any], without: tuple[str, ...], further: dict[str, Any]
) -> dict[str, Any]:
    """A case with the engine's numbers, once autograd gives the same loss and weights."""
    batch = {key: np.asarray(values) for key, values in batch.items()}
    asked = case(name, algorithm, "", batch, {}, tolerance=TOLERANCE, **further)
    found = evaluated(asked)
    if 0 not in found.mask.shape:
        compare(asked, found)
    wanted = {key: getattr(found, key) for key in WANTED if key not in without}
    return case(name, algorithm, "", batch, wanted, tolerance=TOLERANCE, **further)


def compare(asked: dict[str, Any], found: Evaluation) -> None:
    spec = get(asked["algorithm"])
    spec = given_advantages(spec, modulated=True) if asked["given_advantages"] else spec
    spec = with_hyper_parameters(spec, asked["hyper_parameters"])
    channels = {name: decoded(values) for name, values in asked["batch"].items()}
    theirs = oracle(spec, Batch(normalisers=Normalisers(**asked["normalisers"]), **channels))
    for name in ("loss", "policy_weight", "constraint_weight"):
        error = float(np.abs(np.asarray(getattr(found, name)) - getattr(theirs, name)).max(initial=0.0))
        # At a tie torch's max gives each side half; here the side inside has all of it.
        if not error <= TOLERANCE and not (asked["name"] == DUAL_TIE and name == "policy_weight"):
            raise AssertionError(f"{asked['name']}: {name} is off by {error:.1e}")


def refused() -> list[dict[str, Any]]:
    """Cases that give an error, and words it must contain."""
    grpo = over_tokens()
    lacking = {name: values for name, values in arrays().items() if name != "old_log_probs"}
    asked: list[tuple[str, Any, dict[str, Any], str, dict[str, Any]]] = [
        ("a missing channel", grpo, lacking, "mine needs old_log_probs", {}),
        ("a missing reference", "grpo", arrays(), "grpo needs ref_log_probs", {}),
        ("an id there is not", "no_such_algorithm", arrays(), "no algorithm 'no_such_algorithm'", {}),
        (
            "a part there is not",
            over_tokens(gate={"part": "ppo_klip"}),
            arrays(),
            "parts.gate.part: no part 'ppo_klip'",
            {},
        ),
        (
            "a hyper-parameter there is not",
            over_tokens(bounds={"part": "around_one", "epsilon_hihg": 0.3}),
            arrays(),
            "parts.bounds.epsilon_hihg: around_one has no such hyper-parameter",
            {},
        ),
        (
            "a text for a number",
            over_tokens(bounds={"part": "around_one", "epsilon_high": "0.3"}),
            arrays(),
            "parts.bounds.epsilon_high: a number is needed",
            {},
        ),
        (
            "a choice there is not",
            user(aggregation={"part": "token_mean", "span": "world"}),
            arrays(),
            "parts.aggregation.span: 'world' is not one of",
            {},
        ),
        ("a hyper-parameter no part has", grpo, arrays(), "no hyper-parameter beta", {"beta": 0.1}),
        (
            "a hyper-parameter two parts have",
            over_tokens(constraint=[{"part": "kl"}, {"part": "kl"}]),
            arrays(ref_log_probs=extra("ref_log_probs")),
            "has beta more than once; say which",
            {"beta": 0.1},
        ),
        ("a channel of another shape", grpo, arrays(old_log_probs=np.zeros((4, 3))), "old_log_probs has shape", {}),
        ("a channel there is not", grpo, arrays(log_prob=np.zeros((4, 4))), "unknown input log_prob", {}),
        (
            "a mixture without sources",
            over_tokens() | {"mixture": [{"source": 0}]},
            arrays(),
            "mine needs source",
            {},
        ),
    ]
    return [
        case(f"refused: {name}", algorithm, "", batch, {"error": words}, hyper_parameters=changes)
        for name, algorithm, batch, words, changes in asked
    ]


if __name__ == "__main__":
    write_section("edges", good() + refused())
