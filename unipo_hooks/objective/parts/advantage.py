"""Advantage: what a reward is compared with (baseline), and what the difference is divided by (scale).

A response without a finite reward has advantage 0 and is left out of every mean and deviation. A group whose rewards
are all equal has advantage exactly 0 under a centred baseline: rounding is never divided by a small deviation.
`singleton` says what a group of one compares with: `self`, its own reward, so that it teaches nothing, or `zero`, as
verl does.
"""

from __future__ import annotations

from math import lgamma

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.types import Rewards, part


def group_sum(batch: Batch, values_B: Array) -> Array:
    """(B,) sum of a value over the response's group; what has no reward must be 0 already."""
    sums: Array = np.bincount(batch.group_B, values_B)[batch.group_B]
    return sums


def group_count(batch: Batch) -> Array:
    """(B,) responses with a finite reward in the response's group."""
    return group_sum(batch, batch.scored_B.astype(np.float64))


def finite(batch: Batch, values_B: Array) -> Array:
    """(B,) values, 0 where the response has no finite reward."""
    return np.where(batch.scored_B, values_B, 0.0)


def centred(batch: Batch, values_B: Array, singleton: str) -> Array:
    """(B,) value − mean of its group."""
    values_B = finite(batch, values_B)
    count_B = group_count(batch)
    mean_B = group_sum(batch, values_B) / np.maximum(count_B, 1)
    difference_B = np.where(_all_equal(batch, values_B), 0.0, values_B - mean_B)
    if singleton == "zero":
        difference_B = np.where(count_B == 1, values_B, difference_B)
    return finite(batch, difference_B)


def _differ(values: Array) -> bool:
    """Whether there are two values that are not the same."""
    return bool(len(values)) and bool(values.max() > values.min())


def _all_equal(batch: Batch, values_B: Array) -> Array:
    group_B, scored_B = batch.group_B, batch.scored_B
    groups = int(group_B.max(initial=-1)) + 1
    highest, lowest = np.full(groups, -np.inf), np.full(groups, np.inf)
    np.maximum.at(highest, group_B[scored_B], values_B[scored_B])
    np.minimum.at(lowest, group_B[scored_B], values_B[scored_B])
    equal: Array = (highest <= lowest)[group_B]
    return equal


def group_std_of(batch: Batch, values_B: Array, ddof: int, singleton: str) -> Array:
    """(B,) standard deviation of a value inside its group; a group too small for it has 0, or 1 as in verl."""
    count_B = group_count(batch)
    difference_B = centred(batch, values_B, "self")
    variance_B = group_sum(batch, difference_B**2) / np.maximum(count_B - ddof, 1)
    return np.where((count_B <= 1) & (singleton == "zero"), 1.0, np.sqrt(variance_B))


# --- baseline: (batch, rewards) -> advantages ----------------------------------------------------------------------


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
    if not _differ(values_B[batch.scored_B]):
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
    difference_B = np.where(_all_equal(batch, values_B), 0.0, values_B - mean_B)
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


@part("baseline")
def return_to_go(batch: Batch, rewards: Rewards, *, gamma: float) -> Array:
    """Discounted sum of the token rewards from here on; tokens that do not count are stepped over."""
    return discounted(rewards.per_token(batch), batch.mask_BT, gamma)


def discounted(rewards_BT: Array, mask_BT: Array, gamma: float) -> Array:
    """(B, T) Σ γ^k r over the tokens that count from each position on."""
    running_B = np.zeros(len(rewards_BT))
    # A position's values lie side by side, which makes the walk over positions twice as fast.
    rewards_TB, counts_TB = np.ascontiguousarray(rewards_BT.T), np.ascontiguousarray(mask_BT.T > 0)
    returns_TB = np.zeros_like(rewards_TB)
    for t in reversed(range(len(rewards_TB))):
        running_B = np.where(counts_TB[t], rewards_TB[t] + gamma * running_B, running_B)
        returns_TB[t] = running_B
    return np.ascontiguousarray(np.where(counts_TB, returns_TB, 0.0).T)


@part("baseline")
def gae(batch: Batch, rewards: Rewards, *, gamma: float, lam: float) -> Array:
    """Generalised advantage estimation with the critic's values (arXiv 1506.02438)."""
    return generalised(rewards.per_token(batch), batch["values"], batch.mask_BT, gamma, lam)


def generalised(rewards_BT: Array, values_BT: Array, mask_BT: Array, gamma: float, lam: float) -> Array:
    """(B, T) Σ (γλ)^k δ; tokens that do not count are stepped over."""
    next_value_B, running_B = np.zeros(len(rewards_BT)), np.zeros(len(rewards_BT))
    rewards_TB, values_TB = np.ascontiguousarray(rewards_BT.T), np.ascontiguousarray(values_BT.T)
    counts_TB = np.ascontiguousarray(mask_BT.T > 0)
    advantages_TB = np.zeros_like(rewards_TB)
    for t in reversed(range(len(rewards_TB))):
        counts_B, value_B = counts_TB[t], values_TB[t]
        running_B = np.where(
            counts_B, rewards_TB[t] + gamma * next_value_B - value_B + gamma * lam * running_B, running_B
        )
        next_value_B = np.where(counts_B, value_B, next_value_B)
        advantages_TB[t] = running_B
    return np.ascontiguousarray(np.where(counts_TB, advantages_TB, 0.0).T)


@part("baseline")
def macro_gae(batch: Batch, rewards: Rewards, *, gamma: float, lam: float) -> Array:
    """GAE over macro actions: a segment's tokens share one advantage, with its tokens' mean value (MA-RLHF)."""
    rows, _ = batch.shape
    segments_BT = batch["segments"].astype(np.int64)
    count = int(segments_BT.max(initial=0)) + 1
    rewards_BT = rewards.per_token(batch)

    def per_segment(values_BT: Array) -> Array:
        flat = (np.arange(rows)[:, None] * count + segments_BT).ravel()
        sums = np.bincount(flat, (values_BT * batch.mask_BT).ravel(), rows * count)
        reshaped: Array = sums.reshape(rows, count)
        return reshaped

    size_BS = per_segment(np.ones(batch.shape))
    values_BS = per_segment(batch["values"]) / np.maximum(size_BS, 1)
    advantages_BS = generalised(per_segment(rewards_BT), values_BS, size_BS, gamma, lam)
    return np.take_along_axis(advantages_BS, segments_BT, axis=1) * batch.mask_BT


@part("baseline")
def optimal_token(batch: Batch, rewards: Rewards, *, by: str, zero_tail: bool, eps: float) -> Array:
    """Return minus the group's mean return at the same position, weighted by Σ(1 − 2q + Σπ²) (optimal token baseline).

    `by` is `position`, or `count` to compare the n-th counting token of each response where tool output lies between.
    """
    mask_BT = batch.mask_BT
    returns_BT = np.cumsum((rewards.per_token(batch) * mask_BT)[:, ::-1], axis=1)[:, ::-1]
    weight_BT = 1 - 2 * np.exp(batch["old_log_probs"]) + batch["sum_pi_squared"]
    if "is_weights" in batch:
        weight_BT = weight_BT * batch.column("is_weights") ** 2
    weight_BT = np.cumsum(weight_BT * mask_BT, axis=1)
    # By count: what counts is moved to the front, compared there, and moved back.
    order_BT = np.argsort(mask_BT == 0, axis=1, kind="stable") if by == "count" else None

    def front(values_BT: Array) -> Array:
        return values_BT if order_BT is None else np.take_along_axis(values_BT, order_BT, axis=1)

    R_BT, W_BT, m_BT = front(returns_BT), front(weight_BT), front(mask_BT)
    baseline_BT = np.zeros_like(R_BT)
    for group in np.unique(batch.group_B):
        rows = np.flatnonzero((batch.group_B == group) & ((m_BT.any(1)) if by == "count" else True))
        if len(rows) < 2:
            continue
        weights = W_BT[rows] * m_BT[rows]
        baseline_BT[rows] = (R_BT[rows] * weights).sum(0) / (weights.sum(0) + eps)
        lengths = m_BT[rows].sum(1)
        longest, second = np.sort(lengths)[::-1][:2]
        if zero_tail and longest > second:
            baseline_BT[rows[np.argmax(lengths)], int(second) :] = 0.0
    advantages_BT = np.zeros_like(returns_BT)
    if order_BT is None:
        advantages_BT = R_BT - baseline_BT
    else:
        np.put_along_axis(advantages_BT, order_BT, R_BT - baseline_BT, axis=1)
    return advantages_BT * mask_BT


@part("baseline")
def segment_values(batch: Batch, rewards: Rewards) -> Array:
    """V(end of the segment) − V(its start), the values estimated by sampling on from there (SPO).

    `values` holds V at the segment's start on each of its tokens; the last segment ends at the reward.
    """
    segments_BT = batch["segments"].astype(np.int64)
    values_BT, mask_BT = batch["values"], batch.mask_BT > 0
    advantages_BT = np.zeros(batch.shape)
    next_B = np.where(batch.scored_B, rewards.response_B, 0.0)
    current_B, segment_B = next_B.copy(), np.full(batch.shape[0], -1)
    for t in reversed(range(batch.shape[1])):
        counts_B = mask_BT[:, t]
        enters_B = counts_B & (segments_BT[:, t] != segment_B)
        next_B = np.where(enters_B, current_B, next_B)
        segment_B = np.where(enters_B, segments_BT[:, t], segment_B)
        current_B = np.where(counts_B, values_BT[:, t], current_B)
        advantages_BT[:, t] = np.where(counts_B, next_B - values_BT[:, t], 0.0)
    return advantages_BT


@part("baseline")
def turn_leave_one_out(batch: Batch, rewards: Rewards, *, gamma: float, singleton: str) -> Array:
    """Return from a turn on, minus the mean of the group's other responses at the same turn (TRLOO)."""
    returns_BN, present_BN, turns_BT = _turn_returns(batch, rewards, gamma)
    advantages_BN = np.zeros_like(returns_BN)
    for group in np.unique(batch.group_B):
        rows = (batch.group_B == group)[:, None] & present_BN
        count_N = rows.sum(0)
        total_N = (returns_BN * rows).sum(0)
        others = (total_N - returns_BN) / np.maximum(count_N - 1, 1)
        alone_BN = returns_BN if singleton == "zero" else np.zeros_like(returns_BN)
        advantages_BN = np.where(rows, np.where(count_N > 1, returns_BN - others, alone_BN), advantages_BN)
    return np.take_along_axis(advantages_BN, turns_BT, axis=1) * batch.mask_BT


@part("baseline")
def normalised_turn_returns(batch: Batch, rewards: Rewards, *, gamma: float, eps: float, variance_eps: float) -> Array:
    """Turn rewards normalised inside the group, then their discounted sum over the turns to come (IGPO)."""
    turns_BT = batch["turns"].astype(np.int64)
    rewards_BN, present_BN = _per_turn(batch, rewards.per_token(batch), turns_BT)
    normal_BN = np.zeros_like(rewards_BN)
    for group in np.unique(batch.group_B):
        rows = (batch.group_B == group)[:, None] & present_BN
        values = rewards_BN[rows]
        if len(values) and values.max() > values.min():
            deviation = np.sqrt(values.var() + variance_eps) + eps
            normal_BN = np.where(rows, (rewards_BN - values.mean()) / deviation, normal_BN)
    returns_BN = discounted(normal_BN, present_BN.astype(np.float64), gamma)
    return np.take_along_axis(returns_BN, turns_BT, axis=1) * batch.mask_BT


def _per_turn(batch: Batch, values_BT: Array, turns_BT: Array) -> tuple[Array, Array]:
    rows, count = batch.shape[0], int(turns_BT.max(initial=0)) + 1
    flat = (np.arange(rows)[:, None] * count + turns_BT).ravel()
    sums = np.bincount(flat, (values_BT * batch.mask_BT).ravel(), rows * count).reshape(rows, count)
    present = np.bincount(flat, batch.mask_BT.ravel(), rows * count).reshape(rows, count) > 0
    return sums, present


def _turn_returns(batch: Batch, rewards: Rewards, gamma: float) -> tuple[Array, Array, Array]:
    turns_BT = batch["turns"].astype(np.int64)
    rewards_BN, present_BN = _per_turn(batch, rewards.per_token(batch), turns_BT)
    return discounted(rewards_BN, present_BN.astype(np.float64), gamma), present_BN, turns_BT


@part("baseline")
def episode_and_step(
    batch: Batch, rewards: Rewards, *, gamma: float, step_weight: float, normalise: bool, eps: float
) -> Array:
    """Group advantage of the episode plus that of each step among steps from the same state (GiGPO)."""
    episode_B = centred(batch, rewards.response_B, "self")
    if normalise:
        episode_B = episode_B / (group_std_of(batch, rewards.response_B, 1, "self") + eps)
    returns_BN, present_BN, turns_BT = _turn_returns(batch, rewards, gamma)
    anchors_BT = batch["anchors"].astype(np.int64)
    anchors_BN = np.zeros(returns_BN.shape, np.int64)
    counted = np.nonzero(batch.mask_BT)
    anchors_BN[counted[0], turns_BT[counted]] = anchors_BT[counted]
    step_BN = np.zeros_like(returns_BN)
    for group in np.unique(batch.group_B):
        rows = (batch.group_B == group)[:, None] & present_BN
        for anchor in np.unique(anchors_BN[rows]):
            same = rows & (anchors_BN == anchor)
            values = returns_BN[same]
            deviation = values.std(ddof=1) if len(values) > 1 else 0.0
            scale = deviation + eps if normalise else 1.0
            step_BN[same] = (values - values.mean()) / scale
    step_BT = np.take_along_axis(step_BN, turns_BT, axis=1)
    return (episode_B[:, None] + step_weight * step_BT) * batch.mask_BT


@part("baseline")
def budget_relative(batch: Batch, rewards: Rewards, *, growth: float) -> Array:
    """Mean return of the budgets still to come minus a baseline mixed from past budgets and the group (BRPO).

    A segment is the part of a response between two budgets; `rewards` holds, on a segment's last token, the score an
    answer at that budget gets. A response that ended early would give its last answer at the later budgets too.
    """
    segments_BT = batch["segments"].astype(np.int64)
    scores_BS, present_BS = _per_turn(batch, rewards.per_token(batch), segments_BT)
    S = scores_BS.shape[1]
    last_BS = np.maximum.accumulate(np.where(present_BS, np.arange(S), 0), axis=1)
    scores_BS = np.take_along_axis(scores_BS, last_BS, axis=1)
    to_come_BS = np.cumsum(scores_BS[:, ::-1], axis=1)[:, ::-1] / S
    # Of the past, a later budget says more: it weighs `growth` times as much as the one before.
    weight_S = growth ** np.arange(S)
    before_S = np.cumsum(weight_S) - weight_S
    past_BS = (np.cumsum(scores_BS * weight_S, axis=1) - scores_BS * weight_S) / np.where(before_S > 0, before_S, 1.0)
    advantages_BS = np.zeros_like(scores_BS)
    s = np.arange(S)
    for group in np.unique(batch.group_B[batch.scored_B]):
        rows = np.flatnonzero((batch.group_B == group) & batch.scored_B)
        own = to_come_BS[rows]
        baseline = (s * past_BS[rows] * (S - s) / S + (S - s) * own.mean(0, keepdims=True)) / S
        advantages_BS[rows] = own - baseline
    return np.take_along_axis(advantages_BS, segments_BT, axis=1) * batch.mask_BT


@part("baseline")
def prefix_tree(batch: Batch, rewards: Rewards, *, eps: float, td_weight: float) -> Array:
    """Group-normalised reward plus a correction where responses of a group part ways (TEMPO).

    V(prefix) is the mean reward of the responses that begin with it; the correction at a token is V after − V before.
    """
    base_B = centred(batch, rewards.response_B, "self") / (group_std_of(batch, rewards.response_B, 1, "self") + eps)
    ids, mask = batch["ids"].astype(np.int64), batch.mask_BT > 0
    correction_BT = np.zeros(batch.shape)
    values_B = finite(batch, rewards.response_B)
    for group in np.unique(batch.group_B[batch.scored_B]):
        rows = np.flatnonzero((batch.group_B == group) & batch.scored_B)
        nodes: dict[tuple[int, ...], list[int]] = {(): rows.tolist()}
        while nodes:
            following: dict[tuple[int, ...], list[int]] = {}
            for prefix, members in nodes.items():
                before = values_B[members].mean()
                children: dict[int, list[int]] = {}
                for row in members:
                    if len(prefix) < ids.shape[1] and mask[row, len(prefix)]:
                        children.setdefault(int(ids[row, len(prefix)]), []).append(int(row))
                for token, below in children.items():
                    if len(children) > 1:
                        correction_BT[below, len(prefix)] = values_B[below].mean() - before
                    if len(below) > 1:
                        following[(*prefix, token)] = below
            nodes = following
    return (base_B[:, None] + td_weight * correction_BT) * batch.mask_BT


# --- scale: (batch, rewards, advantages) -> advantages --------------------------------------------------------------


@part("scale")
def group_std(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float, ddof: int, singleton: str) -> Array:
    """Standard deviation of the group's rewards, plus ε."""
    deviation_B = group_std_of(batch, rewards.response_B, ddof, singleton) + eps
    return np.divide(advantages, deviation_B[:, None], out=np.zeros_like(advantages), where=deviation_B[:, None] > 0)


@part("scale")
def token_weighted_std(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float, limit: float | None) -> Array:
    """Standard deviation of the group's rewards, a response counting once a token, plus ε (HAPO).

    A group in which an advantage reaches the limit gets that of GRPO instead: centred by its mean, divided by its
    deviation plus ε.
    """
    values_B = finite(batch, rewards.response_B)
    length_B = batch.mask_BT.sum(1) * batch.scored_B
    total_B = np.maximum(group_sum(batch, length_B), 1e-300)
    mean_B = group_sum(batch, values_B * length_B) / total_B
    difference_B = np.where(_all_equal(batch, values_B), 0.0, values_B - mean_B)
    deviation_B = np.sqrt(group_sum(batch, np.square(difference_B) * length_B) / total_B) + eps
    scaled = np.divide(advantages, deviation_B[:, None], out=np.zeros_like(advantages), where=deviation_B[:, None] > 0)
    if limit is None:
        return scaled
    reaches_BT = (np.abs(scaled) >= limit) & (batch.mask_BT > 0)
    extreme_B = group_sum(batch, np.asarray(reaches_BT.any(1), np.float64)) > 0
    plain_B = centred(batch, values_B, "self") / (group_std_of(batch, values_B, 1, "self") + max(eps, 1e-300))
    return np.where(extreme_B[:, None], plain_B[:, None], scaled)


@part("scale")
def batch_std_of_rewards(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float) -> Array:
    """Standard deviation of all rewards of the batch, plus ε."""
    values = rewards.response_B[batch.scored_B]
    deviation = (values.std(ddof=1) if len(values) > 1 else 0.0) + eps
    return advantages / deviation if deviation > 0 else np.zeros_like(advantages)


@part("scale")
def batch_whiten(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float) -> Array:
    """Minus the batch's mean advantage, divided by its standard deviation, plus ε; over responses."""
    scored = batch.scored_B
    values = advantages[scored, 0]
    if not len(values):
        return advantages
    if not _differ(values):
        return np.zeros_like(advantages)
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    whitened = (advantages - values.mean()) / (deviation + eps) if deviation + eps > 0 else np.zeros_like(advantages)
    return np.where(scored[:, None], whitened, 0.0)


@part("scale")
def token_whiten(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float, eps_on: str, ddof: int) -> Array:
    """Minus the mean over all tokens, divided by √(variance + ε) or by the deviation + ε; long responses count more."""
    mask_BT = batch.mask_BT * batch.scored_B[:, None]
    count = mask_BT.sum()
    if count < 2 or not _differ(np.broadcast_to(advantages, batch.shape)[mask_BT > 0]):
        return np.zeros(batch.shape)
    mean = (advantages * mask_BT).sum() / count
    variance = (np.square(advantages - mean) * mask_BT).sum() / (count - ddof)
    divisor = np.sqrt(variance + eps) if eps_on == "variance" else np.sqrt(variance) + eps
    if not divisor > 0:
        return np.zeros(batch.shape)
    whitened: Array = (advantages - mean) / divisor * mask_BT
    return whitened


@part("scale")
def group_mean_reward(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float) -> Array:
    """Mean reward of the group plus ε (MaxRL)."""
    mean_B = group_sum(batch, finite(batch, rewards.response_B)) / np.maximum(group_count(batch), 1) + eps
    return np.divide(advantages, mean_B[:, None], out=np.zeros_like(advantages), where=mean_B[:, None] != 0)


@part("scale")
def share_with_reward(batch: Batch, rewards: Rewards, advantages: Array, *, divisor: float) -> Array:
    """Share of responses whose reward is not 0, times a constant (GPG as in verl)."""
    nonzero = np.count_nonzero(finite(batch, rewards.response_B))
    return advantages * len(batch.scored_B) / max(nonzero, 1) / divisor


@part("scale")
def share_with_signal(batch: Batch, rewards: Rewards, advantages: Array, *, divisor: float) -> Array:
    """Share of responses in a group whose rewards differ, times a constant (GPG as in its paper)."""
    alive = np.count_nonzero(~_all_equal(batch, finite(batch, rewards.response_B)))
    return advantages * len(batch.scored_B) / max(alive, 1) / divisor


@part("scale")
def beta_density(batch: Batch, rewards: Rewards, advantages: Array, *, limit: float) -> Array:
    """Density of a Beta distribution fitted to the batch's success rates (BNPO)."""
    values_B = finite(batch, rewards.response_B)
    _, first = np.unique(batch.group_B, return_index=True)
    rate_B = group_sum(batch, values_B) / np.maximum(group_count(batch), 1)
    rates = rate_B[first]
    mean, variance = rates.mean(), rates.var(ddof=1) if len(rates) > 1 else 0.0
    common = mean * (1 - mean) / variance - 1 if variance > 0 else 0.0
    a, b = (max(mean * common, 0.0), max((1 - mean) * common, 0.0)) if common > 0 else (0.0, 0.0)
    alpha, beta = max(1 + a / 3, 1.0), max(1 + b / 3, 1.0)
    inside_B = np.clip(rate_B, 1e-12, 1 - 1e-12)
    log_density_B = (alpha - 1) * np.log(inside_B) + (beta - 1) * np.log(1 - inside_B) - _log_beta(alpha, beta)
    scale_B = np.minimum(np.exp(-log_density_B), limit)
    return advantages * scale_B[:, None]


def _log_beta(alpha: float, beta: float) -> float:
    return lgamma(alpha) + lgamma(beta) - lgamma(alpha + beta)


@part("scale")
def pool_std(batch: Batch, rewards: Rewards, advantages: Array, *, eps: float) -> Array:
    """Standard deviation of every reward ever seen for the prompt, plus ε (Reinforce-Ada)."""
    return advantages / (batch["pool_std"][:, None] + eps)


@part("scale")
def constant(batch: Batch, rewards: Rewards, advantages: Array, *, divisor: float) -> Array:
    """A constant."""
    return advantages / divisor
