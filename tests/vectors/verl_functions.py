"""verl's own functions, called on arrays: what tests and vectors are compared with. Needs verl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import verl
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.config import AlgoConfig, KLControlConfig, RolloutCorrectionConfig
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import apply_kl_penalty, compute_advantage
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask
from verl.utils import tensordict_utils
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl.workers.utils import losses

VERSION = verl.__version__
Arrays = Mapping[str, Any]


def tensor(values: Any) -> torch.Tensor:
    """Float64, as everything here."""
    return torch.tensor(np.asarray(values), dtype=torch.float64)


def actor_config(settings: Mapping[str, Any]) -> ActorConfig:
    """The actor's configuration, from settings as they stand under actor_rollout_ref.actor."""
    own = dict(settings)
    policy_loss = dict(own.pop("policy_loss", {}))
    if "rollout_correction" in policy_loss:
        policy_loss["rollout_correction"] = RolloutCorrectionConfig(**policy_loss["rollout_correction"])
    policy_loss = PolicyLossConfig(**policy_loss)
    return ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, policy_loss=policy_loss, **own)


def worker_loss(settings: Mapping[str, Any], batch: Arrays, info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Loss, its derivative by log_probs, and what clip_cov chose, by the function the worker calls.

    `info` holds dp_size, batch_num_tokens and global_batch_size, as the worker has them of the whole mini-batch.
    """
    config = actor_config(settings)
    log_probs = tensor(batch["log_probs"]).requires_grad_()
    output = {"log_probs": log_probs}
    if settings.get("entropy_coeff"):
        output["entropy"] = tensor(batch["entropies"])
    names = {"mask": "response_mask", "old_log_probs": "old_log_probs", "advantages": "advantages"}
    names |= {"is_weights": "rollout_is_weights", "ref_log_probs": "ref_log_prob"}
    data = {theirs: tensor(batch[ours]) for ours, theirs in names.items() if ours in batch}
    about = {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None} | dict(info or {})
    content = tensordict_utils.get_tensordict(data, non_tensor_dict=about)
    seen: list[torch.Tensor] = []
    masked_mean = core_algos.verl_F.masked_mean

    def watched(values: torch.Tensor, mask: torch.Tensor, axis: Any = None) -> torch.Tensor:
        seen.append(values)
        return masked_mean(values, mask, axis)

    with (
        patch.object(losses, "no_padding_2_padding", lambda values, data: values),  # it is padded already
        patch.object(core_algos.verl_F, "masked_mean", watched),
    ):
        loss, _ = losses.ppo_loss(config, output, content)
    loss.backward()
    found = {"loss": loss.detach().item(), "gradient": log_probs.grad.numpy()}
    if config.policy_loss.loss_mode == "clip_cov":
        found["selected"] = seen[-1].numpy()  # the tokens it has just dropped, of which it logs the share
    return found


def advantages(estimator: str, batch: Arrays, settings: Mapping[str, Any] | None = None) -> np.ndarray:
    """(B, T) advantages as the trainer computes them, 0 where the mask is; `settings` are those of `algorithm`."""
    own = dict(settings or {})
    control = KLControlConfig(**own.pop("kl_ctrl", {}))
    if estimator == "gdpo":
        own["gdpo_reward_keys"] = [f"part_{k}" for k in range(batch["reward_components"].shape[1])]
        own["gdpo_reward_weights"] = list(batch["reward_weights"]) if "reward_weights" in batch else None
    config = AlgoConfig(adv_estimator=estimator, kl_ctrl=control, **own)
    data = rollout(batch)
    if estimator == "remax":
        data.batch["reward_baselines"] = tensor(batch["greedy_reward"])
    if config.use_kl_in_reward:
        data, _ = apply_kl_penalty(data, core_algos.get_kl_controller(control), config.kl_penalty)
    else:
        data.batch["token_level_rewards"] = data.batch["token_level_scores"]
    data = compute_advantage(
        data,
        adv_estimator=config.adv_estimator,
        gamma=config.gamma,
        lam=config.lam,
        norm_adv_by_std_in_grpo=config.norm_adv_by_std_in_grpo,
        config=config,
    )
    return (data.batch["advantages"] * data.batch["response_mask"]).numpy()


def rollout(batch: Arrays) -> DataProto:
    """A rollout as verl's trainer holds it: the prompt is one token, a scalar reward stands at the last that counts."""
    mask = tensor(batch["mask"])
    rows, width = mask.shape
    if "rewards" in batch:
        scores = tensor(batch["rewards"])
    else:
        scores = torch.zeros_like(mask)
        scores[torch.arange(rows), width - 1 - mask.flip(1).argmax(1)] = tensor(batch["reward"])
    names = {"old_log_probs": "old_log_probs", "ref_log_probs": "ref_log_prob", "values": "values"}
    names |= {"sum_pi_squared": "sum_pi_squared", "is_weights": "rollout_is_weights"}
    tensors = {theirs: tensor(batch[ours]) for ours, theirs in names.items() if ours in batch}
    tensors |= {"response_mask": mask, "token_level_scores": scores}
    tensors |= {"prompts": torch.zeros(rows, 1), "attention_mask": torch.ones(rows, width + 1, dtype=torch.long)}
    others = {"uid": np.array([f"prompt {group}" for group in batch["group"]], dtype=object)}
    for k in range(batch["reward_components"].shape[1] if "reward_components" in batch else 0):
        others[f"part_{k}"] = np.array(batch["reward_components"][:, k], dtype=object)
    return DataProto.from_dict(tensors=tensors, non_tensors=others)


def sampler_correction(batch: Arrays, settings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(B, T) weights and mask after rejection, as the trainer computes them of old and rollout log-probs."""
    weights, mask, _ = compute_rollout_correction_and_rejection_mask(
        old_log_prob=tensor(batch["old_log_probs"]),
        rollout_log_prob=tensor(batch["rollout_log_probs"]),
        response_mask=tensor(batch["mask"]),
        **settings,
    )
    return weights.batch["rollout_is_weights"].numpy(), mask.numpy()


def default_settings() -> Any:
    """main_ppo's configuration with nothing changed."""
    return OmegaConf.load(Path(verl.__file__).parent / "trainer" / "config" / "_generated_ppo_trainer.yaml")
