"""From verl's settings to the objective that really runs, version by version.

Sources: verl 0.7.1, 0.8.0 and 0.9.1, `trainer/ppo/core_algos.py` (losses, advantages, aggregation, KL),
`trainer/ppo/rollout_corr_helper.py` (sampler correction), `workers/utils/losses.py` (what the worker adds up) and
`trainer/config` (defaults). What its settings do not say:

- every vanilla loss has a dual clip (`clip_ratio_c`, 3.0), and `dppo_tv`, `dppo_kl` cap their weight there too;
- `clip_ratio` counts only where `clip_ratio_low` and `clip_ratio_high` are null, and they are 0.2 unless set;
- `sapo` is always averaged as seq-mean-token-mean, `gspo` before 0.9 too; `geo_mean` is a plain mean over the responses
  of the micro-batch;
- `norm_adv_by_std_in_grpo` reaches `grpo` and `grpo_passk` alone, and a KL penalty in the reward does not reach `gdpo`;
- `bypass_mode` chooses its own loss in the trainer of 0.7 and 0.8 and with `trainer.use_v1=False`; the V1 trainer of
  0.9 only takes the sampler's log-probs as the old ones and keeps the loss that is set.

verl adds 1e-8 to some counts and variances before it divides: a relative difference below 1e-8.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unipo_hooks import algorithms
from unipo_hooks.algorithm_spec import AlgorithmSpec, Parts
from unipo_hooks.objective.describe import parameters, uses
from unipo_hooks.objective.inputs import Normalisers

Use = dict[str, Any]

KNOWN_VERSIONS = ("0.7", "0.8", "0.9")
"""Releases whose code was read."""

KL_ESTIMATORS: dict[str, str] = {
    "kl": "k1",
    "k1": "k1",
    "abs": "abs",
    "mse": "k2",
    "k2": "k2",
    "low_var_kl": "k3",
    "k3": "k3",
}
"""verl's name of an estimator → ours; a "+" at its end takes the gradient of k2."""

LOSSES = (
    "vanilla",
    "dppo_tv",
    "dppo_kl",
    "gspo",
    "sapo",
    "gpg",
    "clip_cov",
    "kl_cov",
    "geo_mean",
    "cispo",
    "dro",
    "bypass_mode",
)
"""Policy losses verl 0.9 registers; `dro` is new in it."""

AGGREGATIONS: dict[str, Use] = {
    "token-mean": {"part": "token_mean"},
    "token-sum": {"part": "token_sum"},
    "seq-mean-token-sum": {"part": "sequence_mean_token_sum", "rows": "nonempty"},
    "seq-mean-token-sum-norm": {"part": "sequence_mean_constant_length", "rows": "nonempty"},
    "seq-mean-token-mean": {"part": "sequence_mean_token_mean", "rows": "nonempty"},
}
"""loss_agg_mode → the part; `token-sum` is new in 0.9."""

CANDIDATES = (
    "ppo.verl",
    "grpo.verl",
    "dr_grpo.verl",
    "gspo.verl",
    "cispo.verl",
    "sapo_soft.verl",
    "gmpo.verl",
    "reinforce.verl",
    "reinforce_pp.verl",
    "reinforce_pp_baseline.verl",
    "rloo_verl",
    "remax.verl",
    "gpg.verl",
    "opo.verl",
    "grpo_passk.verl",
    "otb.verl",
    "tir_otb.verl",
    "gdpo.verl",
    "dro.verl",
    "dppo_tv.verl",
    "dppo_kl.verl",
    "clip_cov.verl",
    "kl_cov.verl",
)
"""Registered algorithms a configuration may be; `dapo.verl` too where groups are filtered."""

_ALGORITHM = {
    "_target_", "adv_estimator", "filter_groups", "gamma", "gdpo_reward_keys", "gdpo_reward_weights", "kl_ctrl",
    "kl_penalty", "lam", "norm_adv_by_std_in_grpo", "pf_ppo", "rollout_correction", "use_kl_in_reward", "use_pf_ppo",
}  # fmt: skip
_POLICY_LOSS = {
    "_target_", "clip_cov_lb", "clip_cov_ratio", "clip_cov_ub", "dro_beta", "kl_cov_ratio", "loss_mode", "ppo_kl_coef",
    "rollout_correction",
}  # fmt: skip
_CORRECTION = {
    "_target_", "bypass_mode", "loss_type", "rollout_is", "rollout_is_batch_normalize", "rollout_is_threshold",
    "rollout_rs", "rollout_rs_threshold",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class VerlAlgorithm:
    """The objective a verl run has."""

    spec: AlgorithmSpec
    """Its parts. It takes rewards and computes the advantages; `given_advantages` of it takes verl's own."""
    unknown: tuple[str, ...]
    """Settings whose effect is not in `spec`, each with what it does or why it is not known; empty where all is."""


def spec_from_verl(config: Any, verl_version: str) -> VerlAlgorithm:
    """The objective that runs under main_ppo's configuration.

    `config` is the Hydra configuration as nested mappings (a dict, OmegaConf) or objects; what it leaves out has verl's
    default. Where a setting has no counterpart the nearest known one stands in the spec and `unknown` says so.

    Inputs under verl's names: `is_weights` is `rollout_is_weights`, `greedy_reward` is `reward_baselines`, and
    `reward_weights` is `algorithm.gdpo_reward_weights`.
    """
    return _Reader(config, verl_version).algorithm()


def normalisers_from_verl(
    *,
    batch_num_tokens: float | None = None,
    global_batch_size: float | None = None,
    dp_size: int = 1,
    loss_scale_factor: float | None = None,
    accumulation_steps: float = 1,
) -> Normalisers:
    """What verl's `agg_loss` divides by, as normalisers.

    The names are those of `ActorConfig.global_batch_info`: tokens and responses of the mini-batch over all ranks.
    `accumulation_steps` is for the worker of 0.7, which normalises each micro-batch by itself and divides by their
    number (with dynamic batches, by ppo_mini_batch_size / responses of the micro-batch).
    """
    return Normalisers(
        accumulation_steps=accumulation_steps,
        tokens=None if batch_num_tokens is None else batch_num_tokens / dp_size,
        rows=None if global_batch_size is None else global_batch_size / dp_size,
        length=loss_scale_factor,
        data_parallel_size=dp_size,
    )


class _Reader:
    """Reads a configuration once, and collects what it cannot express."""

    def __init__(self, config: Any, version: str) -> None:
        self.config = config
        self.version = version
        self.unknown: list[str] = []
        found = re.match(r"(\d+)\.(\d+)", version)
        self.release = f"{found[1]}.{found[2]}" if found else version
        if self.release not in KNOWN_VERSIONS:
            self.report("verl", version, "its rules are not known, those of 0.9 are taken")
            self.release = "0.9"

    def report(self, name: str, value: Any, why: str) -> None:
        """Note a setting the spec does not hold."""
        self.unknown.append(f"{name}={value}: {why}")

    def get(self, path: str, default: Any = None) -> Any:
        """A setting by its dotted path; the default where it is not there."""
        return _at(self.config, path, default)

    def actor(self, name: str, default: Any = None) -> Any:
        """A setting of the actor."""
        return self.get(f"actor_rollout_ref.actor.{name}", default)

    def algorithm(self) -> VerlAlgorithm:
        """Everything put together."""
        named = self.get("algorithm.adv_estimator", "gae")
        estimator = str(getattr(named, "value", named))  # verl has an enumeration of them, which is text as well
        mode = self.loss_mode()
        parts: dict[str, Any] = self.advantages(estimator) | self.policy(mode)
        if constraint := self.constraints(mode, bool(parts.get("mask"))):
            parts["constraint"] = [*parts.get("constraint", []), *constraint]
        self.further()
        spec = self.named(estimator, mode, Parts.model_validate(parts))
        return VerlAlgorithm(spec, tuple(self.unknown))

    def named(self, estimator: str, mode: str, parts: Parts) -> AlgorithmSpec:
        """The registered algorithm of verl these parts are, with their hyper-parameters, or one of its own."""
        known = set(algorithms.ids())
        dapo = ("dapo.verl",) if self.get("algorithm.filter_groups.enable", False) else ()
        for name in (*dapo, *CANDIDATES):
            if name in known and _shape(algorithms.get(name).parts) == _shape(parts):
                return algorithms.get(name).model_copy(update={"parts": parts} | self.doubts())
        text = f"verl's {mode} loss with {estimator} advantages"
        return AlgorithmSpec(
            id=f"verl.{estimator}_{mode}",
            name=text,
            title=text,
            source=f"verl {self.version}",
            family="PPO and GRPO",
            story=f"What verl {self.version} computes with the settings of this run: {text}.",
            evidence="C",
            exact=False,
            inexact="put together from the trainer's settings; the run compares it with the trainer's own loss",
            parts=parts,
        )

    def doubts(self) -> dict[str, Any]:
        """What makes a registered algorithm no longer exact."""
        reasons = list(self.unknown)
        if self.release != "0.9":
            reasons.append(f"read in the code of verl {self.version}, compared with 0.9.1")
        return {"exact": False, "inexact": "; ".join(reasons)} if reasons else {}

    # --- advantages ----------------------------------------------------------------------------------------------

    def advantages(self, estimator: str) -> dict[str, Any]:
        """Slots reward, baseline and scale."""
        gamma, normalise = self.get("algorithm.gamma", 1.0), self.get("algorithm.norm_adv_by_std_in_grpo", True)
        std = {"part": "group_std", "eps": 1e-6, "ddof": 1, "singleton": "zero"}
        whiten = {"part": "token_whiten", "eps": 1e-8}
        centred = {"part": "group_mean", "singleton": "zero"}
        slots: dict[str, tuple[Use, list[Use]]] = {
            "gae": ({"part": "gae", "gamma": gamma, "lam": self.get("algorithm.lam", 1.0)}, [whiten]),
            "grpo": (centred, [std] if normalise else []),
            "grpo_vectorized": (centred, [std]),
            "gdpo": ({"part": "none"}, [whiten]),
            "grpo_passk": ({"part": "second_best"}, [std] if normalise else []),
            "reinforce_plus_plus": ({"part": "return_to_go", "gamma": gamma}, [whiten]),
            "reinforce_plus_plus_baseline": (centred, [whiten]),
            "rloo": ({"part": "leave_one_out", "singleton": "zero"}, []),
            "rloo_vectorized": ({"part": "leave_one_out", "singleton": "self"}, []),
            "opo": ({"part": "length_weighted_mean", "singleton": "zero"}, []),
            "remax": ({"part": "greedy"}, []),
            "gpg": (centred, [{"part": "share_with_reward", "divisor": 1.0}]),
            "optimal_token_baseline": ({"part": "optimal_token", "by": "position"}, []),
            "tir_optimal_token_baseline": ({"part": "optimal_token", "by": "count"}, []),
        }
        if estimator not in slots:
            self.report("algorithm.adv_estimator", estimator, "not one of verl's own; the advantages it gave are taken")
            return {"baseline": {"part": "recorded"}}
        if self.release != "0.9" and estimator == "reinforce_plus_plus":
            why = "before 0.9 a token that does not count cuts off the return; the same only for responses without gaps"
            self.report("algorithm.adv_estimator", estimator, why)
        if self.release == "0.7" and estimator == "grpo_vectorized":
            self.report("algorithm.adv_estimator", estimator, "0.7 takes 0.001 for a smaller deviation of a group")
        baseline, scale = slots[estimator]
        return {"reward": self.rewards(estimator), "baseline": baseline, "scale": scale}

    def rewards(self, estimator: str) -> list[Use]:
        """Slot reward."""
        if estimator == "gdpo":
            return [{"part": "normalised_components", "eps": 1e-6, "singleton": "zero"}]
        if not self.get("algorithm.use_kl_in_reward", False):
            return []
        name = str(self.get("algorithm.kl_penalty", "kl"))
        known = self.estimator("algorithm.kl_penalty", name)
        if known is None:
            return []
        kind = self.get("algorithm.kl_ctrl.type", "fixed")
        if kind != "fixed":
            self.report("algorithm.kl_ctrl.type", kind, "the coefficient changes from step to step; its first is taken")
        beta = self.get("algorithm.kl_ctrl.kl_coef", 0.001)
        return [{"part": "token_kl_penalty", "beta": beta, "estimator": known.removesuffix("+")}]

    def estimator(self, setting: str, name: str) -> str | None:
        """Our name of a KL estimator; None, and a report, where there is none."""
        straight = name.endswith("+")
        known = KL_ESTIMATORS.get(name.removesuffix("+"))
        if known is None or (straight and self.release == "0.7"):
            self.report(setting, name, f"verl {self.version} has no such estimator; the term is left out")
            return None
        return known + "+" if straight and known != "k2" else known

    # --- the policy loss -----------------------------------------------------------------------------------------

    def is_v1(self) -> bool:
        """Whether the trainer is the one that came with 0.9."""
        return self.release == "0.9" and bool(self.get("trainer.use_v1", True))

    def loss_mode(self) -> str:
        """The policy loss that runs."""
        mode = str(self.actor("policy_loss.loss_mode", "vanilla"))
        if self.get("algorithm.rollout_correction.bypass_mode", False) and not self.is_v1():
            return "bypass_mode"
        if mode not in LOSSES or (mode == "dro" and self.release != "0.9"):
            why = f"not a loss of verl {self.version}; vanilla stands in its place"
            self.report("actor.policy_loss.loss_mode", mode, why)
            return "vanilla"
        return mode

    def policy(self, mode: str) -> dict[str, Any]:
        """Slots ratio, bounds, gate, weight, mask, aggregation, and a constraint that is part of the loss."""
        if mode == "bypass_mode":
            return self.bypass()
        clip = self.actor("clip_ratio", 0.2)
        low, high = (
            clip if (value := self.actor(name, 0.2)) is None else value
            for name in ("clip_ratio_low", "clip_ratio_high")
        )
        around = {"part": "around_one", "epsilon_low": low, "epsilon_high": high}
        ratio, plain, none = {"part": "token", "clamp": 20.0}, {"part": "token"}, {"part": "one"}
        ppo = {"part": "ppo_clip"}
        cap = self.actor("clip_ratio_c", 3.0)
        parts: dict[str, Any]
        if mode == "vanilla":
            parts = {"ratio": ratio, "bounds": around, "gate": ppo | {"dual_clip": cap}}
        elif mode in ("dppo_tv", "dppo_kl"):
            gate = {"part": "trust_region_mask", "divergence": mode.removeprefix("dppo_"), "ratio_cap": cap}
            parts = {"ratio": ratio, "gate": gate | {"delta_low": low, "delta_high": high}}
        elif mode == "gspo":
            parts = {"ratio": {"part": "sequence_mean_detached", "clamp": 10.0}, "bounds": around, "gate": ppo}
        elif mode == "sapo":
            tau = {"tau_positive": self.actor("tau_pos", 1.0), "tau_negative": self.actor("tau_neg", 1.05)}
            parts = {"ratio": ratio, "gate": {"part": "sigmoid"} | tau}
        elif mode == "gpg":
            parts = {"ratio": none, "gate": {"part": "log_prob"}}
        elif mode == "clip_cov":
            parts = {"ratio": plain, "bounds": around, "gate": ppo, "mask": [{"part": "not_selected"}]}
        elif mode == "kl_cov":
            share = self.of_loss("kl_cov_ratio", 0.0002, null=0.0002)
            term = {"part": "kl_of_selected", "beta": self.of_loss("ppo_kl_coef", 0.1, null=1.0), "share": share}
            parts = {"ratio": plain, "gate": {"part": "plain_ratio"}, "constraint": [term]}
        elif mode == "geo_mean":
            means = {"part": "clipped_sequence_mean", "log_low": low, "log_high": high}
            parts = {"ratio": means, "gate": {"part": "plain_ratio"}}
        elif mode == "cispo":
            parts = {"ratio": ratio, "bounds": around, "gate": {"part": "capped_weight"}}
        else:
            beta = self.of_loss("dro_beta", None)
            if not beta:
                self.report("actor.policy_loss.dro_beta", beta, "verl refuses to run without one; 1 is taken")
                beta = 1.0
            term = {"part": "kl", "beta": beta, "estimator": "k2", "reference": "old_log_probs", "before_weight": True}
            parts = {"ratio": none, "gate": {"part": "log_prob"}, "constraint": [term]}
        level = "sequence_mean" if mode == "geo_mean" else "token"
        weight = [{"part": "recorded_weight", "level": level}] if self.has_weights() else []
        return parts | {"weight": weight, "aggregation": self.aggregation(mode)}

    def of_loss(self, name: str, default: Any, *, null: Any = None) -> Any:
        """A setting of actor.policy_loss; `null` is what verl takes for null."""
        value = self.actor(f"policy_loss.{name}", default)
        return null if value is None else value

    def has_weights(self) -> bool:
        """Whether the trainer multiplies the loss with weights of its sampler correction."""
        correction = "algorithm.rollout_correction"
        if self.get(f"{correction}.bypass_mode", False) or self.get(f"{correction}.rollout_is") is None:
            return False
        # without the sampler's log-probs there is nothing to correct by, and verl goes on without a word
        return bool(self.get("actor_rollout_ref.rollout.calculate_log_probs", False))

    def aggregation(self, mode: str) -> Use:
        """Slot aggregation."""
        if mode == "geo_mean":
            return {"part": "sequence_mean_token_mean", "rows": "all", "span": "micro_batch"}
        if mode == "sapo" or (mode == "gspo" and self.release != "0.9"):
            return AGGREGATIONS["seq-mean-token-mean"]
        name = str(self.actor("loss_agg_mode", "token-mean"))
        if name not in AGGREGATIONS or (name == "token-sum" and self.release != "0.9"):
            self.report("actor.loss_agg_mode", name, f"verl {self.version} has no such mode; token-mean is taken")
            name = "token-mean"
        length = self.actor("loss_scale_factor")
        own = {"length": length} if name == "seq-mean-token-sum-norm" and length is not None else {}
        return AGGREGATIONS[name] | own

    def bypass(self) -> dict[str, Any]:
        """The loss that corrects for the sampler itself: the old policy is the sampler."""
        # the trainer that sets this loss hands over its own settings; where the user sets it, the actor's stand
        handed = self.get("algorithm.rollout_correction.bypass_mode", False) and not self.is_v1()
        where = "algorithm" if handed else "actor_rollout_ref.actor.policy_loss"
        correction = self.get(f"{where}.rollout_correction") or {}
        masks = self.rejections(correction)
        kind = _at(correction, "loss_type", "ppo_clip")
        if kind == "ppo_clip":
            return self.policy("vanilla") | {"weight": [], "mask": masks}
        if kind != "reinforce":
            self.report("rollout_correction.loss_type", kind, "not a loss of verl; reinforce is taken")
        parts: dict[str, Any] = {"ratio": {"part": "one"}, "gate": {"part": "log_prob"}}
        if level := _at(correction, "rollout_is", None if handed else "sequence"):
            ratio = {"part": "sequence_product"} if level == "sequence" else {"part": "token", "clamp": 20.0}
            low, high = _threshold(_at(correction, "rollout_is_threshold", 2.0))
            if low is not None and self.release == "0.7":
                self.report("rollout_correction.rollout_is_threshold", f"{low}_{high}", "0.7 takes one number alone")
            bounds = {"part": "absolute", "ratio_low": low or 0.0, "ratio_high": high}
            gate = (
                {"part": "capped_weight"} if low is None else {"part": "hard_mask", "sides": "two", "importance": True}
            )
            parts = {"ratio": ratio, "bounds": bounds, "gate": gate}
            if _at(correction, "rollout_is_batch_normalize", False):
                self.report(
                    "rollout_correction.rollout_is_batch_normalize", True, "weights over the batch's mean are not held"
                )
        return parts | {"mask": masks, "aggregation": self.aggregation("bypass_mode")}

    def rejections(self, correction: Any) -> list[Use]:
        """Slot mask of bypass mode: `rollout_rs`, with its thresholds in nats."""
        names = [name.strip() for name in str(_at(correction, "rollout_rs", None) or "").split(",") if name.strip()]
        names = list(dict.fromkeys(names))
        given = [each.strip() for each in str(_at(correction, "rollout_rs_threshold", None)).split(",")]
        masks: list[Use] = []
        for number, name in enumerate(names):
            threshold = given[number if len(given) > 1 else 0]
            found = re.fullmatch(r"(token|seq_sum|seq_mean|seq_max)_(k[123])", name)
            if found is None or threshold in ("None", ""):
                self.report("rollout_correction.rollout_rs", name, f"not known with the threshold {threshold}")
                continue
            low, high = _threshold(threshold)
            limits: Use = {"limit_low": None, "limit_high": high}
            if found[2] == "k1":
                limits = {"limit_low": math.log(low if low is not None else 1 / high), "limit_high": math.log(high)}
            level = found[1].replace("seq", "sequence")
            masks.append({"part": "divergence_limit", "level": level, "estimator": found[2]} | limits)
        return masks

    # --- what is added to it -------------------------------------------------------------------------------------

    def constraints(self, mode: str, rejects: bool) -> list[Use]:
        """KL loss and entropy bonus, which the worker aggregates by loss_agg_mode whatever the policy loss does."""
        terms: list[Use] = []
        if self.actor("use_kl_loss", False):
            name = str(self.actor("kl_loss_type", "low_var_kl"))
            if known := self.estimator("actor.kl_loss_type", name):
                beta = self.actor("kl_loss_coef", 0.001)
                clamp = 10.0 if known.startswith("k3") else None
                terms.append({"part": "kl", "beta": beta, "estimator": known, "clamp": clamp})
        if coefficient := self.actor("entropy_coeff", 0):
            terms.append({"part": "entropy_bonus", "coefficient": coefficient, "token_mean": False})
        if not terms:
            return []
        name = str(self.actor("loss_agg_mode", "token-mean"))
        own = self.aggregation(mode)
        if own["part"] != AGGREGATIONS.get(name, {}).get("part") or mode == "geo_mean":
            why = f"the KL and entropy terms are aggregated so, the {mode} loss is not; its own way is taken for both"
            self.report("actor.loss_agg_mode", name, why)
        if rejects and mode == "bypass_mode":
            why = "the KL and entropy terms also count the tokens the policy loss rejects, which the spec leaves out"
            self.report("rollout_correction.rollout_rs", "on", why)
        return terms

    def further(self) -> None:
        """Report what changes the loss or the batch in a way no part holds, and names that are new."""
        if self.get("algorithm.use_pf_ppo", False) and self.get("algorithm.adv_estimator", "gae") == "gae":
            why = "responses are drawn anew at random after their advantages are computed; the batch holds the outcome"
            self.report("algorithm.use_pf_ppo", True, why)
        if self.get("distillation.enabled", False):
            self.report(
                "distillation.enabled", True, "a distillation loss takes the place of this one or is added to it"
            )
        for where, known in (
            ("algorithm", _ALGORITHM),
            ("actor_rollout_ref.actor.policy_loss", _POLICY_LOSS),
            ("algorithm.rollout_correction", _CORRECTION),
        ):
            section = self.get(where)
            for name in section if isinstance(section, Mapping) else ():
                if name not in known:
                    self.report(
                        f"{where.removeprefix('actor_rollout_ref.')}.{name}", section[name], "not a known setting"
                    )


def _at(config: Any, path: str, default: Any) -> Any:
    for name in path.split("."):
        if isinstance(config, Mapping):
            if name not in config:
                return default
            config = config[name]
        else:
            config = getattr(config, name, _ABSENT)
            if config is _ABSENT:
                return default
    return config


_ABSENT = object()


def _shape(parts: Parts) -> list[tuple[str, str, list[tuple[str, Any]]]]:
    """What has to be equal for two algorithms to differ in numbers and switches alone: parts, and choices in them."""
    shape = []
    for slot, _, use in uses(parts):
        values = parameters(slot, use)
        added = slot == "constraint" and (use.part == "entropy_bonus" or values.get("reference") == "ref_log_probs")
        if slot == "weight" or use.part == "token_kl_penalty" or added:
            continue
        chosen = [(name, value) for name, value in sorted(values.items()) if isinstance(value, bool | str)]
        shape.append((slot, use.part, chosen))
    return shape


def _threshold(given: Any) -> tuple[float | None, float]:
    """(low, high) of "low_high", or (None, high) of one number."""
    low, _, high = str(given).rpartition("_")
    return (float(low) if low else None), float(high)
