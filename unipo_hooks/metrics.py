"""Metrics of one update under UNIPO's names, as sums that merge over ranks by adding.

Every metric is `(sum, count, sum of squares)`: its mean is sum / count. Losses count once a data-parallel rank, so that
their mean is the data-parallel mean. Deviations named in `channels.DEVIATIONS` are not stored: readers take them from
these sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from unipo_hooks.record import Array, CapturedMicroBatch, CapturedRollout, CapturedUpdate, RunInfo, Sums

LARGEST = float(np.finfo(np.float64).max)

KL_IN_REWARD = ("sequence_kl_penalty", "token_kl_penalty")
"""Parts that put the divergence into the reward: log π_old/π_ref of each token is then what `kl` is the mean of."""


def update_sums(update: CapturedUpdate, rollouts: Mapping[int, CapturedRollout], run: RunInfo) -> Sums:
    """Sums of every metric of an update on this rank, or on the data-parallel ranks it speaks for.

    `rollouts` holds each rollout the update trains on. Rewards, lengths and group statistics are those of whole
    rollouts; advantages those of the update's responses; the rest those of its tokens that count, those of rows left
    behind included.
    """
    parts = [token_sums(m, rollouts[m.rollout], run) for m in update.micro_batches]
    parts += [m.left_behind.sums for m in update.micro_batches if m.left_behind is not None]
    parts += [_sums_of(_rollout_samples(rollouts[number], run.rank)) for number in update.rollouts]
    sums: Sums = {}
    for part in parts:
        for name, values in part.items():
            sums[name] = values if name not in sums else _added(sums[name], values)
    for name, losses in (
        ("policy_loss", [(m.rank, m.policy_loss) for m in update.micro_batches]),
        ("total_loss", [(m.rank, m.loss) for m in update.micro_batches]),
    ):
        known = [(rank, loss) for rank, loss in losses if loss is not None]
        if len(known) == len(losses):
            ranks = sorted({rank for rank, _ in known})
            sums[name] = _sums(np.array([sum(loss for of, loss in known if of == rank) for rank in ranks]))
    if "policy_loss" in sums:
        total, count, squares = sums["policy_loss"]
        sums["policy_objective"] = (-total, count, squares)
    return sums


def token_sums(micro_batch: CapturedMicroBatch, rollout: CapturedRollout, run: RunInfo) -> Sums:
    """What the handed-over rows of a forward pass add to the metrics of their update; losses are not among it.

    Of rows that stay where they were computed, these are the sums that go into `LeftBehind`: `rollout` then holds
    those rows alone, and `micro_batch.rows_b` are their places in it.
    """
    return _sums_of(_token_samples(micro_batch, rollout, run))


def log_ratios(micro_batch: CapturedMicroBatch, rollout: CapturedRollout) -> tuple[Array, Array]:
    """(b, T) log π_θ/π_old, 0 where a token does not count, and the (b, T) booleans of those that do.

    A token that counts but whose log-prob is not finite is left out of both. Where nobody knows the old log-probs there
    is no ratio: NaN, and no token.
    """
    log_probs = micro_batch.channels["log_probs"]
    width = min(log_probs.shape[1], rollout.mask_BT.shape[1])
    rows = micro_batch.rows_b
    counted = rollout.mask_BT[rows, :width] > 0
    old = _old_log_probs(rollout)
    if old is None:
        if rollout.aliases.get("old_log_probs") != "log_probs":  # not known: no ratio is better than a ratio of 1
            return np.full((len(rows), width), np.nan), np.zeros_like(counted)
        return np.zeros((len(rows), width)), counted & np.isfinite(log_probs[:, :width])
    ratio = log_probs[:, :width].astype(np.float64) - old[rows, :width]
    counted &= np.isfinite(ratio)
    return np.where(counted, ratio, 0.0), counted


def _token_samples(
    micro_batch: CapturedMicroBatch, rollout: CapturedRollout, run: RunInfo
) -> Iterable[tuple[str, Array]]:
    log_ratio, known = log_ratios(micro_batch, rollout)
    width = known.shape[1]
    counted = rollout.mask_BT[micro_batch.rows_b, :width] > 0
    advantages = rollout.channels.get("advantages")
    advantages = None if advantages is None else advantages[micro_batch.rows_b]
    unit = known if run.ratio_level == "token" else known.any(1, keepdims=True)
    if run.ratio_level != "token":
        log_ratio = log_ratio.sum(1, keepdims=True)
    if run.ratio_level == "sequence":
        log_ratio = log_ratio / np.maximum(known.sum(1, keepdims=True), 1)
    with np.errstate(over="ignore"):
        ratio = np.exp(log_ratio)
    yield "importance_sampling_ratio", ratio[unit]
    if advantages is not None:
        yield "advantage_mean", advantages if advantages.ndim == 1 else advantages[:, :width][counted]
    if advantages is not None and run.clip_range is not None:
        per_row = advantages[:, None] if advantages.ndim == 1 else advantages[:, : ratio.shape[1]]
        low, high = run.clip_range
        below = (ratio < low) & (per_row < 0)
        above = (ratio > high) & (per_row > 0)
        # TRL counts every response where the ratio is one a response, also those without a token that counts.
        clippable = unit if run.ratio_level == "token" else ~np.isnan(ratio)
        yield "clip_fraction_low", below[clippable]
        yield "clip_fraction_high", above[clippable]
        yield "clip_fraction", (below | above)[clippable]
    entropies, token_kl = (micro_batch.channels.get(name) for name in ("entropies", "token_kl"))
    if entropies is not None:
        yield "entropy", entropies[:, :width][counted]
    old, reference = _old_log_probs(rollout), rollout.channels.get("ref_log_probs")
    if token_kl is not None:
        yield "kl", token_kl[:, :width][counted]
    elif old is not None and reference is not None and _penalises_in_the_reward(run):
        yield "kl", (old - reference)[micro_batch.rows_b, :width][counted]


def _old_log_probs(rollout: CapturedRollout) -> Array | None:
    """(B, T) as captured, or those of the channel they equal; None where nobody knows them before the update."""
    alias = rollout.aliases.get("old_log_probs", "old_log_probs")
    return rollout.channels.get("old_log_probs", rollout.channels.get(alias))


def _penalises_in_the_reward(run: RunInfo) -> bool:
    """Whether the divergence is part of the reward, of its response or of its token, and so fixed at the rollout."""
    spec = run.algorithm
    return spec is not None and any(use.part in KL_IN_REWARD for use in spec.parts.reward)


def _rollout_samples(rollout: CapturedRollout, rank: int) -> Iterable[tuple[str, Array]]:
    yield "reward", rollout.reward_B
    reason_BT = rollout.mask_reason_BT
    # A tool's tokens are not the policy's, and not on the trainer's own chart.
    yield "response_length", rollout.length_B - (0 if reason_BT is None else (reason_BT == 1).sum(1))
    stds = group_stds(*_own_groups(rollout, rank))
    yield "group_reward_std", stds
    yield "zero_std_groups", np.where(np.isnan(stds), np.nan, np.isclose(stds, 0.0))


def _own_groups(rollout: CapturedRollout, rank: int) -> tuple[Array, Array]:
    """Rewards and groups of the responses whose groups count here: whole ones, of which each begins on one rank."""
    if rollout.reward_R is None:
        return rollout.reward_B, rollout.group_B
    group_R = np.arange(len(rollout.reward_R)) * rollout.groups // len(rollout.reward_R)
    first_R = np.searchsorted(group_R, group_R)
    rows = len(rollout.group_B)
    own_R = (first_R >= rank * rows) & (first_R < (rank + 1) * rows)
    return rollout.reward_R[own_R], group_R[own_R]


def group_stds(reward_B: Array, group_B: Array) -> Array:
    """Unbiased standard deviation of the reward inside each group present; NaN for fewer than two scored responses."""
    stds = []
    for group in np.unique(group_B):
        scored = reward_B[(group_B == group) & np.isfinite(reward_B)]
        stds.append(np.std(scored, ddof=1) if len(scored) > 1 else np.nan)
    return np.array(stds, np.float64)


def _sums_of(samples: Iterable[tuple[str, Array]]) -> Sums:
    return {name: _sums(values) for name, values in samples}


def _added(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float, float]:
    """Two parts of a metric together; squares stay a number JSON has."""
    return a[0] + b[0], a[1] + b[1], min(a[2] + b[2], LARGEST)


def _sums(values: Array) -> tuple[float, float, float]:
    values = values[np.isfinite(values)].astype(np.float64)
    with np.errstate(over="ignore"):
        squares = np.square(values).sum()
    return float(values.sum()), float(len(values)), float(min(squares, LARGEST))
