"""DAPO and what builds on it, from rewards to the gradient: overlong penalty, groups without a signal, clip."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vectors.foreign import Repository, Settings, load, statements
from vectors.released.tools import Batch, Case, Released, batch, core_algos, made, tensors

TRAINER = "recipe/dapo/dapo_ray_trainer.py"
MANAGER = "verl/workers/reward_manager/dapo.py"


def three_prompts(seed: int) -> Batch:
    """Three prompts of three responses, of all lengths; every response to the second one is right."""
    data = batch(seed, rows=9) | {"group": np.arange(9) // 3, "reward": np.array([1.0, 0, 0, 1, 1, 1, 0, 1, 0])}
    data["mask"] = (np.arange(6) < np.array([6, 3, 5, 2, 6, 4, 1, 5, 6])[:, None]).astype(float)
    return data


def kept(repository: Repository, path: str, data: Batch, metric: str) -> np.ndarray:
    """Numbers of the rows that are left once the trainer has filtered groups by a metric."""
    chosen = SimpleNamespace(filter_groups=SimpleNamespace(metric=metric))
    rewards = torch.tensor(data["reward"])[:, None]
    variables = {
        "self": SimpleNamespace(config=SimpleNamespace(algorithm=chosen)),
        "new_batch": SimpleNamespace(
            non_tensor_batch={"uid": data["group"], "acc": data["reward"]},
            batch={"token_level_scores": rewards, "token_level_rewards": rewards},
        ),
        "num_prompt_in_batch": 0,
    }
    first, last = "metric_name = self.config", "for idx, traj_from_prompt_uid in"
    return np.array(statements(repository, path, "fit", first, last, variables)["kept_traj_idxs"])


def penalised(repository: Repository, data: Batch, *, longest: int, cache: int) -> np.ndarray:
    """Rewards with the overlong penalty of a reward manager."""
    buffer = Settings(enable=True, len=cache, penalty_factor=1.0, log=False)
    line = "if self.overlong_buffer_cfg"
    values = []
    for reward, length in zip(data["reward"], data["mask"].sum(1), strict=True):
        variables = {
            "self": SimpleNamespace(overlong_buffer_cfg=buffer, max_resp_len=longest),
            "valid_response_length": int(length),
            "reward": float(reward),
            "reward_extra_info": {},
        }
        values.append(statements(repository, MANAGER, "__call__", line, line, variables)["reward"])
    return np.array(values)


def at_the_end(rewards: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    """(B, T) rewards, each at the last token of its response."""
    last = torch.nn.functional.one_hot(torch.tensor(mask).sum(1).long() - 1, mask.shape[1])
    return torch.tensor(rewards)[:, None] * last


def whole(
    name: str,
    algorithm: str,
    against: str,
    data: Batch,
    rows: np.ndarray,
    values: torch.Tensor,
    loss: Any,
    *,
    gradient_only: bool = False,
    **options: Any,
) -> Case:
    """A case of the rows that are left: where the others are, advantages and gradient are 0."""
    t = tensors({key: array[rows] for key, array in data.items()})
    t.advantages = values
    value = loss(t)
    (of_rows,) = torch.autograd.grad(value, t.log_probs)
    gradient, own = np.zeros(data["mask"].shape), np.zeros(data["mask"].shape)
    gradient[rows], own[rows] = of_rows, values * t.mask
    expected = {"advantages": own, "gradient_weight": gradient}
    return made(name, algorithm, against, data, expected if gradient_only else expected | {"loss": value}, **options)


def dapo(released: Released) -> Iterator[Case]:
    """DAPO: its recipe's filter, then SkyRL's group advantages and mean over prompts of their tokens."""
    recipe, repository = released("verl-project/verl-recipe"), released("NovaSky-AI/SkyRL")
    path = "skyrl/backends/skyrl_train/utils"
    helpers = load(repository, f"{path}/torch_utils.py", "masked_mean")
    estimate, scaled, policy = (
        "compute_grpo_outcome_advantage",
        "apply_loss_reduction_to_advantages_minibatch",
        "ppo_policy_loss",
    )
    beside = {
        "masked_mean": helpers.masked_mean,
        # it works in float32 there, which would hide errors
        "safe_exp_delta": lambda delta, clip, out_dtype: torch.clamp(delta, -clip, clip).exp(),
        "apply_off_policy_correction": lambda loss, old, rollout, mask, config: (loss, mask, {}),
    }
    found = load(repository, f"{path}/ppo_utils.py", estimate, scaled, policy, **beside)
    config = Settings(loss_reduction="sequence_mean", eps_clip_low=0.2, eps_clip_high=0.28, policy_loss_type="regular")
    prompts = [(0, 3), (3, 6)]
    against = (
        f"{repository.against(f'{estimate}, {policy}')} after the filter of {recipe.against('RayDAPOTrainer.fit')}"
    )
    for seed in (240, 241):
        data = three_prompts(seed)
        rows = kept(recipe, "dapo/dapo_ray_trainer.py", data, "acc")
        values, _ = found.compute_grpo_outcome_advantage(
            at_the_end(data["reward"][rows], data["mask"][rows]), torch.tensor(data["mask"][rows]), data["group"][rows]
        )

        def loss(t: Any, rows: np.ndarray = rows) -> torch.Tensor:
            own = getattr(found, scaled)(t.advantages, t.mask, "prompt_mean", len(rows), 6, prompts)
            return found.ppo_policy_loss(t.log_probs, t.old_log_probs, own, config, t.mask)[0]

        yield whole("one of three prompts always solved", "dapo", against, data, rows, values, loss)


def entropy_ratio(released: Released) -> Iterator[Case]:
    """ERC; the value its code returns has the tokens it stops as well, their gradient is 0."""
    repository = released("Kwai-Klear/ERC")
    estimate, policy = "compute_grpo_outcome_advantage", "compute_policy_loss_grpo_erc"
    core = core_algos(repository, estimate, policy, AlgoConfig=type(None))
    config = Settings(
        clip_ratio=0.2,
        clip_ratio_low=0.2,
        clip_ratio_high=0.28,
        tis_imp_ratio_cap=-1,
        entropy_mask_low=0.95,
        entropy_mask_high=1.05,
    )
    against = repository.against(f"DAPORewardManager, RayDAPOTrainer.fit, {estimate}, {policy}")
    for seed in (242, 243):
        data = three_prompts(seed)
        moved = np.random.default_rng(seed).uniform(0.9, 1.1, data["entropies"].shape)
        data |= {"old_entropies": np.round(data["entropies"] / moved, 3)}
        rows = kept(repository, TRAINER, data, "acc")
        own = penalised(repository, data, longest=7, cache=4)[rows]
        mask = torch.tensor(data["mask"][rows])
        values, _ = getattr(core, estimate)(at_the_end(own, data["mask"][rows]), mask, data["group"][rows])

        def loss(t: Any) -> torch.Tensor:
            given = (t.old_log_probs, t.log_probs, t.old_entropies, t.entropies, t.advantages, t.mask)
            return getattr(core, policy)(*given, config=config)[0]

        yield whole(
            "one of three prompts always solved, some responses too long",
            "erc",
            against,
            data,
            rows,
            values,
            loss,
            gradient_only=True,
            hyper_parameters={"max_length": 7, "cache": 4},
        )


def truncation(released: Released) -> Iterator[Case]:
    """DLER: its filter and its advantages, whitened over the tokens of the prompts that are left."""
    repository = released("NVlabs/DLER")
    estimate, policy = "compute_reinforce_plus_plus_baseline_outcome_advantage", "compute_policy_loss"
    core = core_algos(repository, estimate, policy, root="verl-dler/verl")
    data = three_prompts(244) | {"truncated": np.zeros(9)}
    rows = kept(repository, f"verl-dler/{TRAINER}", data, "seq_reward")
    mask = torch.tensor(data["mask"][rows])
    values, _ = getattr(core, estimate)(at_the_end(data["reward"][rows], data["mask"][rows]), mask, data["group"][rows])

    def loss(t: Any) -> torch.Tensor:
        return core.compute_policy_loss(t.old_log_probs, t.log_probs, t.advantages, t.mask, 0.2, 0.2, 0.28, 10.0)[0]

    against = repository.against(f"RayDAPOTrainer.fit, {estimate}, {policy}")
    yield whole("one of three prompts always solved", "dler", against, data, rows, values, loss)


def minority(released: Released) -> Iterator[Case]:
    """80/20: the authors' choice of tokens, over those of the prompts that are left, and their mean over the chosen."""
    repository = released("Shenzhi-Wang/Beyond-the-80-20-Rule-RLVR")
    choice, estimate = "get_global_entropy_top_mask", "compute_grpo_outcome_advantage"
    policy = "compute_policy_loss_vanilla"
    core = core_algos(repository, choice, estimate, policy, AlgoConfig=type(None))
    # the definition has no dual clip: no loss reaches this one
    config = Settings(clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=1e9)
    against = repository.against(f"DAPORewardManager, RayDAPOTrainer.fit, {estimate}, {choice}, {policy}")
    for seed in (246, 247):
        data = three_prompts(seed)
        rows = kept(repository, TRAINER, data, "acc")
        own = penalised(repository, data, longest=7, cache=4)[rows]
        mask = torch.tensor(data["mask"][rows])
        values, _ = getattr(core, estimate)(at_the_end(own, data["mask"][rows]), mask, data["group"][rows])

        def loss(t: Any) -> torch.Tensor:
            chosen = getattr(core, choice)(t.entropies, t.mask, top_ratio=0.2)
            given = (t.old_log_probs, t.log_probs, t.advantages, t.mask)
            return getattr(core, policy)(*given, config=config, entropy_top_mask=chosen)[0]

        yield whole(
            "one of three prompts always solved, some responses too long",
            "entropy_top_q",
            against,
            data,
            rows,
            values,
            loss,
            hyper_parameters={"max_length": 7, "cache": 4},
        )


GENERATORS = (dapo, entropy_ratio, truncation, minority)
