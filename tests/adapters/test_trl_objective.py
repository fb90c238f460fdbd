"""The engine computes what TRL 1.16.0's own `_compute_loss` and advantages are, of its own rollouts."""

from __future__ import annotations

import numpy as np
import pytest
import trl
from trl import RLOOConfig, RLOOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer
from trl_losses import LOSSES, Losses, rarely, sometimes

from unipo_hooks import evaluate
from unipo_hooks.adapters.trl.algorithm import spec_from_trl
from unipo_hooks.examples.trl_grpo import exact
from unipo_hooks.objective.describe import given_advantages
from unipo_hooks.objective.inputs import Batch
from unipo_hooks.objective.recorded import as_recorded

# In float64 TRL and the engine differ by rounding alone; the promise is 1e-6.
TOLERANCE = 1e-12

KL = {"none": {"beta": 0.0}, "corrected": {"beta": 0.1}, "plain": {"beta": 0.1, "use_bias_correction_kl": False}}

VLLM = {"use_vllm": True}
OPTIONS = {
    "nothing": {},
    "delta": {"delta": 1.1},
    "delta inside the range": {"delta": 0.9},
    "entropy quantile": {"top_entropy_quantile": 0.4},
    "off-policy mask": {"off_policy_mask_threshold": 0.05},
    "truncated masked": {"mask_truncated_completions": True},
    "entropy bonus": {"entropy_coef": 0.2},
    "entropy bonus on the quantile": {
        "entropy_coef": 0.2,
        "top_entropy_quantile": 0.4,
        "off_policy_mask_threshold": 0.05,
    },
    "tools": {"tools": True},
    "sampler, token truncated": VLLM | {"vllm_importance_sampling_mode": "token_truncate"},
    "sampler, token masked": VLLM
    | {
        "vllm_importance_sampling_mode": "token_mask",
        "vllm_importance_sampling_clip_min": 0.8,
        "vllm_importance_sampling_clip_max": 1.3,
    },
    "sampler, response truncated": VLLM
    | {
        "vllm_importance_sampling_mode": "sequence_truncate",
        "vllm_importance_sampling_clip_min": 0.8,
        "vllm_importance_sampling_clip_max": 1.3,
    },
    "sampler, response masked": VLLM | {"vllm_importance_sampling_clip_max": 1.3},
    "sampler not corrected": VLLM | {"vllm_importance_sampling_correction": False, "off_policy_mask_threshold": 0.05},
    "everything": VLLM
    | {
        "delta": 1.1,
        "top_entropy_quantile": 0.6,
        "off_policy_mask_threshold": 0.05,
        "mask_truncated_completions": True,
        "entropy_coef": 0.2,
        "vllm_importance_sampling_clip_max": 1.3,
        "tools": True,
    },
}
"""Further settings, whose effect the rollout or the loss takes in."""

OF_ROLLOUT = ("beta", "mask_truncated_completions", *VLLM)


@pytest.fixture(scope="module")
def worst():
    """Largest errors of the module, printed at its end."""
    found = {"loss": 0.0, "gradient weight": 0.0, "advantages": 0.0, "comparisons": 0}
    yield found
    print("\nTRL", trl.__version__, found)


@pytest.fixture(scope="module")
def grpo(saved_model, tmp_path_factory):
    return Losses(saved_model, tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module")
def other_rewards(saved_model, tmp_path_factory):
    """Trainers by the reward functions they have."""
    return {
        "two": Losses(saved_model, tmp_path_factory.mktemp("two"), beta=0.0),
        "three, one with gaps": Losses(
            saved_model, tmp_path_factory.mktemp("three"), rewards=(exact, sometimes, rarely), beta=0.0
        ),
        "one with gaps": Losses(saved_model, tmp_path_factory.mktemp("one"), rewards=(sometimes,), beta=0.0),
        "one that is often the same": Losses(saved_model, tmp_path_factory.mktemp("rare"), rewards=(rarely,), beta=0.0),
    }


@pytest.fixture(scope="module")
def rloo(saved_model, tmp_path_factory):
    return Losses(saved_model, tmp_path_factory.mktemp("rloo"), RLOOTrainer, RLOOConfig)


@pytest.fixture(scope="module")
def gmpo(saved_model, tmp_path_factory):
    return Losses(saved_model, tmp_path_factory.mktemp("gmpo"), GMPOTrainer, GMPOConfig)


def rollout_settings(settings):
    return {
        name: value
        for name, value in settings.items()
        if name in OF_ROLLOUT or name.startswith("vllm_") or name == "num_iterations"
    }


def compared(own, evaluation, worst):
    scale = max(1.0, evaluation.magnitude)
    loss = abs(evaluation.loss - own.loss) / scale
    weight = np.abs(evaluation.gradient_weight - own.gradient_BT).max()
    worst["loss"], worst["gradient weight"] = max(worst["loss"], loss), max(worst["gradient weight"], float(weight))
    worst["comparisons"] += 1
    assert loss <= TOLERANCE
    assert weight <= TOLERANCE


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_gradient_are_trls(grpo, worst, loss_type, level, option):
    shape = {"loss_type": loss_type, "importance_sampling_level": level}
    if loss_type == "cispo":
        shape["epsilon_high"] = 1.1
    for kl in KL.values():
        # Aligned: no old log-probs are recorded, every ratio is 1. Off-policy: they are, and the policy has moved.
        for aligned in (True, False):
            settings = OPTIONS[option] | kl | {"num_iterations": 1 if aligned else 2}
            tools = settings.pop("tools", False)
            rollout = grpo.rollout(**rollout_settings(settings))
            assert aligned != ("old_per_token_logps" in rollout) or "use_vllm" in settings
            own = grpo.loss(rollout, moved=0.0 if aligned else 0.4, tools=tools, **shape, **settings)
            assert own.unknown == ()
            evaluation = evaluate(given_advantages(own.spec), own.batch)
            compared(own, evaluation, worst)
            if option == "nothing" and not aligned and loss_type not in ("sapo", "vespo"):
                assert evaluation.clipped.any()

            recorded = evaluate(as_recorded(own.spec, own.arrays), own.batch)
            assert recorded.loss + evaluation.entropy_loss == pytest.approx(own.loss, abs=TOLERANCE)
            assert np.abs(recorded.gradient_weight - own.gradient_BT).max() <= TOLERANCE


@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "nothing"])
def test_every_option_of_these_comparisons_changes_the_loss(grpo, option):
    def gradient(settings):
        settings = {"beta": 0.0, "num_iterations": 2, "loss_type": "grpo"} | settings
        tools = settings.pop("tools", False)
        own = grpo.loss(grpo.rollout(**rollout_settings(settings)), moved=0.4, tools=tools, **settings)
        return own.loss, own.gradient_BT

    (loss, gradient_BT), (plain_loss, plain_BT) = gradient(OPTIONS[option]), gradient({})
    assert abs(loss - plain_loss) > 1e-4
    # An entropy bonus has no share in the sampled token.
    assert np.abs(gradient_BT - plain_BT).max() > 1e-4 or option == "entropy bonus"


@pytest.mark.parametrize(("entropy", "applied"), [(0.1, 0.2), (0.9, 0.0)])
def test_an_adaptive_entropy_bonus_is_trls_with_the_coefficient_it_applied(grpo, worst, entropy, applied):
    settings = {"use_adaptive_entropy": True, "entropy_coef": 0.2, "entropy_target": 0.5, "beta": 0.0}
    grpo.trainer._last_world_entropy = entropy
    own = grpo.loss(grpo.rollout(num_iterations=2, beta=0.0), moved=0.4, num_iterations=2, **settings)
    spec = spec_from_trl(settings, trl.__version__, entropy_coefficient=applied).spec
    compared(own, evaluate(given_advantages(spec), own.batch), worst)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_evaluation_divides_as_trl_does(grpo, worst, loss_type):
    rollout = grpo.rollout(num_iterations=2)
    own = grpo.loss(rollout, moved=0.4, training=False, loss_type=loss_type, entropy_coef=0.1, beta=0.1)
    compared(own, evaluate(given_advantages(own.spec), own.batch), worst)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("epsilon_high", [None, 0.6])
def test_rloo_trainers_loss_and_advantages_are_its_own(rloo, worst, training, epsilon_high):
    for further in ({}, {"beta": 0.0}, {"normalize_advantages": True}, {"reward_clip_range": [0.3, 0.45]}):
        rollout = rloo.rollout(**further)
        own = rloo.loss(rollout, moved=0.4, training=training, epsilon_high=epsilon_high, **further)
        assert own.unknown == ()
        compared(own, evaluate(given_advantages(own.spec), own.batch), worst)
        assert advantage_error(own, rollout, worst) <= TOLERANCE


@pytest.mark.parametrize("kl", [{"beta": 0.0}, {"beta": 0.1}])
def test_gmpo_trainers_loss_is_its_own(gmpo, worst, kl):
    quantile = {"epsilon": 0.1, "top_entropy_quantile": 0.4}
    for further in ({}, {"epsilon": 0.1, "epsilon_high": 0.3}, {"entropy_coef": 0.2, "delta": 1.1}, quantile):
        own = gmpo.loss(gmpo.rollout(num_iterations=2), moved=0.4, num_iterations=2, **kl, **further)
        assert own.unknown == ()
        compared(own, evaluate(given_advantages(own.spec), own.batch), worst)
        compared(own, evaluate(as_recorded(own.spec, own.arrays), own.batch), worst)


@pytest.mark.parametrize("weights", [None, "given"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("rewards", ["two", "three, one with gaps", "one with gaps", "one that is often the same"])
def test_advantages_are_trls(other_rewards, worst, rewards, aggregation, scale, weights):
    losses = other_rewards[rewards]
    count = len(losses.trainer.reward_funcs)
    settings = {"multi_objective_aggregation": aggregation, "scale_rewards": scale}
    settings["reward_weights"] = [1.0] * count if weights is None else [0.5, 2.0, 0.25][:count]
    for seed in range(3):
        rollout = losses.rollout(seed, **settings)
        own = losses.loss(rollout, beta=0.0, **settings)
        assert own.unknown == ()
        assert advantage_error(own, rollout, worst) <= TOLERANCE


def advantage_error(own, rollout, worst):
    """Largest difference from TRL's advantages where the engine makes them from the rewards of the generation batch."""
    components_BK = rollout["components"].numpy()
    weights_K = np.ones(components_BK.shape[1]) if own.reward_weights is None else np.array(own.reward_weights)
    answered = np.isfinite(components_BK)
    total_B = np.where(answered, components_BK * weights_K, 0.0).sum(1)
    names = {"log_probs": "log_probs", "completion_mask": "mask"}
    names |= {"old_per_token_logps": "old_log_probs", "ref_per_token_logps": "ref_log_probs", "group": "group"}
    arrays = {mine: rollout[theirs].numpy() for theirs, mine in names.items() if theirs in rollout}
    arrays.setdefault("old_log_probs", arrays["log_probs"])
    batch = Batch(
        **arrays,
        reward_components=components_BK,
        reward_weights=weights_K,
        reward=np.where(answered.any(1), total_B, np.nan),
    )
    mine_BT = evaluate(own.spec, batch).advantages
    counted = batch["mask"] > 0
    error = float(np.abs(mine_BT - rollout["advantages"].numpy()[:, None])[counted].max())
    worst["advantages"] = max(worst["advantages"], error)
    return error
