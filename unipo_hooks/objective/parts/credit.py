"""Baselines that give every token, segment or turn an advantage of its own: credit assignment.

They fill the same slot as those of `baseline`, and treat what is not finite or not scored in the same way.
"""

from __future__ import annotations

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch
from unipo_hooks.objective.parts.groups import centred, finite, group_std_of
from unipo_hooks.objective.parts.types import Rewards, part


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
