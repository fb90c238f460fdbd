"""An oracle: the losses of algorithms as papers and trainers write them, in torch, differentiated by autograd.

A part is stated, here or in `torch_parts`, as a value with `.detach()` where its definition stops the gradient. No
derivative, no Jacobian and no case distinction about derivatives is written down anywhere. Advantages are constants of
every loss, so they are taken from the engine; what they are is compared with the trainers' own code elsewhere
(tests/vectors.json).

Axes: B responses, T token positions. Log-probs are natural logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from objective.torch_parts import BOUNDS, FILTERS, GATES, MASKS, RATIOS, WEIGHTS, Given, most_entropic, stopped
from precision import float64
from torch import Tensor

from unipo_hooks.algorithm_spec import AlgorithmSpec, Component, Parts
from unipo_hooks.objective.describe import inputs, merged, parameters, uses
from unipo_hooks.objective.evaluate import evaluate
from unipo_hooks.objective.inputs import Batch, axes_of


@dataclass(frozen=True)
class Oracle:
    """Losses, and their gradients by the log-probs, (B, T), divided by the data-parallel ranks."""

    policy_loss: float
    constraint_loss: float
    entropy_loss: float
    policy_weight: np.ndarray
    constraint_weight: np.ndarray
    policy_objective: np.ndarray

    @property
    def loss(self) -> float:
        return self.policy_loss + self.constraint_loss + self.entropy_loss

    @property
    def gradient_weight(self) -> np.ndarray:
        return self.policy_weight + self.constraint_weight


@float64()
def oracle(spec: AlgorithmSpec, batch: Batch) -> Oracle:
    """Every loss of an algorithm and its gradient, by autograd."""
    leaf = torch.tensor(np.where(_live(spec, batch), batch["log_probs"], 0.0), requires_grad=True)
    pieces: list[tuple[float, dict[str, Tensor]]] = []
    if spec.mixture:
        for component in spec.mixture:
            pieces.append((component.coefficient, _component(spec, component, batch, leaf)))
    else:
        evaluation = evaluate(spec, batch)
        given = _given(spec, batch, leaf, evaluation.advantages, np.ones(batch.shape[0], bool))
        pieces.append((1.0, _losses(spec.parts, given, given.counted)))
    total = {
        name: sum(factor * piece[name] for factor, piece in pieces) for name in ("policy", "constraint", "entropy")
    }
    ranks = batch.normalisers.data_parallel_size
    weights = {}
    for name in ("policy", "constraint"):
        (gradient,) = torch.autograd.grad(total[name] + 0.0 * leaf.sum(), leaf, retain_graph=True)
        weights[name] = gradient.numpy() / ranks
    objective = sum(piece["objective"] for _, piece in pieces)
    return Oracle(
        *(total[name].item() for name in ("policy", "constraint", "entropy")),
        policy_weight=weights["policy"],
        constraint_weight=weights["constraint"],
        policy_objective=objective.detach().numpy(),
    )


def _component(spec: AlgorithmSpec, component: Component, batch: Batch, leaf: Tensor) -> dict[str, Tensor]:
    alone = spec.model_copy(update={"mixture": [component]})
    own = batch["source"] == component.source
    evaluation = evaluate(alone, batch)
    given = _given(spec, batch, leaf, evaluation.advantages, own)
    if component.statistics == "own" and "reward" in given.at:
        given.at["reward"] = torch.where(torch.tensor(own), given.at["reward"], math.nan)
    everything = torch.tensor((batch["mask"] > 0).astype(float))
    counted = given.counted if component.denominator == "own" else everything
    return _losses(merged(spec.parts, component.parts), given, counted, torch.tensor(own)[:, None])


def _live(spec: AlgorithmSpec, batch: Batch) -> np.ndarray:
    live = batch["mask"] > 0
    for name in (*inputs(spec), "log_probs"):
        values = batch.get(name)
        axes = "" if values is None else axes_of(name, values, batch.shape)
        if axes == "BT":
            live = live & np.isfinite(values)
        elif axes == "B" and name != "reward":
            live = live & np.isfinite(values)[:, None]
    return live


def _given(spec: AlgorithmSpec, batch: Batch, leaf: Tensor, advantages: np.ndarray, rows: np.ndarray) -> Given:
    live = _live(spec, batch)
    at = {}
    for name in inputs(spec):
        values = batch.get(name)
        if values is not None:
            values = values.astype(np.float64)
            per_token = axes_of(name, values, batch.shape) == "BT"
            at[name] = torch.tensor(np.where(live, values, 0.0) if per_token else values)
    counted = (batch["mask"] > 0) & rows[:, None]
    return Given(
        at=at,
        log_probs=torch.where(torch.tensor(live), leaf, 0.0),
        counted=torch.tensor(counted.astype(float)),
        live=torch.tensor((live & rows[:, None]).astype(float)),
        advantages=torch.tensor(np.array(advantages)),
        normalisers=batch.normalisers,
        often=torch.ones(len(counted)),
    )


def _losses(parts: Parts, g: Given, counted: Tensor, rows: Tensor | None = None) -> dict[str, Tensor]:
    """The loss of one composition: −Σ share · mask · weight · objective + Σ share · penalty."""
    used = {slot: [] for slot in TABLES}
    for slot, _, use in uses(parts):
        if slot in TABLES:
            used[slot].append((use.part, SimpleNamespace(**parameters(slot, use))))

    def only(slot: str, *arguments: Any) -> Any:
        name, p = used[slot][0]
        return TABLES[slot][name](g, *arguments, p)

    often = g.often
    for name, p in used["filter"]:
        often = often * FILTERS[name](g, p)
    counted = counted * often[:, None]
    g = replace(g, often=often)
    if "group" in g.at and "reward" in g.at:
        # A group that is dropped as a whole was never there.
        there = torch.ones_like(often)
        for rows_of_group in g.rows():
            there[rows_of_group] = (often[rows_of_group] > 0).any().double()
        g = replace(g, counted=g.counted * there[:, None], live=g.live * there[:, None])
        g.at = g.at | {"reward": torch.where(there > 0, g["reward"], math.nan)}
    bounds = only("bounds")
    ratio = only("ratio", bounds)
    objective = only("gate", ratio, bounds)
    factor = g.live
    for name, p in used["mask"]:
        keep = MASKS[name](g, p)
        factor = factor * keep
        if p.denominator:
            counted = counted * keep
    detached = factor
    for name, p in used["weight"]:
        detached = detached * WEIGHTS[name](g, p)
    detached = detached.detach()
    share = only("aggregation", counted)
    if rows is not None:
        share = share * rows
    contribution = detached * objective
    total = {"policy": -(share * contribution).sum(), "constraint": torch.zeros(()), "entropy": torch.zeros(())}
    for name, p in used["constraint"]:
        if getattr(p, "beta", getattr(p, "coefficient", None)) == 0:
            continue
        penalty = CONSTRAINTS[name](g, ratio, p)
        of = g.live * (detached if name in BEFORE_WEIGHT or getattr(p, "before_weight", False) else 1.0)
        if name in WHOLE_BATCH:
            # One number for the batch: not shared out by the aggregation.
            value = penalty / g.normalisers.accumulation_steps
        elif getattr(p, "token_mean", False):
            places = g.counted * (counted > 0) * g.often[:, None]
            if p.quantile < 1:
                # A token whose number is broken keeps its place in the mean.
                places = places * ((most_entropic(g, p) > 0) | (g.live == 0))
            value = (of * places * penalty).sum() / places.sum().clamp(min=1) / g.normalisers.accumulation_steps
        else:
            among = most_entropic(g, p) if name == "entropy_bonus" and p.quantile < 1 else 1.0
            value = (share * of * among * penalty).sum()
        kind = "entropy" if name == "entropy_bonus" else "constraint"
        total[kind] = total[kind] + value
    total["objective"] = contribution.expand(g.log_probs.shape) * (share != 0)
    return total


# --- constraints: what is added to the loss --------------------------------------------------------------------------


def _kl(log: Tensor, estimator: str, clamp: float | None) -> Tensor:
    """Schulman's estimators of log = log π_θ − log π_ref; with + the value of one, the gradient of k2 (verl)."""
    k2 = log * log / 2
    if estimator.endswith("+"):
        return stopped(_kl(log, estimator[:-1], clamp), k2)
    if estimator == "k1":
        return log
    if estimator == "k2":
        return k2
    if estimator == "abs":
        return log.abs()
    inverse = -log if clamp is None else (-log).clamp(-20, 20)
    k3 = inverse.exp() - inverse - 1
    return k3 if clamp is None else k3.clamp(-clamp, clamp)


def _constraint_kl(g: Given, log: Tensor, p: Any) -> Tensor:
    penalty = p.beta * _kl(g.log_probs - g.fixed(p.reference), p.estimator, p.clamp)
    if not p.times_ratio:
        return penalty
    if p.level != "same":
        log = g.log_probs - g["old_log_probs"]
        log = g.mean(log) if p.level == "sequence_mean" else log
    return penalty * log.exp()


def _constraint_selected(g: Given, log: Tensor, p: Any) -> Tensor:
    if "selected" in g.at:
        chosen = g["selected"] > 0
    else:
        live = g.live > 0
        A, lp = g.advantages.expand(live.shape)[live], g.log_probs.detach()[live]
        covariance = (A - A.mean()) * (lp - lp.mean())
        chosen = torch.zeros(live.shape, dtype=torch.bool)
        if len(covariance):
            top = torch.topk(covariance, max(1, int(len(covariance) * p.share))).indices
            chosen[live] = torch.zeros(len(covariance), dtype=torch.bool).index_fill(0, top, True)
    return p.beta * (g.log_probs - g["old_log_probs"]).abs() * chosen


def _constraint_positives(g: Given, log: Tensor, p: Any) -> Tensor:
    difficulty = g["difficulty"][:, None]
    scaled = (g.advantages > 0) & (difficulty > 0) & (difficulty < 1)
    factor = torch.where(scaled, 1 - torch.exp(-math.e * (1 - difficulty)), torch.ones_like(difficulty))
    return p.beta * factor * _kl(g.log_probs - g.fixed(p.reference), "k3", None)


def _constraint_hinge(g: Given, log: Tensor, p: Any) -> Tensor:
    moved = (g.log_probs - g["old_log_probs"]) * g.live
    divergence = ((moved.exp() - moved - 1) * g.live).sum() / g.counted.sum().clamp(min=1)
    return p.beta / 2 * (divergence - p.limit).clamp(min=0) ** 2


CONSTRAINTS: dict[str, Callable[..., Tensor]] = {
    "kl": _constraint_kl,
    "kl_of_selected": _constraint_selected,
    "kl_of_positives": _constraint_positives,
    "kl_hinge": _constraint_hinge,
    "bonus_for_seeing": lambda g, log, p: -p.beta * _kl(g.log_probs - g["augmented_log_probs"], "k3", None),
    "entropy_bonus": lambda g, log, p: -p.coefficient * g["entropies"],
}
BEFORE_WEIGHT = {"kl_of_selected"}
WHOLE_BATCH = {"kl_hinge"}

# --- aggregations ----------------------------------------------------------------------------------------------------


def _responses(g: Given, counted: Tensor, p: Any) -> float:
    if g.normalisers.rows is not None and getattr(p, "span", "update") == "update":
        return max(g.normalisers.rows, 1)
    there = float((g.often if p.rows == "all" else g.often[counted.sum(1) > 0]).sum())
    return max(there, 1) * g.normalisers.accumulation_steps


def _per_response(g: Given, counted: Tensor) -> Tensor:
    """Each of a response's copies as a mean of its own."""
    often = g.often[:, None]
    once = torch.where(often > 0, counted / often, 0.0)
    return often * once / once.sum(1, keepdim=True).clamp(min=1)


def _share_tokens(g: Given, counted: Tensor, p: Any) -> Tensor:
    if p.span == "update" and g.normalisers.tokens is not None:
        return counted / g.normalisers.tokens
    tokens = g.normalisers.micro_batch_tokens
    tokens = counted.sum().clamp(min=1) if tokens is None else tokens
    return counted / tokens / g.normalisers.accumulation_steps


def _share_groups(g: Given, counted: Tensor, p: Any) -> Tensor:
    share = torch.zeros_like(counted)
    groups = [group for group in g.rows() if counted[group].sum() > 0]
    for group in groups:
        share[group] = counted[group] / counted[group].sum().clamp(min=1) / len(groups)
    return share / g.normalisers.accumulation_steps


def _share_constant(g: Given, counted: Tensor, p: Any) -> Tensor:
    length = p.length or g.normalisers.length or counted.shape[1]
    return counted / length / _responses(g, counted, p)


AGGREGATIONS: dict[str, Callable[..., Tensor]] = {
    "sequence_mean_token_mean": lambda g, counted, p: _per_response(g, counted) / _responses(g, counted, p),
    "sequence_mean_token_sum": lambda g, counted, p: counted / _responses(g, counted, p),
    "sequence_mean_constant_length": _share_constant,
    "token_mean": _share_tokens,
    "group_token_mean": _share_groups,
    "token_sum": lambda g, counted, p: counted * g.normalisers.data_parallel_size / (p.length or 1),
    "sequence_sum_token_mean": lambda g, counted, p: _per_response(g, counted) / g.normalisers.accumulation_steps,
}

TABLES: dict[str, dict[str, Callable[..., Any]]] = {
    "filter": FILTERS,
    "bounds": BOUNDS,
    "ratio": RATIOS,
    "gate": GATES,
    "weight": WEIGHTS,
    "mask": MASKS,
    "constraint": CONSTRAINTS,
    "aggregation": AGGREGATIONS,
}


def unknown(spec: AlgorithmSpec) -> list[str]:
    """Parts of an algorithm this file does not state, as `slot.part`."""
    every = [merged(spec.parts, component.parts) for component in spec.mixture] or [spec.parts]
    return sorted(
        {
            f"{slot}.{use.part}"
            for parts in every
            for slot, _, use in uses(parts)
            if slot in TABLES and use.part not in TABLES[slot]
        }
    )
