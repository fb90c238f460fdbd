"""Test vectors from the code authors of algorithms, and of other libraries, have released.

    python tests/vectors/from_released.py CLONES

CLONES is a folder of git clones of the repositories in `COMMITS`, each called `name`, `owner+name` or `owner-name`, and
of the wheels in `WHEELS` (`pip download --no-deps trinity-rft==0.6.0`). Functions are read at the commits pinned here,
run on small random batches in float64 and differentiated by autograd; inputs and outputs are all that is kept.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from vectors.foreign import Recorder, Repository, Settings, branch, load, statements
from vectors.format import case, errors, evaluated, write_section

from unipo_hooks import algorithms
from unipo_hooks.objective.describe import given_advantages, inputs

COMMITS = {
    "Kwai-Klear/CE-GPPO": "10558fe017ac776773fd7f29753d8353a11c0813",
    "suu990901/KlearReasoner": "5d2d0b8c5cde8527bfcd681333527562408c961e",
    "WooooDyy/BAPO": "7287044444d5d578529ea464b45f090a36e8da3a",
    "lime-RL/DCPO": "01787b0f61580961162faeb492defeb39f1eba53",
    "starriver030515/HAPO": "7671dde3e268779a949954ec75ed3edda45f7e0a",
    "YihongDong/RL-PLUS": "eb4aa4d4e2d7ce206056f9d7740138bfc94fad8f",
    "Optimization-AI/DisCO": "bd2b078129347a87c10fbb64df12ed50dce59947",
    "NovaSky-AI/SkyRL": "a9564572eb8e91076be43c1bd5e4615e3de17265",
    "inclusionAI/AReaL": "4aef98d8d818af55b43621aaadba047ae10f4e77",
    "callsys/GMPO": "205b2bf412f150cf96c29b33273b81bcd1a9b20f",
    "PRIME-RL/Entropy-Mechanism-of-RL": "88505792fd97a11993445e93195145e3c1181955",
    "sail-sg/understand-r1-zero": "dfca49dd460ee7cc8e4a5a162c876a7fd6993b87",
    "changyi7231/BNPO": "a9c51b9848283286ff3c51afbba2a867977a2e36",
    "liziniu/ReMax": "536ba49cc2f9a1a76941045388a44757e2533e75",
    "AMAP-ML/GPG": "e096da8ce527a1636272469cee383ba71ec4a511",
    "NVlabs/DLER": "ea7d4f7b54eff6e85267fab1af4863d0aec27d51",
    "hkust-nlp/KernelGYM": "3a84417f8c0efaadb215ef638b37d12e71ed20f3",
    "sail-sg/AnytimeReasoner": "7e3f5bb3e0617dbc8c3c522937bab1974b444982",
    "PrimeIntellect-ai/prime-rl": "559b44772e471d1538537b8805cc77f3824a5e64",
    "OpenRLHF/OpenRLHF": "3c3be6234e0cb353e76bb8019947db9dfe99fca7",
    "verl-project/verl-recipe": "48ea0a797fa29867ea0ad92aff7d284eec7d4be3",
    "TsinghuaC3I/Unify-Post-Training": "ae332f5fa4dc8b4c3d3cd77ebc9cff3a3abab2d0",
    "zhangxy-2019/critique-GRPO": "e8f03a20b49511e10e71f361c70e46aae3ae8753",
    "RUC-NLPIR/ARPO": "a95cd0894b53e97595845bd680ed7e85524a2244",
    "RLHFlow/Reinforce-Ada": "05be6058dc04adc89d31a51f9903177a0c180f15",
    "MikeWangWZHL/PAPO": "fb63bf4533b78da5a2bb17bc812375dcb620887d",
    "ernie-research/MA-RLHF": "807551d519d738b2f446a2fd878f9afd2cbb4e7a",
    "zkshan2002/RTO": "f2c12948c2d9ce68519d174b891b27e0672bc571",
    "abaheti95/LoL-RL": "9f8d81660bfa0bad17ae5d7835185987f028812e",
    "longmalongma/TW-GRPO": "aa529ffca7ae408e4f3df7ba71cb0dc58544c6b7",
    "modelscope/ms-swift": "3602360a562313afbf2ef6065fdf61f271a2c5b9",
    "Indolent-Kawhi/View-R1": "093f2d82eee37e76594486831c122d7d19161c07",
    "AIFrameResearch/SPO": "b9fc6a263dec54e28137fd488a9b9c0e0d026025",
}
WHEELS = {"trinity-rft": "0.6.0"}

Case = dict[str, Any]
Batch = dict[str, np.ndarray]
Tensors = SimpleNamespace


class Released:
    """Where the code is, and the cases made of it."""

    def __init__(self, clones: Path) -> None:
        self.clones = clones

    def __call__(self, name: str) -> Repository:
        return Repository(name, (COMMITS | WHEELS)[name], self.clones)


def batch(seed: int, *, spread: float = 0.5, binary: bool = True, rows: int = 6, width: int = 6) -> Batch:
    """Two groups of responses of unequal lengths, moved far enough that every bound is crossed on both sides."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(width) < rng.integers(2, width + 1, rows)[:, None]).astype(float)
    mask[0] = 1
    log_probs = -rng.exponential(0.9, (rows, width)) - 0.05
    old = np.minimum(log_probs - rng.normal(0, spread, (rows, width)), -0.02)
    # one token each far outside, for a dual clip and for caps
    old[0, 0], old[rows - 1, 0], old[1, 1], old[rows - 2, 1] = log_probs[0, 0] - 2, log_probs[-1, 0] - 2, -0.02, -0.02
    reward = rng.integers(0, 2, rows).astype(float) if binary else rng.normal(0, 1, rows)
    if binary:
        half = rows // 2
        reward[0], reward[1], reward[half], reward[rows - 1] = 1, 0, 1, 0
    group = np.arange(rows) // (rows // 2)
    made = {
        "log_probs": log_probs,
        "old_log_probs": old,
        "ref_log_probs": np.minimum(log_probs - rng.normal(0, 0.4, (rows, width)), -0.02),
        "rollout_log_probs": np.minimum(old - rng.normal(0, 0.3, (rows, width)), -0.02),
        "entropies": rng.uniform(0.05, 2.0, (rows, width)),
        "values": rng.normal(0, 0.5, (rows, width)),
        "reward": reward,
    }
    made = {name: np.round(values, 3) for name, values in made.items()}
    return made | {"mask": mask, "group": group, "ids": rng.integers(0, 9, (rows, width))}


def tensors(data: Batch, advantages: np.ndarray | None = None) -> Tensors:
    """The batch as torch tensors; log_probs takes a gradient, mask stays as it is, `advantages` are (B, T)."""
    made = {name: torch.tensor(values) for name, values in data.items()}
    made["log_probs"].requires_grad_()
    if advantages is None:
        advantages = data.get("advantages")
    if advantages is not None:
        wide = advantages if advantages.ndim == 2 else np.repeat(advantages[:, None], data["mask"].shape[1], 1)
        made["advantages"] = torch.tensor(wide * data["mask"])
    return SimpleNamespace(**made, uid=data["group"])


def with_advantages(data: Batch, seed: int = 0) -> Batch:
    """A batch with advantages of both signs."""
    rng = np.random.default_rng(seed + 100)
    size = np.round(rng.uniform(0.3, 1.6, len(data["reward"])), 3)
    return data | {"advantages": size * np.where(np.arange(len(size)) % 2 == 0, 1, -1)}


def objective(
    name: str,
    algorithm: str,
    against: str,
    data: Batch,
    loss: Callable[[Tensors], torch.Tensor],
    *,
    gradient_only: bool = False,
    given: bool = True,
    **options: Any,
) -> Case:
    """A case of a loss and its gradient, advantages given."""
    given_tensors = tensors(data)
    value = loss(given_tensors)
    (gradient,) = torch.autograd.grad(value, given_tensors.log_probs)
    expected = {"gradient_weight": gradient} if gradient_only else {"loss": value, "gradient_weight": gradient}
    return made(name, algorithm, against, data, expected, given=given, **options)


def advantages(
    name: str, algorithm: str, against: str, data: Batch, values: torch.Tensor | np.ndarray, **options: Any
) -> Case:
    """A case of advantages computed from rewards."""
    values = np.asarray(values)
    wide = values if values.ndim == 2 else np.repeat(values[:, None], data["mask"].shape[1], 1)
    return made(name, algorithm, against, data, {"advantages": wide * data["mask"]}, **options)


def made(
    name: str,
    algorithm: str,
    against: str,
    data: Batch,
    expected: dict[str, Any],
    *,
    given: bool = False,
    **options: Any,
) -> Case:
    """A case with the inputs the algorithm looks at, and no others."""
    spec = algorithms.get(algorithm)
    spec = given_advantages(spec) if given else spec
    kept = {key: data[key] for key in ("log_probs", "mask", *inputs(spec)) if key in data}
    return case(name, algorithm, against, kept, expected, given=given, **options)


# --- code grown from verl ------------------------------------------------------------------------------------------


def core_algos(
    repository: Repository, *names: str, root: str = "verl", path: str = "trainer/ppo", **beside: Any
) -> Any:
    """Functions of a fork's core_algos, with its own masked mean and aggregation."""
    functional = load(
        repository, f"{root}/utils/torch_functional.py", "masked_mean", "masked_sum", "masked_whiten", "masked_var"
    )
    functional.masked_mean = Recorder(functional.masked_mean)
    found = load(repository, f"{root}/{path}/core_algos.py", *names, verl_F=functional, **beside)
    found.verl_F = functional
    return found


def group_advantages(released: Released, name: str, algorithm: str, root: str = "verl", **options: Any) -> Case:
    """Advantages by the repository's own copy of the group norm."""
    repository = released(name)
    function = core_algos(repository, "compute_grpo_outcome_advantage", root=root).compute_grpo_outcome_advantage
    data = batch(11, binary=False) | options.pop("beside", {})
    t = tensors(data)
    scores = t.reward[:, None] * torch.nn.functional.one_hot(t.mask.sum(1).long() - 1, t.mask.shape[1])
    normalise = options.pop("normalise", True)
    values, _ = function(scores, t.mask, t.uid, norm_adv_by_std_in_grpo=normalise)
    against = repository.against("compute_grpo_outcome_advantage")
    return advantages("a group of rewards", algorithm, against, data, values, **options)


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


def remax(released: Released) -> Iterator[Case]:
    """ReMax, without the KL in the returns."""
    repository = released("liziniu/ReMax")
    path = "step3_rlhf_finetuning/remax_trainer.py"
    functions = load(repository, path, "actor_loss_fn", "compute_returns")
    data = batch(70) | {"greedy_reward": np.array([0.5, 0.5, 0.5, 1.0, 1.0, 1.0])}
    trainer = SimpleNamespace(clip_reward_value=5, gamma=1.0)
    t = tensors(data)
    above = t.reward - t.greedy_reward
    mask = t.mask.long()
    returns, _ = functions.compute_returns(trainer, torch.zeros(6, 1), torch.zeros_like(t.mask), above, mask)
    yield advantages("reward above the greedy answer's", "remax", repository.against("compute_returns"), data, returns)
    yield objective(
        "both signs",
        "remax",
        repository.against("actor_loss_fn"),
        with_advantages(data),
        lambda t: functions.actor_loss_fn(trainer, t.log_probs, t.advantages, t.mask),
    )


def gpg(released: Released) -> Iterator[Case]:
    """GPG with one group without signal: the share of groups that have one scales the loss."""
    repository = released("AMAP-ML/GPG")
    path = "open-r1/src/open_r1/gpg_trainer.py"
    data = batch(71)
    data["reward"][3:] = 1.0
    trainer = SimpleNamespace(
        num_generations=3,
        args=SimpleNamespace(scale_rewards=False, adjust_gd=True),
        beta=0.0,
        _metrics={"train": {"inverse_alpha": []}},
        control=SimpleNamespace(should_evaluate=False),
    )
    scored = statements(
        repository,
        path,
        "_generate_and_score_completions",
        "mean_grouped_rewards = rewards.view",
        "inverse_alpha = min",
        {"self": trainer, "rewards": torch.tensor(data["reward"]), "n_valid_samples": 1, "num_samples": 2},
    )
    trainer._metrics["train"]["inverse_alpha"].append(scored["inverse_alpha"])

    def loss(t: Tensors) -> torch.Tensor:
        variables = {
            "self": trainer,
            "per_token_logps": t.log_probs,
            "advantages": scored["advantages"],
            "completion_mask": t.mask,
        }
        first, last = "per_token_loss = -per_token_logps", "if self.args.adjust_gd"
        return statements(repository, path, "compute_loss", first, last, variables)["loss"]

    yield objective(
        "one of two groups without signal", "gpg", repository.against("compute_loss"), data, loss, given=False
    )
    yield advantages(
        "one of two groups without signal, the scale of the loss in the advantage",
        "gpg",
        repository.against("_generate_and_score_completions"),
        data,
        scored["advantages"] / scored["inverse_alpha"],
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


# --- other trainers ------------------------------------------------------------------------------------------------


def geometric_mean(released: Released) -> Iterator[Case]:
    """GMPO: one response a micro-batch, as it is trained."""
    repository = released("callsys/GMPO")
    path, test = "train_zero_math_gmpo.py", "self.args.critic_type_modify == 'gmpo'"

    def loss(t: Tensors) -> torch.Tensor:
        total = torch.tensor(0.0)
        for row in range(len(t.reward)):
            own = slice(row, row + 1)
            variables = {
                "self": SimpleNamespace(args=SimpleNamespace(cliprange=0.4)),
                "mb_advantage": t.advantages[own, :1],
                "new_logps": t.log_probs[own],
                "mb_logps": t.old_log_probs[own],
                "mb_response_masks": t.mask[own] > 0,
                "stats": {"logprobs_diff_max": [], "logprobs_diff_min": [], "zero_pg_loss_count": []},
                "infos": {},
            }
            total = total + branch(repository, path, "learning_step", test, variables)["loss"].sum()
        return total / len(t.reward)

    for seed in (80, 81):
        data = with_advantages(batch(seed), seed)
        yield objective("clipped tokens on both sides", "gmpo", repository.against("learning_step"), data, loss)
    yield monte_carlo(repository, path, "gmpo", "grpo")


def monte_carlo(repository: Repository, path: str, algorithm: str, kind: str) -> Case:
    """Advantages of code grown from understand-r1-zero."""
    function = load(repository, path, "compute_monte_carlo_advantages").compute_monte_carlo_advantages
    data = batch(11, binary=False)
    trainer = SimpleNamespace(
        args=SimpleNamespace(num_samples=3, critic_type=kind, critic_type2=kind, critic_type_modify=kind)
    )
    values = function(trainer, torch.tensor(data["reward"])[:, None], None)
    against = repository.against("compute_monte_carlo_advantages")
    options = {"hyper_parameters": {"scale.0.eps": 1e-8}} if kind == "grpo" else {}
    return advantages("two groups of three", algorithm, against, data, values, **options)


def dr_grpo(released: Released) -> Iterator[Case]:
    """Dr. GRPO's advantages."""
    yield monte_carlo(released("sail-sg/understand-r1-zero"), "train_zero_math.py", "dr_grpo", "drgrpo")


def disco(released: Released) -> Iterator[Case]:
    """DisCO; the value its code returns is not that of its objective, its gradient is."""
    repository = released("Optimization-AI/DisCO")
    name = "compute_policy_loss_disco_logL"
    function = getattr(core_algos(repository, name, root="verl/verl"), name)
    for seed, tau in ((85, 10.0), (86, 1.0)):
        data = batch(seed)
        if tau == 1.0:
            data["reward"][3:] = 1.0
        yield objective(
            "both kinds of answers" if tau == 10.0 else "one group without a wrong answer",
            "disco",
            repository.against(name),
            data,
            lambda t, tau=tau: function(
                t.old_log_probs, t.log_probs, None, t.mask, t.group, t.reward, delta=1e-4, beta=1e3, tau=tau
            )[0],
            given=False,
            gradient_only=True,
            hyper_parameters={"tau": tau},
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


# --- entropy, mixtures, segments, turns ----------------------------------------------------------------------------


def last_token(t: Tensors) -> torch.Tensor:
    """The reward at the last token of each response, (B, T)."""
    return t.reward[:, None] * torch.nn.functional.one_hot(t.mask.sum(1).long() - 1, t.mask.shape[1])


def heterogeneous(released: Released) -> Iterator[Case]:
    """HAPO as released, from rewards to the gradient: its objective changes the advantages itself."""
    repository = released("starriver030515/HAPO")
    quantile = "torch_quantile"
    found = load(repository, "verl/trainer/ppo/core_algos.py", quantile) if _has(repository, quantile) else None
    names = ("compute_policy_loss", "compute_hapo_outcome_advantage", "compute_entropy_h", "ada_clip", "ada_advantage")
    beside = (
        {} if found else {quantile: lambda x, q, dim, interpolation: torch.quantile(x, q, interpolation=interpolation)}
    )
    core = core_algos(repository, *names, **beside)
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


def _has(repository: Repository, name: str) -> bool:
    return f"def {name}(" in repository.text("verl/trainer/ppo/core_algos.py")


def mixtures(released: Released) -> Iterator[Case]:
    """RL-PLUS, Critique-GRPO, HPT and CHORD: rows of the policy's own beside rows from elsewhere."""
    source = {"source": np.array([0, 0, 1, 0, 0, 1])}

    def off_policy(t: Tensors) -> torch.Tensor:
        return (t.source[:, None] > 0) & (t.mask > 0)

    repository = released("YihongDong/RL-PLUS")
    root, path, name = "rl_plus/verl/verl", "recipe", "compute_token_on_off_policy_loss"
    functional = load(repository, f"{root}/utils/torch_functional.py", "masked_mean", "masked_sum")
    core = load(
        repository, f"{root}/{path}/rlplus_core_alg.py", name, "compute_grpo_outcome_advantage_split", verl_F=functional
    )
    for seed in (120, 121):
        data = with_advantages(batch(seed), seed) | source
        yield objective(
            "a row from elsewhere in each group",
            "rl_plus",
            repository.against(name),
            data,
            lambda t: core.compute_token_on_off_policy_loss(
                t.old_log_probs,
                t.log_probs,
                t.advantages,
                t.mask,
                0.2,
                100,
                off_policy(t),
                off_policy_strategy="RL-PLUS",
                loss_remove_token_mean=True,
                loss_remove_clip=True,
            )["pg_loss"],
            hyper_parameters={"length": 6.0},
        )
    data = batch(122, binary=False) | source
    t = tensors(data)
    own = torch.tensor(data["source"] == 0)
    values, _ = core.compute_grpo_outcome_advantage_split(last_token(t), t.mask, t.uid, own, use_std=False)
    against = repository.against("compute_grpo_outcome_advantage_split")
    yield advantages("a row from elsewhere in each group", "rl_plus", against, data, values)

    repository = released("zhangxy-2019/critique-GRPO")
    functional = load(repository, "verl/verl/utils/torch_functional.py", "masked_mean", "masked_sum")
    path = "verl/verl/critique_grpo/critique_core_algos.py"
    core = load(repository, path, name, "compute_grpo_outcome_advantage", verl_F=functional)
    data = with_advantages(batch(123), 123) | source
    yield objective(
        "a refined row in each group",
        "critique_grpo",
        repository.against(name),
        data,
        lambda t: core.compute_token_on_off_policy_loss(
            t.old_log_probs,
            t.log_probs,
            t.advantages,
            t.mask.bool(),
            0.2,
            1.2,
            off_policy(t),
            None,
            off_policy_reshape="p_div_p_0.1",
            loss_remove_token_mean=True,
            loss_remove_clip=True,
        )["pg_loss"],
        hyper_parameters={"length": 6.0},
    )
    data = batch(124, binary=False) | source
    t = tensors(data)
    values, _ = core.compute_grpo_outcome_advantage(last_token(t), t.mask, t.uid)
    against = repository.against("compute_grpo_outcome_advantage")
    yield advantages("a refined row in each group", "critique_grpo", against, data, values)

    repository = released("TsinghuaC3I/Unify-Post-Training")
    root = "hpt/verl/verl"
    functional = load(repository, f"{root}/utils/torch_functional.py", "masked_mean", "masked_sum")
    policy = load(repository, f"{root}/trainer/ppo/core_algos.py", "compute_policy_loss", verl_F=functional)
    path = f"{root}/mix_src/mix_core_alg.py"
    names = ("compute_sft_pure_loss", "compute_grpo_outcome_advantage_split")
    mixed = load(repository, path, *names, verl_F=functional)
    data = with_advantages(batch(125), 125) | {"source": np.array([0, 0, 0, 1, 1, 1])}

    def hpt(t: Tensors) -> torch.Tensor:
        own, other = t.source == 0, t.source > 0
        reinforced, _, _ = policy.compute_policy_loss(
            old_log_prob=t.old_log_probs[own],
            log_prob=t.log_probs[own],
            advantages=t.advantages[own],
            eos_mask=t.mask[own],
            cliprange=0.2,
            loss_remove_token_mean=True,
            loss_remove_clip=True,
        )
        return mixed.compute_sft_pure_loss(t.log_probs[other], t.mask[other]) + reinforced

    against = repository.against("compute_policy_loss, compute_sft_pure_loss")
    imitated = data["advantages"] * (data["source"] == 0) + (data["source"] > 0)
    yield objective(
        "a demonstrated group", "hpt", against, data | {"advantages": imitated}, hpt, hyper_parameters={"length": 6.0}
    )
    t = tensors(data)
    own = torch.tensor(data["source"] == 0)
    values, _ = mixed.compute_grpo_outcome_advantage_split(
        last_token(t)[own], t.mask[own], t.uid[:3], own[own], use_std=False
    )
    # what is imitated has weight 1
    values = np.concatenate([values.numpy(), np.ones((3, 6))])
    yield advantages("a demonstrated group", "hpt", repository.against(names[1]), data, values)


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


def single_stream(released: Released) -> Iterator[Case]:
    """SPO: a tracked success rate is the baseline, advantages are whitened over the batch."""
    repository = released("verl-project/verl-recipe")
    data = batch(130)
    alpha, beta = np.array([0.5, 2.0, 1.0, 3.0, 0.7, 4.0]), np.array([0.5, 1.0, 3.0, 1.0, 0.9, 2.0])
    variables = {
        "alpha": torch.tensor(alpha),
        "beta": torch.tensor(beta),
        "r": torch.tensor(data["reward"]),
        "spo_metrics": {},
        "compute_response_mask": lambda batch: None,
        "batch": None,
    }
    path = "spo/spo_ray_trainer.py"
    first, last = "Neff = alpha + beta", "advantages = (advantages - advantages.mean())"
    values = statements(repository, path, "fit", first, last, variables)["advantages"]
    against = repository.against("RaySPOTrainer.fit")
    yield advantages("six prompts", "spo_single", against, data | {"baselines": alpha / (alpha + beta)}, values)
    functional = load(released("NVlabs/DLER"), "verl-dler/verl/utils/torch_functional.py", "masked_mean", "masked_sum")
    aggregated = {"verl_F": functional}
    loss = load(repository, "gvpo/gvpo_core_algos.py", "compute_policy_loss", **aggregated).compute_policy_loss
    yield objective(
        "both bounds and the dual clip",
        "spo_single",
        repository.against("compute_policy_loss"),
        with_advantages(data) | {"baselines": alpha / (alpha + beta)},
        lambda t: loss(t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2, 0.2, 0.28, 10.0)[0],
    )


def segments(data: Batch, cuts: tuple[int, ...]) -> Batch:
    """The batch cut into segments that begin at 0 and at the given positions."""
    number = np.searchsorted(cuts, np.arange(data["mask"].shape[1]), side="right")
    return data | {"segments": np.broadcast_to(number, data["mask"].shape).copy()}


def budgets(released: Released) -> Iterator[Case]:
    """BRPO: a score at every budget; a response that ended early keeps its last one."""
    repository = released("sail-sg/AnytimeReasoner")
    path, name = "verl/verl/trainer/ppo/brpo.py", "compute_cot_advantage"
    beside = {"get_budget_probs": lambda: [0.25] * 4}
    function = getattr(load(repository, path, name, **beside), name)
    data = segments(batch(140, width=8), (2, 4, 6))
    data["mask"] = np.ones((6, 8))
    rng = np.random.default_rng(140)
    scores = rng.integers(0, 5, (6, 4)) / 4
    data["mask"][2, 6:] = 0
    scores[2, 3] = scores[2, 2]
    split = np.minimum(np.arange(4), data["mask"].sum(1)[:, None] // 2 - 1)
    values, _ = function(torch.tensor(scores), torch.tensor(split), 3, 4)
    rewards = np.zeros((6, 8))
    rewards[:, 1::2] = scores
    data |= {"rewards": rewards * data["mask"]}
    data["reward"] = data["rewards"].sum(1)
    against = repository.against(name)
    yield advantages("four budgets, one response ends early", "brpo", against, data, np.repeat(values.numpy(), 2, 1))
    functional = load(repository, "verl/verl/utils/torch_functional.py", "masked_mean", "masked_sum", "just_mean")
    loss = load(repository, "verl/verl/trainer/ppo/core_algos.py", "compute_policy_loss", verl_F=functional)
    yield objective(
        "both bounds",
        "brpo",
        repository.against("compute_policy_loss"),
        with_advantages(data),
        lambda t: loss.compute_policy_loss(t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2)[0],
    )


def turns(released: Released) -> Iterator[Case]:
    """TRLOO and GiGPO: conversations of several turns."""
    repository = released("hkust-nlp/KernelGYM")
    path = "drkernel/verl_patch/trainer/code/ppo/core_algos.py"
    name = "compute_multi_turn_rloo_outcome_advantage"
    function = getattr(load(repository, path, name), name)
    data = batch(150)
    data["mask"] = np.ones((6, 6))
    data["mask"][2, 4:] = 0
    data["mask"][4, 2:], data["mask"][5, 4:] = 0, 0
    rng = np.random.default_rng(150)
    scores = rng.integers(0, 5, (6, 3)) / 4 * data["mask"][:, ::2]
    rewards = np.zeros((6, 6))
    rewards[:, 1::2] = scores
    data |= {"rewards": rewards, "reward": scores.sum(1), "turns": np.broadcast_to(np.arange(6) // 2, (6, 6)).copy()}
    for gamma in (1.0, 0.9):
        # there a row is a turn
        present = data["mask"][:, ::2].reshape(-1) > 0
        number = np.where(present, np.tile(np.arange(3), 6), -1)
        values, _ = function(
            torch.tensor(scores.reshape(-1, 1)),
            torch.ones(18, 1),
            torch.tensor(present),
            torch.tensor(number),
            np.repeat(data["group"], 3),
            3,
            gamma,
        )
        own = np.repeat(values.numpy().reshape(6, 3), 2, 1)
        yield advantages(
            f"one turn no other response reaches, γ = {gamma}",
            "trloo",
            repository.against(name),
            data,
            own,
            hyper_parameters={"gamma": gamma},
        )
    own = load(
        repository,
        path,
        "compute_policy_loss",
        verl_F=load(released("NVlabs/DLER"), "verl-dler/verl/utils/torch_functional.py", "masked_mean", "masked_sum"),
        PolicyOutput=lambda **values: SimpleNamespace(**values),
    )
    yield objective(
        "both bounds",
        "trloo",
        repository.against("compute_policy_loss"),
        with_advantages(data),
        lambda t: (
            own.compute_policy_loss(
                t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2, 0.2, 1e9, loss_agg_mode="token-mean"
            ).loss
        ),
    )

    repository = released("trinity-rft")
    name = "GiGPOAdvantageFn"
    kind = getattr(
        load(
            repository,
            "trinity/algorithm/advantage_fn/gigpo_advantage.py",
            name,
            AdvantageFn=type("AdvantageFn", (), {}),
            ExperienceOperator=type("ExperienceOperator", (), {}),
            group_by=grouped_by,
            aggregate_metrics=lambda metrics, prefix: {},
        ),
        name,
    )
    anchors = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 2], [4, 5, 6], [4, 6, 6], [4, 5, 5]])
    data["mask"] = np.ones((6, 6))
    scores = rng.integers(0, 5, (6, 3)) / 4
    rewards = np.zeros((6, 6))
    rewards[:, 1::2] = scores
    data |= {"rewards": rewards, "reward": scores.sum(1), "anchors": np.repeat(anchors, 2, 1)}
    steps = [
        SimpleNamespace(
            eid=SimpleNamespace(step=n, rid=f"r{row}", run=f"r{row}", task=str(data["group"][row])),
            info={"step_reward": scores[row, n], "env_state_hash": str(anchors[row, n])},
            action_mask=torch.ones(2),
            reward=None,
        )
        for row in range(6)
        for n in range(3)
    ]
    for normalise in (True, False):
        function = kind(omega=1.0, gamma=0.95, fnorm="std" if normalise else "none")
        function.epsilon = 1e-6 if normalise else 0.0
        function.process(steps)
        own = torch.stack([step.advantages for step in steps]).reshape(6, 6)
        yield advantages(
            "steps that share a state" + ("" if normalise else ", not divided by a deviation"),
            "gigpo",
            repository.against(name),
            data,
            own,
            hyper_parameters={"normalise": normalise},
        )


def grouped_by(rows: list[Any], kind: str) -> dict[str, list[Any]]:
    """Trinity's experiences by task or run."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(getattr(row.eid, kind), []).append(row)
    return found


def macro_actions(released: Released) -> Iterator[Case]:
    """MA-RLHF: GAE over segments of fixed length, the last one a single token."""
    repository = released("ernie-research/MA-RLHF")
    path = "applications/DeepSpeed-Chat/dschat/rlhf/ppo_trainer.py"
    functions = load(repository, path, "modeling_macro_action", "get_advantages_and_returns", "actor_loss_fn")
    trainer = SimpleNamespace(value_function="equal", gamma=1.0, lam=0.95, cliprange=0.2)
    data = segments(batch(160, width=7), (3, 6))
    data["mask"] = np.ones((6, 7))
    starts = [0, 3, 6]
    t = tensors(data)
    own = []
    for row in range(6):
        # it takes one response at a time
        one = slice(row, row + 1)
        values, rewards = (
            functions.modeling_macro_action(trainer, each[one], t.mask[one], 0, starts)
            for each in (t.values, last_token(t))
        )
        own.append(functions.get_advantages_and_returns(trainer, values, rewards, 0)[0])
    against = repository.against("get_advantages_and_returns")
    wide = torch.cat(own).numpy()[:, data["segments"][0]]
    yield advantages("segments of 3, 3 and 1 tokens", "ma_ppo", against, data, wide)

    def loss(t: Tensors) -> torch.Tensor:
        total = torch.tensor(0.0)
        for row in range(6):
            one = slice(row, row + 1)
            shared = t.advantages[one, :3]
            total = total + functions.actor_loss_fn(
                trainer, t.log_probs[one], t.old_log_probs[one], shared, t.mask[one], starts
            )
        return total / 6

    yield objective("both bounds", "ma_ppo", repository.against("actor_loss_fn"), with_advantages(data), loss)


def token_rewards(released: Released) -> Iterator[Case]:
    """RTO: rewards by a DPO policy at every token, GAE, whitening."""
    repository = released("zkshan2002/RTO")
    maker = "openrlhf/trainer/ppo_utils/experience_maker.py"
    functions = load(repository, maker, "_compute_dpo_rewards", "get_advantages_and_returns")
    utils = load(repository, "openrlhf/models/utils.py", "compute_reward", "masked_mean")
    replay = load(repository, "openrlhf/trainer/ppo_utils/replay_buffer.py", "normalize")
    rng = np.random.default_rng(170)
    data = batch(170) | {"dpo_log_probs": np.round(-rng.exponential(0.9, (6, 6)) - 0.05, 3)}
    t = tensors(data)
    self = SimpleNamespace(
        _dpo_model=lambda *_: t.dpo_log_probs, _rl_config={"dpo_reward_scale": 0.05, "dpo_reward_clip": 0.05}
    )
    dense = functions._compute_dpo_rewards(self, None, None, None, t.ref_log_probs, t.mask)
    rewards, _ = utils.compute_reward(
        t.reward, 0.01, t.old_log_probs, t.ref_log_probs, action_mask=t.mask, token_reward=dense
    )
    own, _ = functions.get_advantages_and_returns(None, t.values, rewards, t.mask, 1.0, 0.95)
    # what it whitens is masked already where it is padding
    rows = [SimpleNamespace(advantages=own[i] * t.mask[i], action_mask=t.mask[i].long()) for i in range(6)]
    replay.normalize(rows, "advantages", SimpleNamespace(all_reduce=lambda values, kind: values))
    own = torch.stack([row.advantages for row in rows])
    yield advantages("clipped and unclipped rewards", "rto", repository.against("replay_buffer.normalize"), data, own)
    loss = load(repository, "openrlhf/models/loss.py", "PolicyLoss", masked_mean=utils.masked_mean)
    yield objective(
        "both bounds",
        "rto",
        repository.against("PolicyLoss"),
        with_advantages(data),
        lambda t: loss.PolicyLoss(0.2)(t.log_probs, t.old_log_probs, t.advantages, t.mask),
    )


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


def further(released: Released) -> Iterator[Case]:
    """PAPO, TW-GRPO, A-LoL, ARPO, REAL, Reinforce-Ada and SPO over segments."""
    repository = released("RUC-NLPIR/ARPO")
    root = "ARPO/verl_arpo_entropy/verl"
    loss = core_algos(repository, "compute_policy_loss", root=root).compute_policy_loss
    data = with_advantages(batch(200), 200)
    yield objective(
        "both bounds and the dual clip",
        "arpo_agentic",
        repository.against("compute_policy_loss"),
        data,
        lambda t: loss(t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2)[0],
    )
    yield group_advantages(released, "RUC-NLPIR/ARPO", "arpo_agentic", root=root)

    repository = released("abaheti95/LoL-RL")
    path = "train_generation_task_with_off_policy_PG.py"
    expected = np.array([0.2, 0.4, 0.3, 0.5, 0.6, 0.1])
    data = batch(201, spread=0.3) | {"baselines": expected}
    data["ref_log_probs"] = data["old_log_probs"]

    def a_lol(t: Tensors) -> torch.Tensor:
        variables = {
            "args": SimpleNamespace(learning_algorithm="a_lol", ppo_clip=0.9),
            "baseline_per_token_log_probs": -t.ref_log_probs,
            "per_token_log_probs": -t.log_probs,
            "response_mask": t.mask,
            "device": "cpu",
            "extra_data": {"rewards": t.reward.tolist()},
            "val_outputs": t.baselines,
            "current_epoch_loss_trajectories": defaultdict(list),
        }
        test = "args.learning_algorithm in ['r_lol', 'a_lol']"
        with torch.no_grad():
            variables |= branch(repository, path, "<module>", test, variables)
        first, last = (
            "if args.learning_algorithm in ['a_lol_seq']:",
            "if args.learning_algorithm in ['a_lol_seq', 'a_lol'",
        )
        found = statements(repository, path, "<module>", first, last, variables)
        return found["per_response_loss"].mean()

    yield objective("ratios inside and outside", "a_lol", repository.against("a_lol"), data, a_lol, given=False)
    data = data | {"reward": np.ones(6)}
    variables = {"val_outputs": torch.tensor(expected), "rewards": torch.ones(6)}
    values = statements(
        repository, path, "<module>", "advantage = rewards - val_outputs", "advantage = torch.clamp", variables
    )["advantage"]
    yield advantages("every response better than expected", "a_lol", repository.against("a_lol"), data, values)

    repository = released("longmalongma/TW-GRPO")
    path = "src/open_r1/trainer/grpo_trainer.py"
    weights = np.round(np.random.default_rng(202).uniform(1, 1.5, (6, 6)), 3)
    data = with_advantages(batch(202), 202) | {"token_weights": weights}

    def tw_grpo(t: Tensors) -> torch.Tensor:
        variables = {
            "self": SimpleNamespace(epsilon_low=0.2, epsilon_high=0.2, beta=0.0),
            "per_token_logps": t.log_probs,
            "old_per_token_logps": t.old_log_probs,
            "advantages": t.advantages[:, 0],
            "per_token_kl": torch.zeros_like(t.mask),
            "token_weights": t.token_weights,
            "completion_mask": t.mask,
        }
        variables = statements(repository, path, "compute_loss", "coef_1 = torch.exp", "per_token_loss = -(", variables)
        return statements(repository, path, "compute_loss", "weighted_loss =", "loss =", variables)["loss"]

    scaled = data | {"advantages": data["advantages"][:, None] * weights}
    against = repository.against("compute_loss")
    # the weights multiply the loss there and the advantage here
    made = objective("weights of tokens", "tw_grpo", against, data, tw_grpo)
    yield made | {"batch": made["batch"] | {"advantages": scaled["advantages"].tolist()}}
    variables = {"self": SimpleNamespace(num_generations=3), "rewards": torch.tensor(data["reward"])}
    first, last = "mean_grouped_rewards = rewards.view", "advantages = (rewards"
    values = statements(repository, path, "compute_loss", first, last, variables)["advantages"]
    yield advantages(
        "weights of tokens",
        "tw_grpo",
        against,
        data,
        values.numpy()[:, None] * weights,
        hyper_parameters={"scale.0.eps": 1e-4},
    )

    repository = released("RLHFlow/Reinforce-Ada")
    name = "compute_grpo_outcome_advantage"
    function = getattr(load(repository, "verl/trainer/ppo/core_algos.py", name), name)
    data = batch(203) | {"pool_mean": np.repeat([5 / 8, 1 / 6], 3)}
    t = tensors(data)
    good, bad = {0: 5, 1: 1}, {0: 3, 1: 5}
    values, _ = function(last_token(t), t.mask, t.uid, 1e-6, False, Settings(global_stat_est=True), good, bad)
    yield advantages("prompts sampled 8 and 6 times", "reinforce_ada", repository.against(name), data, values)
    core = core_algos(repository, "compute_policy_loss")
    yield objective(
        "both bounds",
        "reinforce_ada",
        repository.against("compute_policy_loss"),
        with_advantages(data),
        lambda t: core.compute_policy_loss(t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2, None, None, 1e9)[0],
    )

    repository = released("modelscope/ms-swift")
    path = "swift/megatron/trainers/grpo_trainer.py"

    def real(t: Tensors) -> torch.Tensor:
        variables = {
            "self": SimpleNamespace(num_generations=3, real_tau=0.5, beta=0.0),
            "log_ratio": t.log_probs - t.old_log_probs,
            "completion_mask": t.mask,
            "advantages": t.advantages,
        }
        return statements(repository, path, "loss_func", "global_scores =", "if not valid_mask.any()", variables)[
            "loss"
        ]

    estimate = load(repository, "swift/rl_core/advantage.py", "compute_advantages").compute_advantages
    data = batch(11, binary=False)
    rewards = torch.tensor(data["reward"])[:, None]
    for algorithm, scale in (("real_logistic", "none"), ("lite_ppo", "batch"), ("dr_grpo", "none")):
        values, _ = estimate(rewards, torch.ones(1), 3, scale_rewards=scale)
        yield advantages("two groups of three", algorithm, repository.against("compute_advantages"), data, values)
    components = {"reward_components": np.round(np.random.default_rng(12).normal(0, 1, (6, 2)), 3)}
    weights = {"reward_weights": np.array([1.0, 0.5])}
    beside = {"nanstd": lambda values, dim, keepdim: values.std(dim=dim, keepdim=keepdim)}
    estimate = load(repository, "swift/rl_core/advantage.py", "compute_advantages", **beside).compute_advantages
    both = torch.tensor(components["reward_components"]), torch.tensor(weights["reward_weights"])
    values, _ = estimate(*both, 3, scale_rewards="gdpo")
    yield advantages(
        "two rewards",
        "gdpo",
        repository.against("compute_advantages"),
        data | components | weights,
        values,
        hyper_parameters={"reward.0.eps": 1e-8, "scale.0.eps": 1e-8},
    )
    for number, signs in enumerate(((1, -1, -1, 1, 1, -1), (1, 1, 1, -1, 1, -1))):
        data = batch(204 + number) | {"advantages": np.array(signs, float)}
        yield objective(
            "both kinds of answers" if number == 0 else "one group without a wrong answer",
            "real_logistic",
            repository.against("loss_type=real"),
            data,
            real,
        )


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


def segment_advantages(released: Released) -> Iterator[Case]:
    """SPO: values at the cuts of a response, only unlikely tokens trained."""
    repository = released("AIFrameResearch/SPO")
    path = "src/treetune/episode_generators/math_episode_generator_with_mc_advantages.py"
    name = "_compute_token_advantages"
    function = getattr(load(repository, path, name), name)
    data = segments(batch(220), (2, 4))
    data["mask"] = np.ones((6, 6))
    at_cut = np.random.default_rng(220).integers(0, 9, (6, 3)) / 8
    values = []
    for row in range(6):
        response = {
            "query_text": "",
            "response_text": "",
            "offsets": [],
            "query_token_ids": [],
            "response_token_ids": [0] * 6,
            "score": data["reward"][row],
            "cutpoints": [-1, 1, 3],
            "cutpoints_values": at_cut[row].tolist(),
            "cutpoints_values_std": [0.0] * 3,
            "response_prob": [0.0] * 6,
        }
        values.append(function(None, response)[1])
    data["values"] = at_cut[:, data["segments"][0]]
    yield advantages("three segments", "spo_segment", repository.against(name), data, np.array(values))
    trainer, method = "src/treetune/trainers/ppo_trainer.py", "_compute_actor_loss"
    utils = load(repository, "src/treetune/trainers/utils.py", "masked_mean")

    def loss(t: Tensors) -> torch.Tensor:
        variables = {
            "self": SimpleNamespace(ppo_hparams=SimpleNamespace(use_prob_mask=True, cliprange=0.2)),
            "monitor_tensor_anomalies": lambda *_: None,
            "masked_mean": utils.masked_mean,
            "action_mask": t.mask.bool(),
            "logprobs": t.log_probs,
            "old_logprobs": t.old_log_probs,
            "advantages": t.advantages,
        }
        first = "if self.ppo_hparams.use_prob_mask"
        variables = statements(repository, trainer, method, first, first, variables)
        first, last = "log_ratio = (logprobs", "pg_loss = masked_mean"
        return statements(repository, trainer, method, first, last, variables)["pg_loss"]

    likely = with_advantages(data)
    likely["old_log_probs"][2, :3] = -0.05
    yield objective("likely tokens left out", "spo_segment", repository.against(method), likely, loss)


def difficulty_and_length(released: Released) -> Iterator[Case]:
    """APO of View-R1, every micro-batch a response, so that both its means are one."""
    repository = released("Indolent-Kawhi/View-R1")
    maker, actor = "openrlhf/trainer/ppo_utils/experience_maker.py", "openrlhf/trainer/ray/ppo_actor.py"
    utils = load(repository, "openrlhf/models/utils.py", "compute_approx_kl", "masked_mean")
    policy = load(repository, "openrlhf/models/loss.py", "PolicyLoss", masked_mean=utils.masked_mean).PolicyLoss()
    weigh = load(repository, actor, "calculate_kl_weight").calculate_kl_weight
    data = batch(230, width=7)
    data["reward"][:] = [1, 0, 0, 0, 1, 1]
    data["mask"] = (np.arange(7) < np.array([3, 7, 2, 6, 4, 5])[:, None]).astype(float)
    t = tensors(data)
    # the same statements with rewards of a group a row; what moves them to a device is left out
    variables = {
        "rewards": t.reward.reshape(2, 3),
        "complexitys": t.mask.sum(1).reshape(2, 3),
        "args": SimpleNamespace(n_samples_per_prompt=3),
    }
    function = "compute_advantages_and_returns"
    for first, last in (
        ("pos_com = complexitys", "neg_diff_weights = torch.where"),
        ("for neg_diff_weight, reward in zip(neg_diff_weights, rewards)", "rewards = (rewards - rewards.mean"),
    ):
        variables = statements(repository, maker, function, first, last, variables)
    shaped = (variables["rewards"] * variables["neg_diff_weights"]).reshape(-1)
    difficulty = {"difficulty": variables["difficulties"].reshape(-1).numpy()}
    against = repository.against("compute_advantages_and_returns")
    yield advantages("wrong responses of all lengths", "apo_view", against, data | difficulty, shaped)

    def loss(t: Tensors) -> torch.Tensor:
        total = torch.tensor(0.0)
        for row in range(6):
            one = slice(row, row + 1)
            made = {
                "difficulties": t.difficulty[one],
                "advantages": t.advantages[one],
                "self": SimpleNamespace(
                    diff2KL_weight=weigh,
                    initial_model=True,
                    args=SimpleNamespace(use_kl_loss=True, use_dads=True, kl_estimator="k3"),
                ),
                "experience": SimpleNamespace(action_mask=t.mask[one], info={}),
                "action_log_probs": t.log_probs[one],
                "base_action_log_probs": t.ref_log_probs[one],
                "compute_approx_kl": utils.compute_approx_kl,
                "masked_mean": utils.masked_mean,
            }
            made = statements(repository, actor, "training_step", "KL_weights = torch", "for idx, ", made)
            made = branch(repository, actor, "training_step", "self.args.use_kl_loss", made)
            value = policy(t.log_probs[one], t.old_log_probs[one], t.advantages[one], t.mask[one])
            total = total + value + 0.001 * made["kl_loss"]
        return total / 6

    wide = with_advantages(data, 230) | {"difficulty": np.array([0.25, 0.25, 0.25, 0.75, 1.0, 0.0])}
    against = repository.against("training_step")
    yield objective(
        "prompts of all difficulties", "apo_view", against, wide, loss, hyper_parameters={"constraint.0.beta": 0.001}
    )


GENERATORS = (
    gradient_preserving,
    balanced,
    dynamic_clip,
    covariance,
    beta_normalised,
    remax,
    gpg,
    dler,
    geometric_mean,
    dr_grpo,
    disco,
    skyrl,
    trinity,
    heterogeneous,
    mixtures,
    chord,
    single_stream,
    budgets,
    turns,
    macro_actions,
    token_rewards,
    sampler_correction,
    decoupled,
    further,
    perception,
    segment_advantages,
    difficulty_and_length,
)


def main(clones: Path, only: list[str]) -> None:
    """Write the section; a generator whose code or algorithm is not there is named and left out.

    With names of generators, only those run, and nothing is written.
    """
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    cases: list[Case] = []
    for generator in GENERATORS:
        if only and generator.__name__ not in only:
            continue
        found = []
        try:
            for each in generator(Released(clones)):
                found.append(each)
        except Exception as error:
            print(f"{generator.__name__}: the rest left out, {type(error).__name__}: {error}")
        for each in found:
            worst = errors(each, evaluated(each))
            passed = max(worst.values()) <= each["tolerance"]
            report = ", ".join(f"{what} {error:.1e}" for what, error in worst.items())
            print(f"{'ok  ' if passed else 'FAIL'} {each['algorithm']:24} {each['against'][:60]:60} {report}")
            if passed:
                cases.append(each)
    if not only:
        write_section("released", cases)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
