"""Trainers of one paper each, with an objective of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch

from vectors.foreign import Repository, Settings, branch, load, statements
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
    # there is no advantage: what a response is judged by is its reward
    data = batch(85)
    scores = SimpleNamespace(batch={"token_level_scores": last_token(tensors(data))})
    line = "batch.batch['seq_level_rewards'] ="
    statements(repository, "verl/verl/trainer/ppo/ray_trainer.py", "fit", line, line, {"batch": scores})
    against = repository.against("RayPPOTrainer.fit")
    yield advantages("right and wrong answers", "disco", against, data, scores.batch["seq_level_rewards"])


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
    above = {"all_advantages": data["reward"] - expected}
    weights = "np_all_advantages = "
    sampled = statements(repository, path, "<module>", weights, weights, above)["np_all_advantages"] > 0

    def a_lol(t: Tensors) -> torch.Tensor:
        # what has no weight is never drawn
        t = SimpleNamespace(**{name: values[sampled] for name, values in vars(t).items()})
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
    data = batch(202) | {"token_weights": weights}
    variables = {"self": SimpleNamespace(num_generations=3), "rewards": torch.tensor(data["reward"])}
    first, last = "mean_grouped_rewards = rewards.view", "advantages = (rewards"
    grouped = statements(repository, path, "compute_loss", first, last, variables)["advantages"]

    def tw_grpo(t: Tensors) -> torch.Tensor:
        variables = {
            "self": SimpleNamespace(epsilon_low=0.2, epsilon_high=0.2, beta=0.0),
            "per_token_logps": t.log_probs,
            "old_per_token_logps": t.old_log_probs,
            "advantages": grouped,
            "per_token_kl": torch.zeros_like(t.mask),
            "token_weights": t.token_weights,
            "completion_mask": t.mask,
        }
        variables = statements(repository, path, "compute_loss", "coef_1 = torch.exp", "per_token_loss = -(", variables)
        return statements(repository, path, "compute_loss", "weighted_loss =", "loss =", variables)["loss"]

    against = repository.against("compute_loss")
    eps = {"hyper_parameters": {"scale.0.eps": 1e-4}}
    yield objective("weights of tokens", "tw_grpo", against, data, tw_grpo, given=False, **eps)
    # the weights multiply the loss there and the advantage here
    plain = data | {"token_weights": np.ones((6, 6))}
    yield advantages("all tokens alike", "tw_grpo", against, plain, grouped.numpy(), **eps)

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


GENERATORS = (remax, gpg, geometric_mean, dr_grpo, disco, mixtures, further)
