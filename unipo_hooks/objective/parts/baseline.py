"""Baseline: what a reward is compared with. The advantage of a whole response.

A response without a finite reward has advantage 0 and is left out of every mean and deviation. A group whose rewards
are all equal has advantage exactly 0 under a centred baseline: rounding is never divided by a small deviation.
`singleton` says what a group of one compares with: `self`, its own reward, so that it teaches nothing, or `zero`, as
verl does.
"""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.credit import discounted
from unipo_hooks.objective.parts.groups import all_equal, centred, differ, finite, group_count, group_sum
from unipo_hooks.objective.parts.types import Rewards, part


@part("baseline")
def recorded(batch: Batch, rewards: Rewards) -> Array:
    """The advantages the trainer computed."""
    return batch.column("advantages")


@part("baseline")
def none(batch: Batch, rewards: Rewards) -> Array:
    """The reward itself."""
    return finite(batch, rewards.response_B)[:, None]


@part("baseline")
def unit(batch: Batch, rewards: Rewards) -> Array:
    """1 for every response: imitation."""
    return np.ones((batch.shape[0], 1))


@part("baseline")
def group_mean(batch: Batch, rewards: Rewards, *, singleton: str) -> Array:
    """Mean reward of the group."""
    return centred(batch, rewards.response_B, singleton)[:, None]


@part("baseline")
def on_policy_group_mean(batch: Batch, rewards: Rewards, *, singleton: str) -> Array:
    """Mean reward of the group's responses the policy sampled itself; others are compared with it too.

    A group without any of its own has advantage 0.
    """
    values_B, group_B = finite(batch, rewards.response_B), batch.group_B
    own_B = batch.scored_B & (batch["source"] == 0)
    count_B = group_sum(batch, own_B.astype(np.float64))
    mean_B = group_sum(batch, values_B * own_B) / np.maximum(count_B, 1)
    highest, lowest = np.full(group_B.max(initial=-1) + 1, -np.inf), np.full(group_B.max(initial=-1) + 1, np.inf)
    np.maximum.at(highest, group_B[own_B], values_B[own_B])
    np.minimum.at(lowest, group_B[own_B], values_B[own_B])
    # Rounding must not tell equal rewards apart.
    mean_B = np.clip(mean_B, lowest[group_B], highest[group_B], where=count_B > 0, out=mean_B)
    if singleton == "zero":
        mean_B = np.where(count_B == 1, 0.0, mean_B)
    return np.where(batch.scored_B & (count_B > 0), values_B - mean_B, 0.0)[:, None]


@part("baseline")
def shifted_group_mean(batch: Batch, rewards: Rewards, *, shift: float) -> Array:
    """Mean reward of the group plus a constant (AsymRE)."""
    return finite(batch, centred(batch, rewards.response_B, "self") - shift)[:, None]


@part("baseline")
def batch_mean(batch: Batch, rewards: Rewards) -> Array:
    """Mean reward of the batch."""
    values_B = finite(batch, rewards.response_B)
    if not differ(values_B[batch.scored_B]):
        return np.zeros((len(values_B), 1))
    return finite(batch, values_B - values_B.sum() / max(batch.scored_B.sum(), 1))[:, None]


@part("baseline")
def leave_one_out(batch: Batch, rewards: Rewards, *, singleton: str) -> Array:
    """Mean reward of the group's other responses."""
    count_B = group_count(batch)
    difference_B = centred(batch, rewards.response_B, singleton)
    return np.where(count_B > 1, difference_B * count_B / np.maximum(count_B - 1, 1), difference_B)[:, None]


@part("baseline")
def length_weighted_mean(batch: Batch, rewards: Rewards, *, singleton: str) -> Array:
    """Mean reward of the group, longer responses counting for more (OPO)."""
    values_B = finite(batch, rewards.response_B)
    length_B = batch.mask_BT.sum(1) * batch.scored_B
    mean_B = group_sum(batch, values_B * length_B) / np.maximum(group_sum(batch, length_B), 1e-300)
    difference_B = np.where(all_equal(batch, values_B), 0.0, values_B - mean_B)
    if singleton == "zero":
        difference_B = np.where(group_count(batch) == 1, values_B, difference_B)
    return finite(batch, difference_B)[:, None]


@part("baseline")
def greedy(batch: Batch, rewards: Rewards) -> Array:
    """Reward of the greedy answer (ReMax); of token rewards, what is still to come counts."""
    to_come = rewards.response_B[:, None]
    if rewards.token_BT is not None:
        to_come = discounted(rewards.token_BT, batch.mask_BT, 1.0)
    return np.where(batch.scored_B[:, None], to_come - batch["greedy_reward"][:, None], 0.0)


@part("baseline")
def given(batch: Batch, rewards: Rewards) -> Array:
    """A baseline that comes with the batch: a tracker, a search, a value of the prompt."""
    return np.where(batch.scored_B[:, None], rewards.response_B[:, None] - batch.column("baselines"), 0.0)


@part("baseline")
def pool_mean(batch: Batch, rewards: Rewards) -> Array:
    """Mean reward over every response ever sampled for the prompt (Reinforce-Ada)."""
    return finite(batch, rewards.response_B - batch["pool_mean"])[:, None]


@part("baseline")
def second_best(batch: Batch, rewards: Rewards) -> Array:
    """Only the best response of a group has an advantage: its lead over the second best (pass@k)."""
    advantage_B = np.zeros(batch.shape[0])
    for group in np.unique(batch.group_B):
        rows = np.flatnonzero((batch.group_B == group) & batch.scored_B)
        if len(rows) > 1:
            order = rows[np.argsort(-rewards.response_B[rows], kind="stable")]
            advantage_B[order[0]] = rewards.response_B[order[0]] - rewards.response_B[order[1]]
    return advantage_B[:, None]
