"""Records as an adapter would hand them over, with random contents."""

from dataclasses import replace

import numpy as np

from unipo_hooks.metrics import token_sums
from unipo_hooks.reconcile import gap_of
from unipo_hooks.record import CapturedMicroBatch, CapturedRollout, CapturedUpdate, LeftBehind, RunInfo
from unipo_hooks.schema import Header, Trainer


def decode(ids):
    """A tokenizer of letters: every id is one."""
    return "".join(chr(97 + i % 26) for i in ids)


def run_info(**changes):
    defaults = {
        "header": Header(algorithm="grpo", model_name="letters", dataset="none", totalSteps=1000),
        "trainer": Trainer(library="test", version="1", trainer_class="Test"),
        "decode": decode,
        "reward_names": ("exact", "<b>brevity</b>"),
        "clip_range": (0.8, 1.2),
    }
    return RunInfo(**defaults | changes)


def rollout(number=0, *, rows=8, group_size=4, width=6, seed=None, kind="train", **changes):
    random = np.random.default_rng(number if seed is None else seed)
    length_B = random.integers(1, width + 1, rows)
    valid = np.arange(width) < length_B[:, None]
    reward = random.normal(size=(rows, 2)).astype(np.float32)
    defaults = {
        "kind": kind,
        "rollout": number,
        "step": number + 1,
        "groups": rows // group_size,
        "group_B": np.arange(rows) // group_size,
        "prompts": [np.array([1, 2, 3 + row // group_size]) for row in range(rows)],
        "ids_BT": random.integers(0, 26, (rows, width)),
        "length_B": length_B,
        "mask_BT": valid,
        "reward_B": reward.sum(1),
        "reward_components_BK": reward,
        "channels": {
            "old_log_probs": -random.random((rows, width), np.float32),
            "advantages": random.normal(size=rows).astype(np.float32),
        },
    }
    return CapturedRollout(**defaults | changes)


def update(number, of, *, rows=None, seed=None, micro_batches=1, **changes):
    """An update on a rollout's rows (all of them unless given), in a shuffled order."""
    random = np.random.default_rng(1000 + number if seed is None else seed)
    order = random.permutation(len(of.group_B) if rows is None else rows)
    width = of.ids_BT.shape[1]
    parts = [
        CapturedMicroBatch(
            rollout=of.rollout,
            rows_b=part,
            channels={
                "log_probs": -random.random((len(part), width), np.float32),
                "entropies": random.random((len(part), width), np.float32),
            },
            loss=float(random.normal()),
        )
        for part in np.array_split(order, micro_batches)
    ]
    defaults = {
        "kind": of.kind,
        "update": number,
        "step": number + 1,
        "micro_batches": parts,
        "is_first_step_after_rollout_phase": True,
        "learning_rate": 1e-3,
    }
    return CapturedUpdate(**defaults | changes)


def without(of, groups):
    """A rollout of which only the tokens of these groups were handed over."""
    gone = ~np.isin(of.group_B, groups)
    channels = {name: values.copy() for name, values in of.channels.items()}
    for values in channels.values():
        if values.ndim == 2:
            values[gone] = np.nan
    return replace(
        of,
        handed_over=tuple(groups),
        prompts=[np.zeros(0, int) if g else p for p, g in zip(of.prompts, gone, strict=True)],
        ids_BT=np.where(gone[:, None], 0, of.ids_BT),
        channels=channels,
    )


def handing_over(made, of, groups, run, spec=None):
    """An update that hands over the rows of these groups; what is said of the others is computed where they are."""
    parts = []
    for part in made.micro_batches:
        own = np.isin(of.group_B[part.rows_b], groups)
        rows = part.rows_b[~own]
        mini = replace(
            of,
            **{name: getattr(of, name)[rows] for name in ("group_B", "ids_BT", "length_B", "mask_BT", "reward_B")},
            prompts=[of.prompts[row] for row in rows],
            reward_components_BK=of.reward_components_BK[rows],
            channels={name: values[rows] for name, values in of.channels.items()},
        )
        there = replace(
            part,
            rows_b=np.arange(len(rows)),
            channels={name: values[~own] for name, values in part.channels.items()},
        )
        gap = None if spec is None else gap_of(spec, part, of, made)
        left = LeftBehind(
            rows_b=rows,
            sums=token_sums(there, mini, run),
            gap=None if gap is None else (gap.loss, gap.tolerance),
            width=part.channels["log_probs"].shape[1],
        )
        width = int(of.length_B[part.rows_b[own]].max(initial=0))
        channels = {name: values[own, :width] for name, values in part.channels.items()}
        parts.append(replace(part, rows_b=part.rows_b[own], channels=channels, left_behind=left))
    return replace(made, micro_batches=parts)
