"""Test vectors from polgrad, an independent library of policy-gradient losses.

    python tests/vectors/from_polgrad.py

Every algorithm polgrad knows is run in float64 and differentiated by autograd, under the id that is the same algorithm
here. Where polgrad's entry and ours differ in a setting, one of the two is changed, and the case's `against` says so:
what is compared is the same function on both sides. Rows are padded on the right and none is empty, as polgrad asks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polgrad
import torch
from polgrad import advantages as estimators
from polgrad.advantages import GAEConfig, GroupNormConfig, ReinforcePPConfig
from polgrad.aggregate import Aggregation
from polgrad.kl import KLEstimator, kl_estimate, kl_in_reward
from polgrad.losses import ISCorrectionConfig, PolicyLossConfig, RatioKind, SurrogateKind, policy_loss

sys.path.insert(0, str(Path(__file__).parents[1]))

from vectors.format import case, write_section

VERSION = f"polgrad {polgrad.__version__}"
Arrays = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]


def batch_of(seed: int, groups: int = 2, size: int = 3, T: int = 6) -> Arrays:
    """Ratios out of every clip range, responses of different lengths, rewards that differ in every group."""
    rng = np.random.default_rng(seed)
    B = groups * size
    length_B = rng.integers(1, T + 1, B)
    length_B[0] = T
    old_BT = -rng.exponential(1.0, (B, T)) - 0.05
    return {
        "log_probs": np.minimum(old_BT + rng.normal(0.0, 0.6, (B, T)), -0.01),
        "old_log_probs": old_BT,
        "ref_log_probs": np.minimum(old_BT + rng.normal(0.0, 0.3, (B, T)), -0.01),
        "rollout_log_probs": np.minimum(old_BT + rng.normal(0.0, 0.5, (B, T)), -0.01),
        "values": rng.normal(0.5, 0.3, (B, T)),
        "mask": (np.arange(T) < length_B[:, None]).astype(float),
        "reward": rng.normal(0.5, 0.5, B).round(3),
        "group": np.arange(B) // size,
    }


def tensors(arrays: Arrays) -> Tensors:
    """The batch as polgrad takes it."""
    found = {name: torch.tensor(values) for name, values in arrays.items()}
    found["mask"] = found["mask"].bool()
    return found


def at_the_end(t: Tensors) -> torch.Tensor:
    """(B, T) rewards, a response's on its last token."""
    last = t["mask"].sum(1, keepdim=True) - 1
    return torch.zeros_like(t["log_probs"]).scatter(1, last, t["reward"][:, None])


def grouped(eps: float = 1e-6, **settings: Any) -> Callable[[Tensors], torch.Tensor]:
    config = GroupNormConfig(eps=eps, **settings)
    return lambda t: estimators.grpo_advantages(t["reward"], t["group"], config)


def with_critic(t: Tensors) -> torch.Tensor:
    config = GAEConfig(gamma=0.99, lam=0.95)
    advantages, _ = estimators.gae(at_the_end(t), t["values"], config=config, response_mask=t["mask"])
    return advantages


def whitened_critic(t: Tensors) -> torch.Tensor:
    return estimators.whiten(with_critic(t), t["mask"], eps=1e-8)


def penalised_return(t: Tensors) -> torch.Tensor:
    old, ref = t["old_log_probs"], t["ref_log_probs"]
    rewards = kl_in_reward(at_the_end(t), old, ref, KLEstimator.K1, 0.001, response_mask=t["mask"])
    config = GAEConfig(gamma=1.0, lam=1.0)
    returns, _ = estimators.gae(rewards, torch.zeros_like(rewards), config=config, response_mask=t["mask"])
    return estimators.whiten(returns, t["mask"], eps=1e-8)


def penalised_others(t: Tensors) -> torch.Tensor:
    old, ref = t["old_log_probs"], t["ref_log_probs"]
    rewards = kl_in_reward(at_the_end(t), old, ref, KLEstimator.K1, 0.03, response_mask=t["mask"])
    return estimators.rloo_advantages(rewards.sum(1), t["group"])


def others(t: Tensors) -> torch.Tensor:
    return estimators.rloo_advantages(t["reward"], t["group"])


def over_batch(t: Tensors) -> torch.Tensor:
    return estimators.reinforce_pp_advantages(t["reward"], config=ReinforcePPConfig(batch_norm=True))


def over_groups(t: Tensors) -> torch.Tensor:
    return estimators.reinforce_pp_advantages(t["reward"], t["group"], config=ReinforcePPConfig(batch_norm=True))


def known(name: str) -> PolicyLossConfig:
    return polgrad.get_algorithm(name).loss


def expected(config: PolicyLossConfig, advantages: torch.Tensor, t: Tensors) -> dict[str, Any]:
    """polgrad's numbers, under our names and with our signs."""
    log_probs = t["log_probs"].clone().requires_grad_()
    ref = t["ref_log_probs"] if config.kl is not None else None
    sampler = t["rollout_log_probs"] if config.is_correction is not None else None
    found = policy_loss(
        config,
        logprobs=log_probs,
        old_logprobs=t["old_log_probs"],
        advantages=advantages,
        response_mask=t["mask"],
        ref_logprobs=ref,
        rollout_logprobs=sampler,
    )
    (gradient,) = torch.autograd.grad(found.loss, log_probs)
    objective = -found.per_token_objective
    if config.kl is not None and ref is not None:
        objective = objective - config.kl.coef * kl_estimate(log_probs, ref, config.kl.kind, response_mask=t["mask"])
    columns = advantages[:, None] if advantages.ndim == 1 else advantages
    low, high = (6, 7) if config.surrogate is SurrogateKind.CISPO else (1, 2)
    return {
        "loss": found.loss,
        "gradient_weight": gradient,
        "advantages": columns * t["mask"],
        "token_objective": objective,
        "ratio": found.ratio * t["mask"],
        "clipped": low * found.clipped_low.double() + high * found.clipped_high.double(),
    }


def composed(name: str, **parts: Any) -> dict[str, Any]:
    """An algorithm that is not registered, as its JSON."""
    return {"id": f"polgrad_{name}", "name": name, "parts": parts}


TOKENS = {"aggregation": Aggregation.TOKEN_MEAN}
PLAIN_GROUP = {"baseline": {"part": "group_mean"}, "scale": [{"part": "group_std", "eps": 1e-4}]}
LOG_PROB = {"ratio": {"part": "one"}, "gate": {"part": "log_prob"}}
CLIP = {"bounds": {"part": "around_one"}, "gate": {"part": "ppo_clip"}}
ROW_MEAN = {"aggregation": {"part": "sequence_mean_token_mean"}}
TOKEN_KL = [{"part": "kl", "beta": 0.04, "estimator": "k3"}]


def cases(seed: int, groups: int = 2, size: int = 3, T: int = 6) -> list[dict[str, Any]]:
    """Every comparison on a batch of that size."""
    found: list[dict[str, Any]] = []

    def compare(
        name: str,
        algorithm: str | dict[str, Any],
        config: PolicyLossConfig,
        estimate: Callable[[Tensors], torch.Tensor],
        said: str,
        **changes: Any,
    ) -> None:
        one_prompt = changes.pop("one_prompt", False)
        arrays = batch_of(seed + len(found), 1 if one_prompt else groups, size * (groups if one_prompt else 1), T)
        t = tensors(arrays)
        numbers = expected(config, estimate(t), t)
        if config.clip is not None and config.clip.ratio_cap is not None:
            # polgrad counts a dual clip as clipped high; here it has a code of its own.
            del numbers["clipped"]
        found.append(case(name, algorithm, f"{VERSION} {said}", arrays, numbers, tolerance=1e-9, **changes))

    compare(
        "PPO with a critic", "ppo", known("ppo"), whitened_critic, "gae, whiten, ppo", hyper_parameters={"gamma": 0.99}
    )
    compare("GRPO", "grpo", known("grpo"), grouped(), "grpo with eps 1e-6")
    compare(
        "GRPO, eps of TRL", "grpo", known("grpo"), grouped(1e-4), "grpo", hyper_parameters={"eps": 1e-4, "beta": 0.04}
    )
    compare(
        "GRPO, k1",
        "grpo",
        replace(known("grpo"), kl=polgrad.KLLossConfig(kind=KLEstimator.K1, coef=0.1)),
        grouped(),
        "grpo with k1",
        hyper_parameters={"estimator": "k1", "beta": 0.1},
    )
    compare("Dr. GRPO", "dr_grpo", replace(known("dr_grpo"), norm_len=T), grouped(scale="none"), "dr_grpo")
    compare("DAPO on one prompt", "dapo", known("dapo"), grouped(), "dapo with eps 1e-6", one_prompt=True)
    compare(
        "DAPO over the batch", "dapo.trl", known("dapo"), grouped(1e-4), "dapo", hyper_parameters={"epsilon_high": 0.28}
    )
    compare("GSPO", "gspo", known("gspo"), grouped(), "gspo with eps 1e-6")
    wide = replace(known("gspo").clip, eps_low=0.1, eps_high=0.2)
    compare(
        "GSPO, wide bounds",
        "gspo",
        replace(known("gspo"), clip=wide),
        grouped(),
        "gspo with other bounds",
        hyper_parameters={"epsilon_low": 0.1, "epsilon_high": 0.2},
    )
    compare(
        "GSPO-token, wide bounds",
        "gspo_token",
        replace(known("gspo_token"), clip=wide),
        grouped(),
        "gspo_token with other bounds",
        hyper_parameters={"epsilon_low": 0.1, "epsilon_high": 0.2},
    )
    compare(
        "CISPO on one prompt",
        "cispo",
        known("cispo"),
        grouped(),
        "cispo with eps 1e-6",
        one_prompt=True,
        hyper_parameters={"ratio_high": 1.2},
    )
    compare(
        "CISPO over the batch",
        "cispo.trl",
        known("cispo"),
        grouped(1e-4),
        "cispo",
        hyper_parameters={"ratio_high": 1.2},
    )
    compare(
        "REINFORCE++",
        "reinforce_pp",
        replace(known("reinforce_pp"), **TOKENS),
        penalised_return,
        "kl_in_reward, gae, whiten, reinforce_pp over tokens",
    )
    compare(
        "truncated importance sampling",
        "tis",
        replace(known("grpo_tis"), **TOKENS, kl=None, is_correction=ISCorrectionConfig(cap=2.0, level="token")),
        grouped(),
        "grpo_tis over tokens, without KL, cap 2",
    )
    compare(
        "truncated importance sampling of responses",
        "tis",
        replace(known("grpo_tis"), **TOKENS, kl=None, is_correction=ISCorrectionConfig(cap=2.0, level="sequence")),
        grouped(),
        "grpo_tis over tokens, without KL, cap 2, of sequences",
        hyper_parameters={"level": "sequence_product"},
    )
    compare(
        "grpo_tis as it is",
        composed(
            "grpo_tis",
            **PLAIN_GROUP,
            **CLIP,
            **ROW_MEAN,
            weight=[{"part": "truncated", "cap": 10.0}],
            constraint=TOKEN_KL,
        ),
        known("grpo_tis"),
        grouped(1e-4),
        "grpo_tis",
    )
    compare(
        "RLOO as in its paper",
        composed(
            "rloo",
            reward=[{"part": "sequence_kl_penalty", "beta": 0.03}],
            baseline={"part": "leave_one_out"},
            **LOG_PROB,
            aggregation={"part": "sequence_mean_token_sum"},
        ),
        known("rloo"),
        penalised_others,
        "kl_in_reward, rloo",
    )
    compare(
        "leave one out under PPO's clip",
        composed("rloo_clip", baseline={"part": "leave_one_out"}, **CLIP, aggregation={"part": "token_mean"}),
        known("ppo"),
        others,
        "rloo_advantages, ppo",
    )
    compare(
        "a critic without whitening",
        composed(
            "gae", baseline={"part": "gae", "gamma": 0.99, "lam": 0.95}, **CLIP, aggregation={"part": "token_mean"}
        ),
        known("ppo"),
        with_critic,
        "gae, ppo",
    )
    whiten = {"scale": [{"part": "batch_whiten", "eps": 1e-8}]}
    compare(
        "REINFORCE++, one advantage a response",
        composed("reinforce_pp", baseline={"part": "batch_mean"}, **whiten, **CLIP, **ROW_MEAN),
        known("reinforce_pp"),
        over_batch,
        "reinforce_pp_advantages, reinforce_pp",
    )
    compare(
        "REINFORCE++-baseline, one advantage a response",
        composed("reinforce_pp_baseline", baseline={"part": "group_mean"}, **whiten, **CLIP, **ROW_MEAN),
        known("reinforce_pp"),
        over_groups,
        "reinforce_pp_advantages of groups, reinforce_pp",
    )
    compare(
        "dual clip",
        composed(
            "dual_clip",
            **PLAIN_GROUP,
            bounds={"part": "around_one"},
            gate={"part": "ppo_clip", "dual_clip": 1.5},
            aggregation={"part": "token_mean"},
        ),
        replace(known("ppo"), clip=replace(known("ppo").clip, ratio_cap=1.5)),
        grouped(1e-4),
        "ppo with ratio_cap 1.5",
    )
    compare(
        "the unclipped ratio of a token",
        composed(
            "pg",
            **PLAIN_GROUP,
            bounds={"part": "around_one"},
            gate={"part": "plain_ratio"},
            aggregation={"part": "token_mean"},
        ),
        replace(known("ppo"), surrogate=SurrogateKind.PG, clip=None),
        grouped(1e-4),
        "PG surrogate",
    )
    compare(
        "the unclipped ratio of a response",
        composed(
            "pg_sequence",
            **PLAIN_GROUP,
            ratio={"part": "sequence_mean"},
            gate={"part": "plain_ratio"},
            aggregation={"part": "sequence_mean_token_sum"},
        ),
        replace(
            known("ppo"),
            ratio=RatioKind.SEQUENCE,
            surrogate=SurrogateKind.PG,
            clip=None,
            aggregation=Aggregation.SEQ_MEAN_TOKEN_SUM,
        ),
        grouped(1e-4),
        "PG surrogate of sequences",
    )
    return found


if __name__ == "__main__":
    write_section("polgrad", cases(0))
