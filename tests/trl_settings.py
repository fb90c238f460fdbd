"""Settings of TRL's losses and samplers, and the channels a trainer has under each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import RLOOConfig
from trl.experimental.gmpo import GMPOConfig
from trl_channels import Run, SpiedGMPO, SpiedRLOO, run
from trl_runs import length

from unipo_hooks.examples.trl_grpo import exact

ALWAYS = {"ids", "strings", "mask", "reward", "reward_components", "advantages", "log_probs", "entropies"}
OFF_POLICY = {"num_iterations": 2, "learning_rate": 5e-2}
"""A step this large moves the policy: ratios of 1 would prove little."""


def none_of_it(completions, **_):
    return [None] * len(completions)


def sometimes(completions, **_):
    """Nothing to say of a third of the responses, NaN for another few."""
    return [
        None if i % 3 == 0 else float("nan") if i % 7 == 1 else 0.3 * len(text) for i, text in enumerate(completions)
    ]


@dataclass
class Setting:
    """A run's settings, and the channels there are beyond those that always are."""

    channels: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def has(self) -> set[str]:
        return set(self.channels.split())


def vllm(mode: str, low: float | None = None, high: float | None = 1.3, **settings: Any) -> dict[str, Any]:
    """A sampler 0.3 nats off, corrected for in one of four ways."""
    return {
        "vllm": {},
        "vllm_importance_sampling_mode": mode,
        "vllm_importance_sampling_clip_min": low,
        "vllm_importance_sampling_clip_max": high,
        **OFF_POLICY,
        **settings,
    }


CUT_OFF = {"mask_truncated_completions": True, "max_completion_length": 8, **OFF_POLICY}
"""Long enough for some responses to end by themselves."""
RLOO, GMPO = {"cls": SpiedRLOO, "config": RLOOConfig}, {"cls": SpiedGMPO, "config": GMPOConfig}
WEIGHED = {"rewards": (exact, length, sometimes), "reward_weights": [1, 0.3, -2]}
OLD, REF = "old_log_probs", "ref_log_probs token_kl"
SAMPLED = f"{OLD} rollout_log_probs is_weights"

SETTINGS = {
    "defaults": Setting(""),
    **{
        f"{loss}, of {level}s": Setting(
            OLD, {"loss_type": loss, "importance_sampling_level": level, "gradient_accumulation_steps": 2, **OFF_POLICY}
        )
        for loss in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
        for level in ("token", "sequence")
    },
    "upper cap": Setting(OLD, {"delta": 1.1, **OFF_POLICY}),
    "upper cap, past the range": Setting(OLD, {"delta": 1.5, **OFF_POLICY}),
    "a range that is not symmetric": Setting(OLD, {"epsilon": 0.1, "epsilon_high": 0.05, **OFF_POLICY}),
    "reference, times the ratio": Setting(f"{OLD} {REF}", {"beta": 0.05, **OFF_POLICY}),
    "reference, times the response's ratio": Setting(
        f"{OLD} {REF}", {"beta": 0.05, "importance_sampling_level": "sequence", **OFF_POLICY}
    ),
    "reference, not corrected": Setting(f"{OLD} {REF}", {"beta": 0.05, "use_bias_correction_kl": False, **OFF_POLICY}),
    "vespo with a reference": Setting(f"{OLD} {REF}", {"loss_type": "vespo", "beta": 0.05, **OFF_POLICY}),
    "three passes": Setting(OLD, {"num_iterations": 3, "max_steps": 6}),
    "an update a rollout": Setting("", {"gradient_accumulation_steps": 2}),
    "several updates a rollout": Setting(OLD, {"gradient_accumulation_steps": 2, "steps_per_generation": 4}),
    "several rollouts an update": Setting("", {"gradient_accumulation_steps": 4, "steps_per_generation": 2}),
    "a rollout and a half an update": Setting(OLD, {"gradient_accumulation_steps": 3, "steps_per_generation": 2}),
    "two thirds of a rollout an update": Setting(OLD, {"gradient_accumulation_steps": 2, "steps_per_generation": 3}),
    "the same rows twice in an update": Setting(
        "", {"gradient_accumulation_steps": 2, "steps_per_generation": 1, "num_iterations": 2}
    ),
    "entropy quantile": Setting(f"{OLD} policy_mask", {"top_entropy_quantile": 0.5, **OFF_POLICY}),
    "off-policy mask": Setting(f"{OLD} policy_mask", {"off_policy_mask_threshold": 0.001, **OFF_POLICY}),
    "both masks": Setting(
        f"{OLD} {REF} policy_mask",
        {"top_entropy_quantile": 0.7, "off_policy_mask_threshold": 0.001, "beta": 0.05, **OFF_POLICY},
    ),
    "sampler, tokens truncated": Setting(SAMPLED, vllm("token_truncate", 0.8)),
    "sampler, tokens masked": Setting(SAMPLED, vllm("token_mask", 0.8)),
    "sampler, responses truncated": Setting(SAMPLED, vllm("sequence_truncate", 0.8)),
    "sampler, responses masked": Setting(SAMPLED, vllm("sequence_mask")),
    "sampler, some tokens not scored": Setting(SAMPLED, vllm("token_mask", **{"vllm": {"unscored": 0.2}})),
    "sampler, aligned": Setting(SAMPLED, {"vllm": {}, "learning_rate": 5e-2}),
    "sampler, not corrected": Setting(
        f"{OLD} rollout_log_probs policy_mask",
        vllm("token_mask", vllm_importance_sampling_correction=False, off_policy_mask_threshold=0.05),
    ),
    "sampler, vespo": Setting(SAMPLED, vllm("token_truncate", 0.8, loss_type="vespo")),
    "sampler, everything": Setting(
        f"{SAMPLED} {REF} policy_mask mask_reason",
        vllm(
            "sequence_truncate",
            0.5,
            beta=0.05,
            delta=1.4,
            loss_type="grpo",
            importance_sampling_level="sequence",
            top_entropy_quantile=0.7,
            off_policy_mask_threshold=0.05,
            mask_truncated_completions=True,
            entropy_coef=0.02,
            gradient_accumulation_steps=2,
            steps_per_generation=4,
            max_completion_length=8,
        ),
    ),
    "truncated responses masked": Setting(
        f"{OLD} {REF} mask_reason", {"mask_truncated_completions": True, "beta": 0.05, **OFF_POLICY}
    ),
    "truncated responses masked, sampler": Setting(
        f"{SAMPLED} mask_reason", vllm("token_truncate", 0.8, mask_truncated_completions=True)
    ),
    "several rewards with weights": Setting(
        "", {"rewards": (exact, length, sometimes), "reward_weights": [1, 0.3, -2]}
    ),
    "rewards that are missing": Setting("", {"rewards": (sometimes, none_of_it)}),
    "no reward at all": Setting("", {"rewards": (none_of_it,)}),
    "scale of the batch": Setting("", {"scale_rewards": "batch"}),
    "no scale": Setting("", {"scale_rewards": "none"}),
    "rewards normalised apart": Setting(
        "",
        {"multi_objective_aggregation": "normalize_then_sum", **WEIGHED},
    ),
    "entropy bonus": Setting(OLD, {"entropy_coef": 0.02, "gradient_accumulation_steps": 2, **OFF_POLICY}),
    "entropy bonus, adaptive": Setting(
        f"{OLD} policy_mask",
        {
            "use_adaptive_entropy": True,
            "entropy_coef": 0.02,
            "entropy_target": 3.0,
            "entropy_coef_delta": 0.01,
            "top_entropy_quantile": 0.5,
            **OFF_POLICY,
        },
    ),
    "evaluation": Setting(
        f"{OLD} {REF}",
        {"eval_steps": 2, "num_generations_eval": 2, "per_device_eval_batch_size": 4, "beta": 0.05, **OFF_POLICY},
    ),
    "evaluation, on policy": Setting("", {"eval_steps": 2, "num_generations_eval": 1, "per_device_eval_batch_size": 2}),
    "router": Setting(
        OLD, {"mixture": True, "router_aux_loss_coef": 0.3, "gradient_accumulation_steps": 2, **OFF_POLICY}
    ),
    "rloo": Setting(f"{OLD} ref_log_probs", {**RLOO, "beta": 0.5, "gradient_accumulation_steps": 2, **OFF_POLICY}),
    "rloo, without a reference": Setting(OLD, {**RLOO, "beta": 0.0, **OFF_POLICY, "steps_per_generation": 2}),
    "rloo, evaluation": Setting(f"{OLD} ref_log_probs", {**RLOO, "beta": 0.5, "eval_steps": 2, **OFF_POLICY}),
    "rloo, truncated responses masked": Setting(
        f"{OLD} ref_log_probs mask_reason", {**RLOO, "beta": 0.5, "mask_truncated_completions": True, **OFF_POLICY}
    ),
    "rloo with a router": Setting(
        OLD,
        {
            **RLOO,
            **OFF_POLICY,
            "mixture": True,
            "router_aux_loss_coef": 0.3,
            "gradient_accumulation_steps": 2,
            "beta": 0.0,
        },
    ),
    "gmpo": Setting(f"{OLD} {REF}", {**GMPO, "beta": 0.05, "gradient_accumulation_steps": 2, **OFF_POLICY}),
    "gmpo, entropy quantile": Setting(f"{OLD} policy_mask", {**GMPO, "top_entropy_quantile": 0.5, **OFF_POLICY}),
    "gmpo, truncated responses masked": Setting(
        f"{OLD} {REF} mask_reason", {**GMPO, **CUT_OFF, "importance_sampling_level": "sequence", "beta": 0.05}
    ),
    "rloo, clipped and whitened": Setting(
        f"{OLD} ref_log_probs",
        {**RLOO, **WEIGHED, **OFF_POLICY, "reward_clip_range": (0.0, 0.4), "normalize_advantages": True},
    ),
    "rloo, a rollout and a half an update": Setting(
        f"{OLD} ref_log_probs mask_reason",
        {**RLOO, **CUT_OFF, "beta": 0.5, "gradient_accumulation_steps": 3, "steps_per_generation": 2},
    ),
    "cispo with everything": Setting(
        f"{OLD} {REF} policy_mask mask_reason",
        {
            **CUT_OFF,
            "loss_type": "cispo",
            "epsilon_high": 1.2,
            "importance_sampling_level": "sequence",
            "beta": 0.05,
            "top_entropy_quantile": 0.5,
            "off_policy_mask_threshold": 0.001,
        },
    ),
    "luspo with a quantile": Setting(
        f"{OLD} {REF} policy_mask",
        {
            "loss_type": "luspo",
            "importance_sampling_level": "sequence",
            "beta": 0.05,
            "top_entropy_quantile": 0.5,
            **OFF_POLICY,
        },
    ),
    "evaluation with everything": Setting(
        f"{SAMPLED} policy_mask",
        vllm(
            "token_truncate",
            0.8,
            eval_steps=2,
            num_generations_eval=2,
            per_device_eval_batch_size=4,
            top_entropy_quantile=0.5,
            entropy_coef=0.02,
            gradient_accumulation_steps=2,
        ),
    ),
    "responses of one token": Setting(OLD, {"max_completion_length": 1, **OFF_POLICY}),
    "padded to a multiple": Setting(f"{OLD} {REF} mask_reason", {"pad_to_multiple_of": 16, "beta": 0.05, **CUT_OFF}),
    "colder, in bfloat16": Setting(f"{OLD} {REF}", {"temperature": 0.7, "bf16": True, "beta": 0.05, **OFF_POLICY}),
    "windows cut short where the data ends": Setting(
        OLD, {"prompts": 7, "gradient_accumulation_steps": 4, "steps_per_generation": 3, **OFF_POLICY}
    ),
}
"""What is run, and the channels a trainer has then beyond `ALWAYS`."""


_RAN: dict[str, Run] = {}


def ran(name: str, saved_model: Any, folders: Any) -> Run:
    """The run under a setting, made once for all tests that look at it."""
    if name not in _RAN:
        _RAN[name] = run(saved_model, folders.mktemp("run"), **SETTINGS[name].settings)
    return _RAN[name]
