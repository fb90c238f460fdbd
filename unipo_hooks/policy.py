"""What to keep of a run: which rollouts, which prompt groups, and how many bytes in all."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unipo_hooks.errors import PolicyError
from unipo_hooks.record import Array, CapturedRollout, CapturedUpdate

DEFAULT_MAX_BYTES = 1 << 30
"""One gibibyte: about 50 million stored tokens, so that a short run is kept whole."""


class CapturePolicy(BaseModel):
    """What a run keeps. Every update's metrics are kept whatever this says; it decides about tokens.

    Kept rollouts are kept with every update that trains on them, so that ratios can be followed from the first pass to
    the last. Groups are kept whole, so that advantages can be explained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=1, ge=1)
    """Keep one rollout in this many."""
    max_groups: int | None = Field(default=None, ge=1)
    """Keep the tokens of at most this many prompt groups a rollout, chosen by a hash all ranks agree on."""
    max_bytes: int = Field(default=DEFAULT_MAX_BYTES, gt=0)
    """Stay below this many bytes of segments, those of all ranks together: a run that would pass it keeps fewer
    rollouts, evenly spread."""
    seed: int = 0
    """Changes which groups `max_groups` keeps."""

    def kept_groups(self, rollout: int, groups: int) -> list[int] | None:
        """Groups of a rollout whose tokens are kept, ascending; None for all of them."""
        if self.max_groups is None or groups <= self.max_groups:
            return None
        order = sorted(range(groups), key=lambda group: _hash(self.seed, rollout, group))
        return sorted(order[: self.max_groups])


def policy_from(settings: Mapping[str, Any]) -> CapturePolicy:
    """A policy from its settings by name. Raises PolicyError, one line for the first setting that is wrong."""
    try:
        return CapturePolicy(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        known = list(CapturePolicy.model_fields)
        if name in known:
            raise PolicyError(f"{name}={first['input']!r}: {first['msg'].lower()}") from None
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PolicyError(f"unknown setting {name}{hint} (settings: {', '.join(known)})") from None


def _hash(seed: int, rollout: int, group: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{rollout}/{group}".encode(), digest_size=8).digest()


def kept_rows(group_B: Array, kept: list[int] | None) -> Array:
    """(B,) booleans: the responses whose tokens are kept."""
    return np.ones(len(group_B), bool) if kept is None else np.isin(group_B, kept)


@dataclass(slots=True)
class Pacing:
    """Spreads a byte budget over a run: decides, rollout by rollout, whether tokens are kept.

    The stride between kept rollouts is what the rest of the run would need, at the bytes a kept rollout has cost so
    far, divided by what is left of the budget. Without a known length each doubling of the run may spend half of what
    is left. The budget is never passed by more than the open segment's estimate errs.
    """

    policy: CapturePolicy
    last_kept: int | None = None
    kept: int = 0
    aligned: bool = False
    """Round the stride up to a power of two and keep its multiples: a rank that missed a rollout, so that its last one
    kept is another, then goes on keeping the same as the others."""

    def admits(self, rollout: int, *, used_bytes: float, progress: float | None) -> bool:
        """Whether to keep this rollout.

        `used_bytes`: what the kept rollouts cost so far. `progress`: the share of the run that is done, in [0, 1];
        None where the length is unknown.
        """
        if rollout % self.policy.every:
            return False
        if self.kept:
            stride = self._stride(rollout, used_bytes, progress)
            if stride == math.inf or not self._is_due(rollout, stride):
                return False
        self.last_kept = rollout
        self.kept += 1
        return True

    def _is_due(self, rollout: int, stride: float) -> bool:
        if self.aligned:
            every = self.policy.every
            return rollout % (every << math.ceil(math.log2(max(stride / every, 1.0)))) == 0
        return self.last_kept is None or rollout - self.last_kept >= stride

    def _stride(self, rollout: int, used_bytes: float, progress: float | None) -> float:
        average = used_bytes / self.kept
        left = self.policy.max_bytes - used_bytes
        if left < average:
            return math.inf
        if progress is None:
            ahead, left = float(rollout + 1), left / 2
        elif progress <= 0:
            return 1
        else:
            ahead = rollout * (1 - progress) / progress
        return max(1.0, ahead * average / left)


TOKEN_BYTES, VALUE_BYTES, RESPONSE_BYTES = 4.0, 4.0, 64.0
"""What a stored token, each number measured at it, and a response are taken to cost. A file holds them in less: float32
hardly compresses, ids, texts and masks do."""

EVALUATION_SHARE = 0.1
"""Part of the byte budget that evaluation may take."""


class SharedPacing:
    """Spreads a byte budget over a run of several ranks, which all come to the same decisions without a word.

    No rank knows what the others' segments take, and ranks that went by their own would keep parts of groups. So they
    go by what is the same everywhere: responses, tokens over all ranks, how many numbers are measured at each.
    """

    def __init__(self, policy: CapturePolicy, ranks: int, *, kept: int = 0, used_bytes: float = 0.0) -> None:
        """`kept`, `used_bytes`: rollouts kept and bytes written by all ranks in earlier starts."""
        self._policy, self._ranks = policy, ranks
        self._pacing = Pacing(policy, kept=kept, aligned=True)
        self._used, self._evaluated = used_bytes, 0.0

    def admits(self, rollout: CapturedRollout, total_steps: int | None) -> bool:
        """Whether to keep this rollout, of a run of that many steps, where that is known."""
        columns = sum(np.ndim(values) == 2 for values in rollout.channels.values())
        rows = self._ranks * len(rollout.group_B)
        cost = RESPONSE_BYTES * rows + self._tokens(rollout) * (TOKEN_BYTES + VALUE_BYTES * columns)
        if rollout.kind == "eval":
            self._evaluated += cost
            return self._evaluated <= EVALUATION_SHARE * self._policy.max_bytes
        progress = (rollout.step - 1) / total_steps if total_steps else None
        admitted = self._pacing.admits(rollout.rollout, used_bytes=self._used, progress=progress)
        self._used += cost * admitted
        return admitted

    def trained(self, update: CapturedUpdate, rollouts: Mapping[int, CapturedRollout]) -> None:
        """An update that was captured, on these of its rollouts that are kept."""
        for micro_batch in update.micro_batches:
            if update.kind == "train" and (rollout := rollouts.get(micro_batch.rollout)) is not None:
                share = len(micro_batch.all_rows_b) / len(rollout.group_B)
                self._used += share * self._tokens(rollout) * VALUE_BYTES * len(micro_batch.channels)

    def _tokens(self, rollout: CapturedRollout) -> float:
        """Tokens stored of a rollout, over all ranks; where nobody counted them, as if all were like this one."""
        tokens = rollout.tokens_over_ranks
        counted = self._ranks * float(np.sum(rollout.length_B)) if tokens is None else tokens
        kept = self._policy.kept_groups(rollout.rollout, rollout.groups)
        return counted if kept is None else counted * len(kept) / rollout.groups
