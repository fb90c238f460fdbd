"""Other trainers: SkyRL, Trinity-RFT, AReaL, OpenRLHF, EasyR1 as in PAPO."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vectors.foreign import Settings, branch, load
from vectors.released.tools import (
    Case,
    Released,
    Tensors,
    advantages,
    batch,
    group_advantages,
    last_token,
    objective,
    tensors,
    with_advantages,
)


def skyrl(released: Released) -> Iterator[Case]:
    """SkyRL: losses by name, its sums turned into means by scaling the advantages first."""
    repository = released("NovaSky-AI/SkyRL")
    utils = "skyrl/backends/skyrl_train/utils"
    helpers = load(repository, f"{utils}/torch_utils.py", "masked_mean", "safe_exp_delta")
    # it works in float32 there, which would hide errors
    beside = {
        "masked_mean": helpers.masked_mean,
        "safe_exp_delta": lambda delta, clip, out_dtype: torch.clamp(delta, -clip, clip).exp(),
        "apply_off_policy_correction": lambda loss, old, rollout, mask, config: (loss, mask, {}),
    }
    scaled = "apply_loss_reduction_to_advantages_minibatch"
    filtered = load(repository, "skyrl/train/generators/utils.py", "apply_overlong_filtering")

    def run(function: str, algorithm: str, reduction: str, seed: int, settings: dict[str, Any], **options: Any) -> Case:
        prompts, longest = [(0, 3), (3, 6)], options.pop("longest", None)
        found = load(repository, f"{utils}/ppo_utils.py", function, scaled, **beside)
        config = Settings(loss_reduction="sequence_mean", **settings)
        data = with_advantages(batch(seed), seed) | options.pop("beside", {})

        def loss(t: Tensors) -> torch.Tensor:
            mask = t.mask
            if "truncated" in data:
                reasons = ["length" if cut else "stop" for cut in data["truncated"]]
                mask = torch.tensor(filtered.apply_overlong_filtering(mask.tolist(), reasons))
            own = getattr(found, scaled)(t.advantages, mask, reduction, 6, longest or mask.shape[1], prompts)
            return getattr(found, function)(t.log_probs, t.old_log_probs, own, config, mask)[0]

        return objective(
            f"advantages scaled for {reduction}", algorithm, repository.against(function), data, loss, **options
        )

    clip = {"eps_clip_low": 0.2, "eps_clip_high": 0.2}
    dual = {"policy_loss_type": "dual_clip", "clip_ratio_c": 3.0}
    regular = {"policy_loss_type": "regular"}
    yield run("ppo_policy_loss", "maxrl", "token_mean", 90, clip | regular)
    yield run("ppo_policy_loss", "ppo", "token_mean", 91, clip | dual, hyper_parameters={"dual_clip": 3.0})
    yield run("ppo_policy_loss", "dr_grpo", "seq_mean_token_sum_norm", 92, clip | regular)
    yield run("ppo_policy_loss", "grpo_passk", "token_mean", 93, clip | regular)
    yield run(
        "sapo_policy_loss", "sapo_soft", "sequence_mean", 94, {"sapo": SimpleNamespace(tau_pos=1.0, tau_neg=1.05)}
    )
    yield run("ppo_policy_loss", "dapo", "prompt_mean", 88, {"eps_clip_low": 0.2, "eps_clip_high": 0.28} | regular)
    components = {"reward_components": np.zeros((6, 2))}
    yield run("ppo_policy_loss", "gdpo", "sequence_mean", 87, clip | regular, beside=components)
    cut = {"truncated": np.array([0, 1, 0, 0, 0, 1])}
    yield run("ppo_policy_loss", "overlong_filter", "sequence_mean", 86, clip | regular, beside=cut)
    cispo = SimpleNamespace(cispo_anchor="old", cispo_eps_clip_low=1.0, cispo_eps_clip_high=4.0)
    yield run("compute_policy_loss_cispo", "cispo", "prompt_mean", 89, {"cispo": cispo})
    narrow = {"eps_clip_low": 3e-4, "eps_clip_high": 4e-4}
    wide = {"epsilon_low": 0.1, "epsilon_high": 0.1}
    yield run("gspo_policy_loss", "gspo_token", "sequence_mean", 95, narrow)
    yield run(
        "gspo_policy_loss",
        "gspo_token",
        "sequence_mean",
        96,
        {"eps_clip_low": 0.1, "eps_clip_high": 0.1},
        hyper_parameters=wide,
    )
    yield run("gspo_policy_loss", "gspo", "sequence_mean", 97, narrow)
    # a constant length of 1 makes its reduction the plain sum over a response's tokens
    luspo = {"eps_clip_low": 2e-3, "eps_clip_high": 2.5e-3}
    yield run("gspo_policy_loss", "luspo", "seq_mean_token_sum_norm", 85, luspo, longest=1)
    data = with_advantages(batch(84), 84)
    data["rollout_log_probs"][4] = data["old_log_probs"][4] - 1.0
    correction = Settings(
        tis_ratio_type="sequence",
        sequence_tis_ratio_clip_high=1e9,
        sequence_mask_metric="product",
        product_mask_high=3.0,
        product_mask_low=0.0,
    )
    applied = "apply_off_policy_correction"
    path = f"{utils}/off_policy_correction_utils.py"
    beside[applied] = getattr(load(repository, path, applied, **beside_without(beside, applied)), applied)
    masked = load(repository, f"{utils}/ppo_utils.py", "ppo_policy_loss", scaled, **beside)

    def mis(t: Tensors) -> torch.Tensor:
        own = getattr(masked, scaled)(t.advantages, t.mask, "token_mean", 6, t.mask.shape[1])
        config = Settings(**clip, **regular, off_policy_correction=correction)
        return masked.ppo_policy_loss(t.log_probs, t.old_log_probs, own, config, t.mask, t.rollout_log_probs)[0]

    against = repository.against("ppo_policy_loss, apply_off_policy_correction")
    yield objective("some responses masked", "mis", against, data, mis)
    for kind, deltas in (("tv", (0.1, 0.15)), ("kl", (0.02, 0.05))):
        dppo = SimpleNamespace(dppo_type=f"binary_{kind}", delta_low=deltas[0], delta_high=deltas[1])
        yield run(
            "dppo_policy_loss",
            f"dppo_{kind}",
            "token_mean",
            98,
            {"dppo": dppo},
            # it differentiates the ratio itself: another value, the same gradient
            gradient_only=True,
            hyper_parameters={"ratio_cap": 1e9, "delta_low": deltas[0], "delta_high": deltas[1]},
        )
    found = load(repository, f"{utils}/ppo_utils.py", "compute_maxrl_advantage")
    data = batch(11)
    t = tensors(data)
    values, _ = found.compute_maxrl_advantage(t.reward[:, None], t.mask, t.uid)
    yield advantages("two groups", "maxrl", repository.against("compute_maxrl_advantage"), data, values)
    for algorithm in ("sapo_soft", "gspo", "gspo_token", "dppo_tv", "dppo_kl", "cispo", "dapo", "luspo", "mis"):
        name = "compute_grpo_outcome_advantage"
        function = getattr(load(repository, f"{utils}/ppo_utils.py", name), name)
        values, _ = function(t.reward[:, None].clone(), t.mask, t.uid)
        yield advantages("two groups", algorithm, repository.against(name), data, values)


def beside_without(beside: dict[str, Any], name: str) -> dict[str, Any]:
    """What a file imports, without the name that is to be taken from it."""
    return {key: value for key, value in beside.items() if key != name}


def trinity(released: Released) -> Iterator[Case]:
    """Trinity-RFT: REC, TOPR, AsymRE, OPMD."""
    repository = released("trinity-rft")
    base = "trinity/algorithm"
    utils = load(repository, f"{base}/utils.py", "masked_mean", "aggregate_loss", "masked_sum")
    beside = vars(utils) | {"PolicyLossFn": type("PolicyLossFn", (), {"__init__": lambda self, backend: None})}
    beside["GroupAdvantage"] = type("GroupAdvantage", (), {"__init__": lambda self: None})

    def policy(file: str, name: str, **settings: Any) -> Callable[[Tensors], torch.Tensor]:
        function = getattr(load(repository, f"{base}/policy_loss_fn/{file}.py", name, **beside), name)(**settings)
        return lambda t: function(
            logprob=t.log_probs, old_logprob=t.old_log_probs, action_mask=t.mask, advantages=t.advantages
        )[0]

    def grouped(file: str, name: str, algorithm: str, settings: dict[str, Any], **options: Any) -> Case:
        function = getattr(load(repository, f"{base}/advantage_fn/{file}.py", name, **beside), name)(**settings)
        data = batch(11)
        rows = [
            SimpleNamespace(reward=float(data["reward"][i]), action_mask=torch.tensor(data["mask"][i]))
            for i in range(6)
        ]
        for group in (0, 1):
            function.calculate_group_advantage(str(group), rows[3 * group : 3 * group + 3])
        values = torch.stack([row.advantages for row in rows]).double()
        return advantages("two groups of three", algorithm, repository.against(name), data, values, **options)

    rec = repository.against("RECPolicyLossFn")
    for mode, sides in (("one-side", "one"), ("two-side", "two"), ("ring", "ring")):
        for weight in ("none", "importance_sampling"):
            settings = {"epsilon_low_prime": 0.6, "epsilon_high_prime": 2.0, "clip_mode": mode, "weight": weight}
            yield objective(
                f"{mode}, weight {weight}",
                "rec",
                rec,
                with_advantages(batch(100), 100),
                policy("rec_policy_loss", "RECPolicyLossFn", **settings),
                hyper_parameters={"sides": sides, "importance": weight != "none"},
            )
    yield grouped("rec_advantage", "RECGroupedAdvantage", "rec", {})
    yield grouped("reinforce_advantage", "REINFORCEGroupAdvantage", "reinforce", {})
    for algorithm, tau, mode in (
        ("reinforce", 0.0, "seq-mean-token-sum"),
        ("asymre", 0.0, "token-mean"),
        ("opo", 0.0, "token-mean"),
    ):
        yield objective(
            f"{mode}",
            algorithm,
            repository.against("OPMDPolicyLossFn, tau=0"),
            with_advantages(batch(103), 103),
            policy("opmd_policy_loss", "OPMDPolicyLossFn", tau=tau, loss_agg_mode=mode),
        )
    data = with_advantages(batch(104, spread=0.8), 104)
    settings = {"clip_range": 0.2, "clip_ratio_c": 1e9}
    masking = {"enable_sequence_masking": True, "delta_sequence_masking": 0.3, "loss_agg_mode": "seq-mean-token-mean"}
    yield objective(
        "some responses masked",
        "opsm",
        repository.against("PPOPolicyLossFn"),
        data,
        policy("ppo_policy_loss", "PPOPolicyLossFn", **settings, **masking),
        hyper_parameters={"mask.0.reference": "old_log_probs", "threshold": 0.3},
    )
    plain = policy("ppo_policy_loss", "PPOPolicyLossFn", **settings)
    yield objective("both bounds", "gigpo", repository.against("PPOPolicyLossFn"), data, plain)
    grpo = ("grpo_advantage", "GRPOGroupedAdvantage")
    yield grouped(*grpo, "grpo", {})
    yield grouped(*grpo, "opsm", {})
    yield objective(
        "token ratios on both sides of 1",
        "topr.trinity",
        repository.against("TOPRPolicyLossFn"),
        with_advantages(batch(101), 101),
        policy("topr_policy_loss", "TOPRPolicyLossFn"),
    )
    yield grouped("rec_advantage", "RECGroupedAdvantage", "topr.trinity", {})
    yield grouped("asymre_advantage", "ASYMREGroupAdvantage", "asymre", {})
    yield grouped("opmd_advantage", "OPMDGroupAdvantage", "opmd_simple", {})
    for tau in (1.0, 0.25):
        yield objective(
            f"τ = {tau}",
            "opmd_simple",
            repository.against("OPMDPolicyLossFn"),
            with_advantages(batch(102), 102),
            policy("opmd_policy_loss", "OPMDPolicyLossFn", tau=tau),
            hyper_parameters={"factor": 1 / (1 + tau)},
        )


def chord(released: Released) -> Iterator[Case]:
    """CHORD, with the demonstrations of a prompt in rows of their own."""
    repository = released("trinity-rft")
    base = "trinity/algorithm"
    utils = load(repository, f"{base}/utils.py", "masked_mean", "aggregate_loss", "masked_sum")
    beside = vars(utils) | {"PolicyLossFn": type("PolicyLossFn", (), {"__init__": lambda self, backend: None})}
    for file, name in (("ppo_policy_loss", "PPOPolicyLossFn"), ("sft_loss", "SFTLossFn")):
        beside[name] = getattr(load(repository, f"{base}/policy_loss_fn/{file}.py", name, **beside), name)
    path, name = f"{base}/policy_loss_fn/chord_policy_loss.py", "MIXCHORDPolicyLossFn"
    kind = getattr(load(repository, path, name, **beside), name)
    for algorithm in ("chord", "chord_phi"):
        data = with_advantages(batch(126), 126) | {"source": np.array([0, 0, 0, 0, 1, 1])}
        # demonstrations are imitated, whatever their advantage: the engine has 1 there
        data["advantages"] = np.where(data["source"] > 0, 1.0, data["advantages"])
        function = kind(
            clip_range=0.2,
            enable_phi_function=algorithm == "chord_phi",
            train_batch_size_usual=4,
            train_batch_size_expert=2,
        )
        function.grpo_loss_fn.clip_ratio_c = 1e9
        yield objective(
            "μ = 0.1",
            algorithm,
            repository.against(name),
            data,
            lambda t, function=function: function(
                logprob=t.log_probs,
                old_logprob=t.old_log_probs,
                action_mask=t.mask,
                advantages=t.advantages,
                expert_mask=t.source > 0,
                step=torch.ones(6),
            )[0],
        )
    name = "GRPOGroupedAdvantage"
    beside["GroupAdvantage"] = type("GroupAdvantage", (), {})
    function = getattr(load(repository, f"{base}/advantage_fn/grpo_advantage.py", name, **beside), name)()
    data = batch(127, binary=False) | {"source": np.array([0, 0, 0, 0, 1, 1]), "group": np.array([0, 0, 1, 1, 0, 1])}
    rows = [SimpleNamespace(reward=data["reward"][i], action_mask=torch.tensor(data["mask"][i])) for i in range(4)]
    for rest in (rows[:2], rows[2:]):
        function.calculate_group_advantage("", rest)
    values = np.concatenate([torch.stack([row.advantages for row in rows]).numpy(), np.ones((2, 6))])
    for algorithm in ("chord", "chord_phi"):
        yield advantages("demonstrations beside two groups", algorithm, repository.against(name), data, values)


def sampler_correction(released: Released) -> Iterator[Case]:
    """OpenRLHF: TIS and IcePop, GSPO, and PPO with a dual clip."""
    repository = released("OpenRLHF/OpenRLHF")
    utils = load(repository, "openrlhf/models/utils.py", "masked_mean")
    policy = load(repository, "openrlhf/models/loss.py", "PolicyLoss", masked_mean=utils.masked_mean)
    data = with_advantages(batch(180), 180)
    for algorithm, kind, band in (
        ("tis", "tis", (0.0, 2.0)),
        ("icepop", "icepop", (0.5, 5.0)),
        ("icepop", "icepop", (0.8, 1.2)),
    ):
        loss = policy.PolicyLoss(
            enable_vllm_is_correction=True, vllm_is_truncated_threshold=list(band), vllm_is_correction_type=kind
        )
        limits = {"cap": band[1]} if kind == "tis" else {"band_low": band[0], "band_high": band[1]}
        yield objective(
            f"weights from {band[0]} to {band[1]}",
            algorithm,
            repository.against(f"PolicyLoss {kind}"),
            data,
            lambda t, loss=loss: loss(
                t.log_probs, t.old_log_probs, t.advantages, t.mask, rollout_log_probs=t.rollout_log_probs
            )[0],
            hyper_parameters=limits,
        )
    loss = policy.PolicyLoss(3e-4, 4e-4, policy_loss_type="gspo")
    against = repository.against("PolicyLoss gspo")
    yield objective(
        "both bounds", "gspo", against, data, lambda t: loss(t.log_probs, t.old_log_probs, t.advantages, t.mask)[0]
    )
    cut = {"truncated": np.array([0, 1, 0, 0, 0, 1])}
    for algorithm in ("tis", "icepop", "overlong_filter"):
        yield group_advantages(released, "PRIME-RL/Entropy-Mechanism-of-RL", algorithm, beside=cut)


def decoupled(released: Released) -> Iterator[Case]:
    """AReaL: PPO against a proximal policy, corrected for the sampler; SAPO."""
    repository = released("inclusionAI/AReaL")
    path = "areal/utils/functional/functional.py"
    found = load(repository, path, "ppo_actor_loss_fn", "sapo_loss_fn")
    data = with_advantages(batch(190), 190)
    data["rollout_log_probs"][1, 0] = data["old_log_probs"][1, 0] - 2.0
    rejection = SimpleNamespace(metric="ratio", level="token", action="mask", agg="mean", lower=None, upper=5.0)
    yield objective(
        "one token's weight above the bound",
        "decoupled_ppo",
        repository.against("ppo_actor_loss_fn"),
        data,
        lambda t: found.ppo_actor_loss_fn(
            t.log_probs,
            t.old_log_probs,
            t.rollout_log_probs,
            t.advantages,
            0.2,
            t.mask.bool(),
            rejection_sampling=rejection,
        )[0],
    )
    yield objective(
        "token mean",
        "sapo_soft",
        repository.against("sapo_loss_fn"),
        # responses of one length, whose two means are the same
        data | {"mask": np.ones((6, 6))},
        lambda t: found.sapo_loss_fn(t.log_probs, t.old_log_probs, t.advantages, 1.0, 1.05, t.mask.bool())[0],
    )
    norm = load(repository, "areal/utils/data.py", "Normalization", dist=torch.distributed).Normalization
    settings = Settings(mean_level="batch", std_level="batch", std_unbiased=True, eps=1e-5)
    trainer = SimpleNamespace(
        config=Settings(),
        reward_bias=0.0,
        reward_scaling=1.0,
        reward_clip=20.0,
        reward_norm=None,
        kl_ctl=0.0,
        kl_estimator=lambda old, ref: torch.zeros_like(old),
        mask_no_eos_with_zero=False,
        discount=1.0,
        gae_lambda=1.0,
        adv_norm=norm(settings),
    )
    function = load(repository, "areal/trainer/ppo/actor.py", "_compute_advantages")._compute_advantages
    t = tensors(data)
    first = torch.ones(6, 1)
    values = function(
        trainer,
        {
            "input_ids": torch.zeros(6, 7),
            "attention_mask": torch.cat([first, t.mask], 1),
            "loss_mask": torch.cat([0 * first, t.mask], 1),
            "rewards": t.reward.clone(),
            "logprobs": torch.zeros(6, 7),
            "prox_logp": torch.zeros(6, 7),
        },
    )["advantages"][:, :6]
    yield advantages("six rewards", "decoupled_ppo", repository.against("_compute_advantages"), data, values)


def perception(released: Released) -> Iterator[Case]:
    """PAPO, and GRPO with its KL penalty, from the same code."""
    repository = released("MikeWangWZHL/PAPO")
    path, actor = "verl/trainer/core_algos.py", "verl/workers/actor/dp_actor.py"
    functional = load(repository, "verl/utils/torch_functional.py", "masked_mean")
    # what it casts to float32 would hide errors
    names = ("compute_policy_loss", "compute_kl", "average_loss", "compute_grpo_outcome_advantage")
    core = load(repository, path, *names, VF=functional)

    def loss(t: Tensors, mode: str, high: float, kl: float, seeing: float) -> torch.Tensor:
        config = Settings(
            loss_avg_mode=mode,
            use_kl_loss=True,
            kl_penalty="low_var_kl",
            kl_coef=kl,
            kl_prcp_penalty="low_var_kl",
            kl_prcp_coef=seeing,
        )
        value, _ = core.compute_policy_loss(t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2, high, 1e9, mode)
        variables = vars(core) | {
            "self": SimpleNamespace(config=config),
            "VF": functional,
            "model_inputs": {"ref_log_probs": t.ref_log_probs},
            "ref_log_probs": t.ref_log_probs,
            "log_probs": t.log_probs,
            "response_mask": t.mask,
            "pg_loss": value,
            "metrics": {},
        }
        test = "self.config.use_kl_loss and 'ref_log_probs' in model_inputs"
        variables |= {"pg_loss": branch(repository, actor, "update_policy", test, variables)["pg_loss"]}
        if seeing == 0:
            return variables["pg_loss"]
        variables |= {
            "aug_log_probs": t.augmented_log_probs,
            "kl_prcp_weighting": [1.0] * 6,
            "kl_prcp_coef": None,
            "discount_ratio": 1.0,
        }
        return branch(repository, actor, "update_policy", "aug_log_probs is not None", variables)["pg_loss"]

    rng = np.random.default_rng(210)
    for seed in (210, 211):
        data = with_advantages(batch(seed), seed)
        data["augmented_log_probs"] = np.minimum(data["log_probs"] - np.round(rng.normal(0, 0.4, (6, 6)), 3), -0.02)
        against = repository.against("compute_policy_loss, compute_kl")
        yield objective("both bounds", "papo", against, data, lambda t: loss(t, "token", 0.3, 0.01, 0.01))
        yield objective("both bounds", "grpo", against, data, lambda t: loss(t, "seq", 0.2, 0.04, 0.0))
    data = batch(11, binary=False) | {"augmented_log_probs": data["augmented_log_probs"]}
    t = tensors(data)
    values, _ = core.compute_grpo_outcome_advantage(last_token(t), t.mask, t.uid)
    for algorithm in ("papo", "grpo"):
        against = repository.against("compute_grpo_outcome_advantage")
        yield advantages("two groups of three", algorithm, against, data, values)


GENERATORS = (skyrl, trinity, chord, sampler_correction, decoupled, perception)
