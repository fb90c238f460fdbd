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
from unipo_hooks.record import Array

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
    """Stay below this many bytes of segments a rank: a run that would pass it keeps fewer rollouts, evenly spread."""
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

    def admits(self, rollout: int, *, used_bytes: float, progress: float | None) -> bool:
        """Whether to keep this rollout.

        `used_bytes`: what the kept rollouts cost so far. `progress`: the share of the run that is done, in [0, 1];
        None where the length is unknown.
        """
        if rollout % self.policy.every:
            return False
        if self.kept:
            stride = self._stride(rollout, used_bytes, progress)
            since = math.inf if self.last_kept is None else rollout - self.last_kept
            if since < stride or stride == math.inf:
                return False
        self.last_kept = rollout
        self.kept += 1
        return True

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
