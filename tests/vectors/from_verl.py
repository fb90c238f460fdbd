"""Writes the section `verl` of tests/vectors.json with verl's own functions. Needs verl.

    .venv-verl/bin/python tests/vectors/from_verl.py

Advantages come from the estimator verl registers, loss and gradient from the function its worker calls
(`verl.workers.utils.losses.ppo_loss`) by autograd, both in float64.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.workers.reward_manager.dapo import DAPORewardManager

sys.path.insert(0, str(Path(__file__).parents[1]))

from unipo_hooks import algorithms
from unipo_hooks.adapters.verl import spec_from_verl
from unipo_hooks.objective.describe import given_advantages, inputs
from vectors.format import case, errors, evaluated, write_section
from vectors.verl_functions import VERSION, advantages, tensor, worker_loss

Arrays = dict[str, np.ndarray]
Settings = dict[str, Any]

NO_DUAL_CLIP = 1e9
"""What clip_ratio_c is set to where a paper's definition has none: no loss reaches it."""

TWO_RANKS = {"dp_size": 2, "batch_num_tokens": 47, "global_batch_size": 14}
"""What the worker knows of a mini-batch spread over two ranks."""

ADVANTAGE_FUNCTIONS = {
    "gae": "compute_gae_advantage_return",
    "grpo": "compute_grpo_outcome_advantage",
    "gdpo": "compute_gdpo_outcome_advantage",
    "grpo_passk": "compute_grpo_passk_outcome_advantage",
    "reinforce_plus_plus": "compute_reinforce_plus_plus_outcome_advantage",
    "reinforce_plus_plus_baseline": "compute_reinforce_plus_plus_baseline_outcome_advantage",
    "rloo": "compute_rloo_outcome_advantage",
    "opo": "compute_opo_outcome_advantage",
    "remax": "compute_remax_outcome_advantage",
    "gpg": "compute_gpg_outcome_advantage",
    "optimal_token_baseline": "compute_optimal_token_baseline_advantage",
    "tir_optimal_token_baseline": "compute_multi_turn_optimal_token_baseline_advantage",
}


def responses(seed: int, *, rows: int = 4, width: int = 5, ragged: bool = False) -> Arrays:
    """Responses in two groups; ragged ones have an empty row, a gap and ratios far outside any range."""
    random = np.random.default_rng(seed)
    mask = np.ones((rows, width))
    mask[1, 3:] = 0
    old = -random.exponential(0.8, (rows, width)) - 0.05
    log_probs = old + random.normal(0, 0.3, (rows, width))
    if ragged:
        mask[2] = 0
        mask[0, 1:3] = 0
        log_probs[0, 3], log_probs[3, 1], log_probs[3, 2] = old[0, 3] - 3, old[3, 1] - 23, old[3, 2] + 1.4
    log_probs = np.minimum(log_probs, -0.001)
    given = {
        "log_probs": log_probs,
        "old_log_probs": old,
        "ref_log_probs": old + random.normal(0, 0.5, (rows, width)),
        "entropies": random.random((rows, width)),
        "values": random.normal(0, 1.0, (rows, width)),
        "sum_pi_squared": random.random((rows, width)),
        "advantages": random.normal(0, 1.0, (rows, width)),
        "greedy_reward": random.normal(0, 1.0, rows),
        "reward": random.normal(0.3, 1.0, rows),
    }
    rounded = {name: values.round(3) for name, values in given.items()}
    group = np.arange(rows) * 2 // rows
    return rounded | {"mask": mask, "group": group, "reward_components": random.integers(0, 5, (rows, 2)) / 4}


def computed(
    name: str,
    algorithm: str | dict[str, Any],
    arrays: Arrays,
    *,
    estimator: str | None = None,
    algorithm_settings: Settings | None = None,
    actor: Settings | None = None,
    info: Settings | None = None,
    hyper_parameters: Settings | None = None,
    seen_by_verl: Arrays | None = None,
) -> dict[str, Any]:
    """A case: advantages by an estimator, or the given ones, then loss and gradient.

    `seen_by_verl` holds what verl is given in place of the same array here: rewards its own code has shaped before.
    """
    actor = dict(actor or {})
    mode = actor.get("policy_loss", {}).get("loss_mode", "vanilla")
    used, against = [f"compute_policy_loss_{mode}"], dict(arrays)
    expected: dict[str, Any] = {}
    if estimator is not None:
        against |= seen_by_verl or {}
        against["advantages"] = advantages(estimator, against, algorithm_settings)
        expected["advantages"] = against["advantages"]
        used.insert(0, ADVANTAGE_FUNCTIONS[estimator])
    found = worker_loss(actor, against, info)
    ranks = (info or {}).get("dp_size", 1)
    expected |= {"loss": found["loss"], "gradient_weight": found["gradient"] / ranks}
    if "selected" in found:
        arrays = arrays | {"selected": found["selected"]}
    spec = algorithms.get(algorithm)
    spec = given_advantages(spec, modulated=True) if estimator is None else spec
    wanted = {"log_probs", "mask", *inputs(spec)}
    return case(
        name,
        algorithm,
        f"verl {VERSION} {', '.join(used)}",
        {key: values for key, values in arrays.items() if key in wanted},
        expected,
        hyper_parameters=hyper_parameters,
        normalisers=normalisers(info, actor),
        given=estimator is None,
    )


def normalisers(info: Settings | None, actor: Settings) -> Settings:
    """What the worker divides by, for one rank."""
    found: Settings = {}
    if info:
        ranks = info["dp_size"]
        found = {
            "tokens": info["batch_num_tokens"] / ranks,
            "rows": info["global_batch_size"] / ranks,
            "data_parallel_size": ranks,
        }
    return found | ({"length": actor["loss_scale_factor"]} if "loss_scale_factor" in actor else {})


def loss(mode: str, **more: Any) -> Settings:
    """Settings of a policy loss."""
    return {"policy_loss": {"loss_mode": mode, **more}}


STM = {"loss_agg_mode": "seq-mean-token-mean"}
GSPO_CLIP = {"clip_ratio_low": 0.0003, "clip_ratio_high": 0.0004}
GMPO_CLIP = {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}
DPPO_KL = {"clip_ratio_c": 20.0, "clip_ratio_low": 0.05, "clip_ratio_high": 0.05}
CENTRED = {"norm_adv_by_std_in_grpo": False}
CLIP_COV = loss("clip_cov", clip_cov_ratio=0.2, clip_cov_lb=-0.5, clip_cov_ub=5.0)
BYPASS = {"loss_type": "reinforce", "rollout_is": "sequence", "rollout_is_threshold": 2.0}

OF_VERL: dict[str, tuple[str, Settings, Settings]] = {
    "ppo.verl": ("gae", {}, {}),
    "grpo.verl": ("grpo", {}, {}),
    "dapo.verl": ("grpo", {}, {"clip_ratio_high": 0.28, "clip_ratio_c": 10.0}),
    "dr_grpo.verl": ("grpo", CENTRED, {"loss_agg_mode": "seq-mean-token-sum-norm"}),
    "gspo.verl": ("grpo", {}, loss("gspo") | STM | GSPO_CLIP),
    "cispo.verl": ("grpo", {}, loss("cispo")),
    "sapo_soft.verl": ("grpo", {}, loss("sapo")),
    "gmpo.verl": ("grpo", {}, loss("geo_mean") | GMPO_CLIP),
    "reinforce.verl": ("rloo", {}, loss("bypass_mode", rollout_correction=BYPASS)),
    "reinforce_pp.verl": ("reinforce_plus_plus", {}, {}),
    "reinforce_pp_baseline.verl": ("reinforce_plus_plus_baseline", {}, {}),
    "rloo_verl": ("rloo", {}, {}),
    "remax.verl": ("remax", {}, {}),
    "gpg.verl": ("gpg", {}, loss("gpg")),
    "opo.verl": ("opo", {}, {}),
    "grpo_passk.verl": ("grpo_passk", {}, {}),
    "otb.verl": ("optimal_token_baseline", {}, {}),
    "tir_otb.verl": ("tir_optimal_token_baseline", {}, {}),
    "gdpo.verl": ("gdpo", {}, {}),
    "dro.verl": ("grpo", {}, loss("dro", dro_beta=0.1)),
    "dppo_tv.verl": ("grpo", {}, loss("dppo_tv")),
    "dppo_kl.verl": ("grpo", {}, loss("dppo_kl")),
    "clip_cov.verl": ("grpo", {}, CLIP_COV),
    "kl_cov.verl": ("grpo", {}, loss("kl_cov")),
}
"""verl's variant → estimator, settings of the algorithm, settings of the actor."""

FREE = {"clip_ratio_c": NO_DUAL_CLIP}
PPO_CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.2}
OF_PAPERS: dict[str, tuple[str, Settings, Settings, Settings]] = {
    "ppo": ("gae", {"lam": 0.95}, FREE, PPO_CLIP | {"lam": 0.95}),
    "reinforce_pp_baseline": ("reinforce_plus_plus_baseline", {}, FREE, PPO_CLIP),
    "remax": ("remax", {}, loss("gpg"), {}),
    "opo": ("opo", {}, loss("gpg"), {}),
    "grpo_passk": ("grpo_passk", {}, FREE, PPO_CLIP),
    "otb": ("optimal_token_baseline", {}, FREE, PPO_CLIP),
    "tir_otb": ("tir_optimal_token_baseline", {}, FREE, PPO_CLIP),
    "gspo_token": ("grpo", {}, loss("gspo") | STM | GSPO_CLIP, {"epsilon_low": 0.0003, "epsilon_high": 0.0004}),
    "gspo": ("grpo", {}, loss("gspo") | STM | GSPO_CLIP, {"epsilon_low": 0.0003, "epsilon_high": 0.0004}),
    "gmpo": ("grpo", {}, loss("geo_mean") | GMPO_CLIP, {"log_low": 0.4, "log_high": 0.4}),
    "dr_grpo": ("grpo", CENTRED, FREE | {"loss_agg_mode": "seq-mean-token-sum-norm"}, PPO_CLIP),
    "dro": ("grpo", CENTRED, loss("dro", dro_beta=0.1), {"beta": 0.1}),
    "dppo_tv": ("grpo", {}, loss("dppo_tv") | {"clip_ratio_c": 20.0}, {"delta_low": 0.2, "delta_high": 0.2}),
    "dppo_kl": ("grpo", {}, loss("dppo_kl") | DPPO_KL, {"delta_low": 0.05, "delta_high": 0.05}),
    "clip_cov": ("grpo", {}, CLIP_COV, PPO_CLIP),
    "kl_cov": ("grpo", {}, loss("kl_cov", kl_cov_ratio=0.002, ppo_kl_coef=1.0), {"beta": 1.0, "share": 0.002}),
    "sapo_soft": ("grpo", {}, loss("sapo"), {"tau_positive": 1.0, "tau_negative": 1.05}),
    "grpo": ("grpo", {}, FREE | STM | {"use_kl_loss": True, "kl_loss_coef": 0.04}, PPO_CLIP | {"beta": 0.04}),
}
"""Definition of a paper → estimator and settings under which verl computes the same, and its hyper-parameters.

The same for groups of two or more, responses that have a token, and log-ratios verl does not cut.
"""


def variants() -> list[dict[str, Any]]:
    """verl's variants: plain, and with everything that is awkward, over two ranks."""
    cases = []
    for number, (name, (estimator, algorithm, actor)) in enumerate(OF_VERL.items()):
        common = {"estimator": estimator, "algorithm_settings": algorithm, "actor": actor}
        cases.append(computed(f"{name}: plain", name, responses(number), **common))
        ragged = responses(100 + number, rows=5, ragged=True)
        ragged["group"] = np.array([0, 0, 0, 1, 1] if estimator == "grpo_passk" else [0, 0, 0, 0, 1])
        title = f"{name}: empty row, gap, group of one, far ratios, two ranks"
        cases.append(computed(title, name, ragged, **common, info=TWO_RANKS))
    return cases


def overlong_rewards(batch: Arrays, *, longest: int, buffer: int) -> np.ndarray:
    """(B,) rewards as verl's DAPORewardManager shapes them, the answers being scored as the batch's are."""
    mask = tensor(batch["mask"])
    rows, width = mask.shape
    settings = OmegaConf.create({"enable": True, "len": buffer, "penalty_factor": 1.0, "log": False})
    manager = DAPORewardManager(
        SimpleNamespace(decode=lambda ids, skip_special_tokens: "answer", eos_token="</s>"),
        0,
        compute_score=lambda extra_info, **_: extra_info["reward"],
        max_resp_len=longest,
        overlong_buffer_cfg=settings,
    )
    tensors = {
        "prompts": torch.zeros(rows, 1, dtype=torch.long),
        "responses": torch.zeros(rows, width, dtype=torch.long),
        "attention_mask": torch.cat([torch.ones(rows, 1), mask], 1).long(),
    }
    about = {
        "data_source": ["none"] * rows,
        "reward_model": [{"ground_truth": ""}] * rows,
        "extra_info": [{"reward": float(reward)} for reward in batch["reward"]],
    }
    others = {name: np.array(values, dtype=object) for name, values in about.items()}
    return manager(DataProto.from_dict(tensors=tensors, non_tensors=others)).sum(1).double().numpy()


def of_papers() -> list[dict[str, Any]]:
    """Definitions of papers, under the settings that give them."""
    cases = []
    for number, (name, (estimator, algorithm, actor, own)) in enumerate(OF_PAPERS.items()):
        for seed in (200 + number, 300 + number):
            common = {"estimator": estimator, "algorithm_settings": algorithm, "actor": actor, "hyper_parameters": own}
            cases.append(computed(f"{name}: as verl, seed {seed}", name, responses(seed), **common))
    return cases + special_papers()


def special_papers() -> list[dict[str, Any]]:
    """Definitions that need a batch of their own for verl to agree."""
    cases = []
    batch = responses(400)
    zero = {"greedy_reward": np.zeros(4)}
    actor = loss("gpg") | {"loss_agg_mode": "seq-mean-token-sum"}
    cases.append(
        computed("reinforce: no baseline", "reinforce", batch, estimator="remax", actor=actor, seen_by_verl=zero)
    )
    in_reward = {"use_kl_in_reward": True, "kl_penalty": "kl", "kl_ctrl": {"type": "fixed", "kl_coef": 0.01}}
    common = {"estimator": "reinforce_plus_plus", "algorithm_settings": in_reward, "actor": FREE}
    common |= {"hyper_parameters": PPO_CLIP | {"beta": 0.01}}
    cases += [computed(f"reinforce_pp: seed {seed}", "reinforce_pp", responses(seed), **common) for seed in (401, 402)]
    batch = responses(403, rows=6)
    batch |= {"group": np.array([0, 0, 1, 1, 2, 2]), "reward": np.array([1.0, -1, 0, 0, 2, 1])}
    cases.append(computed("gpg: one group without a signal", "gpg", batch, estimator="gpg", actor=loss("gpg")))
    batch = responses(404) | {"truncated": np.zeros(4)}
    actor = {"clip_ratio_high": 0.28, "clip_ratio_c": 10.0}
    common = {"estimator": "reinforce_plus_plus_baseline", "actor": actor}
    common |= {"hyper_parameters": {"epsilon_high": 0.28, "dual_clip": 10.0}}
    cases.append(computed("dler: no response cut off", "dler", batch, **common))
    batch = responses(405) | {"group": np.zeros(4, int), "reward": np.array([1.0, 0.0, 1.0, -1.0])}
    batch["mask"][2, 1:] = 0
    common = {"estimator": "grpo", "actor": FREE | {"clip_ratio_high": 0.28}}
    common |= {"hyper_parameters": {"max_length": 5, "cache": 4}}
    shaped = {"reward": overlong_rewards(batch, longest=5, buffer=4)}
    penalised = computed("dapo: a prompt's responses of all lengths", "dapo", batch, seen_by_verl=shaped, **common)
    said = penalised["against"].replace(f"verl {VERSION} ", f"verl {VERSION} DAPORewardManager, ")
    cases.append(penalised | {"against": said})
    batch = responses(406) | {"reward": np.array([1.0, 0.0, 0.0, 2.0])}
    cases.append(computed("gpg.verl: rewards of 0", "gpg.verl", batch, estimator="gpg", actor=loss("gpg")))
    return cases


def settings_read() -> list[dict[str, Any]]:
    """Objectives put together from settings: aggregation, weights, KL and rejection, advantages as given."""
    cases = []
    weights = np.random.default_rng(500).uniform(0.2, 2.0, (4, 5)).round(3)
    for number, mode in enumerate(
        ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
    ):
        batch = responses(500 + number, ragged=True) | {"is_weights": weights}
        actor: Settings = {"loss_agg_mode": mode, "use_kl_loss": True, "kl_loss_coef": 0.2}
        cases.append(from_settings(f"{mode} with KL, sampler weights and two ranks", actor, batch, TWO_RANKS))
        actor |= {"entropy_coeff": 0.02} | ({"loss_scale_factor": 9} if mode.endswith("norm") else {})
        cases.append(from_settings(f"{mode} with KL and entropy bonus", actor, batch))
    for kind in ("kl", "abs", "mse", "kl+", "abs+", "k3+"):
        actor = {"use_kl_loss": True, "kl_loss_type": kind, "kl_loss_coef": 0.5}
        cases.append(from_settings(f"KL loss {kind}", actor, responses(510, ragged=True)))
    for mode, more in (("geo_mean", {}), ("gspo", {}), ("cispo", {}), ("dro", {"dro_beta": 0.5}), ("kl_cov", {})):
        actor = loss(mode, **more)
        batch = responses(520, ragged=True) | {"is_weights": weights}
        cases.append(from_settings(f"{mode} with sampler weights", actor, batch, TWO_RANKS))
    for correction in (
        {"loss_type": "ppo_clip", "rollout_rs": "token_k1", "rollout_rs_threshold": "0.7_1.4"},
        {"loss_type": "reinforce", "rollout_is": "token", "rollout_is_threshold": "0.5_2"},
        {"loss_type": "reinforce", "rollout_is": None, "rollout_rs": "seq_mean_k3", "rollout_rs_threshold": 0.3},
        {"loss_type": "reinforce", "rollout_is": "token", "rollout_rs": "seq_max_k2", "rollout_rs_threshold": 0.6},
    ):
        actor = loss("bypass_mode", rollout_correction=correction)
        title = f"bypass_mode, {correction['loss_type']}, {correction.get('rollout_rs', 'a band of weights')}"
        cases.append(from_settings(title, actor, responses(530, ragged=True)))
    return cases


def from_settings(title: str, actor: Settings, batch: Arrays, info: Settings | None = None) -> dict[str, Any]:
    """A case whose algorithm is what `spec_from_verl` reads, written out."""
    correction = {"rollout_is": "token" if "is_weights" in batch else None}
    whole = {
        "algorithm": {"adv_estimator": "grpo", "rollout_correction": correction},
        "actor_rollout_ref": {"actor": actor, "rollout": {"calculate_log_probs": True}},
    }
    found = spec_from_verl(whole, VERSION)
    assert not found.unknown, found.unknown
    parts = found.spec.parts.model_dump(exclude_defaults=True)
    return computed(title, {"id": "run.verl", "name": title, "parts": parts}, batch, actor=actor, info=info)


def main() -> None:
    """Write the section, once every case is passed."""
    cases = variants() + of_papers() + settings_read()
    worst: dict[str, float] = {}
    for each in cases:
        for name, error in errors(each, evaluated(each)).items():
            if not error <= each["tolerance"]:
                sys.exit(f"{each['name']}: {name} differs by {error:.1e}")
            worst[name] = max(worst.get(name, 0.0), error)
    write_section("verl", cases)
    print("largest errors:", {name: f"{error:.1e}" for name, error in worst.items()})


if __name__ == "__main__":
    main()
