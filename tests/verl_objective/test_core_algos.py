"""The engine gives what verl's own functions give: every policy loss, aggregation, advantage estimator and KL.

verl adds 1e-8 to counts and variances before it divides, and computes a few statistics in float32; the bounds below
allow for that and nothing else.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

# A module inside verl: `verl` alone would be found wherever this folder's parent is on the path.
pytest.importorskip("verl.trainer.ppo", reason="needs verl: make test runs it in .venv-verl")

from vectors import verl_functions

from unipo_hooks import evaluate
from unipo_hooks.adapters.verl import normalisers_from_verl, spec_from_verl
from unipo_hooks.adapters.verl.algorithm import AGGREGATIONS, KL_ESTIMATORS, LOSSES
from unipo_hooks.objective.describe import given_advantages
from unipo_hooks.objective.inputs import Batch

B, T = 6, 7
INFO = {"dp_size": 2, "batch_num_tokens": 61, "global_batch_size": 14}
"""What the worker knows of a mini-batch spread over two ranks."""

ESTIMATORS = (
    "gae",
    "grpo",
    "grpo_vectorized",
    "gdpo",
    "grpo_passk",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "rloo",
    "rloo_vectorized",
    "opo",
    "remax",
    "gpg",
    "optimal_token_baseline",
    "tir_optimal_token_baseline",
)


def batch(seed: int) -> dict[str, np.ndarray]:
    """Responses of every length, an empty one, gaps of tool output, and ratios far out on both sides.

    With an even seed they are so far out that verl clamps them, which makes the loss enormous.
    """
    random = np.random.default_rng(seed)
    mask = np.ones((B, T))
    mask[1, 4:] = 0
    mask[2] = 0
    mask[3, 2:4] = 0
    mask[4, 1:] = 0
    old = -random.exponential(1.0, (B, T)) - 0.01
    moved = random.normal(0, 0.4, (B, T))
    moved[0, 0], moved[3, 5], moved[5, 2] = 3.0, -4.0, 1.5
    log_probs = np.minimum(old + moved, -1e-3)
    if seed % 2 == 0:
        log_probs[0, 1], old[0, 1] = -0.01, -23.0
        log_probs[5, 1] = old[5, 1] - 24.0
    advantages = random.normal(0, 1.0, (B, T))
    advantages[0, :2], advantages[3, 0], advantages[5, 2] = -1.3, 0.0, -0.8
    return {
        "log_probs": log_probs,
        "old_log_probs": old,
        "ref_log_probs": old + random.normal(0, 0.7, (B, T)),
        "entropies": random.random((B, T)),
        "is_weights": random.uniform(0.1, 2.0, (B, T)),
        "advantages": advantages,
        "mask": mask,
    }


def scored(seed: int, group: list[int], **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """The same responses with rewards, values and what else an estimator may want."""
    random = np.random.default_rng(seed)
    return batch(seed) | {
        "reward": random.normal(0.3, 1.0, B).round(3),
        "group": np.array(group),
        "values": random.normal(0, 1.0, (B, T)),
        "greedy_reward": random.normal(0, 1.0, B),
        "sum_pi_squared": random.random((B, T)),
        "reward_components": random.integers(0, 5, (B, 2)) / 4,
        **arrays,
    }


def config(**settings: object) -> dict[str, object]:
    """Settings of the actor, where main_ppo has them."""
    return {"actor_rollout_ref": {"actor": settings}}


def compare(settings: dict, data: dict[str, np.ndarray], info: dict | None, weighted: bool, **more: object) -> float:
    """Largest error of loss and gradient weight, each divided by max(1, its size)."""
    data = {name: value for name, value in data.items() if weighted or name != "is_weights"}
    theirs = verl_functions.worker_loss(settings, data, info)
    correction = {"rollout_correction": {"rollout_is": "token" if weighted else None}}
    whole = {
        "algorithm": correction | dict(more),
        "actor_rollout_ref": {"actor": settings, "rollout": {"calculate_log_probs": True}},
    }
    found = spec_from_verl(whole, verl_functions.VERSION)
    assert found.unknown == ()
    normalisers = normalisers_from_verl(**(info or {}), loss_scale_factor=settings.get("loss_scale_factor"))
    extra = {"selected": theirs["selected"]} if "selected" in theirs else {}
    ours = evaluate(given_advantages(found.spec), Batch(normalisers=normalisers, **data, **extra))
    ranks = normalisers.data_parallel_size
    loss = abs(ours.loss - theirs["loss"]) / max(1.0, ours.magnitude)
    gradient = np.abs(ours.gradient_weight * ranks - theirs["gradient"]) / np.maximum(1.0, np.abs(theirs["gradient"]))
    return max(loss, gradient.max())


POLICY_LOSSES: dict[str, dict] = {mode: {"loss_mode": mode} for mode in LOSSES if mode != "bypass_mode"}
POLICY_LOSSES["dro"] |= {"dro_beta": 0.3}
POLICY_LOSSES["clip_cov"] |= {"clip_cov_ratio": 0.2, "clip_cov_lb": -1.0, "clip_cov_ub": 5.0}
POLICY_LOSSES["kl_cov"] |= {"kl_cov_ratio": 0.2, "ppo_kl_coef": 0.7}

CLIPS = ({}, {"clip_ratio": 0.1, "clip_ratio_low": None, "clip_ratio_high": 0.28, "clip_ratio_c": 2.0})


def test_every_policy_loss_of_verl_is_compared():
    assert set(verl_functions.core_algos.POLICY_LOSS_REGISTRY) == set(LOSSES)
    assert {each.value for each in verl_functions.core_algos.AdvantageEstimator} == set(ESTIMATORS)
    assert set(verl_functions.core_algos.ADV_ESTIMATOR_REGISTRY) == set(ESTIMATORS)


@pytest.mark.parametrize("mode", POLICY_LOSSES)
def test_a_policy_loss_is_the_same_under_every_aggregation(mode):
    worst, cases = 0.0, 0
    for aggregation, weighted, info, clip, seed in product(AGGREGATIONS, (0, 1), (None, INFO), CLIPS, (0, 1)):
        settings = {"policy_loss": POLICY_LOSSES[mode], "loss_agg_mode": aggregation, **clip}
        if aggregation.endswith("norm") and seed:
            settings["loss_scale_factor"] = 11
        worst, cases = max(worst, compare(settings, batch(seed), info, bool(weighted))), cases + 1
    print(f"{mode}: largest error {worst:.1e} in {cases} cases")
    assert worst < 2e-8


@pytest.mark.parametrize("temperatures", [{}, {"tau_pos": 0.5, "tau_neg": 3.0}])
def test_sapo_takes_its_temperatures(temperatures):
    settings = {"policy_loss": {"loss_mode": "sapo"}, **temperatures}
    assert compare(settings, batch(3), INFO, False) < 2e-8


BYPASS = {
    "ppo_clip": {"loss_type": "ppo_clip", "rollout_is": "token"},
    "reinforce": {"loss_type": "reinforce", "rollout_is": None},
    "reinforce, token weights": {"loss_type": "reinforce", "rollout_is": "token", "rollout_is_threshold": 1.5},
    "reinforce, a band": {"loss_type": "reinforce", "rollout_is": "token", "rollout_is_threshold": "0.5_2.0"},
    "reinforce, sequence weights": {"loss_type": "reinforce", "rollout_is": "sequence", "rollout_is_threshold": 2.0},
    "reinforce, a band of sequences": {
        "loss_type": "reinforce",
        "rollout_is": "sequence",
        "rollout_is_threshold": "0.2_9",
    },
}
REJECTIONS = (
    {},
    {"rollout_rs": "token_k1", "rollout_rs_threshold": "0.7_1.5"},
    {"rollout_rs": "token_k2", "rollout_rs_threshold": 0.08},
    {"rollout_rs": "token_k3", "rollout_rs_threshold": 0.05},
    {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.8_1.25"},
    {"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": 3.0},
    {"rollout_rs": "seq_mean_k3", "rollout_rs_threshold": 0.3},
    {"rollout_rs": "seq_max_k2", "rollout_rs_threshold": 0.5},
    {"rollout_rs": "token_k3,seq_mean_k2", "rollout_rs_threshold": "0.4,0.6"},
)


@pytest.mark.parametrize("kind", BYPASS)
def test_bypass_mode_is_the_same_with_and_without_rejection(kind):
    worst, cases = 0.0, 0
    for aggregation, rejection, info in product(AGGREGATIONS, REJECTIONS, (None, INFO)):
        loss = {"loss_mode": "bypass_mode", "rollout_correction": BYPASS[kind] | rejection}
        settings = {"policy_loss": loss, "loss_agg_mode": aggregation}
        worst, cases = max(worst, compare(settings, batch(4), info, False)), cases + 1
    print(f"bypass_mode, {kind}: largest error {worst:.1e} in {cases} cases")
    assert worst < 2e-8


@pytest.mark.parametrize("name", [name + plus for name in KL_ESTIMATORS for plus in ("", "+")])
def test_the_kl_loss_and_the_entropy_bonus_are_the_same(name):
    worst = 0.0
    for aggregation, info, coefficient in product(AGGREGATIONS, (None, INFO), (0, 0.01)):
        settings = {"loss_agg_mode": aggregation, "use_kl_loss": True, "kl_loss_type": name, "kl_loss_coef": 0.3}
        data = batch(5)
        data["ref_log_probs"][0, 3] = data["log_probs"][0, 3] + 21  # beyond what verl clamps at
        data["ref_log_probs"][0, 4] = data["log_probs"][0, 4] + 4
        worst = max(worst, compare(settings | {"entropy_coeff": coefficient}, data, info, True))
    print(f"{name}: largest error {worst:.1e}")
    assert worst < 2e-8


GROUPS = {
    "pairs": [0, 0, 1, 1, 2, 2],
    "of three": [0, 0, 0, 1, 1, 1],
    "alone": [0, 0, 0, 1, 1, 2],
    "mixed": [1, 0, 1, 0, 1, 0],
}


def error_of(estimator: str, data: dict[str, np.ndarray], settings: dict) -> float:
    """Largest error of an estimator's advantages, over tokens that count."""
    theirs = verl_functions.advantages(estimator, data, settings)
    found = spec_from_verl({"algorithm": {"adv_estimator": estimator, **settings}}, verl_functions.VERSION)
    assert found.unknown == ()
    ours = evaluate(found.spec, Batch(**data)).advantages
    return float(np.abs(ours - theirs).max())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_advantage_estimator_is_the_same(estimator):
    # verl has some statistics in float32: of these two estimators all, of grpo what a group of one is divided by
    bound = {"grpo_vectorized": 1e-5, "gdpo": 1e-6, "grpo": 1e-6}.get(estimator, 2e-8)
    variants: list[dict] = [{}]
    if estimator in ("gae", "reinforce_plus_plus"):
        variants.append({"gamma": 0.9} | ({"lam": 0.8} if estimator == "gae" else {}))
    if estimator.startswith("grpo") or estimator == "gdpo":  # two of the four do not listen
        variants.append({"norm_adv_by_std_in_grpo": False})
    worst, cases = 0.0, 0
    for (name, group), variant, seed, in_reward in product(GROUPS.items(), variants, (0, 1, 2), (False, True)):
        if estimator == "grpo_passk" and name == "alone":
            continue  # verl refuses
        data = scored(seed, group)
        if estimator not in ("optimal_token_baseline", "tir_optimal_token_baseline") or seed:
            data.pop("is_weights")
        kinds = ("kl", "abs", "mse", "low_var_kl", "k3+") if in_reward else ("",)
        for kind in kinds:
            kl = {"use_kl_in_reward": True, "kl_penalty": kind, "kl_ctrl": {"type": "fixed", "kl_coef": 0.2}}
            settings = variant | (kl if in_reward else {})
            worst, cases = max(worst, error_of(estimator, data, settings)), cases + 1
    print(f"{estimator}: largest error {worst:.1e} in {cases} cases")
    assert worst < bound


@pytest.mark.parametrize("estimator", ["gae", "reinforce_plus_plus", "remax", "optimal_token_baseline", "grpo"])
def test_rewards_of_tokens_are_taken_where_they_stand(estimator):
    rewards = np.random.default_rng(9).normal(0, 1, (B, T)) * batch(9)["mask"]
    data = scored(9, GROUPS["of three"], rewards=rewards, reward=rewards.sum(1))
    error = error_of(estimator, data, {})
    print(f"{estimator}: {error:.1e}")
    assert error < 2e-8


def test_gdpo_weighs_its_rewards():
    data = scored(6, GROUPS["of three"], reward_weights=np.array([0.25, 2.0]))
    error = error_of("gdpo", data, {})
    print(f"{error:.1e}")
    assert error < 1e-6


@pytest.mark.parametrize("estimator", ["grpo", "grpo_vectorized", "gdpo", "rloo", "opo", "gpg", "grpo_passk"])
def test_rewards_that_are_all_equal_give_exactly_no_advantage(estimator):
    """verl divides the rounding error of its mean by 1e-6, which can look like a signal; here it is 0."""
    data = scored(7, GROUPS["of three"], reward=np.full(B, 0.1), reward_components=np.full((B, 2), 0.1))
    data.pop("is_weights")
    theirs = verl_functions.advantages(estimator, data)
    found = spec_from_verl({"algorithm": {"adv_estimator": estimator}}, verl_functions.VERSION)
    assert (evaluate(found.spec, Batch(**data)).advantages == 0).all()
    print(f"{estimator}: {np.abs(theirs).max():.1e} in verl")
    assert (
        np.abs(theirs).max() < 2e-2 or estimator == "gdpo"
    )  # whitening makes that rounding error as large as a signal


def test_rewards_of_whole_numbers_that_are_all_equal_give_none_in_verl_either():
    data = scored(8, GROUPS["pairs"], reward=np.ones(B))
    data.pop("is_weights")
    for estimator in ("grpo", "grpo_vectorized", "rloo", "opo", "gpg", "grpo_passk"):
        assert error_of(estimator, data, {}) == 0


def test_main_ppos_own_configuration_is_read_without_a_rest():
    config = verl_functions.default_settings()
    found = spec_from_verl(config, verl_functions.VERSION)
    assert found.spec.id == "ppo.verl"
    assert found.unknown == ()
    config.algorithm.adv_estimator = "grpo"
    config.actor_rollout_ref.actor.use_kl_loss = True
    found = spec_from_verl(config, verl_functions.VERSION)
    assert found.spec.id == "grpo.verl"
    assert found.spec.parts.constraint[0].parameters["beta"] == 0.001


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_sampler_weights_can_be_had_from_the_log_probs_as_well(level):
    """What verl multiplies with is π_old/π_sampler, cut from above or, as a band, dropped outside."""
    data = batch(11)
    data["rollout_log_probs"] = data["old_log_probs"] + np.random.default_rng(11).normal(0, 0.3, (B, T))
    weight = {"token": "token", "sequence": "sequence_product"}[level]
    spec = {
        "id": "weights",
        "name": "weights",
        "parts": {"baseline": {"part": "unit"}, "ratio": {"part": "one"}, "gate": {"part": "log_prob"}},
    }
    for threshold, part in (
        (1.5, {"part": "truncated", "cap": 1.5}),
        ("0.6_1.7", {"part": "banded", "band_low": 0.6, "band_high": 1.7}),
    ):
        theirs, _ = verl_functions.sampler_correction(data, {"rollout_is": level, "rollout_is_threshold": threshold})
        spec["parts"] |= {"weight": [part | {"level": weight}], "aggregation": {"part": "token_sum"}}
        given = {name: data[name] for name in ("log_probs", "old_log_probs", "rollout_log_probs", "mask")}
        ours = -evaluate(spec, given).gradient_weight
        print(f"{level}, {threshold}: {np.abs(ours - theirs).max():.1e}")
        assert np.abs(ours - theirs).max() < 1e-12
