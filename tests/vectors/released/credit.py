"""Advantages that differ inside a response: segments, turns, budgets, token rewards, length."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vectors.foreign import branch, load, statements
from vectors.released.tools import (
    Case,
    Released,
    Tensors,
    advantages,
    batch,
    last_token,
    objective,
    segments,
    tensors,
    with_advantages,
)


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


GENERATORS = (single_stream, budgets, turns, macro_actions, token_rewards, segment_advantages, difficulty_and_length)
