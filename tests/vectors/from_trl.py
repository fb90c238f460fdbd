"""Writes the section "trl" of tests/vectors.json: losses, gradients and advantages TRL's own trainers compute.

    python tests/vectors/from_trl.py [FOLDER]

Needs TRL (the version its cases name) and takes half a minute on a CPU. With a folder of wheels of earlier releases
(`pip download trl==1.9.0 --no-deps`) it also writes the section "trl_releases", of their `_compute_loss`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", TRL_EXPERIMENTAL_SILENCE="1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import trl
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.a2po import A2POTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer
from trl.trainer import grpo_trainer
from trl_losses import Losses, length, rarely, sometimes
from trl_runs import TOKENIZER

from unipo_hooks import algorithms
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.examples.trl_grpo import exact, small_llama
from unipo_hooks.objective.describe import needs, parameters, uses
from vectors.foreign import Repository, load
from vectors.format import case, errors, evaluated, write_section

ROWS = 3
"""Responses a prompt; there are two prompts."""

GRPO: dict[str, dict[str, Any]] = {
    "grpo, mean over responses": {"loss_type": "grpo"},
    "grpo, KL times the ratio": {"loss_type": "grpo", "beta": 0.1},
    "grpo, KL alone": {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False},
    "grpo, response ratios, KL times the ratio": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "beta": 0.1,
    },
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo, unscaled": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo"},
    "dapo, higher upper bound": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dapo, KL times the ratio": {"loss_type": "dapo", "beta": 0.1},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "luspo, token ratios": {"loss_type": "luspo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2},
    "cispo, the default as cap": {"loss_type": "cispo"},
    "sapo": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo"},
    "vespo, other constants": {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_neg": 1.5},
    "vespo, KL times the ratio of the token": {"loss_type": "vespo", "beta": 0.1},
    "vespo, KL times the ratio of the response": {
        "loss_type": "vespo",
        "importance_sampling_level": "sequence",
        "beta": 0.1,
    },
    "vespo, sampler corrected": {
        "loss_type": "vespo",
        "use_vllm": True,
        "vllm_importance_sampling_mode": "token_truncate",
    },
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
    },
    "gspo, wide": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.2},
    "deviation of the batch": {"loss_type": "dapo", "scale_rewards": "batch"},
    "delta": {"loss_type": "grpo", "delta": 1.3},
    "delta inside the range": {"loss_type": "grpo", "delta": 0.9},
    "off-policy responses masked": {"loss_type": "grpo", "off_policy_mask_threshold": 0.02},
    "off-policy responses masked, by the sampler": {
        "loss_type": "grpo",
        "off_policy_mask_threshold": 0.02,
        "use_vllm": True,
        "vllm_importance_sampling_correction": False,
    },
    "high entropy": {"loss_type": "dapo", "top_entropy_quantile": 0.4},
    "truncated responses masked": {"loss_type": "dapo", "mask_truncated_completions": True},
    "truncated responses masked, mean over responses": {"loss_type": "grpo", "mask_truncated_completions": True},
    "sampler, token truncated": {
        "loss_type": "dapo",
        "use_vllm": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 1.2,
    },
    "sampler, token masked": {
        "loss_type": "dapo",
        "use_vllm": True,
        "vllm_importance_sampling_mode": "token_mask",
        "vllm_importance_sampling_clip_min": 0.8,
        "vllm_importance_sampling_clip_max": 1.2,
    },
    "sampler, response truncated": {
        "loss_type": "dapo",
        "use_vllm": True,
        "vllm_importance_sampling_mode": "sequence_truncate",
        "vllm_importance_sampling_clip_min": 0.9,
        "vllm_importance_sampling_clip_max": 1.2,
    },
    "sampler, response masked": {"loss_type": "dapo", "use_vllm": True, "vllm_importance_sampling_clip_max": 1.2},
    "sampler, response masked, KL": {
        "loss_type": "dapo",
        "use_vllm": True,
        "vllm_importance_sampling_clip_max": 1.2,
        "beta": 0.1,
    },
    "entropy bonus": {"loss_type": "dapo", "entropy_coef": 0.2},
    "entropy bonus on high entropy": {
        "loss_type": "grpo",
        "entropy_coef": 0.2,
        "top_entropy_quantile": 0.4,
        "off_policy_mask_threshold": 0.02,
    },
}
"""Settings of GRPOTrainer; each is a case on policy, where it can be, and two off policy."""

PAPERS: dict[str, dict[str, Any]] = {
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 2e-3, "epsilon_high": 2.5e-3},
    "sapo_soft": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "tis": {
        "loss_type": "dapo",
        "use_vllm": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 1.2,
    },
    "mis": {"loss_type": "dapo", "use_vllm": True, "vllm_importance_sampling_clip_max": 1.2},
}
"""Definitions of papers TRL computes but for what it adds to deviations → its settings."""

REWARDS: dict[str, dict[str, Any]] = {
    "one sum": {"loss_type": "dapo"},
    "one sum, mean over responses": {"loss_type": "grpo"},
    "each function normalised": {"loss_type": "dapo", "multi_objective_aggregation": "normalize_then_sum"},
    "each function normalised, mean over responses": {
        "loss_type": "grpo",
        "multi_objective_aggregation": "normalize_then_sum",
    },
    "deviation of the batch": {"loss_type": "dapo", "scale_rewards": "batch"},
}
"""Settings of GRPOTrainer with three weighted reward functions, one of which leaves gaps."""


RELEASES: dict[str, dict[str, dict[str, Any]]] = {
    "0.17.0": {"default": {"loss_type": "bnpo"}, "KL": {"loss_type": "grpo", "beta": 0.04}},
    "0.18.2": {"delta": {"loss_type": "dr_grpo", "max_completion_length": 5, "delta": 1.3}},
    "0.20.0": {"response ratios": {"loss_type": "grpo", "importance_sampling_level": "sequence"}},
    "0.22.2": {"default": {"loss_type": "dapo"}, "KL": {"loss_type": "bnpo", "beta": 0.1}},
    "0.26.2": {"cispo": {"loss_type": "cispo", "epsilon_high": 1.2}},
    "0.28.0": {"sapo": {"loss_type": "sapo", "beta": 0.1, "use_bias_correction_kl": True}},
    "1.0.0": {"vespo": {"loss_type": "vespo"}},
    "1.8.0": {
        "entropy bonus, dapo": {"loss_type": "dapo", "entropy_coef": 0.2, "top_entropy_quantile": 0.4},
        "entropy bonus, grpo": {"loss_type": "grpo", "entropy_coef": 0.2},
    },
    "1.9.0": {
        "dapo": {"loss_type": "dapo"},
        "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    },
    "1.9.1": {
        "dapo": {"loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": False},
        "gspo_token": {"loss_type": "grpo", "importance_sampling_level": "sequence_token"},
        "gspo_token, dapo": {"loss_type": "dapo", "importance_sampling_level": "sequence_token", "beta": 0.1},
    },
    "1.10.0": {
        "luspo": {"loss_type": "luspo", "beta": 0.1},
        "entropy bonus, dapo": {"loss_type": "dapo", "entropy_coef": 0.2},
    },
}
"""Release → settings whose loss it computed in its own way."""


def releases(losses: Losses, wheels: Path) -> list[dict[str, Any]]:
    """Cases of earlier releases, one micro-batch of two a generation batch and three an update."""
    cases = []
    for version, configurations in RELEASES.items():
        for name, settings in configurations.items():
            own_file = settings.get("importance_sampling_level") == "sequence_token"
            path = f"trl/{'experimental/gspo_token' if own_file else 'trainer'}/grpo_trainer.py"
            repository = Repository("trl", version, wheels)
            compute = load(repository, path, "_compute_loss", **vars(grpo_trainer))._compute_loss
            settings = {"beta": 0.0} | settings
            rollout = losses.rollout(seed=2, num_iterations=2)
            own = losses.loss(rollout, moved=0.4, release=(version, compute), num_iterations=2, **settings)
            if own.unknown:
                raise AssertionError(own.unknown)
            unused = {"policy_mask", "is_weights", "truncated", "rollout_log_probs"}
            registered = own.spec.id in algorithms.ids()
            changes = hyper_parameters(own.spec) if registered else {}
            written = case(
                f"TRL {version}, {name}",
                own.spec.id if registered else own.spec.model_dump(mode="json", exclude_defaults=True),
                f"trl {version} GRPOTrainer._compute_loss",
                {key: own.arrays[key] for key in sorted(own.arrays.keys() - unused)},
                {"loss": own.loss, "gradient_weight": own.gradient_BT},
                hyper_parameters={key: value for key, value in changes.items() if not key.startswith("scale.")},
                normalisers=own.normalisers,
                given=True,
                tolerance=1e-9,
            )
            worst = max(errors(written, evaluated(written)).values())
            if not worst <= 1e-9:
                raise AssertionError(f"{written['name']}: {worst:.1e}")
            cases.append(written)
    return cases


def hyper_parameters(spec: AlgorithmSpec) -> dict[str, Any]:
    """What a spec changes against the registered algorithm of its id, by path."""
    registered = {path: parameters(slot, use) for slot, path, use in uses(algorithms.get(spec.id).parts)}
    return {
        f"{path}.{name}": value
        for slot, path, use in uses(spec.parts)
        for name, value in parameters(slot, use).items()
        if registered[path][name] != value
    }


def cases_of(
    losses: Losses,
    name: str,
    against: str,
    settings: dict[str, Any],
    moved: tuple[float, ...] = (0.0, 0.25, 0.6),
    algorithm: str | None = None,
) -> list[dict[str, Any]]:
    """Cases of one configuration: on policy, and the policy having moved a little and a lot.

    They are of the algorithm the configuration is, or of another with the same parts.
    """
    found = []
    for number, distance in enumerate(moved):
        grpo = hasattr(losses.trainer.args, "num_iterations") and not isinstance(losses.trainer, RLOOTrainer)
        iterated = settings | ({"num_iterations": 2 if distance else 1} if grpo else {})
        rollout = losses.rollout(seed=number, **{key: value for key, value in iterated.items()})
        divided = {"gradient_accumulation_steps": 1 + number, "steps_per_generation": 1}
        own = losses.loss(rollout, moved=distance, seed=number, **divided, **iterated)
        if own.unknown:
            raise AssertionError(own.unknown)
        spec = own.spec.model_copy(update={"id": algorithm or own.spec.id})
        needed = {name for name in own.arrays if name not in ("advantages", "policy_mask", "is_weights", "truncated")}
        if not settings.get("use_vllm"):
            needed -= {"rollout_log_probs"}
        if settings.get("loss_type") == "vespo" and settings.get("use_vllm"):
            needed |= {"is_weights"}
        if "policy_mask" in needs(spec):
            needed |= {"policy_mask"}
        batch = {key: own.arrays[key] for key in sorted(needed)}
        if settings.get("mask_truncated_completions"):
            # Given as they were before TRL masked them, so that leaving them out is the algorithm's own doing.
            batch["mask"], batch["truncated"] = rollout["attended"].numpy(), own.arrays["truncated"]
        components_BK = rollout["components"].numpy()
        weights_K = np.ones(components_BK.shape[1]) if own.reward_weights is None else np.array(own.reward_weights)
        answered = np.isfinite(components_BK)
        reward_B = np.where(answered, components_BK * weights_K, 0.0).sum(1)
        batch["reward"] = np.where(answered.any(1), reward_B, np.nan)
        batch["group"] = rollout["group"].numpy()
        if "multi_objective_aggregation" in settings:
            batch |= {"reward_components": components_BK, "reward_weights": weights_K}
        registered = spec.id in algorithms.ids()
        definition = spec.id if registered else spec.model_dump(mode="json", exclude_defaults=True)
        advantages_BT = rollout["advantages"].numpy()[:, None] * (batch["mask"] > 0)
        written = case(
            f"{name}, moved by {distance}" if distance else f"{name}, on policy",
            definition,
            against,
            batch,
            {"loss": own.loss, "gradient_weight": own.gradient_BT, "advantages": advantages_BT},
            hyper_parameters=hyper_parameters(spec) if registered else {},
            normalisers=own.normalisers,
            tolerance=1e-9,
        )
        worst = max(errors(written, evaluated(written)).values())
        if not worst <= 1e-9:
            raise AssertionError(f"{written['name']}: {worst:.1e}")
        found.append(written)
    return found


def a2po() -> list[dict[str, Any]]:
    """A2POTrainer's regression, of a forward pass of given log-probs."""
    generator = np.random.default_rng(0)
    cases = []
    for beta in (1e-3, 0.5):
        mask_BT = np.arange(5) < np.array([5, 3, 4, 1])[:, None]
        log_BT = torch.tensor(-generator.exponential(1.0, mask_BT.shape), requires_grad=True)
        ref_BT = log_BT.detach().numpy() + generator.normal(0.0, 0.3, mask_BT.shape)
        reward_B, value_B = generator.integers(0, 2, 4).astype(float), generator.uniform(0.2, 0.8, 4)
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            args=SimpleNamespace(beta2=beta),
            _metrics={"train": defaultdict(list)},
            _get_sequence_logps=lambda *_, log_BT=log_BT, mask_BT=mask_BT: (log_BT * torch.tensor(mask_BT)).sum(1),
        )
        inputs = {
            "ref_logps": torch.tensor((ref_BT * mask_BT).sum(1)),
            "rewards": torch.tensor(reward_B),
            "v_star": torch.tensor(value_B),
        } | dict.fromkeys(("input_ids", "attention_mask", "logits_to_keep"))
        loss = A2POTrainer.compute_loss(trainer, None, inputs)
        (gradient,) = torch.autograd.grad(loss, log_BT)
        batch = {
            "log_probs": log_BT.detach().numpy(),
            "ref_log_probs": ref_BT,
            "mask": mask_BT.astype(float),
            "reward": reward_B,
            "baselines": value_B,
        }
        expected = {
            "loss": loss.item(),
            "gradient_weight": gradient.numpy(),
            "advantages": (reward_B - value_B)[:, None] * mask_BT,
        }
        against = f"trl {trl.__version__} A2POTrainer.compute_loss"
        changes = {"gate.beta": beta}
        cases.append(
            case(f"a2po, beta {beta}", "a2po", against, batch, expected, hyper_parameters=changes, tolerance=1e-9)
        )
    return cases


def main() -> None:
    """Run every configuration and write the section."""
    folder = Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    small_llama(TOKENIZER).save_pretrained(folder / "model")
    TOKENIZER.save_pretrained(folder / "model")

    def losses(cls: type, config: type, rewards: Any = (exact, length), **settings: Any) -> Losses:
        small = {"num_generations": ROWS, "per_device_train_batch_size": 2 * ROWS, "prompts": 2} | settings
        return Losses(folder / "model", folder, cls, config, rewards, **small)

    cases = []
    grpo = losses(GRPOTrainer, GRPOConfig)
    against = f"trl {trl.__version__} GRPOTrainer._compute_loss"
    for name, settings in GRPO.items():
        cases += cases_of(grpo, name, against, {"beta": 0.0} | settings, (0.0, 0.5) if len(settings) < 3 else (0.5,))
    for name, settings in PAPERS.items():
        cases += cases_of(grpo, f"{name} of the paper", against, {"beta": 0.0} | settings, (0.2,), name)
    weighted = losses(GRPOTrainer, GRPOConfig, (exact, sometimes, rarely), beta=0.0)
    for name, settings in REWARDS.items():
        weights = {"reward_weights": [1.0, 0.5, 2.0]}
        cases += cases_of(weighted, name, against, {"beta": 0.0} | settings | weights, (0.3,))
    gmpo = losses(GMPOTrainer, GMPOConfig)
    against = f"trl {trl.__version__} GMPOTrainer._compute_loss"
    for name, settings in {"gmpo": {}, "gmpo, narrow": {"epsilon": 0.1, "epsilon_high": 0.2}}.items():
        cases += cases_of(gmpo, name, against, {"beta": 0.0} | settings)
    cases += cases_of(gmpo, "gmpo of the paper", against, {"beta": 0.0}, (0.5,), "gmpo")
    cases += cases_of(gmpo, "gmpo, KL", against, {"beta": 0.1}, (0.5,))
    narrow = {"epsilon": 0.1, "epsilon_high": 0.2, "top_entropy_quantile": 0.4}
    cases += cases_of(gmpo, "gmpo, high entropy, KL", against, {"beta": 0.1} | narrow, (0.5,))
    rloo = losses(RLOOTrainer, RLOOConfig)
    against = f"trl {trl.__version__} RLOOTrainer._compute_loss"
    further = {"rloo": {"beta": 0.05}, "rloo, whitened": {"normalize_advantages": True}}
    for name, settings in (further | {"rloo, clipped rewards": {"reward_clip_range": [0.3, 0.45]}}).items():
        cases += cases_of(rloo, name, against, settings, (0.1, 0.4))
    write_section("trl", cases + a2po())
    if len(sys.argv) > 1:
        write_section("trl_releases", releases(grpo, Path(sys.argv[1])))


if __name__ == "__main__":
    main()
