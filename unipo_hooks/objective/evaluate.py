"""From a spec and a batch to what every token's objective, gradient weight and share of the loss is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unipo_hooks.algorithm_spec import AlgorithmSpec, Parts, PartUse
from unipo_hooks.errors import AlgorithmError
from unipo_hooks.objective.describe import (
    describe,
    inputs,
    is_off,
    is_own,
    merged,
    needs,
    parameters,
    with_hyper_parameters,
)
from unipo_hooks.objective.inputs import INPUTS, Array, Batch, require
from unipo_hooks.objective.own import checked
from unipo_hooks.objective.parts import FUNCTIONS
from unipo_hooks.objective.parts.types import CLIPPED, Constraint, Gate, Ratio, Rewards


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """An objective on a batch. Arrays are (B, T) float64 unless said otherwise, and 0 where a token does not count.

    `loss` = policy_loss + constraint_loss + entropy_loss, to be minimised; `gradient_weight` = ∂loss/∂log_probs divided
    by the number of data-parallel ranks, before gradient clipping. Descent moves against it: the push is its negative.
    """

    spec: AlgorithmSpec
    """The algorithm with the hyper-parameters it was evaluated with."""
    advantages: Array
    ratio: Array
    """π_θ/π at the algorithm's level; 1 where it has none."""
    policy_objective: Array
    """What the policy term adds to the objective, before aggregation."""
    constraint: Array
    """What constraints take from it."""
    policy_weight: Array
    """The policy term's share of the gradient weight."""
    constraint_weight: Array
    """The constraints' share of the gradient weight."""
    clipped: Array
    """uint8: 0, or a code of `CLIPPED`."""
    mask: Array
    """Factor on the token's policy term; 0 where it does not count."""
    aggregation: Array
    """The token's share of the loss: loss = −Σ aggregation × token_objective, entropy bonus aside."""
    policy_loss: float
    constraint_loss: float
    entropy_loss: float
    """Of terms over the whole vocabulary, which no sampled token is answerable for."""
    invalid: Array
    """bool: tokens that count but hold a NaN or an infinity; they contribute nothing."""
    notes: tuple[str, ...] = ()
    """What a reader should know: values that were not finite, responses without a reward, numbers that overflowed."""

    @property
    def token_objective(self) -> Array:
        """What the token adds to the objective: policy term minus constraints, before aggregation."""
        return self.policy_objective - self.constraint

    @property
    def gradient_weight(self) -> Array:
        """∂ loss of the update / ∂ log_probs."""
        return self.policy_weight + self.constraint_weight

    @property
    def loss(self) -> float:
        """The loss, as a trainer returns it for this batch."""
        return self.policy_loss + self.constraint_loss + self.entropy_loss

    @property
    def magnitude(self) -> float:
        """Σ |aggregation × objective|: what an error of the loss is to be compared with."""
        parts = np.abs(self.policy_objective) + np.abs(self.constraint)
        return float((np.abs(self.aggregation) * parts).sum())


def evaluate(
    spec: AlgorithmSpec | Mapping[str, Any] | str, batch: Batch | Mapping[str, Any], **hyper_parameters: Any
) -> Evaluation:
    """Compute an algorithm's objective on a batch, in closed form and float64.

    `spec` is an algorithm, its JSON, or the id of a registered one; `hyper_parameters` change it (`epsilon_high=0.28`,
    or by path where several parts have one of that name: `**{"constraint.0.beta": 0.04, "mixture.1.gate.gamma": 0.1}`).

    Raises MissingInputError naming the channel that is missing and how to capture it, and AlgorithmError where the
    definition or a hyper-parameter is wrong.
    """
    from unipo_hooks.algorithms import get

    chosen = with_hyper_parameters(get(spec), hyper_parameters)
    if chosen.display is not None:
        raise AlgorithmError(
            f"{chosen.id} is only shown: it came as UNIPO cards, which say nothing that can be computed"
        )
    given = batch if isinstance(batch, Batch) else Batch(**batch)
    require(given, needs(chosen), chosen.id)
    prepared = given.prepared(inputs(chosen))
    if 0 in prepared.shape:
        return _nothing(chosen, prepared)
    with np.errstate(all="ignore"):
        if not chosen.mixture:
            evaluation = _evaluate(chosen, chosen.parts, prepared, prepared.mask_BT)
        else:
            evaluation = _mixture(chosen, prepared)
    return replace(evaluation, notes=(*_notes(chosen, prepared), *evaluation.notes, *_not_finite(evaluation)))


def _nothing(spec: AlgorithmSpec, batch: Batch) -> Evaluation:
    """What any objective is on a batch without a response or without a position."""
    values: dict[str, Any] = {name: np.zeros(batch.shape) for name in (*_PER_TOKEN, "aggregation")}
    values |= dict.fromkeys(_LOSSES, 0.0)
    return Evaluation(spec=spec, clipped=np.zeros(batch.shape, np.uint8), invalid=batch.invalid_BT, **values)


def _mixture(spec: AlgorithmSpec, batch: Batch) -> Evaluation:
    whole = None
    for component in spec.mixture:
        rows_B = batch["source"] == component.source
        own = batch.counting(batch.mask_BT * rows_B[:, None])
        if component.statistics == "own" and "reward" in batch:
            own = own.scoring(rows_B)
        counted_BT = own.mask_BT if component.denominator == "own" else batch.mask_BT
        part = _evaluate(spec, merged(spec.parts, component.parts), own, counted_BT)
        part = _scaled(part, component.coefficient, rows_B[:, None].astype(np.float64))
        whole = part if whole is None else _sum(whole, part)
    assert whole is not None
    return whole


_PER_TOKEN = ("advantages", "ratio", "policy_objective", "constraint", "policy_weight", "constraint_weight", "mask")
_LOSSES = ("policy_loss", "constraint_loss", "entropy_loss")


def _scaled(part: Evaluation, factor: float, rows_B1: Array) -> Evaluation:
    """A component of a mixture: its coefficient is part of its aggregation."""
    own = {name: getattr(part, name) * rows_B1 for name in _PER_TOKEN}
    own |= {name: own[name] * factor for name in ("policy_weight", "constraint_weight")}
    losses = {name: getattr(part, name) * factor for name in _LOSSES}
    return replace(part, **own, **losses, aggregation=part.aggregation * factor * rows_B1)


def _sum(a: Evaluation, b: Evaluation) -> Evaluation:
    names = (*_PER_TOKEN, *_LOSSES, "aggregation", "clipped")
    notes = tuple(dict.fromkeys((*a.notes, *b.notes)))
    return replace(a, notes=notes, **{name: getattr(a, name) + getattr(b, name) for name in names})


def _evaluate(spec: AlgorithmSpec, parts: Parts, batch: Batch, counted_BT: Array) -> Evaluation:
    """One objective; `counted_BT` is what the denominators count."""
    shape, valid_BT = batch.shape, batch.valid_BT
    often_B = np.ones(shape[0])
    for use in parts.filter:
        often_B = often_B * _call("filter", use, batch)
    counted_BT = counted_BT * often_B[:, None]
    kept = _without_dropped_groups(batch, often_B)
    advantages, notes = _advantages(parts, kept)
    if (often_B != 1).any():
        batch = batch.repeating(often_B)
    bounds = _call("bounds", parts.bounds, kept, advantages)
    ratio = _call("ratio", parts.ratio, batch, advantages, bounds)
    gate: Gate = _call("gate", parts.gate, kept, advantages, ratio, bounds)

    factor: Any = valid_BT
    for use in parts.mask:
        mask = _call("mask", use, kept, advantages, ratio)
        factor = factor * mask.keep
        if mask.denominator:
            counted_BT = counted_BT * mask.keep
    weight: Any = 1.0
    for use in parts.weight:
        weight = weight * _call("weight", use, batch)
    share_BT = _call("aggregation", parts.aggregation, batch, counted_BT)

    detached = factor * weight
    slope_BT = -share_BT * detached
    policy_weight = np.zeros(shape)
    if gate.d_log_ratio is not None:
        policy_weight = policy_weight + ratio.pull(slope_BT * gate.d_log_ratio)
    if gate.d_log_prob is not None:
        policy_weight = policy_weight + slope_BT * gate.d_log_prob
    policy_objective = np.broadcast_to(detached * gate.objective, shape) * (counted_BT > 0)

    terms = _constraints(
        parts,
        kept,
        advantages,
        ratio,
        share_BT=share_BT,
        counted_BT=(counted_BT > 0) * often_B[:, None],
        detached=detached,
    )

    ranks = batch.normalisers.data_parallel_size
    clipped = gate.clipped if gate.clipped is not None else ratio.clipped
    return Evaluation(
        spec=spec,
        advantages=np.broadcast_to(advantages, shape) * batch.mask_BT,
        ratio=np.broadcast_to(ratio.value, shape) * batch.mask_BT,
        policy_objective=policy_objective,
        constraint=terms.penalty_BT,
        policy_weight=policy_weight * valid_BT / ranks,
        constraint_weight=terms.weight_BT * valid_BT / ranks,
        clipped=(np.zeros(shape) if clipped is None else clipped * valid_BT).astype(np.uint8),
        mask=np.broadcast_to(factor * (counted_BT > 0), shape),
        aggregation=share_BT,
        policy_loss=-float((share_BT * policy_objective).sum()),
        constraint_loss=terms.loss,
        entropy_loss=terms.entropy_loss,
        invalid=batch.invalid_BT,
        notes=notes,
    )


@dataclass(slots=True)
class _Terms:
    """What the constraints of an objective come to, together."""

    penalty_BT: Array
    """Per unit of the token's share of the loss."""
    weight_BT: Array
    loss: float = 0.0
    entropy_loss: float = 0.0


def _constraints(
    parts: Parts, batch: Batch, advantages: Array, ratio: Ratio, *, share_BT: Array, counted_BT: Array, detached: Any
) -> _Terms:
    """The constraints of an objective.

    `share_BT`: the aggregation; `counted_BT`: how often a token is in its denominator; `detached`: what multiplies the
    policy term.
    """
    shape, valid_BT = batch.shape, batch.valid_BT
    terms = _Terms(np.zeros(shape), np.zeros(shape))
    for use in parts.constraint:
        if is_off(use):
            continue
        term: Constraint = _call("constraint", use, batch, advantages, ratio)
        own_BT = valid_BT * (detached if term.before_weight else 1.0)
        if term.among is not None:
            own_BT = own_BT * term.among
        if term.token_mean:
            # What the whole vocabulary does is averaged over the tokens the policy term is averaged over.
            own_counted_BT = batch.mask_BT * (1.0 if term.attributable else counted_BT)
            if term.among is not None:
                own_counted_BT = own_counted_BT * ((term.among > 0) | batch.invalid_BT)
            tokens = max(own_counted_BT.sum(), 1.0) * batch.normalisers.accumulation_steps
            own_share_BT = own_BT * own_counted_BT / tokens
        else:
            own_share_BT = share_BT * own_BT
        value = float((own_share_BT * term.penalty).sum())
        if not term.attributable:
            terms.entropy_loss += value
            continue
        terms.loss += value
        if term.d_log_prob is not None:
            terms.weight_BT += own_share_BT * term.d_log_prob
        if term.d_log_ratio is not None:
            terms.weight_BT += (term.ratio or ratio).pull(own_share_BT * term.d_log_ratio)
        terms.penalty_BT += np.divide(own_share_BT * term.penalty, share_BT, out=np.zeros(shape), where=share_BT != 0)
    return terms


def _without_dropped_groups(batch: Batch, often_B: Array) -> Batch:
    """A group that is dropped as a whole takes no part in any statistic, as if it had never been sampled."""
    if "group" not in batch or "reward" not in batch or often_B.all():
        return batch
    kept_B = (np.bincount(batch.group_B, often_B > 0) > 0)[batch.group_B]
    return batch.counting(batch.mask_BT * kept_B[:, None]).scoring(kept_B)


def _advantages(parts: Parts, batch: Batch) -> tuple[Array, tuple[str, ...]]:
    """Advantages, 0 where there is none, and what is to be told of them."""
    rewards = Rewards(batch["reward"] if "reward" in batch else np.zeros(batch.shape[0]), batch.get("rewards"))
    overflows: list[str] = []
    # An infinite deviation leaves advantages of 0 behind: what overflowed cannot be seen in them.
    with np.errstate(over="call", call=lambda error, flag: overflows.append(error)):
        for use in parts.reward:
            rewards = _call("reward", use, batch, rewards)
        advantages: Array = _call("baseline", parts.baseline, batch, rewards)
        for use in parts.scale:
            advantages = _call("scale", use, batch, rewards, advantages)
        for use in parts.modulation:
            advantages = _call("modulation", use, batch, advantages)
    usable = np.isfinite(advantages)
    lost_B = (~usable & (batch.mask_BT > 0)).any(1) & batch.scored_B
    notes = []
    if overflows or lost_B.any():
        sizes = [np.abs(batch[name]) for name in ("reward", "rewards", "reward_components") if name in batch]
        largest = max((values[np.isfinite(values)].max(initial=0.0) for values in sizes), default=0.0)
        why = f"rewards of this size (up to {largest:.0e}) cannot be squared" if largest > SQUARED else "see its inputs"
        notes.append(f"an advantage overflowed or is undefined, and counts as 0: {why}")
    if "reward" in describe("baseline", parts.baseline.part).needs:
        # Whatever a later part made of it: what has no reward is not judged.
        usable = usable & batch.scored_B[:, None]
    return np.where(usable, advantages, 0.0), tuple(notes)


def _call(slot: str, use: PartUse, *arguments: Any) -> Any:
    function = FUNCTIONS.get(slot, {}).get(use.part)
    if function is None:
        raise AlgorithmError(
            f"there is no code for the {slot} part {use.part} here: register its function with algorithms.register_part"
        )
    value = function(*arguments, **parameters(slot, use))
    # Every slot's function is given the batch first.
    return checked(slot, use.part, value, arguments[0].shape) if is_own(slot, use.part) else value


SQUARED = 1e150
"""The sum of squares of larger numbers may be infinite."""


def _not_finite(evaluation: Evaluation) -> tuple[str, ...]:
    """A note that names what of an evaluation is not finite."""
    losses = [name for name in _LOSSES if not np.isfinite(getattr(evaluation, name))]
    arrays = [name for name in (*_PER_TOKEN, "aggregation") if not np.isfinite(getattr(evaluation, name)).all()]
    if not losses and not arrays:
        return ()
    return (f"not finite, as numbers of this size overflow: {', '.join((*losses, *arrays))}",)


POSITIVE = 1e-6
"""A log-probability above 0 by more than this is no rounding."""


def _notes(spec: AlgorithmSpec, batch: Batch) -> tuple[str, ...]:
    notes = []
    if invalid := int(batch.invalid_BT.sum()):
        notes.append(f"{invalid} tokens hold a NaN or an infinity: they contribute nothing")
    if unscored := int((~batch.scored_B).sum()):
        notes.append(f"{unscored} responses have no finite reward: their advantage is 0")
    for name in (each for each in INPUTS if each.endswith("log_probs") and each in batch):
        if positive := int(((batch[name] > POSITIVE) & (batch.valid_BT > 0)).sum()):
            where = "" if name == "log_probs" else f" in {name}"
            notes.append(f"{positive} tokens have a log-probability above 0{where}: is a sign swapped?")
    if spec.mixture:
        known = np.isin(batch["source"], [component.source for component in spec.mixture])
        if unknown := int((~known).sum()):
            notes.append(f"{unknown} responses are of a source {spec.id} has no component for: they contribute nothing")
    return tuple(notes)


__all__ = ["CLIPPED", "Evaluation", "evaluate"]
