"""What TRL's versions take for granted: loss types, the defaults of settings, and which settings matter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

Version = tuple[int, ...]

OLDEST, NEWEST = (0, 17), (1, 16)
"""The versions that were read; what others compute is not known."""

READ_TRAINERS = frozenset({"GRPOTrainer", "GMPOTrainer", "RLOOTrainer"})
"""Trainers that were read. Those derived from them are taken to compute the same."""

READ_CONFIGS = frozenset({"GRPOConfig", "GMPOConfig", "RLOOConfig"})
"""Their configurations."""

OTHER_TRAINERS = (
    "DPPO",
    "GFPO",
    "GRPOWithReplayBuffer",
    "MiniLLM",
    "PAPO",
)
"""What trainers of TRL that are derived from GRPOTrainer and were not read begin with."""

CLIPPED_LOSSES: dict[str, Version] = {
    "grpo": (0, 17),
    "bnpo": (0, 17),
    "dr_grpo": (0, 17),
    "dapo": (0, 22),
    "luspo": (0, 28),
}
"""Loss types with PPO's clip → version they came with."""

OTHER_LOSSES: dict[str, Version] = {"cispo": (0, 26), "sapo": (0, 26), "vespo": (1, 0)}
"""Loss types with a gate of their own → version they came with."""

UPDATE_TOKEN_MEANS = ("dapo", "cispo", "vespo")
"""Loss types that divide by the tokens of the whole update."""

DEFAULTS: dict[str, tuple[tuple[Version, Any], ...]] = {
    "loss_type": (((0, 17), "bnpo"), ((0, 22), "dapo")),
    "beta": (((0, 17), 0.04), ((0, 19), 0.0)),
    "epsilon": (((0, 17), 0.2),),
    "epsilon_high": (((0, 17), None),),
    "delta": (((0, 17), None),),
    "scale_rewards": (((0, 17), "group"),),
    "importance_sampling_level": (((0, 17), "token"),),
    "top_entropy_quantile": (((0, 17), 1.0),),
    "mask_truncated_completions": (((0, 17), False),),
    "max_completion_length": (((0, 17), 256), ((1, 10), 512)),
    "multi_objective_aggregation": (((0, 17), "sum_then_normalize"),),
    "off_policy_mask_threshold": (((0, 17), None),),
    "use_bias_correction_kl": (((0, 17), False), ((1, 10), True)),
    "use_vllm": (((0, 17), False),),
    "vllm_importance_sampling_correction": (((0, 17), False), ((0, 23), True)),
    "vllm_importance_sampling_mode": (((0, 17), "token_truncate"), ((0, 26), "sequence_mask")),
    "vllm_importance_sampling_cap": (((0, 17), 2.0), ((0, 26), 3.0), ((1, 6), None)),
    "vllm_importance_sampling_clip_max": (((0, 17), 3.0),),
    "vllm_importance_sampling_clip_min": (((0, 17), None),),
    "sapo_temperature_pos": (((0, 17), 1.0),),
    "sapo_temperature_neg": (((0, 17), 1.05),),
    "vespo_k_pos": (((0, 17), 2.0),),
    "vespo_lambda_pos": (((0, 17), 3.0),),
    "vespo_k_neg": (((0, 17), 3.0),),
    "vespo_lambda_neg": (((0, 17), 2.0),),
    "entropy_coef": (((0, 17), 0.0),),
    "use_adaptive_entropy": (((0, 17), False),),
    "normalize_advantages": (((0, 17), False),),
    "reward_clip_range": (((0, 17), None),),
    "use_liger_loss": (((0, 17), False),),
    "use_liger_kernel": (((0, 17), False),),
}
"""Setting → its default from each version on."""

HARMLESS = frozenset(
    {
        "adam_epsilon",
        "entropy_coef_delta",
        "entropy_coef_max",
        "entropy_coef_min",
        "entropy_target",
        "loss_type",
        "prediction_loss_only",
        "reward_weights",
        "router_aux_loss_coef",
        "temperature",
        "warmup_ratio",
    }
)
"""Settings that sound like the objective and do not change it, given what is recorded."""

OBJECTIVE_WORDS = re.compile(
    r"(^|_)(loss|entropy|kl|clip|delta|epsilon|advantages?|rewards?|importance|mask|ratio|quantile|beta|tau|gamma"
    r"|lambda|normali[sz]e|policy|temperature)(_|$)"
)
"""What the name of a setting of the objective has in it."""


@cache
def parsed_version(text: str) -> Version:
    """`1.10.0.dev0` as (1, 10, 0)."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(each or 0) for each in found.groups()) if found else (0, 0, 0)


Kind = Literal["grpo", "gspo_token", "gmpo", "rloo"]
"""Families of trainers, by how they compute the loss."""


def kind_of(names: list[str], values: Mapping[str, Any]) -> Kind:
    """The family of a trainer, from the names of its classes and of its configuration's, and its settings."""
    known: dict[str, Kind] = {"GMPO": "gmpo", "RLOO": "rloo", "GSPOToken": "gspo_token"}
    for name in names:
        for word, kind in known.items():
            if word.lower() in name.lower():
                return kind
    level = values.get("importance_sampling_level")
    if isinstance(level, str) and level == "sequence_token":
        return "gspo_token"
    return "rloo" if "normalize_advantages" in values and "loss_type" not in values else "grpo"
