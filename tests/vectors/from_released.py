"""Test vectors from the code authors of algorithms, and of other libraries, have released.

    python tests/vectors/from_released.py CLONES

CLONES is a folder of git clones of the repositories in `COMMITS`, each called `name`, `owner+name` or `owner-name`, and
of the wheels in `WHEELS` (`pip download --no-deps trinity-rft==0.6.0`). Functions are read at the commits pinned here,
run on small random batches in float64 and differentiated by autograd; inputs and outputs are all that is kept.
"""

from __future__ import annotations

import sys
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
    name: str, algorithm: str, against: str, data: Batch, expected: dict[str, Any], *, given: bool = False, **options: Any
) -> Case:
    """A case with the inputs the algorithm looks at, and no others."""
    spec = algorithms.get(algorithm)
    spec = given_advantages(spec) if given else spec
    kept = {key: data[key] for key in ("log_probs", "mask", *inputs(spec)) if key in data}
    return case(name, algorithm, against, kept, expected, given=given, **options)


# --- code grown from verl ------------------------------------------------------------------------------------------


def core_algos(repository: Repository, *names: str, root: str = "verl", path: str = "trainer/ppo", **beside: Any) -> Any:
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
    settings = Settings(clip_type="dynamic", clip_ratio=0.2, clip_ratio_low=0.16, clip_ratio_high=0.2, clip_ratio_c=10.0)

    def loss(t: Tensors) -> torch.Tensor:
        # one response at a time: the mean over tokens is then that of a response
        total = torch.tensor(0.0)
        for row in range(len(t.reward)):
            own = slice(row, row + 1)
            total = total + core.compute_policy_loss_dcpo(
                t.old_log_probs[own],
                t.log_probs[own],
                t.advantages[own],
                t.mask[own],
                loss_agg_mode=modes.LossCalculator.OTM,
                config=settings,
            )[0]
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

    def run(
        function: str, algorithm: str, reduction: str, seed: int, settings: dict[str, Any], **options: Any
    ) -> Case:
        found = load(repository, f"{utils}/ppo_utils.py", function, scaled, **beside)
        config = Settings(loss_reduction="sequence_mean", **settings)

        def loss(t: Tensors) -> torch.Tensor:
            own = getattr(found, scaled)(t.advantages, t.mask, reduction, 6, t.mask.shape[1])
            return getattr(found, function)(t.log_probs, t.old_log_probs, own, config, t.mask)[0]

        data = with_advantages(batch(seed), seed)
        return objective(f"advantages scaled for {reduction}", algorithm, repository.against(function), data, loss, **options)

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
    narrow = {"eps_clip_low": 3e-4, "eps_clip_high": 4e-4}
    wide = {"epsilon_low": 0.1, "epsilon_high": 0.1}
    yield run("gspo_policy_loss", "gspo_token", "sequence_mean", 95, narrow)
    yield run("gspo_policy_loss", "gspo_token", "sequence_mean", 96, {"eps_clip_low": 0.1, "eps_clip_high": 0.1}, hyper_parameters=wide)
    yield run("gspo_policy_loss", "gspo", "sequence_mean", 97, narrow)
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
    for algorithm in ("sapo_soft", "gspo", "gspo_token", "dppo_tv", "dppo_kl"):
        name = "compute_grpo_outcome_advantage"
        function = getattr(load(repository, f"{utils}/ppo_utils.py", name), name)
        values, _ = function(t.reward[:, None].clone(), t.mask, t.uid)
        yield advantages("two groups", algorithm, repository.against(name), data, values)


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
        rows = [SimpleNamespace(reward=float(data["reward"][i]), action_mask=torch.tensor(data["mask"][i])) for i in range(6)]
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
        try:
            found = list(generator(Released(clones)))
        except Exception as error:
            print(f"{generator.__name__}: left out, {type(error).__name__}: {error}")
            continue
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
