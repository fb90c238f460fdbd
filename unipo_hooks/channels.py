"""The vocabulary: every per-token and per-response channel, as data.

UNIPO's canonical names (arXiv 2605.11549) are the names everywhere: record fields, Parquet columns, JSON keys and the
viewer's legend. An adapter translates its trainer's names into these and nothing else. Log-probs are natural
logarithms; the unit is the nat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["token", "response", "either"]
Fixed = Literal["rollout", "update"]


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel of the vocabulary."""

    name: str
    """Canonical name: column, key and legend."""
    dtype: str
    """NumPy dtype in memory; floats are stored as float32."""
    level: Level
    """`token`, `response`, or `either` where trainers differ."""
    fixed: Fixed
    """`rollout`: fixed when the response was sampled; `update`: measured anew at each optimizer step."""
    unit: str
    """`nat`, `` (none) or what a reader would write behind the number."""
    meaning: str
    """One sentence for someone who has never read a paper."""


CHANNELS: dict[str, Channel] = {
    channel.name: channel
    for channel in (
        Channel("ids", "int32", "token", "rollout", "", "Number of the token in the tokenizer's vocabulary."),
        Channel("strings", "str", "token", "rollout", "", "Text of the token; joined, the text of the response."),
        Channel("mask", "uint8", "token", "rollout", "", "1 where the token counts in the loss, 0 where it does not."),
        Channel(
            "mask_reason",
            "uint8",
            "token",
            "rollout",
            "",
            "Why a token does not count: 1 written by a tool or environment, 2 in a response cut off at the length "
            "limit, 3 another reason; 0 where it counts.",
        ),
        Channel(
            "old_log_probs",
            "float32",
            "token",
            "rollout",
            "nat",
            "Log-probability under the policy that sampled the response, as the trainer computed it.",
        ),
        Channel("ref_log_probs", "float32", "token", "rollout", "nat", "Log-probability under the reference policy."),
        Channel(
            "rollout_log_probs", "float32", "token", "rollout", "nat", "Log-probability the sampling engine reported."
        ),
        Channel(
            "advantages",
            "float32",
            "either",
            "rollout",
            "",
            "How much better the response (or token) did than expected: positive is to be made more likely.",
        ),
        Channel("values", "float32", "token", "rollout", "", "The critic's estimate of the return from here on."),
        Channel("returns", "float32", "token", "rollout", "", "The return the critic is trained towards."),
        Channel("rewards", "float32", "token", "rollout", "", "Reward given at this token."),
        Channel(
            "is_weights",
            "float32",
            "either",
            "rollout",
            "",
            "Weight that corrects for a sampler that disagrees with the trainer; no gradient flows through it.",
        ),
        Channel(
            "log_probs",
            "float32",
            "token",
            "update",
            "nat",
            "Log-probability under the policy at this update's forward pass.",
        ),
        Channel(
            "entropies",
            "float32",
            "token",
            "update",
            "nat",
            "How undecided the policy was at this position, over the whole vocabulary.",
        ),
        Channel(
            "token_kl",
            "float32",
            "token",
            "update",
            "nat",
            "The trainer's own estimate of the divergence from the reference policy at this token.",
        ),
        Channel(
            "policy_mask",
            "float32",
            "token",
            "update",
            "",
            "Further factors of 0 or 1 the trainer put on the policy term (entropy quantile, off-policy mask).",
        ),
        Channel(
            "token_objective",
            "float32",
            "token",
            "update",
            "",
            "What the token adds to the objective; stored only where a part of the user's own computes it.",
        ),
        Channel(
            "gradient_weight",
            "float32",
            "token",
            "update",
            "",
            "Derivative of the loss by the token's log-probability; stored only where a part of the user's own "
            "computes it.",
        ),
        Channel("reward", "float32", "response", "rollout", "", "The response's scalar reward."),
        Channel(
            "reward_components", "float32", "response", "rollout", "", "What each reward function gave the response."
        ),
    )
}
"""Every channel by its canonical name."""

ROLLOUT_TOKEN_FLOATS: tuple[str, ...] = tuple(
    c.name for c in CHANNELS.values() if c.fixed == "rollout" and c.level != "response" and c.dtype == "float32"
)
"""Float channels that may be columns of a `rollout_tokens` file."""

UPDATE_TOKEN_FLOATS: tuple[str, ...] = tuple(c.name for c in CHANNELS.values() if c.fixed == "update")
"""Float channels that may be columns of an `update_tokens` file."""

RESPONSE_FLOATS: tuple[str, ...] = ("advantages", "is_weights")
"""Float channels that are columns of a `responses` file when the trainer has one value a response."""

MASK_REASONS: dict[int, str] = {
    1: "written by a tool or environment",
    2: "response cut off at the length limit",
    3: "not counted by the trainer",
}
"""Words for the values of `mask_reason`."""

METRICS: dict[str, str] = {
    "policy_objective": "What the update climbs: minus the policy loss.",
    "policy_loss": "The trainer's loss for the update, without entropy bonus and router loss.",
    "total_loss": "The trainer's loss for the update, everything included.",
    "reward": "Mean reward of the responses of the rollouts this update trains on.",
    "reward_std": "Standard deviation of the reward over the responses of those rollouts.",
    "group_reward_std": "Standard deviation of the reward inside a prompt group, averaged over the groups.",
    "zero_std_groups": "Share of prompt groups in which every response got the same reward: they teach nothing.",
    "response_length": "Mean length of a response in tokens, without those of tools.",
    "advantage_mean": "Mean advantage over the responses of this update.",
    "advantage_std": "Standard deviation of the advantage over the responses of this update.",
    "entropy": "Mean entropy of the policy over the tokens that count.",
    "kl": "Mean estimated divergence from the reference policy over the tokens that count.",
    "importance_sampling_ratio": "Mean of π_θ/π_old over the tokens that count, or the responses where each has one "
    "ratio; 1 means the policy has not moved.",
    "clip_fraction": "Share of these tokens, or responses, whose ratio is out of the clip range on the side they are "
    "pushed to.",
    "clip_fraction_low": "The part of it below the range, with a negative advantage.",
    "clip_fraction_high": "The part of it above the range, with a positive advantage.",
    "loss_gap": "How far the loss recomputed from captured tokens is from the trainer's own; rounding is about 1e-7.",
    "grad_norm": "Norm of the gradient before clipping, where the trainer logged it.",
    "learning_rate": "Learning rate of the update.",
}
"""UNIPO's metric names that a bundle carries, each with its definition."""

DEVIATIONS: dict[str, str] = {"reward_std": "reward", "advantage_std": "advantage_mean"}
"""Metric that is an unbiased standard deviation → the metric whose sums it is taken from."""
