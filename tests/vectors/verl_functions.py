"""verl's own functions, called on arrays: what tests and vectors are compared with. Needs verl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from omegaconf import OmegaConf
from verl import __version__
from verl.trainer.config import AlgoConfig, RolloutCorrectionConfig
from verl.trainer.ppo import core_algos
from verl.utils import tensordict_utils
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl.workers.utils import losses

VERSION = __version__
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
    """(B, T) advantages, 0 where the mask is, given as the trainer gives them; `settings` are those of `algorithm`."""
    settings = dict(settings or {})
    config = AlgoConfig(adv_estimator=estimator, **settings)
    mask, rewards = tensor(batch["mask"]), token_rewards(batch, settings)
    function = core_algos.get_adv_estimator_fn(estimator)
    if estimator == "gae":
        given = {"values": tensor(batch["values"]), "gamma": config.gamma, "lam": config.lam}
    elif estimator == "grpo":
        given = {"index": groups(batch), "norm_adv_by_std_in_grpo": config.norm_adv_by_std_in_grpo}
    else:
        given = {"config": config, "index": groups(batch)}
    if estimator == "remax":
        given["reward_baselines"] = tensor(batch["greedy_reward"])
    if estimator == "gdpo":
        keys = [f"part_{k}" for k in range(batch["reward_components"].shape[1])]
        weights = list(batch["reward_weights"]) if "reward_weights" in batch else None
        given["config"] = AlgoConfig(adv_estimator=estimator, gdpo_reward_keys=keys, gdpo_reward_weights=weights)
        given["non_tensor_batch"] = {key: batch["reward_components"][:, k] for k, key in enumerate(keys)}
        given["batch"] = {"prompts": torch.zeros(len(mask), 0), "attention_mask": mask.long()}
    if estimator.endswith("optimal_token_baseline"):
        weights = tensor(batch["is_weights"]) if "is_weights" in batch else None
        given |= {"old_log_probs": tensor(batch["old_log_probs"]), "sum_pi_squared": tensor(batch["sum_pi_squared"])}
        given["rollout_is_weights"] = weights
    result, _ = function(token_level_rewards=rewards, response_mask=mask, **given)
    return (result * mask).numpy()


def token_rewards(batch: Arrays, settings: Mapping[str, Any]) -> torch.Tensor:
    """(B, T) rewards, less the KL penalty where the settings ask for it (`apply_kl_penalty` of verl's trainer)."""
    mask = tensor(batch["mask"])
    if "rewards" in batch:
        scores = tensor(batch["rewards"])
    else:
        scores = torch.zeros_like(mask)
        rows, width = mask.shape
        last = width - 1 - mask.flip(1).argmax(1)
        scores[torch.arange(rows), last] = tensor(batch["reward"])
    if not settings.get("use_kl_in_reward"):
        return scores
    kind, beta = settings.get("kl_penalty", "kl"), settings["kl_ctrl"]["kl_coef"]
    divergence = core_algos.kl_penalty(tensor(batch["old_log_probs"]), tensor(batch["ref_log_probs"]), kind)
    return scores - beta * divergence * mask


def groups(batch: Arrays) -> np.ndarray:
    """Groups as verl has them: an array of ids."""
    return np.array([f"uid-{group}" for group in batch["group"]], dtype=object)


def hydra(settings: Mapping[str, Any]) -> Any:
    """Settings as main_ppo has them."""
    return OmegaConf.create(dict(settings))
