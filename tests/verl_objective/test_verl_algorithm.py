"""verl's settings become the objective that runs; what has no counterpart is named. verl itself is not needed."""

from __future__ import annotations

import pytest

from unipo_hooks import algorithms, evaluate
from unipo_hooks.adapters.verl import normalisers_from_verl, spec_from_verl
from unipo_hooks.objective.describe import check, needs, parameters

BAND = {
    "actor__policy_loss__loss_mode": "bypass_mode",
    "actor__policy_loss__rollout_correction__loss_type": "reinforce",
    "actor__policy_loss__rollout_correction__rollout_is_threshold": "0.5_2",
}


def settings(**values: object) -> dict:
    """Nested settings from dotted paths, `__` for the dot and `actor` for where the actor's settings stand."""
    tree: dict = {}
    for path, value in values.items():
        names = path.replace("actor__", "actor_rollout_ref__actor__", 1).split("__")
        place = tree
        for name in names[:-1]:
            place = place.setdefault(name, {})
        place[names[-1]] = value
    return tree


def read(version: str = "0.9.1", **values: object):
    found = spec_from_verl(settings(**values), version)
    check(found.spec)
    return found


def use(found, slot: str, place: int | None = None) -> dict:
    """A part with every hyper-parameter it is used with."""
    value = getattr(found.spec.parts, slot)
    chosen = value if place is None else value[place]
    return {"part": chosen.part} | parameters(slot, chosen)


def test_no_settings_are_ppo_with_a_critic_and_a_dual_clip():
    found = read()
    assert found.spec.id == "ppo.verl"
    assert found.unknown == ()
    assert use(found, "baseline") == {"part": "gae", "gamma": 1.0, "lam": 1.0}
    assert use(found, "gate")["dual_clip"] == 3.0
    assert use(found, "ratio")["clamp"] == 20.0
    assert found.spec.parts.constraint == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"algorithm__adv_estimator": "grpo"}, "grpo.verl"),
        ({"algorithm__adv_estimator": "rloo"}, "rloo_verl"),
        ({"algorithm__adv_estimator": "opo"}, "opo.verl"),
        ({"algorithm__adv_estimator": "grpo", "actor__policy_loss__loss_mode": "cispo"}, "cispo.verl"),
        ({"algorithm__adv_estimator": "grpo", "actor__policy_loss__loss_mode": "geo_mean"}, "gmpo.verl"),
        ({"algorithm__adv_estimator": "grpo", "actor__policy_loss__loss_mode": "sapo"}, "sapo_soft.verl"),
        ({"algorithm__adv_estimator": "rloo", "actor__policy_loss__loss_mode": "cispo"}, "verl.rloo_cispo"),
    ],
)
def test_a_registered_algorithm_is_recognised(values, expected):
    assert read(**values).spec.id == expected


def test_the_dual_clip_cannot_be_turned_off_and_caps_dppo_too():
    assert use(read(actor__clip_ratio_c=5.0), "gate")["dual_clip"] == 5.0
    assert use(read(actor__policy_loss__loss_mode="dppo_tv"), "gate")["ratio_cap"] == 3.0
    assert use(read(actor__policy_loss__loss_mode="dppo_kl", actor__clip_ratio_low=0.05), "gate")["delta_low"] == 0.05


def test_clip_ratio_alone_changes_nothing():
    """Its two sides are set by default, and they win."""
    assert use(read(actor__clip_ratio=0.05), "bounds")["epsilon_low"] == 0.2
    both = read(actor__clip_ratio=0.05, actor__clip_ratio_low=None, actor__clip_ratio_high=0.3)
    assert use(both, "bounds") == {"part": "around_one", "epsilon_low": 0.05, "epsilon_high": 0.3}


@pytest.mark.parametrize(
    ("mode", "part", "more"),
    [
        ("token-mean", "token_mean", {}),
        ("token-sum", "token_sum", {}),
        ("seq-mean-token-sum", "sequence_mean_token_sum", {"rows": "nonempty"}),
        ("seq-mean-token-sum-norm", "sequence_mean_constant_length", {"rows": "nonempty", "length": 1024}),
        ("seq-mean-token-mean", "sequence_mean_token_mean", {"rows": "nonempty"}),
    ],
)
def test_every_aggregation_has_its_part(mode, part, more):
    found = use(read(actor__loss_agg_mode=mode, actor__loss_scale_factor=1024), "aggregation")
    assert found["part"] == part
    assert found.items() >= more.items()


def test_losses_that_ignore_the_aggregation():
    """sapo and, before 0.9, gspo average over responses; geo_mean over those of the micro-batch."""
    sapo = read(actor__policy_loss__loss_mode="sapo", actor__loss_agg_mode="token-mean")
    assert use(sapo, "aggregation")["part"] == "sequence_mean_token_mean"
    for version, part in {
        "0.7.1": "sequence_mean_token_mean",
        "0.8.0": "sequence_mean_token_mean",
        "0.9.1": "token_mean",
    }.items():
        assert use(read(version, actor__policy_loss__loss_mode="gspo"), "aggregation")["part"] == part
    geo_mean = use(read(actor__policy_loss__loss_mode="geo_mean"), "aggregation")
    assert (geo_mean["rows"], geo_mean["span"]) == ("all", "micro_batch")


def test_a_kl_term_beside_a_loss_of_another_aggregation_is_reported():
    found = read(actor__policy_loss__loss_mode="sapo", actor__use_kl_loss=True)
    assert "actor.loss_agg_mode=token-mean" in found.unknown[0]
    same = read(
        actor__policy_loss__loss_mode="sapo", actor__use_kl_loss=True, actor__loss_agg_mode="seq-mean-token-mean"
    )
    assert same.unknown == ()


def test_the_kl_loss_has_verls_estimator_and_clamp():
    term = use(read(actor__use_kl_loss=True), "constraint", 0)
    assert (term["estimator"], term["beta"], term["clamp"], term["before_weight"]) == ("k3", 0.001, 10.0, False)
    assert use(read(actor__use_kl_loss=True, actor__kl_loss_type="mse+"), "constraint", 0)["estimator"] == "k2"
    assert use(read(actor__use_kl_loss=True, actor__kl_loss_type="kl+"), "constraint", 0)["estimator"] == "k1+"
    full = read(actor__use_kl_loss=True, actor__kl_loss_type="full")
    assert full.spec.parts.constraint == []
    assert "kl_loss_type=full" in full.unknown[0]


def test_the_kl_penalty_of_the_reward_reaches_every_estimator_but_gdpo():
    inside = {"algorithm__use_kl_in_reward": True, "algorithm__kl_ctrl__kl_coef": 0.05}
    assert use(read(**inside), "reward", 0) == {"part": "token_kl_penalty", "beta": 0.05, "estimator": "k1"}
    gdpo = read(algorithm__adv_estimator="gdpo", **inside)
    assert [each.part for each in gdpo.spec.parts.reward] == ["normalised_components"]
    adaptive = read(**inside, algorithm__kl_ctrl__type="adaptive")
    assert "algorithm.kl_ctrl.type=adaptive" in adaptive.unknown[0]


def test_the_entropy_bonus_is_aggregated_like_the_loss():
    term = use(read(actor__entropy_coeff=0.01), "constraint", 0)
    assert (term["part"], term["coefficient"], term["token_mean"]) == ("entropy_bonus", 0.01, False)


def test_the_deviation_is_left_out_only_where_verl_listens():
    centred = {"algorithm__norm_adv_by_std_in_grpo": False}
    assert read(algorithm__adv_estimator="grpo", **centred).spec.parts.scale == []
    assert use(read(algorithm__adv_estimator="grpo_vectorized", **centred), "scale", 0)["part"] == "group_std"


def test_sampler_weights_come_only_with_the_samplers_log_probs():
    correction = {"algorithm__rollout_correction__rollout_is": "token"}
    assert read(**correction).spec.parts.weight == []
    there = {**correction, "actor_rollout_ref__rollout__calculate_log_probs": True}
    assert use(read(**there), "weight", 0) == {"part": "recorded_weight", "level": "token"}
    geo_mean = read(**there, actor__policy_loss__loss_mode="geo_mean")
    assert use(geo_mean, "weight", 0)["level"] == "sequence_mean"


def test_bypass_mode_takes_its_own_loss_where_the_trainer_sets_it():
    correction = {
        "algorithm__rollout_correction__bypass_mode": True,
        "algorithm__rollout_correction__loss_type": "reinforce",
        "algorithm__rollout_correction__rollout_is": "token",
        "algorithm__rollout_correction__rollout_rs": "seq_mean_k1",
        "algorithm__rollout_correction__rollout_rs_threshold": "0.5_2",
        "actor_rollout_ref__rollout__calculate_log_probs": True,
    }
    old = read("0.8.0", **correction)
    assert use(old, "gate")["part"] == "capped_weight"
    assert use(old, "mask", 0)["level"] == "sequence_mean"
    assert use(old, "mask", 0)["limit_high"] == pytest.approx(0.6931471805599453)
    assert read("0.9.1", **correction, trainer__use_v1=False).spec.parts == old.spec.parts
    new = read("0.9.1", **correction)
    assert use(new, "gate")["part"] == "ppo_clip"
    assert (new.spec.parts.mask, new.spec.parts.weight) == ([], [])


@pytest.mark.parametrize("version", ["0.7.1", "0.8.0", "0.9.1"])
def test_a_bypass_loss_the_user_sets_takes_the_actors_settings(version):
    own = {"actor__policy_loss__loss_mode": "bypass_mode"}
    assert use(read(version, **own), "gate")["part"] == "ppo_clip"
    reinforce = {**own, "actor__policy_loss__rollout_correction__loss_type": "reinforce"}
    assert use(read(version, **reinforce), "ratio")["part"] == "sequence_product"
    alone = read(version, **reinforce, actor__policy_loss__rollout_correction__rollout_is=None)
    assert use(alone, "gate")["part"] == "log_prob"


def test_clip_cov_needs_its_selection():
    found = read(algorithm__adv_estimator="grpo", actor__policy_loss__loss_mode="clip_cov")
    assert "selected" in needs(found.spec)


@pytest.mark.parametrize(
    ("version", "values", "words"),
    [
        ("0.10.0", {}, "verl=0.10.0"),
        ("nightly", {}, "verl=nightly"),
        ("0.9.1", {"algorithm__adv_estimator": "mine"}, "algorithm.adv_estimator=mine"),
        ("0.9.1", {"actor__policy_loss__loss_mode": "mine"}, "actor.policy_loss.loss_mode=mine"),
        ("0.8.0", {"actor__policy_loss__loss_mode": "dro"}, "actor.policy_loss.loss_mode=dro"),
        ("0.9.1", {"actor__policy_loss__loss_mode": "dro"}, "actor.policy_loss.dro_beta=None"),
        ("0.8.0", {"actor__loss_agg_mode": "token-sum"}, "actor.loss_agg_mode=token-sum"),
        ("0.9.1", {"actor__loss_agg_mode": "mine"}, "actor.loss_agg_mode=mine"),
        ("0.8.0", {"algorithm__adv_estimator": "reinforce_plus_plus"}, "algorithm.adv_estimator=reinforce_plus_plus"),
        ("0.7.1", {"algorithm__adv_estimator": "grpo_vectorized"}, "algorithm.adv_estimator=grpo_vectorized"),
        ("0.7.1", {"actor__use_kl_loss": True, "actor__kl_loss_type": "k3+"}, "actor.kl_loss_type=k3+"),
        ("0.7.1", BAND, "rollout_correction.rollout_is_threshold=0.5_2"),
        ("0.9.1", {"algorithm__use_pf_ppo": True}, "algorithm.use_pf_ppo"),
        ("0.9.1", {"distillation__enabled": True}, "distillation.enabled"),
        ("0.9.1", {"algorithm__novelty": 3}, "algorithm.novelty=3"),
        ("0.9.1", {"actor__policy_loss__novelty": 3}, "actor.policy_loss.novelty=3"),
    ],
)
def test_what_is_not_known_is_reported_and_never_guessed(version, values, words):
    found = read(version, **values)
    assert any(words in each for each in found.unknown), found.unknown


def test_what_is_not_wholly_known_is_not_called_exact():
    grpo = {"algorithm__adv_estimator": "grpo"}
    assert read(**grpo).spec.exact
    old, novel = read("0.8.0", **grpo).spec, read(**grpo, algorithm__novelty=3).spec
    assert (old.exact, novel.exact) == (False, False)
    assert "0.8.0" in old.inexact
    assert "algorithm.novelty=3" in novel.inexact


def test_an_unknown_estimator_leaves_the_advantages_to_the_trainer():
    assert use(read(algorithm__adv_estimator="mine"), "baseline")["part"] == "recorded"


def test_settings_may_be_objects():
    class Section:
        def __init__(self, **values):
            self.__dict__.update(values)

    config = Section(
        algorithm=Section(adv_estimator="grpo"), actor_rollout_ref=Section(actor=Section(clip_ratio_c=4.0))
    )
    found = spec_from_verl(config, "0.9.1")
    assert found.spec.id == "grpo.verl"
    assert use(found, "gate")["dual_clip"] == 4.0


def test_normalisers_are_those_of_one_rank():
    found = normalisers_from_verl(batch_num_tokens=100, global_batch_size=16, dp_size=2, loss_scale_factor=512)
    assert (found.tokens, found.rows, found.length, found.data_parallel_size) == (50, 8, 512, 2)
    alone = normalisers_from_verl(accumulation_steps=4)
    assert (alone.tokens, alone.rows, alone.accumulation_steps) == (None, None, 4)


def test_a_sum_over_tokens_is_the_same_on_any_number_of_ranks():
    """Each rank returns its own sum times their number; averaged over ranks, every token weighs the same."""
    batch = {"log_probs": [[-1.0, -2.0]], "mask": [[1, 1]], "advantages": [2.0]}
    spec = {
        "id": "sum",
        "name": "sum",
        "parts": {
            "baseline": {"part": "recorded"},
            "ratio": {"part": "one"},
            "gate": {"part": "log_prob"},
            "aggregation": {"part": "token_sum"},
        },
    }
    for ranks in (1, 4):
        found = evaluate(spec, {**batch, "normalisers": normalisers_from_verl(dp_size=ranks)})
        assert found.loss == 6.0 * ranks
        assert found.gradient_weight.tolist() == [[-2.0, -2.0]]


def test_every_algorithm_of_verl_has_a_parent_and_says_what_verl_changes():
    found = [spec for spec in algorithms.every() if spec.id.endswith((".verl", "_verl"))]
    assert len(found) > 20
    for spec in found:
        assert spec.parent in algorithms.ids()
        assert spec.story
        assert spec.changed
