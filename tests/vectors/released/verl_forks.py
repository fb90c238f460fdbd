"""Code grown from verl: a fork's core_algos with another gate, another advantage."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch

from vectors.foreign import Settings, load
from vectors.released.tools import (
    Case,
    Released,
    Tensors,
    advantages,
    batch,
    core_algos,
    group_advantages,
    last_token,
    objective,
    tensors,
    with_advantages,
)


def gradient_preserving(released: Released) -> Iterator[Case]:
    """GPPO and CE-GPPO, which keep a gradient where PPO clips."""
    repository = released("suu990901/KlearReasoner")
    gppo = core_algos(repository, "compute_gppo_loss").compute_gppo_loss
    bounds = {"epsilon_low": 0.2, "epsilon_high": 0.28}
    for number, mode in enumerate(("token-mean", "seq-mean-token-mean")):
        data = with_advantages(batch(20 + number))
        if mode != "token-mean":
            continue
        yield objective(
            f"both bounds and the dual clip, {mode}",
            "gppo",
            repository.against("compute_gppo_loss"),
            data,
            lambda t, mode=mode: gppo(
                t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2, 0.2, 0.28, 3.0, loss_agg_mode=mode
            )[0],
            hyper_parameters=bounds | {"dual_clip": 3.0},
        )
    yield group_advantages(released, "suu990901/KlearReasoner", "gppo")
    repository = released("Kwai-Klear/CE-GPPO")
    ce_gppo = core_algos(repository, "compute_gppo_loss_general_beta").compute_gppo_loss_general_beta
    for beta_low, beta_high in ((0.75, 1.0), (0.25, 1.0), (0.5, 0.8)):
        yield objective(
            f"β {beta_low} below, {beta_high} above",
            "ce_gppo",
            repository.against("compute_gppo_loss_general_beta"),
            with_advantages(batch(22)),
            lambda t, low=beta_low, high=beta_high: ce_gppo(
                t.old_log_probs,
                t.log_probs,
                t.advantages,
                t.mask,
                0.2,
                0.2,
                0.28,
                3.0,
                gppo_loss_beta1=low,
                gppo_loss_beta2=high,
            )[0],
            hyper_parameters=bounds | {"dual_clip": 3.0, "beta_low": beta_low, "beta_high": beta_high},
        )
    yield group_advantages(released, "Kwai-Klear/CE-GPPO", "ce_gppo")


def balanced(released: Released) -> Iterator[Case]:
    """BAPO, whose bounds are searched over the batch."""
    repository = released("WooooDyy/BAPO")
    base = core_algos(repository, "agg_loss", "compute_grpo_outcome_advantage")
    loss = load(
        repository,
        "recipe/bapo/policy_loss.py",
        "compute_policy_loss_bapo",
        verl_F=base.verl_F,
        agg_loss=base.agg_loss,
        Dict=dict,
    ).compute_policy_loss_bapo
    for seed, target, upper in ((30, 0.5, 2.0), (31, 1.0, 2.0), (32, 4.0, 2.0), (33, 1.15, 3.0)):
        search = SimpleNamespace(
            ratio_lower_start=0.6,
            ratio_lower_max=0.8,
            ratio_lower_step=0.05,
            ratio_upper_start=1.2,
            ratio_upper_max=upper,
            ratio_upper_step=0.05,
            adv_ratio_target=target,
            eps=1e-8,
        )
        settings = SimpleNamespace(policy_loss=search, clip_ratio=0.2, get=lambda name, default: default)
        yield objective(
            f"bounds searched for a share of {target}",
            "bapo_balanced",
            repository.against("compute_policy_loss_bapo"),
            with_advantages(batch(seed), seed),
            lambda t, settings=settings: loss(t.old_log_probs, t.log_probs, t.advantages, t.mask, config=settings)[0],
            hyper_parameters={
                "ratio_low": 0.6,
                "ratio_low_limit": 0.8,
                "ratio_high": 1.2,
                "ratio_high_limit": upper,
                "step": 0.05,
                "target": target,
                "dual_clip": 3.0,
            },
        )
    data = batch(11, binary=False)
    t = tensors(data)
    scores = t.reward[:, None] * torch.nn.functional.one_hot(t.mask.sum(1).long() - 1, t.mask.shape[1])
    values, _ = base.compute_grpo_outcome_advantage(scores, t.mask, t.uid)
    against = repository.against("compute_grpo_outcome_advantage")
    yield advantages("a group of rewards", "bapo_balanced", against, data, values)


def dynamic_clip(released: Released) -> Iterator[Case]:
    """DCPO: bounds from the sampling probability, advantages from all rewards so far."""
    repository = released("lime-RL/DCPO")
    modes = load(repository, "verl/trainer/ppo/core_name_space.py", "LossCalculator")
    names = ("compute_policy_loss_dcpo", "compute_dcpo_outcome_advantage")
    core = core_algos(repository, *names, LossCalculator=modes.LossCalculator, AlgoConfig=type(None))
    settings = Settings(
        clip_type="dynamic", clip_ratio=0.2, clip_ratio_low=0.16, clip_ratio_high=0.2, clip_ratio_c=10.0
    )

    def loss(t: Tensors) -> torch.Tensor:
        # one response at a time: the mean over tokens is then that of a response
        total = torch.tensor(0.0)
        for row in range(len(t.reward)):
            own = slice(row, row + 1)
            total = (
                total
                + core.compute_policy_loss_dcpo(
                    t.old_log_probs[own],
                    t.log_probs[own],
                    t.advantages[own],
                    t.mask[own],
                    loss_agg_mode=modes.LossCalculator.OTM,
                    config=settings,
                )[0]
            )
        return total

    for seed in (40, 41):
        yield objective(
            "bounds from the sampling probability",
            "dcpo_dynclip",
            repository.against("compute_policy_loss_dcpo"),
            with_advantages(batch(seed, spread=0.9), seed),
            loss,
            hyper_parameters={"epsilon_low": 0.16, "epsilon_high": 0.2},
        )
    data = batch(42, binary=False)
    t = tensors(data)
    scores = t.reward[:, None] * torch.nn.functional.one_hot(t.mask.sum(1).long() - 1, t.mask.shape[1])
    for visits in (1, 3):
        past = [visits - 1] * 6, [torch.tensor(0.3)] * 6, [torch.tensor(0.7)] * 6
        found = core.compute_dcpo_outcome_advantage(scores.clone(), t.mask, t.uid, *past)
        centre = np.array([float(found["uid2mean"][group]) for group in t.uid])
        spread = np.array([float(found["uid2std"][group]) for group in t.uid])
        seen = {"visits": np.full(6, visits), "historic_advantages": (data["reward"] - centre) / spread}
        against = repository.against("compute_dcpo_outcome_advantage")
        yield advantages(f"prompts seen {visits} times", "dcpo_dynclip", against, data | seen, found["advantages"])


def heterogeneous(released: Released) -> Iterator[Case]:
    """HAPO as released, from rewards to the gradient: its objective changes the advantages itself."""
    repository = released("starriver030515/HAPO")
    names = ("compute_policy_loss", "compute_hapo_outcome_advantage", "compute_entropy_h", "ada_clip", "ada_advantage")
    core = core_algos(repository, *names)
    for seed in (110, 111, 112):
        data = batch(seed)

        def own(t: Tensors) -> torch.Tensor:
            return core.compute_hapo_outcome_advantage(last_token(t), t.mask, t.uid, entropys=t.entropies)[0]

        def loss(t: Tensors) -> torch.Tensor:
            return core.compute_policy_loss(
                t.old_log_probs,
                t.log_probs,
                own(t),
                t.mask,
                0.2,
                0.2,
                0.2,
                10.0,
                entropy_pivot=0.8,
                adaptive_clip=True,
                adaptive_advantage=True,
                entropy=t.entropies,
            )[0]

        against = repository.against("compute_policy_loss")
        yield objective("entropies of all sizes", "hapo.released", against, data, loss, given=False)
        t = tensors(data)
        level, _ = core.compute_entropy_h(t.entropies, response_mask=t.mask, entropy_pivot=0.8)
        bounds = core.ada_clip(0.2, 0.2, level, 1.0)
        ratio = (t.log_probs - t.old_log_probs).exp().detach()
        values = core.ada_advantage(own(t), level, ratio, *bounds, 1.0)
        against = repository.against("compute_hapo_outcome_advantage, ada_advantage")
        yield advantages("entropies of all sizes", "hapo.released", against, data, values)


def covariance(released: Released) -> Iterator[Case]:
    """Clip-Cov and KL-Cov; the tokens the first one drew are passed in."""
    repository = released("PRIME-RL/Entropy-Mechanism-of-RL")
    names = ("compute_policy_loss_clip_cov", "compute_policy_loss_kl_cov")
    core = core_algos(repository, *names)
    for seed in (50, 51):
        data = with_advantages(batch(seed), seed)
        against = repository.against("compute_policy_loss_clip_cov")

        def clip_cov(t: Tensors) -> torch.Tensor:
            torch.manual_seed(0)
            return core.compute_policy_loss_clip_cov(
                t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2, clip_ratio=0.15, clip_cov_lb=0.05
            )[0]

        clip_cov(tensors(data))
        # of the masked means it takes, the one before the loss is that of the tokens it drew
        drawn = {"selected": core.verl_F.masked_mean.calls[-2][0].detach().numpy()}
        yield objective(f"{int(drawn['selected'].sum())} tokens drawn", "clip_cov", against, data | drawn, clip_cov)
        for percent in (10.0, 20.0):
            yield objective(
                f"{percent:.0f} % of the tokens",
                "kl_cov",
                repository.against("compute_policy_loss_kl_cov"),
                data,
                lambda t, k=percent: core.compute_policy_loss_kl_cov(
                    t.old_log_probs, t.log_probs, t.advantages, t.mask, k_percent=k, ppo_kl_coef=1
                )[0],
                hyper_parameters={"share": percent / 100},
            )
    yield group_advantages(released, repository.name, "clip_cov", beside={"selected": np.zeros((6, 6))})
    yield group_advantages(released, repository.name, "kl_cov")


def beta_normalised(released: Released) -> Iterator[Case]:
    """BNPO: advantages by the density of a Beta distribution fitted to the batch."""
    repository = released("changyi7231/BNPO")
    function = load(repository, "recipe/bnpo/src/bnpo_ray_trainer.py", "compute_bnpo_outcome_advantage")
    loss = core_algos(repository, "compute_policy_loss").compute_policy_loss
    for seed, groups in ((64, 2), (61, 3), (62, 4)):
        data = batch(seed, rows=12)
        data["group"] = np.arange(12) // (12 // groups)
        t = tensors(data)
        scores = t.reward[:, None] * torch.nn.functional.one_hot(t.mask.sum(1).long() - 1, t.mask.shape[1])
        values, _ = function.compute_bnpo_outcome_advantage(scores, t.mask, t.uid)
        against = repository.against("compute_bnpo_outcome_advantage")
        yield advantages(f"{groups} prompts", "bnpo_beta", against, data, values)
    yield objective(
        "both bounds and the dual clip",
        "bnpo_beta",
        repository.against("compute_policy_loss"),
        with_advantages(batch(63)),
        lambda t: loss(
            t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2, 0.2, 0.28, 10.0, loss_agg_mode="seq-mean-token-sum"
        )[0],
    )


def dler(released: Released) -> Iterator[Case]:
    """DLER: batch-whitened advantages and a wide upper bound."""
    repository = released("NVlabs/DLER")
    estimator = "compute_reinforce_plus_plus_baseline_outcome_advantage"
    core = core_algos(repository, estimator, "compute_policy_loss", root="verl-dler/verl")
    for id in ("dler", "reinforce_pp_baseline"):
        data = batch(72) | {"truncated": np.zeros(6)}
        t = tensors(data)
        scores = t.reward[:, None] * torch.nn.functional.one_hot(t.mask.sum(1).long() - 1, t.mask.shape[1])
        values, _ = getattr(core, estimator)(scores, t.mask, t.uid)
        yield advantages("groups with signal", id, repository.against(estimator), data, values)
        yield objective(
            "both bounds and the dual clip",
            id,
            repository.against("compute_policy_loss"),
            with_advantages(data),
            lambda t: core.compute_policy_loss(
                t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2, 0.2, 0.28, 10.0
            )[0],
            hyper_parameters={"epsilon_low": 0.2, "epsilon_high": 0.28, "dual_clip": 10.0},
        )

    data = batch(73) | {"ref_log_probs": batch(73)["ref_log_probs"]}
    t = tensors(data)
    names = (
        "compute_opo_outcome_advantage",
        "compute_grpo_passk_outcome_advantage",
        "compute_gae_advantage_return",
        "compute_reinforce_plus_plus_outcome_advantage",
        "compute_rewards",
    )
    core = core_algos(repository, *names, root="verl-dler/verl")
    values, _ = core.compute_opo_outcome_advantage(last_token(t), t.mask, t.uid)
    yield advantages("two groups", "opo", repository.against(names[0]), data, values)
    values, _ = core.compute_grpo_passk_outcome_advantage(last_token(t), t.mask, t.uid, config=Settings())
    yield advantages("two groups", "grpo_passk", repository.against(names[1]), data, values)
    values, _ = core.compute_gae_advantage_return(last_token(t), t.values, t.mask, 1.0, 0.95)
    yield advantages("one critic", "ppo", repository.against(names[2]), data, values)
    rewards = core.compute_rewards(last_token(t), t.old_log_probs, t.ref_log_probs, 0.001)
    values, _ = core.compute_reinforce_plus_plus_outcome_advantage(rewards, t.mask, Settings(gamma=1.0))
    yield advantages("KL in the reward", "reinforce_pp", repository.against(names[3]), data, values)
    loss = core_algos(repository, "compute_policy_loss", root="verl-dler/verl").compute_policy_loss
    yield objective(
        "both bounds",
        "reinforce_pp",
        repository.against("compute_policy_loss"),
        with_advantages(data),
        lambda t: loss(t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2, None, None, 1e9)[0],
    )


def screens(released: Released) -> Iterator[Case]:
    """Agents on screens: ARPO with replayed responses, AEPO of InfiGUI-G1, whose rewards come with the batch."""
    repository = released("InfiXAI/InfiGUI-G1")
    names = ("compute_policy_loss", "compute_rloo_outcome_advantage")
    core = core_algos(repository, *names)
    data = with_advantages(batch(74), 74)
    yield objective(
        "both bounds and the dual clip",
        "aepo_infigui",
        repository.against(names[0]),
        data,
        lambda t: core.compute_policy_loss(t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2, 0.2, 0.4, 3.0)[0],
    )
    data = batch(11, binary=False)
    t = tensors(data)
    values, _ = core.compute_rloo_outcome_advantage(last_token(t), t.mask, t.uid)
    yield advantages("two groups of three", "aepo_infigui", repository.against(names[1]), data, values)

    repository = released("dvlab-research/ARPO")
    functional = load(repository, "verl/utils/torch_functional.py", "masked_mean")
    names = ("compute_policy_loss", "compute_grpo_outcome_advantage")
    own = load(repository, "verl/trainer/core_algos.py", *names, VF=functional)
    yield objective(
        "both bounds and the dual clip",
        "arpo_replay",
        repository.against(names[0]),
        with_advantages(batch(75), 75),
        lambda t: own.compute_policy_loss(t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2, 0.3, 3.0)[0],
    )
    values, _ = own.compute_grpo_outcome_advantage(last_token(t), t.mask, t.uid)
    yield advantages("two groups of three", "arpo_replay", repository.against(names[1]), data, values)


GENERATORS = (gradient_preserving, balanced, dynamic_clip, heterogeneous, covariance, beta_normalised, dler, screens)
