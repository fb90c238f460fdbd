"""A batch with every input there is, for algorithms that need something unusual."""

from __future__ import annotations

from typing import Any

import numpy as np

from unipo_hooks.objective.inputs import INPUTS, Batch, Normalisers

VOCABULARY = 5


def full_arrays(seed: int = 0, B: int = 8, T: int = 7) -> dict[str, Any]:
    """Every input of `INPUTS` as float64 or int64 arrays, consistent with one another.

    Responses end at different places and have holes, as tool output leaves them; none is without a counting token.
    Groups have four responses in a row, the last one what is left. Sources are 0 and 1, a group's last response being
    of source 1. Ratios leave every usual clip range; rewards differ in every group; segments and turns count up.
    """
    rng = np.random.default_rng(seed)
    length_B = rng.integers(max(T - 4, 1), T + 1, B)
    length_B[0] = T
    place_T = np.arange(T)
    mask_BT = (place_T < length_B[:, None]) & (rng.random((B, T)) > 0.2)
    mask_BT[:, 0] = True
    rows_B = np.arange(B)
    group_B = rows_B // 4
    source_B = ((rows_B % 4 == 3) | ((rows_B == B - 1) & (B > 1))).astype(np.int64)

    old_BT = -rng.exponential(0.8, (B, T)) - 0.05
    log_BT = np.minimum(old_BT + rng.normal(0.0, 0.3, (B, T)), -0.02)
    probability_BT = np.exp(old_BT)
    # What is left of the probability lies on one to four further tokens.
    others_BT = rng.integers(1, VOCABULARY, (B, T))
    sum_pi_squared_BT = probability_BT**2 + (1 - probability_BT) ** 2 / others_BT
    entropies_BT = rng.exponential(0.5, (B, T)) + 0.01

    correct_B = (rows_B % 4 < 2).astype(np.float64)
    # Right answers have a reward from 0.8 up, wrong ones one of 0 at most.
    reward_B = np.round(correct_B - rng.uniform(0.0, 0.2, B) * np.where(correct_B > 0, 1.0, 0.5), 3)
    share_BK = rng.uniform(0.0, 1.0, (B, 2))
    components_BK = np.column_stack([reward_B, share_BK[:, 0]])
    segments_BT = np.minimum(np.cumsum(rng.random((B, T)) < 0.4, axis=1), 3)
    segments_BT -= segments_BT[:, :1]
    token_rewards_BT = rng.normal(0.0, 0.1, (B, T)) * mask_BT
    # Token rewards add up to the reward of the response.
    token_rewards_BT[:, 0] += reward_B - token_rewards_BT.sum(1)
    ids_BT = rng.integers(0, VOCABULARY, (B, T))
    # Responses of a group begin alike and part ways.
    ids_BT[:, :2] = ids_BT[group_B * 4, :2]

    arrays: dict[str, Any] = {
        "log_probs": log_BT,
        "mask": mask_BT.astype(np.float64),
        "old_log_probs": old_BT,
        "ref_log_probs": np.minimum(old_BT + rng.normal(0.0, 0.3, (B, T)), -0.01),
        "rollout_log_probs": np.minimum(old_BT + rng.normal(0.0, 0.1, (B, T)), -0.01),
        "augmented_log_probs": np.minimum(log_BT + rng.normal(-0.2, 0.3, (B, T)), -0.01),
        "dpo_log_probs": np.minimum(old_BT + rng.normal(0.1, 0.3, (B, T)), -0.01),
        "entropies": entropies_BT,
        "old_entropies": np.maximum(entropies_BT * rng.uniform(0.9, 1.1, (B, T)), 0.01),
        "sum_pi_squared": sum_pi_squared_BT,
        "values": rng.normal(0.5, 0.3, (B, T)),
        "rewards": token_rewards_BT,
        "ids": ids_BT,
        "reward": reward_B,
        "reward_components": components_BK,
        "reward_weights": np.array([1.0, 0.5]),
        "group": group_B,
        "advantages": rng.normal(0.0, 1.0, B),
        "is_weights": rng.uniform(0.7, 1.4, (B, T)),
        "policy_mask": (rng.random((B, T)) > 0.2).astype(np.float64),
        "selected": (rng.random((B, T)) < 0.15).astype(np.float64),
        "source": source_B,
        "truncated": (length_B == T).astype(np.float64) * (rows_B % 3 == 0),
        "greedy_reward": rng.uniform(0.0, 1.0, B)[group_B],
        "baselines": rng.uniform(0.2, 0.8, B)[group_B],
        "pool_mean": rng.uniform(0.2, 0.8, B)[group_B],
        "pool_std": rng.uniform(0.2, 0.5, B)[group_B],
        "historic_advantages": rng.normal(0.0, 1.0, B),
        "visits": rng.integers(1, 5, B)[group_B],
        "segments": segments_BT,
        "turns": segments_BT // 2,
        "anchors": segments_BT // 2 + group_B[:, None] * 10,
        "token_weights": rng.uniform(0.5, 1.5, (B, T)),
        "planning": (rng.random((B, T)) < 0.3).astype(np.float64),
        "difficulty": rng.uniform(0.0, 1.0, B)[group_B],
        "answers": np.where(correct_B > 0, 0, 1 + rows_B % 2),
    }
    lacking = INPUTS.keys() - arrays.keys()
    if lacking:
        raise AssertionError(f"tests/objective/batches.py lacks {', '.join(sorted(lacking))}")
    return arrays


def full_batch(
    seed: int = 0,
    B: int = 8,
    T: int = 7,
    *,
    normalisers: Normalisers | None = None,
    without: tuple[str, ...] = ("rewards",),
    **changes: Any,
) -> Batch:
    """A batch of `full_arrays`, some of them left out or replaced.

    Token rewards are left out unless asked for (`without=()`): where they are there they replace the scalar reward of
    parts that can use either.
    """
    arrays = {name: values for name, values in full_arrays(seed, B, T).items() if name not in without}
    return Batch(normalisers=normalisers, **(arrays | changes))
