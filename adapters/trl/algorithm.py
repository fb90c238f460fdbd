"""From the settings of a TRL trainer to the objective it really computes, version by version.

Read in TRL's source from 0.17.0 to 1.16.0: `_compute_loss` and `_generate_and_score_completions` of GRPOTrainer and
RLOOTrainer, and of the experimental GMPOTrainer and GSPO-token trainer. A setting that is absent has the default of the
version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from unipo_hooks.adapters.trl.naming import named
from unipo_hooks.adapters.trl.versions import (
    CLIPPED_LOSSES,
    DEFAULTS,
    HARMLESS,
    NEWEST,
    OBJECTIVE_WORDS,
    OLDEST,
    OTHER_LOSSES,
    OTHER_TRAINERS,
    READ_CONFIGS,
    READ_TRAINERS,
    UPDATE_TOKEN_MEANS,
    Kind,
    Version,
    kind_of,
    parsed_version,
)
from unipo_hooks.algorithm_spec import AlgorithmSpec, Parts
from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.describe import check

EPS = 1e-4
"""What TRL adds to every standard deviation."""

LAMBDA_MIN = 1e-4
"""Smallest rate `get_gamma_weights` takes."""

NO_LIMIT = 1e300
"""Stands for an upper limit that is not set: no ratio reaches it, and JSON holds it."""


@dataclass(frozen=True, slots=True)
class TrlAlgorithm:
    """What a trainer with these settings computes."""

    spec: AlgorithmSpec
    unknown: tuple[str, ...]
    """What changes the loss and is not understood, a line each; the spec leaves it out, and is then not exact."""


@dataclass(slots=True)
class _Reading:
    """Settings being read, with what was found to say of them."""

    values: Mapping[str, Any]
    version: Version
    kind: Kind
    unknown: list[str] = field(default_factory=list)
    features: list[tuple[str, str]] = field(default_factory=list)
    """Differences from the loss type alone: a word for the id, and a few for the name."""

    def __getitem__(self, name: str) -> Any:
        return self.values[name] if name in self.values else self.default(name)

    def default(self, name: str) -> Any:
        if name == "beta" and self.kind == "rloo":
            return 0.05
        if name == "epsilon" and self.kind == "gmpo":
            return 0.4
        return [value for since, value in DEFAULTS[name] if since <= self.version or since == OLDEST][-1]

    def number(self, name: str) -> float:
        """A setting that is a number; where it is none, its default, and that is said."""
        found = self.optional(name)
        return float(self._instead(name)) if found is None else found

    def optional(self, name: str) -> float | None:
        """A setting that is a number or None."""
        value = self[name]
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, Real) or value != value:
            value = self._instead(name)
        return None if value is None else _finite(value)

    def flag(self, name: str) -> bool:
        """A setting that is on or off, None being off."""
        value = self[name]
        return bool(value) if value is None or isinstance(value, bool | int) else bool(self._instead(name))

    def choice(self, name: str, *known: str) -> str:
        """A setting that is one of a few words; where it is none of them, its default, and that is said."""
        value = self[name]
        return value if isinstance(value, str) and value in known else str(self._instead(name))

    def named(self, parts: Parts, trl_version: str) -> AlgorithmSpec:
        """The algorithm these parts are."""
        return named(
            parts,
            trl_version,
            kind=self.kind,
            loss_type=str(self["loss_type"]),
            features=self.features,
            unknown=self.unknown,
        )

    def _instead(self, name: str) -> Any:
        default = self.default(name)
        line = f"{name}={_short(self[name])} is not known: it is read as the default, {default!r}"
        if line not in self.unknown:
            self.unknown.append(line)
        return default


def spec_from_trl(
    config: Any, trl_version: str, *, trainer_class: str = "", entropy_coefficient: float | None = None
) -> TrlAlgorithm:
    """The objective a trainer with this configuration computes.

    `config` is a GRPOConfig, an RLOOConfig, one derived from them, or their settings as a dict. `trainer_class` names
    the trainer where a dict does not tell (`GMPOTrainer`), and after it, with spaces between, what it is derived from.
    `entropy_coefficient` is the one an adaptive entropy bonus has just now; without it, it is the one it starts with.

    The spec states the rules themselves; what a trainer recorded of them takes their place where a micro-batch is
    recomputed (`unipo_hooks.objective.recorded.as_recorded`). Where anything is not understood the spec is the nearest
    one, and not exact.
    """
    values = config if isinstance(config, Mapping) else _values(config)
    configs = [each.__name__ for each in type(config).__mro__]
    kind: Kind = kind_of([trainer_class, *configs], values)
    read = _Reading(values, parsed_version(str(trl_version)), kind)
    if read.version < OLDEST:
        read.unknown.append(f"TRL {trl_version}: what versions before 0.17 compute is not known")
    elif read.version[:2] > NEWEST:
        read.unknown.append(f"TRL {trl_version}: what versions after {NEWEST[0]}.{NEWEST[1]} compute is not known")
    _report_other_trainers(read, trainer_class.split(), configs)
    slots = _rloo(read) if kind == "rloo" else _gmpo(read) if kind == "gmpo" else _grpo(read, entropy_coefficient)
    _report_unknown_names(read)
    parts = Parts.model_validate(slots)
    spec = read.named(parts, trl_version)
    try:
        check(spec)
    except AlgorithmError as error:  # a number no part takes
        read.unknown.append(str(error))
        spec = read.named(parts, trl_version)
    return TrlAlgorithm(spec, tuple(read.unknown))


def _values(config: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if not name.startswith("_")}


def _grpo(read: _Reading, entropy_coefficient: float | None) -> dict[str, Any]:
    loss_type = _loss_type(read)
    slots = _group_advantages(read) | _gate(read, loss_type)
    slots["ratio"] = _ratio(read, loss_type)
    slots["weight"] = _sampler_weight(read) if loss_type != "vespo" else []
    slots["mask"] = _masks(read)
    slots["constraint"] = [*_kl(read, loss_type), *_entropy_bonus(read, loss_type, entropy_coefficient)]
    slots["aggregation"] = _aggregation(read, loss_type)
    if (read.flag("use_liger_loss") or read.flag("use_liger_kernel")) and read.version < (1, 14):
        read.unknown.append("use_liger_kernel: the loss comes from Liger's fused kernel, which was not compared")
    return slots


def _loss_type(read: _Reading) -> str:
    """The loss type, or the nearest one; one that came later is known, but not to this version."""
    given, known = read["loss_type"], CLIPPED_LOSSES | OTHER_LOSSES
    if not isinstance(given, str) or given not in known:
        read.unknown.append(f"loss_type={_short(given)} is not known: it is shown as dapo, which may be far from it")
        return "dapo"
    if read.version < known[given] and read.version >= OLDEST:
        since = ".".join(map(str, known[given]))
        read.unknown.append(f"loss_type={given!r} came with TRL {since}: what another makes of it is not known")
    return given


def _group_advantages(read: _Reading) -> dict[str, Any]:
    together = read.choice("multi_objective_aggregation", "sum_then_normalize", "normalize_then_sum")
    if together == "normalize_then_sum":
        read.features.append(("normalised_components", "each reward function normalised on its own"))
        return {
            "reward": [{"part": "normalised_components", "eps": EPS}],
            "baseline": {"part": "none"},
            "scale": [{"part": "batch_whiten", "eps": EPS}],
        }
    given = str(read["scale_rewards"]) if isinstance(read["scale_rewards"], bool | str) else None
    scale = {"True": "group", "False": "none"}.get(given or "", given)
    if scale not in ("group", "batch", "none"):
        scale = read.choice("scale_rewards")
    if scale == "batch":
        read.features.append(("batch_std", "rewards scaled by the deviation of the batch"))
        scales = [{"part": "batch_std_of_rewards", "eps": EPS}]
    elif scale == "none":
        read.features.append(("unscaled", "rewards that are not scaled"))
        scales = []
    else:
        scales = [{"part": "group_std", "eps": EPS}]
    return {"baseline": {"part": "group_mean"}, "scale": scales}


def _gate(read: _Reading, loss_type: str) -> dict[str, Any]:
    low, high = _epsilons(read)
    if loss_type == "cispo":
        # The absolute cap on the ratio, not a distance from 1.
        bounds = {"part": "absolute", "ratio_low": 0.0, "ratio_high": high}
        return {"bounds": bounds, "gate": {"part": "capped_weight"}}
    if loss_type == "sapo":
        up, down = read.number("sapo_temperature_pos"), read.number("sapo_temperature_neg")
        return {"gate": {"part": "sigmoid", "tau_positive": up, "tau_negative": down}}
    if loss_type == "vespo":
        gate: dict[str, Any] = {"part": "gamma_weight"}
        for long, short in (("positive", "pos"), ("negative", "neg")):
            gate[f"k_{long}"] = read.number(f"vespo_k_{short}")
            gate[f"lambda_{long}"] = max(read.number(f"vespo_lambda_{short}"), LAMBDA_MIN)
        if _corrects_sampler(read):
            read.features.append(("sampler", "a sampler correction inside the weight"))
            gate["correction"] = "recorded"
        return {"gate": gate}
    gate = {"part": "ppo_clip"}
    if (delta := read.optional("delta")) is not None and read.kind == "grpo":
        read.features.append(("delta", "a cap on the ratio"))
        gate["delta"] = delta
    return {"bounds": {"part": "around_one", "epsilon_low": low, "epsilon_high": high}, "gate": gate}


def _epsilons(read: _Reading) -> tuple[float, float]:
    low, high = read.number("epsilon"), read.optional("epsilon_high")
    return low, low if high is None else high


def _ratio(read: _Reading, loss_type: str) -> dict[str, Any]:
    level = _level(read)
    if loss_type == "vespo":
        return {"part": "sequence_product", "clamp": 20.0}
    if level == "sequence_token":
        read.features.append(("sequence_token", "ratios of whole responses that reach each token alone"))
        return {"part": "sequence_mean_detached"}
    if level == "sequence":
        read.features.append(("sequence", "ratios of whole responses"))
        return {"part": "sequence_mean"}
    return {"part": "token"}


def _level(read: _Reading) -> str:
    return read.choice("importance_sampling_level", "token", "sequence", "sequence_token")


def _corrects_sampler(read: _Reading) -> bool:
    return read.flag("use_vllm") and read.flag("vllm_importance_sampling_correction")


def _sampler_weight(read: _Reading) -> list[dict[str, Any]]:
    if not _corrects_sampler(read):
        return []
    read.features.append(("sampler", "a sampler correction"))
    mode = read["vllm_importance_sampling_mode"]
    cap = read.optional("vllm_importance_sampling_cap")
    if cap is None:
        cap = read.optional("vllm_importance_sampling_clip_max")
    floor = read.optional("vllm_importance_sampling_clip_min") if read.version >= (1, 6) else None
    low, high = 0.0 if floor is None else floor, NO_LIMIT if cap is None else cap
    modes = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    if not isinstance(mode, str) or mode not in modes:
        read.unknown.append(
            f"vllm_importance_sampling_mode={_short(mode)} is not known: its weights are those recorded"
        )
        return [{"part": "recorded_weight"}]
    level = "sequence_product" if mode.startswith("sequence") else "token"
    if mode.endswith("truncate"):
        return [{"part": "truncated", "level": level, "cap": high, "floor": low}]
    return [{"part": "banded", "level": level, "band_low": low, "band_high": high}]


def _masks(read: _Reading) -> list[dict[str, Any]]:
    masks: list[dict[str, Any]] = []
    if read.flag("mask_truncated_completions"):
        read.features.append(("without_truncated", "truncated responses left out"))
        masks.append({"part": "truncated_responses", "denominator": True})
    if (threshold := read.optional("off_policy_mask_threshold")) is not None:
        read.features.append(("off_policy_mask", "responses the policy moved away from left out"))
        reference = "rollout_log_probs" if read.flag("use_vllm") else "old_log_probs"
        masks.append({"part": "off_policy_sequences", "threshold": threshold, "reference": reference})
    if read.number("top_entropy_quantile") < 1:
        read.features.append(("entropy_mask", "tokens of high entropy alone"))
        quantile = read.number("top_entropy_quantile")
        masks.append({"part": "high_entropy", "quantile": quantile, "denominator": False})
    return masks


def _kl(read: _Reading, loss_type: str) -> list[dict[str, Any]]:
    beta = read.number("beta")
    if beta == 0:
        return []
    times_ratio = read.flag("use_bias_correction_kl") and read.kind == "grpo"
    read.features.append(("kl", "a KL penalty times the ratio" if times_ratio else "a KL penalty"))
    kl = {"part": "kl", "beta": beta, "estimator": "k3", "times_ratio": times_ratio}
    if loss_type == "vespo" and times_ratio:
        # The gate's ratio is the product over the response; the penalty's has the configured level.
        kl["level"] = "sequence_mean" if _level(read) == "sequence" else "token"
    return [kl]


def _entropy_bonus(read: _Reading, loss_type: str, coefficient: float | None) -> list[dict[str, Any]]:
    adaptive = read.flag("use_adaptive_entropy")
    if read.kind != "grpo" or not (read.number("entropy_coef") or adaptive):
        return []
    read.features.append(("entropy_bonus", "an adaptive entropy bonus" if adaptive else "an entropy bonus"))
    # 1.8 and 1.9 divided it by what the policy term of the loss type is divided by.
    token_mean = read.version >= (1, 10) or loss_type not in UPDATE_TOKEN_MEANS
    return [
        {
            "part": "entropy_bonus",
            "coefficient": read.number("entropy_coef") if coefficient is None else coefficient,
            "token_mean": token_mean,
            "quantile": read.number("top_entropy_quantile"),
        }
    ]


def _aggregation(read: _Reading, loss_type: str) -> dict[str, Any]:
    if loss_type in ("grpo", "sapo"):
        return {"part": "sequence_mean_token_mean"}
    if loss_type == "bnpo":
        return {"part": "token_mean", "span": "micro_batch"}
    if loss_type == "dr_grpo":
        return {"part": "sequence_mean_constant_length", "length": read.number("max_completion_length")}
    if loss_type == "luspo":
        per_token = {"kl", "entropy_mask", "sampler"} & {word for word, _ in read.features}
        if read.version < (1, 10) and (per_token or _level(read) != "sequence"):
            read.unknown.append(
                "loss_type='luspo' before TRL 1.10 averages over padding where the loss is per token; "
                "it is shown as later versions compute it"
            )
        return {"part": "sequence_mean_token_sum"}
    return {"part": "token_mean", "span": "update"}


def _gmpo(read: _Reading) -> dict[str, Any]:
    low, high = _epsilons(read)
    slots = _group_advantages(read)
    slots["ratio"] = {"part": "clipped_sequence_mean", "log_low": low, "log_high": high}
    slots["gate"] = {"part": "plain_ratio"}
    if read.number("top_entropy_quantile") < 1:
        # The mask is of the forward pass and of all processes: the ratio takes it as the trainer had it.
        read.features.append(("entropy_mask", "tokens of high entropy alone"))
        slots["ratio"]["over"] = "policy_mask"
    slots["mask"] = _truncation(read)
    slots["constraint"] = _kl(read, "gmpo")
    slots["aggregation"] = {"part": "sequence_mean_token_mean"}
    return slots


def _rloo(read: _Reading) -> dict[str, Any]:
    if read.version < (0, 22):
        read.unknown.append("RLOOTrainer before TRL 0.22 is another trainer, which was not compared")
    low, high = _epsilons(read)
    rewards: list[dict[str, Any]] = []
    if bounds := _reward_bounds(read):
        read.features.append(("clipped_reward", "clipped rewards"))
        rewards.append({"part": "clipped_reward", "low": bounds[0], "high": bounds[1]})
    if read.number("beta"):
        rewards.append({"part": "sequence_kl_penalty", "beta": read.number("beta")})
    else:
        read.features.append(("without_kl", "no KL penalty"))
    whitened = read.flag("normalize_advantages")
    if whitened:
        read.features.append(("whitened", "whitened advantages"))
    return {
        "reward": rewards,
        "baseline": {"part": "leave_one_out"},
        "scale": [{"part": "batch_whiten", "eps": EPS}] if whitened else [],
        "ratio": {"part": "sequence_product"},
        "bounds": {"part": "around_one", "epsilon_low": low, "epsilon_high": high},
        "gate": {"part": "ppo_clip"},
        "mask": _truncation(read),
        "aggregation": {"part": "sequence_mean_token_mean"},
    }


def _reward_bounds(read: _Reading) -> tuple[float, float] | None:
    given = read["reward_clip_range"]
    if given is None:
        return None
    try:
        smallest, largest = (_finite(each) for each in given)
    except (TypeError, ValueError):
        read.unknown.append(f"reward_clip_range={_short(given)} is not known: it is left out")
        return None
    return smallest, largest


def _truncation(read: _Reading) -> list[dict[str, Any]]:
    """The mask of a trainer whose loss is of whole responses."""
    if not read.flag("mask_truncated_completions"):
        return []
    read.features.append(("without_truncated", "truncated responses left out"))
    read.unknown.append(
        "mask_truncated_completions: a response without tokens still adds −A/B to the loss here, without a gradient; "
        "that constant is left out"
    )
    return [{"part": "truncated_responses", "denominator": True}]


def _report_other_trainers(read: _Reading, trainers: list[str], configs: list[str]) -> None:
    """Say so where the trainer, or where it is not given its configuration, is not one that was read."""
    named = trainers or [each for each in configs if each.endswith("Config")]
    other = [each for each in named if each.startswith(OTHER_TRAINERS)]
    if other or (named and not READ_TRAINERS.union(READ_CONFIGS).intersection(named)):
        told = (other or named)[0]
        read.unknown.append(f"{told} is not a trainer whose loss is known: it is shown as TRL's {read.kind}")


def _report_unknown_names(read: _Reading) -> None:
    for name in sorted(each for each in read.values if isinstance(each, str)):
        value = read.values[name]
        off = value is None or value is False or (isinstance(value, str) and not value)
        off = off or (isinstance(value, float) and math.isnan(value))
        if off or name in DEFAULTS or name in HARMLESS or not OBJECTIVE_WORDS.search(name):
            continue
        read.unknown.append(f"{name}={_short(value)} is a setting that is not known")


def _finite(value: Any) -> float:
    """A number as JSON holds it, which has no infinity."""
    try:
        number = float(value)
    except OverflowError:  # an integer past all floats
        number = math.inf if value > 0 else -math.inf
    return max(-NO_LIMIT, min(number, NO_LIMIT))


def _short(value: Any) -> str:
    """A value as it is written, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


__all__ = ["TrlAlgorithm", "spec_from_trl"]
