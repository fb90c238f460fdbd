"""Runs that are captured while the witness watches, and both of them as rows that can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unipo_hooks import open_bundle
from unipo_hooks.bundle.reader import Bundle
from verl_cpu import witness
from verl_cpu.plugin import TOOL
from verl_cpu.runs import Run, main_ppo
from verl_cpu.settings import CRITIC

ACTOR = "actor_rollout_ref.actor."
EPOCHS, EVERY = 2, range(1 << 20)
"""Of the harness's settings; and all updates there may be."""

CHANNELS = {
    "old_log_probs": "old_log_probs",
    "rollout_log_probs": "rollout_log_probs",
    "ref_log_prob": "ref_log_probs",
    "advantages": "advantages",
    "values": "values",
    "returns": "returns",
    "rewards": "rewards",
}
"""What a row of the driver has → the channel it is."""

SAID, VERSIONS = ("score", "acc", "digits"), ("min_global_steps", "max_global_steps")

ALWAYS = frozenset({"ids", "strings", "mask", "old_log_probs", "rollout_log_probs", "log_probs", "advantages"})
ALWAYS |= {"rewards", "reward", "reward_components"}


@dataclass(frozen=True)
class Setup:
    """Settings of a run, and what is to be expected of it."""

    overrides: tuple[str, ...] = ()
    starts: tuple[int, ...] = (2,)
    """The step at which each start of the trainer ends; a second one resumes."""
    ranks: int = 1
    prompts: int = 8
    has: frozenset[str] = frozenset()
    """Channels beside those every run has."""
    clip: tuple[float, float] = (0.8, 1.2)
    sequence: bool = False
    """Whether a response has one ratio."""

    @property
    def steps(self) -> int:
        """Steps of all starts."""
        return self.starts[-1]

    @property
    def updates_a_step(self) -> int:
        """Epochs × mini-batches of four prompts, padded to a whole number of them."""
        return EPOCHS * -(-self.prompts // 4)


SETUPS = {
    "grpo": Setup(),
    "gae": Setup(
        (
            *CRITIC,
            f"{ACTOR}use_kl_loss=True",
            f"{ACTOR}policy_loss.loss_mode=gspo",
            f"{ACTOR}entropy_coeff=0.01",
            f"{ACTOR}loss_agg_mode=seq-mean-token-mean",
        ),
        has=frozenset({"ref_log_probs", "values", "returns", "entropies"}),
        sequence=True,
    ),
    # Six prompts are padded to two mini-batches; padding is 128 tokens long.
    "ranks": Setup(
        (
            "data.train_batch_size=6",
            f"{ACTOR}use_dynamic_bsz=True",
            f"{ACTOR}ppo_max_token_len_per_gpu=200",
            "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True",
            "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=400",
            "+unipo.max_groups=2",
        ),
        ranks=2,
        prompts=6,
    ),
    "v0": Setup(
        (
            "trainer.use_v1=False",
            f"{ACTOR}clip_ratio_high=0.28",
            "algorithm.use_kl_in_reward=True",
            "trainer.save_freq=1",
            "trainer.resume_mode=auto",
        ),
        starts=(1, 2),
        has=frozenset({"ref_log_probs"}),
        clip=(0.8, 1.28),
    ),
    "colocate": Setup(
        (
            "trainer.v1.trainer_mode=colocate_async",
            "algorithm.adv_estimator=rloo",
            f"{ACTOR}policy_loss.loss_mode=cispo",
            f"actor_rollout_ref.rollout.agent.default_agent_loop={TOOL}",
        ),
        has=frozenset({"mask_reason"}),
    ),
}


@dataclass(frozen=True)
class Row:
    """A response as verl has it."""

    uid: str
    prompt: np.ndarray
    tokens: Mapping[str, np.ndarray]
    """verl's name → (T,), without padding."""
    said: Mapping[str, Any]
    """Its data source, what the reward function said, and the steps whose weights sampled its first and last token."""

    @property
    def mark(self) -> tuple[str, bytes, bytes]:
        """What tells it apart. Two samples of a prompt that are token for token the same may share it."""
        return self.uid, self.tokens["responses"].tobytes(), self.tokens["old_log_probs"].tobytes()

    @property
    def score(self) -> float:
        """The sum of what its tokens were scored."""
        return float(self.tokens["scores"].sum())


def rows_of(columns: Mapping[str, Any]) -> list[Row]:
    """The rows of a batch of either trainer, in its order, without those that only fill it up."""
    jagged = isinstance(columns["responses"], tuple)
    count, width = len(columns["uid"]), 0 if jagged else columns["responses"].shape[1]
    scores = columns.get("token_level_scores", columns.get("rm_scores"))
    named = {**columns, "scores": scores, "rewards": columns.get("token_level_rewards", scores)}
    of_tokens = ["responses", "response_mask", "log_probs", "scores", *CHANNELS]
    rows = []
    for i in range(count):
        if columns["uid"][i].startswith("pad"):
            continue
        if jagged:
            length, prompt = len(columns["responses"][i]), columns["prompts"][i]
        else:
            attended = columns["attention_mask"][i] > 0
            length, prompt = int(attended[-width:].sum()), columns["prompts"][i][attended[:-width]]
        tokens = {name: named[name][i][:length] for name in of_tokens if named.get(name) is not None}
        # Of V1 what a reward function and a sampler say lies together; of V0 in columns.
        said = json.loads(str(columns["extra_fields"][i])) if "extra_fields" in columns else {}
        of_row = {name: columns[name][i] for name in (*SAID, *VERSIONS) if name in columns}
        of_row |= {**said.get("reward_extra_info", {}), **{name: said[name] for name in VERSIONS if name in said}}
        rows.append(Row(str(columns["uid"][i]), prompt, tokens, {"source": str(columns["data_source"][i]), **of_row}))
    return rows


class Captured:
    """A run: its bundle, and what the witness saw."""

    def __init__(self, setup: Setup, runs: tuple[Run, ...], bundle: Path, notes: Path) -> None:
        self.setup, self.runs, self.path = setup, runs, bundle
        self.bundle: Bundle = open_bundle(bundle)
        self.seen = witness.read(notes)

    @cached_property
    def rows(self) -> list[list[Row]]:
        """Of each step the rows of its batch: those of a rollout, in the bundle's order."""
        return [rows_of(update.columns) for update in self.seen.updates]

    @cached_property
    def responses(self) -> list[list[dict[str, Any]]]:
        """Of each rollout the bundle's rows of it."""
        stored = self.bundle.responses().to_pylist()
        return [[row for row in stored if row["rollout"] == n] for n in range(self.setup.steps)]

    @cached_property
    def tokens(self) -> dict[tuple[int, int], Any]:
        """(rollout, row) → the bundle's tokens of it, as a frame."""
        frame = self.bundle.tokens().to_pandas().sort_values(["rollout", "row", "position"])
        return dict(iter(frame.groupby(["rollout", "row"])))

    @cached_property
    def passes(self) -> list[tuple[dict[str, Any], dict[str, Any], witness.Pass]]:
        """Every forward pass: its update, the bundle's line of it, and what the witness saw.

        Each rank's passes are in the order in which they were made; nothing else joins them.
        """
        made = []
        updates = self.bundle.updates().to_pylist()
        for step in range(1, self.setup.steps + 1):
            lines = [(u, part) for u in updates if u["step"] == step for part in u["micro_batches"]]
            for rank in range(self.setup.ranks):
                mine = [(u, part) for u, part in lines if (part["data_parallel_rank"] or 0) == rank]
                theirs = [each for each in self.seen.passes if (each.step, each.rank) == (step, rank)]
                made += [(u, part, each) for (u, part), each in zip(mine, theirs, strict=True)]
            assert len([each for each in self.seen.passes if each.step == step]) == len(lines)
        return made


def capture(name: str, folder: Path) -> Captured:
    """Train as `SETUPS[name]` says, in `folder`."""
    setup, notes = SETUPS[name], folder / "notes"
    runs = []
    for start, steps in enumerate(setup.starts):
        run = main_ppo(
            folder / f"start{start}",
            *setup.overrides,
            f"trainer.default_local_dir={folder / 'checkpoints'}",
            f"+unipo.path={folder / 'bundle'}",
            ranks=setup.ranks,
            steps=steps,
            modules=("verl_cpu.witness",),
            env={witness.FOLDER: str(notes)},
        )
        print(f"{name}: {run.seconds:.0f} s")
        runs.append(run)
    return Captured(setup, tuple(runs), folder / "bundle", notes)
