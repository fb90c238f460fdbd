"""What parts are given and give, and where they are kept.

Every array is float64. What a slot's function is called with:

- filter(batch) -> (B,) how often a response takes part
- reward(batch, rewards) -> Rewards
- baseline(batch, rewards) -> advantages, (B, 1) or (B, T)
- scale(batch, rewards, advantages) -> advantages
- modulation(batch, advantages) -> advantages
- bounds(batch, advantages) -> (low, high), what the ratio may be; anything that broadcasts to (B, T)
- ratio(batch, advantages, bounds) -> Ratio
- gate(batch, advantages, ratio, bounds) -> Gate
- weight(batch) -> (B, 1) or (B, T)
- mask(batch, advantages, ratio) -> Mask
- constraint(batch, advantages, ratio) -> Constraint
- aggregation(batch, counted_BT) -> (B, T) what the sum over tokens of weight × objective multiplies each token with;
  a token counts as often as its response takes part (`batch.often_B`)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from unipo_hooks.objective.inputs import Array, Batch

LOG_LIMIT = 300.0
"""Log-ratios beyond ±300 nats saturate: e^300 is 10^130, which no loss survives, and its square is finite."""

CLIPPED: dict[int, str] = {
    1: "below the range",
    2: "above the range",
    3: "dual clip",
    4: "upper cap",
    5: "outside the trust region",
    6: "capped from below, still pushing",
    7: "capped from above, still pushing",
}
"""Values of `Evaluation.clipped`. Up to 5 the policy term is silent; at 6 and 7 it pushes with the capped ratio."""
LOW, HIGH, DUAL, DELTA, REGION, CAPPED_LOW, CAPPED_HIGH = CLIPPED


@dataclass(frozen=True, slots=True)
class Rewards:
    """Rewards on their way to advantages."""

    response_B: Array
    token_BT: Array | None = None
    """Per token, where a part made them so; their sum over a response is what counts then."""

    def per_token(self, batch: Batch) -> Array:
        """(B, T) rewards; a scalar one stands at the last token that counts."""
        if self.token_BT is not None:
            return self.token_BT
        rows, width = batch.shape
        token_BT = np.zeros((rows, width))
        last_B = width - 1 - np.argmax(batch.mask_BT[:, ::-1] > 0, axis=1)
        token_BT[np.arange(rows), last_B] = np.where(batch.scored_B, self.response_B, 0.0)
        return token_BT * batch.mask_BT


@dataclass(frozen=True, slots=True)
class Ratio:
    """How far the policy has moved from another, in log space, and how its gradient reaches the log-probs."""

    log: Array
    """(B, 1) or (B, T)."""
    pull: Callable[[Array], Array]
    """(B, T) ∂/∂log ratio → (B, T) ∂/∂log_probs: the transposed Jacobian."""
    clipped: Array | None = None
    """Where the ratio itself clips before it averages (GMPO)."""

    @property
    def value(self) -> Array:
        """The ratio."""
        ratio: Array = np.exp(np.clip(self.log, -LOG_LIMIT, LOG_LIMIT))
        return ratio


@dataclass(frozen=True, slots=True)
class Gate:
    """A token's objective and its derivatives. What broadcasts to (B, T) will do."""

    objective: Array
    d_log_ratio: Array | None = None
    """Derivative by the log ratio, which the ratio's Jacobian carries to the log-probs."""
    d_log_prob: Array | None = None
    """Derivative straight by the token's log-prob."""
    clipped: Array | None = None
    """Codes of `CLIPPED`, 0 where the gate did not bend."""


@dataclass(frozen=True, slots=True)
class Mask:
    """Factors on the policy term: 0 or 1, for some algorithms 2."""

    keep: Array
    denominator: bool
    """Whether a token that is masked also leaves the denominator, and the constraint."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A term of the loss beside the policy term: it is added to the loss, and taken from the objective."""

    penalty: Array
    d_log_prob: Array | None = None
    d_log_ratio: Array | None = None
    before_weight: bool = False
    """Whether the detached weights and masks of the policy term multiply it as well."""
    attributable: bool = True
    """False for a term over the whole vocabulary: it has no share in the gradient weight of the sampled token."""
    token_mean: bool = False
    """Averaged over tokens whatever the aggregation is."""
    among: Array | None = None
    """1 on the tokens it is for, where these are not all that count."""
    ratio: Ratio | None = None
    """The ratio `d_log_ratio` is the derivative by, where it is not the policy term's."""


FUNCTIONS: dict[str, dict[str, Callable[..., Any]]] = {}
"""Slot → part → its function."""

F = TypeVar("F", bound=Callable[..., Any])


def part(slot: str) -> Callable[[F], F]:
    """Keep a function as the part of its name in a slot."""

    def keep(function: F) -> F:
        FUNCTIONS.setdefault(slot, {})[function.__name__] = function
        return function

    return keep


def capped_exp(log: Array) -> Array:
    """e^log, saturated at ±300 nats."""
    value: Array = np.exp(np.clip(log, -LOG_LIMIT, LOG_LIMIT))
    return value
