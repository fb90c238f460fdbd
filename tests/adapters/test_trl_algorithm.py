"""Settings of TRL become the algorithm that really runs, version by version; what is not understood is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import trl
from trl import GRPOConfig, RLOOConfig
from trl.experimental.a2po import A2POConfig
from trl.experimental.gmpo import GMPOConfig

from unipo_hooks import algorithms
from unipo_hooks.adapters.trl.algorithm import spec_from_trl
from unipo_hooks.adapters.trl.normalisers import divided_afterwards, normalisers_from_trl
from unipo_hooks.adapters.trl.versions import DEFAULTS, parsed_version
from unipo_hooks.objective.describe import check, needs, parameters, uses

NOW = trl.__version__


def slots(config, version=NOW, **named):
    """What each slot does, written out."""
    answer = spec_from_trl(config, version, **named)
    assert check(answer.spec) is answer.spec
    written = {}
    for slot, _, use in uses(answer.spec.parts):
        written.setdefault(slot, []).append(algorithms.written(slot, use))
    return {slot: " then ".join(parts) for slot, parts in written.items()}


def configuration(cls=GRPOConfig, **settings):
    return cls(output_dir="unused", bf16=False, use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "dapo.trl"),
        ({"epsilon_high": 0.28}, "dapo.trl"),
        ({"loss_type": "grpo"}, "grpo.trl"),
        ({"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False}, "grpo"),
        ({"loss_type": "bnpo"}, "bnpo_trl"),
        ({"loss_type": "dr_grpo", "scale_rewards": "none"}, "dr_grpo"),
        ({"loss_type": "luspo", "importance_sampling_level": "sequence"}, "luspo.trl"),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, "cispo.trl"),
        ({"loss_type": "sapo"}, "sapo_soft.trl"),
        ({"loss_type": "vespo"}, "vespo.trl"),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, "gspo.trl"),
        ({"loss_type": "grpo", "delta": 4.0}, "delta_clip"),
        ({"scale_rewards": "batch"}, "lite_ppo"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "gdpo.trl"),
        ({"top_entropy_quantile": 0.2}, "entropy_top_q.trl"),
        ({"mask_truncated_completions": True}, "overlong_filter.trl"),
        ({"use_vllm": True}, "mis.trl"),
        ({"use_vllm": True, "vllm_importance_sampling_mode": "token_truncate"}, "tis.trl"),
        ({"use_vllm": True, "vllm_importance_sampling_correction": False}, "dapo.trl"),
        ({"beta": 0.1}, "trl.dapo_kl"),
        ({"delta": 2.0, "entropy_coef": 0.01}, "trl.dapo_delta_entropy_bonus"),
    ],
)
def test_settings_are_named_after_the_registered_algorithm_they_are(settings, name):
    config = configuration(**settings)
    answer = spec_from_trl(config, NOW)
    assert (answer.spec.id, answer.unknown) == (name, ())
    # A manifest holds settings as plain JSON.
    assert spec_from_trl(config.to_dict(), NOW) == answer
    assert answer.spec.exact or answer.spec.inexact


def test_hyper_parameters_are_the_configured_ones():
    spec = spec_from_trl(configuration(epsilon=0.1, epsilon_high=0.3), NOW).spec
    assert parameters("bounds", spec.parts.bounds) == {"epsilon_low": 0.1, "epsilon_high": 0.3}
    assert slots(configuration(epsilon=0.1))["bounds"] == "around_one(epsilon_low=0.1, epsilon_high=0.1)"


@pytest.mark.parametrize(
    ("version", "loss"),
    [("0.17.0", "token_mean(span=micro_batch)"), ("0.21.0", "token_mean(span=micro_batch)")]
    + [(version, "token_mean(span=update)") for version in ("0.22.0", "1.0.0", "1.16.0")],
)
def test_the_default_loss_is_that_of_the_version(version, loss):
    assert slots({}, version)["aggregation"] == loss


@pytest.mark.parametrize(
    ("version", "settings", "kl"),
    [
        ("0.17.0", {}, (0.04, False)),
        ("0.18.2", {}, (0.04, False)),
        ("0.19.1", {}, None),
        ("1.9.1", {"beta": 0.1}, (0.1, False)),
        ("1.10.0", {"beta": 0.1}, (0.1, True)),
        ("1.10.0", {"beta": 0.1, "use_bias_correction_kl": False}, (0.1, False)),
        ("0.26.2", {"beta": 0.1, "use_bias_correction_kl": True}, (0.1, True)),
    ],
)
def test_kl_times_the_ratio_is_the_default_since_1_10(version, settings, kl):
    uses_of = spec_from_trl(settings, version).spec.parts.constraint
    found = [parameters("constraint", use) for use in uses_of]
    assert [(each["beta"], each["times_ratio"]) for each in found] == ([] if kl is None else [kl])


@pytest.mark.parametrize(
    ("version", "settings", "weight"),
    [
        ("0.22.0", {"use_vllm": True}, None),
        ("0.23.0", {"use_vllm": True}, "truncated(level=token, cap=2.0, floor=0.0)"),
        ("0.26.0", {"use_vllm": True}, "banded(level=sequence_product, band_low=0.0, band_high=3.0)"),
        (
            "0.26.0",
            {"use_vllm": True, "vllm_importance_sampling_cap": 5.0},
            "banded(level=sequence_product, band_low=0.0, band_high=5.0)",
        ),
        (
            "1.16.0",
            {
                "use_vllm": True,
                "vllm_importance_sampling_mode": "token_mask",
                "vllm_importance_sampling_clip_min": 0.5,
                "vllm_importance_sampling_clip_max": None,
            },
            "banded(level=token, band_low=0.5, band_high=1e+300)",
        ),
        (
            "1.16.0",
            {
                "use_vllm": True,
                "vllm_importance_sampling_mode": "sequence_truncate",
                "vllm_importance_sampling_clip_min": 0.5,
            },
            "truncated(level=sequence_product, cap=3.0, floor=0.5)",
        ),
    ],
)
def test_the_sampler_correction_is_that_of_the_version(version, settings, weight):
    assert slots(settings, version).get("weight") == weight


@pytest.mark.parametrize(
    ("version", "loss_type", "token_mean"),
    [("1.8.0", "dapo", False), ("1.9.1", "vespo", False), ("1.9.1", "grpo", True), ("1.10.0", "dapo", True)],
)
def test_the_entropy_bonus_of_1_8_and_1_9_is_divided_as_the_loss_is(version, loss_type, token_mean):
    settings = {"loss_type": loss_type, "entropy_coef": 0.1}
    (bonus,) = spec_from_trl(settings, version).spec.parts.constraint
    assert parameters("constraint", bonus)["token_mean"] is token_mean


def test_an_adaptive_entropy_bonus_has_the_coefficient_that_was_recorded():
    settings = {"use_adaptive_entropy": True, "entropy_coef": 0.02}
    (bonus,) = spec_from_trl(settings, NOW).spec.parts.constraint
    assert parameters("constraint", bonus)["coefficient"] == 0.02
    (bonus,) = spec_from_trl(settings, NOW, entropy_coefficient=0.3).spec.parts.constraint
    assert parameters("constraint", bonus)["coefficient"] == 0.3


def test_luspo_before_1_10_is_known_where_it_is_of_whole_responses_alone():
    whole = {"loss_type": "luspo", "importance_sampling_level": "sequence"}
    assert spec_from_trl(whole, "1.9.1").unknown == ()
    for further in ({"importance_sampling_level": "token"}, {"beta": 0.1}, {"top_entropy_quantile": 0.5}):
        (line,) = spec_from_trl(whole | further, "1.9.1").unknown
        assert "padding" in line
        assert spec_from_trl(whole | further, "1.10.0").unknown == ()


def test_vespos_penalty_has_a_ratio_of_its_own():
    settings = {"loss_type": "vespo", "beta": 0.1}
    assert "level=token" in slots(settings)["constraint"]
    assert "level=sequence_mean" in slots(settings | {"importance_sampling_level": "sequence"})["constraint"]
    assert "correction=recorded" in slots(settings | {"use_vllm": True})["gate"]
    assert "weight" not in slots(settings | {"use_vllm": True})


def test_gmpos_entropy_quantile_is_in_the_mean_of_its_ratio():
    read = spec_from_trl(configuration(GMPOConfig, top_entropy_quantile=0.4, beta=0.1), NOW)
    assert read.unknown == ()
    assert read.spec.id == "trl.gmpo_entropy_mask_kl"
    assert "over=policy_mask" in slots(configuration(GMPOConfig, top_entropy_quantile=0.4))["ratio"]
    assert "policy_mask" in needs(read.spec)
    assert "policy_mask" not in needs(spec_from_trl(configuration(GMPOConfig), NOW).spec)


def test_other_trainers_are_told_by_their_configuration_or_by_name():
    gmpo = configuration(GMPOConfig)
    assert spec_from_trl(gmpo, NOW).spec.id == "gmpo.trl"
    assert spec_from_trl(gmpo.to_dict(), NOW, trainer_class="GMPOTrainer").spec.id == "gmpo.trl"
    rloo = configuration(RLOOConfig)
    assert spec_from_trl(rloo, NOW).spec.id == "rloo_trl"
    assert spec_from_trl(rloo.to_dict(), NOW).spec.id == "rloo_trl"
    assert slots(configuration(RLOOConfig, beta=0.0, normalize_advantages=True, reward_clip_range=[-1, 1])) == {
        "reward": "clipped_reward(low=-1.0, high=1.0)",
        "baseline": "leave_one_out(singleton=self)",
        "scale": "batch_whiten(eps=0.0001)",
        "ratio": "sequence_product(reference=old_log_probs)",
        "bounds": "around_one(epsilon_low=0.2, epsilon_high=0.2)",
        "gate": "ppo_clip",
        "aggregation": "sequence_mean_token_mean(rows=all, span=update)",
    }
    token = spec_from_trl({"importance_sampling_level": "sequence_token", "beta": 0.1}, "1.9.0")
    assert token.spec.parts.ratio.part == "sequence_mean_detached"
    assert parameters("constraint", token.spec.parts.constraint[0])["times_ratio"] is False


@pytest.mark.parametrize(
    ("settings", "version", "said"),
    [
        ({"loss_type": "new"}, NOW, "loss_type='new'"),
        ({"importance_sampling_level": "segment"}, NOW, "importance_sampling_level='segment'"),
        ({"scale_rewards": "median"}, NOW, "scale_rewards='median'"),
        ({"multi_objective_aggregation": "max"}, NOW, "multi_objective_aggregation='max'"),
        ({"use_vllm": True, "vllm_importance_sampling_mode": "both"}, NOW, "vllm_importance_sampling_mode='both'"),
        ({"loss_type": "grpo", "advantage_clip": 3.0}, NOW, "advantage_clip=3.0"),
        ({"use_liger_kernel": True}, "1.13.0", "use_liger_kernel"),
        ({}, "0.16.1", "TRL 0.16.1"),
        ({}, "1.17.0", "TRL 1.17.0"),
        ({}, "2.0.0.dev0", "TRL 2.0.0.dev0"),
        ({}, "unknown", "TRL unknown"),
        ({"loss_type": "vespo"}, "0.29.1", "loss_type='vespo' came with TRL 1.0"),
        ({"loss_type": None}, NOW, "loss_type=None"),
        ({"loss_type": ["grpo"]}, NOW, "loss_type=['grpo']"),
        ({"beta": None}, NOW, "beta=None"),
        ({"beta": float("nan")}, NOW, "beta=nan"),
        ({"epsilon": "x"}, NOW, "epsilon='x'"),
        ({"epsilon_high": True}, NOW, "epsilon_high=True"),
        ({"delta": [2.0]}, NOW, "delta=[2.0]"),
        ({"scale_rewards": ["group"]}, NOW, "scale_rewards=['group']"),
        ({"scale_rewards": None}, NOW, "scale_rewards=None"),
        ({"use_vllm": "yes"}, NOW, "use_vllm='yes'"),
        ({"normalize_advantages": True, "reward_clip_range": 3.0}, NOW, "reward_clip_range=3.0"),
    ],
)
def test_what_is_not_understood_is_said_and_nothing_of_it_is_exact(settings, version, said):
    answer = spec_from_trl(settings, version)
    assert len(answer.unknown) == 1
    assert said in answer.unknown[0]
    assert not answer.spec.exact
    assert answer.unknown[0] in answer.spec.inexact
    check(answer.spec)


def test_a_loss_that_is_not_known_is_not_called_by_the_name_of_another():
    for loss_type in ("new", "", ["grpo"], 3):
        spec = spec_from_trl({"loss_type": loss_type}, NOW).spec
        assert spec.id.startswith("trl.")
        assert "dapo" not in spec.id
        assert spec.parts == spec_from_trl({}, NOW).spec.parts


@pytest.mark.parametrize(
    "trainer",
    [
        "A2POTrainer _BaseTrainer Trainer object",
        "AsyncGRPOTrainer _BaseTrainer Trainer object",
        "OnlineDPOTrainer",
        "PAPOTrainer GRPOTrainer _BaseTrainer Trainer object",
    ],
)
def test_a_trainer_that_was_not_read_is_said(trainer):
    answer = spec_from_trl({}, NOW, trainer_class=trainer)
    (line,) = answer.unknown
    assert line.startswith(trainer.split()[0])
    assert not answer.spec.exact


def test_a_trainer_of_ones_own_is_taken_for_what_it_is_derived_from():
    answer = spec_from_trl({}, NOW, trainer_class="Mine GRPOTrainer _BaseTrainer Trainer object")
    assert (answer.spec.id, answer.unknown) == ("dapo.trl", ())
    assert spec_from_trl(configuration(A2POConfig), NOW).unknown[0].startswith("A2POConfig")


WRONG = (None, "x", ["group"], {}, object(), float("nan"), float("inf"), -1, 10**400, np.float32(0.5), np.ones(2), b"x")


def test_no_value_of_a_setting_raises_and_what_is_odd_is_never_exact():
    compared = 0
    for name in DEFAULTS:
        for value in WRONG:
            for settings in ({}, {"loss_type": "dr_grpo", "use_vllm": True}, {"normalize_advantages": True}):
                answer = spec_from_trl(settings | {name: value}, NOW)
                assert not (answer.unknown and answer.spec.exact)
                assert bool(answer.unknown) <= bool(answer.spec.inexact)
                json.loads(answer.spec.model_dump_json(), parse_constant=lambda each: pytest.fail(each))
                compared += 1
    print(f"{compared} odd settings")


def test_no_setting_of_the_installed_version_is_unknown():
    for cls in (GRPOConfig, RLOOConfig, GMPOConfig):
        for config in (configuration(cls), configuration(cls).to_dict()):
            assert spec_from_trl(config, NOW).unknown == ()


def normalisers(loss_type="dapo", version=NOW, training=True, **named):
    given = {"accumulation_steps": 4, "steps_per_generation": 2, "num_items_in_batch": 100.0, "num_processes": 2}
    return normalisers_from_trl(loss_type=loss_type, trl_version=version, training=training, **given | named)


def test_the_tokens_of_the_update_are_rescaled_since_1_9_1():
    assert normalisers().tokens == 100 / 2 * 4 / 2
    assert normalisers(version="1.9.0").tokens == 100 / 2
    assert normalisers(training=False).tokens == 100 / 2
    assert normalisers("grpo").tokens is None
    assert normalisers(num_items_in_batch=0.0, training=False).tokens == 1 / 2


def test_evaluation_is_not_accumulated_but_was_for_a_while():
    assert normalisers("grpo").accumulation_steps == 4
    assert normalisers("grpo", training=False).accumulation_steps == 1
    assert normalisers("grpo", "0.24.0", training=False).accumulation_steps == 4
    assert normalisers("dr_grpo", max_completion_length=256).length == 256
    assert normalisers("grpo", max_completion_length=256).length is None


def test_who_divides_by_the_accumulation_steps():
    assert divided_afterwards("0.21.0")
    assert not divided_afterwards("0.22.0")
    assert divided_afterwards(NOW, "RLOOTrainer")
    assert parsed_version("1.10.0.dev0") == (1, 10, 0)
