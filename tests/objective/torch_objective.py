"""An oracle: the losses of algorithms as papers and trainers write them, in torch, differentiated by autograd.

A part is stated here as a value with `.detach()` where its definition stops the gradient. No derivative, no Jacobian
and no case distinction about derivatives is written down anywhere in this file. Advantages are constants of every loss,
so they are taken from the engine; what they are is compared with the trainers' own code elsewhere (tests/vectors.json).

Axes: B responses, T token positions. Log-probs are natural logarithms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unipo_hooks.algorithm_spec import AlgorithmSpec, Component, Parts
from unipo_hooks.objective.describe import inputs, merged, parameters, uses
from unipo_hooks.objective.evaluate import evaluate
from unipo_hooks.objective.inputs import Batch, Normalisers
from unipo_hooks.objective.parts.types import LOG_LIMIT

torch.set_default_dtype(torch.float64)


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


@dataclass
class Given:
    """What parts read: channels as tensors, 0 where a token is not live."""

    at: dict[str, Tensor]
    log_probs: Tensor
    """The leaf."""
    counted: Tensor
    """1 where a token counts."""
    live: Tensor
    """1 where it counts and holds finite numbers."""
    advantages: Tensor
    normalisers: Normalisers

    def __getitem__(self, name: str) -> Tensor:
        return self.log_probs if name == "log_probs" else self.at[name]

    def fixed(self, name: str) -> Tensor:
        """A channel that something is compared with: a constant, even where it is `log_probs` itself."""
        return self[name].detach()

    def column(self, name: str) -> Tensor:
        values = self.at[name]
        return values[:, None] if values.ndim == 1 else values

    def mean(self, values: Tensor) -> Tensor:
        """(B, 1) over a response's tokens that count."""
        return (values * self.live).sum(1, keepdim=True) / self.counted.sum(1, keepdim=True).clamp(min=1)

    def rows(self) -> list[tuple[Tensor, ...]]:
        """Groups, as row indices."""
        group = self.at["group"]
        return [torch.nonzero(group == each).flatten() for each in torch.unique(group)]

    def scored(self) -> Tensor:
        return torch.isfinite(self.at["reward"])


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
        if values is not None and values.shape == batch.shape:
            live = live & np.isfinite(values)
        elif values is not None and values.shape == batch.shape[:1] and name not in ("reward", "reward_weights"):
            live = live & np.isfinite(values)[:, None]
    return live


def _given(spec: AlgorithmSpec, batch: Batch, leaf: Tensor, advantages: np.ndarray, rows: np.ndarray) -> Given:
    live = _live(spec, batch)
    at = {}
    for name in inputs(spec):
        values = batch.get(name)
        if values is not None:
            values = values.astype(np.float64)
            at[name] = torch.tensor(np.where(live, values, 0.0) if values.shape == batch.shape else values)
    counted = (batch["mask"] > 0) & rows[:, None]
    return Given(
        at=at,
        log_probs=torch.where(torch.tensor(live), leaf, 0.0),
        counted=torch.tensor(counted.astype(float)),
        live=torch.tensor((live & rows[:, None]).astype(float)),
        advantages=torch.tensor(np.array(advantages)),
        normalisers=batch.normalisers,
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

    bounds = only("bounds")
    ratio = only("ratio", bounds)
    objective = only("gate", ratio, bounds)
    for name, p in used["filter"]:
        counted = counted * FILTERS[name](g, p)[:, None]
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
            places = g.counted * (counted > 0)
            if p.quantile < 1:
                # A token whose number is broken keeps its place in the mean.
                places = places * ((_mask_entropy(g, p) > 0) | (g.live == 0))
            value = (of * places * penalty).sum() / places.sum().clamp(min=1) / g.normalisers.accumulation_steps
        else:
            among = _mask_entropy(g, p) if name == "entropy_bonus" and p.quantile < 1 else 1.0
            value = (share * of * among * penalty).sum()
        kind = "entropy" if name == "entropy_bonus" else "constraint"
        total[kind] = total[kind] + value
    total["objective"] = contribution.expand(g.log_probs.shape) * (share != 0)
    return total


# --- ratios: the logarithm, with its gradient -----------------------------------------------------------------------


def _log(g: Given, p: Any) -> Tensor:
    return g.log_probs - g.fixed(p.reference)


def _stop(value: Tensor, through: Tensor) -> Tensor:
    """sg(value) with the gradient of `through`."""
    return value.detach() + through - through.detach()


def _ratio_token(g: Given, bounds: Any, p: Any) -> Tensor:
    return _log(g, p) if p.clamp is None else _log(g, p).clamp(-p.clamp, p.clamp)


def _ratio_segment(g: Given, bounds: Any, p: Any) -> Tensor:
    log, segments = _log(g, p), g["segments"]
    values = torch.zeros_like(log)
    for row in range(len(log)):
        for segment in torch.unique(segments[row]):
            inside = (segments[row] == segment) * g.counted[row]
            mean = (log[row] * inside * g.live[row]).sum() / inside.sum().clamp(min=1)
            values[row] = values[row] + mean * inside
    return values


def _ratio_clipped_mean(g: Given, bounds: Any, p: Any) -> Tensor:
    sign, log = g.advantages.sign(), _log(g, p)
    pessimistic = sign * torch.minimum(sign * log, sign * log.clamp(-p.log_low, p.log_high))
    return g.mean(pessimistic)


def _one_sided(value: Tensor, A: Tensor, low: Any, high: Any) -> Tensor:
    """What remains of a ratio where moving further out would no longer be rewarded."""
    high, low = torch.as_tensor(high), torch.as_tensor(low)
    return torch.where(A > 0, torch.minimum(value, high), torch.where(A < 0, torch.maximum(value, low), value))


def _ratio_hybrid(g: Given, bounds: Any, p: Any) -> Tensor:
    log = _log(g, p)
    token = _one_sided(log.exp(), g.advantages, *bounds)
    sequence = _one_sided(g.mean(log).exp(), g.advantages, 1 - p.sequence_epsilon, 1 + p.sequence_epsilon)
    return (p.share * token + (1 - p.share) * sequence).log()


def _ratio_product(g: Given, bounds: Any, p: Any) -> Tensor:
    log = _log(g, p) if p.clamp is None else _log(g, p).clamp(-p.clamp, p.clamp)
    return (log * g.live).sum(1, keepdim=True)


def _ratio_mean_detached(g: Given, bounds: Any, p: Any) -> Tensor:
    log = _stop(g.mean(_log(g, p)), g.log_probs)
    return log if p.clamp is None else log.clamp(max=p.clamp)


RATIOS: dict[str, Callable[..., Tensor]] = {
    "one": lambda g, bounds, p: torch.zeros(1, 1),
    "token": _ratio_token,
    "segment": _ratio_segment,
    "sequence_mean": lambda g, bounds, p: g.mean(_log(g, p)),
    "sequence_mean_detached": _ratio_mean_detached,
    "sequence_product": _ratio_product,
    "clipped_sequence_mean": _ratio_clipped_mean,
    "hybrid": _ratio_hybrid,
    "mean_log_prob": lambda g, bounds, p: g.mean(g.log_probs),
}

# --- bounds ----------------------------------------------------------------------------------------------------------


def _bounds_adaptive(g: Given, p: Any) -> tuple[Tensor, Tensor]:
    q = g["old_log_probs"].exp()
    low = (1 + (1 - 4 * p.epsilon_low / q).clamp(min=0).sqrt()) / 2
    high = (1 + (1 + 4 * p.epsilon_high / q).sqrt()) / 2
    return low, high.clamp(max=p.ratio_cap)


def _bounds_stretched(g: Given, p: Any) -> tuple[Tensor, Tensor]:
    stretch = 1 + p.elasticity * g.advantages.abs() / (1 + g.advantages.abs())
    return 1 - p.epsilon_low * stretch, 1 + p.epsilon_high * stretch


def _bounds_search(g: Given, p: Any) -> tuple[Tensor, Tensor]:
    r = (g.log_probs - g["old_log_probs"]).clamp(-20, 20).exp().detach()
    live, A = g.live > 0, g.advantages.expand(r.shape)
    up, down = live & (A > 0), live & (A < 0)

    def enough(low: float, high: float) -> bool:
        gain, loss = (r.clamp(max=high) * A)[up].sum(), -(r.clamp(min=low) * A)[down].sum()
        return bool(loss == 0) or bool(gain / loss >= p.target)

    low, high = p.ratio_low, p.ratio_high
    while not enough(low, high) and low + p.step < p.ratio_low_limit + 1e-6:
        low = low + p.step
    while not enough(low, high) and high + p.step < p.ratio_high_limit + 1e-6:
        high = high + p.step
    return torch.tensor(low), torch.tensor(high)


def _bounds_entropy(g: Given, p: Any) -> tuple[Tensor, Tensor]:
    """HAPO: log-entropy minus its quantile over the batch, as a share of the largest such distance on its side."""
    live = g.live > 0
    if not live.any():
        return torch.tensor(1 - p.epsilon_low), torch.tensor(1 + p.epsilon_high)
    log = g["entropies"].clamp(min=1e-8).log()
    distance = log - torch.quantile(log[live], p.quantile, interpolation="nearest")
    distance = torch.where(live, distance, 0.0)
    above = distance / max(float(distance.max()), 1e-8)
    below = distance / max(-float(distance.min()), 1e-8)
    below = -below if p.low_side == "positive" else below
    h = torch.where(distance > 0, above, below)
    return (
        1 - p.epsilon_low * torch.where(h <= 0, 1 - p.stretch * h, 1.0),
        1 + p.epsilon_high * torch.where(h > 0, 1 + p.stretch * h, 1.0),
    )


BOUNDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "unbounded": lambda g, p: (torch.tensor(0.0), torch.tensor(math.inf)),
    "around_one": lambda g, p: (torch.tensor(1 - p.epsilon_low), torch.tensor(1 + p.epsilon_high)),
    "absolute": lambda g, p: (torch.tensor(float(p.ratio_low)), torch.tensor(float(p.ratio_high))),
    "probability_adaptive": _bounds_adaptive,
    "advantage_adaptive": _bounds_stretched,
    "batch_search": _bounds_search,
    "entropy_adaptive": _bounds_entropy,
}

# --- gates: a token's objective --------------------------------------------------------------------------------------


def _of(log: Tensor) -> Tensor:
    """The ratio, saturated where the engine saturates."""
    return log.clamp(-LOG_LIMIT, LOG_LIMIT).exp()


def _gate_ppo(g: Given, log: Tensor, bounds: Any, p: Any) -> Tensor:
    r, A = _of(log), g.advantages
    free = (r if p.delta is None else r.clamp(max=p.delta)) * A
    objective = torch.minimum(free, torch.clamp(r, *bounds) * A)
    if p.dual_clip is not None:
        objective = torch.where(A < 0, torch.maximum(objective, p.dual_clip * A), objective)
    return objective


def _gate_preserving(g: Given, log: Tensor, bounds: Any, p: Any) -> Tensor:
    r, A = _of(log), g.advantages
    # Autograd makes NaN of 0 × infinity in the branch that is not taken.
    low, high = bounds[0], bounds[1].clamp(max=1e300)
    unit = r / r.detach()
    value = torch.where((A > 0) & (r > high), p.beta_high * high * unit, r)
    value = torch.where((A < 0) & (r < low), p.beta_low * low * unit, value)
    if p.dual_clip is not None:
        value = torch.where(A < 0, value.clamp(max=p.dual_clip), value)
    return value * A


def _gate_sigmoid(g: Given, log: Tensor, bounds: Any, p: Any) -> Tensor:
    A = g.advantages
    tau = torch.where(A > 0, float(p.tau_positive), float(p.tau_negative))
    return torch.sigmoid(tau * (_of(log) - 1)) * 4 / tau * A


def _gate_gamma(g: Given, log: Tensor, bounds: Any, p: Any) -> Tensor:
    # TRL 1.16 get_gamma_weights
    lowest = math.log(1e-8)
    log_w = log
    if p.correction != "none":
        weights = g.column("is_weights")
        log_is = weights.clamp(min=1e-300).log().clamp(lowest, 20)
        log_w = log_w + (log_is * g.live if weights.shape[1] > 1 else log_is).sum(1, keepdim=True)
    log_w = log_w.clamp(lowest, 20)
    A = g.advantages
    k = torch.where(A >= 0, float(p.k_positive), float(p.k_negative))
    lam = torch.where(A >= 0, float(p.lambda_positive), float(p.lambda_negative))
    phi = (lam + k * log_w - lam * log_w.exp()).exp()
    return phi.detach() * A * g.log_probs


def _gate_tapered(g: Given, log: Tensor, bounds: Any, p: Any) -> Tensor:
    A = g.advantages
    return torch.where(A > 0, torch.ones(()), _of(log).clamp(0, 1)).detach() * A * g.log_probs


def _gate_trust_region(g: Given, log: Tensor, bounds: Any, p: Any) -> Tensor:
    A, new, old = g.advantages, g.log_probs.detach().exp(), g["old_log_probs"].exp()
    if p.divergence == "tv":
        up, down = new - old > p.delta_high, new - old < -p.delta_low
    else:
        # verl 0.9.1 compute_policy_loss_dppo_kl
        kl = old * (g["old_log_probs"] - g.log_probs.detach()) + (1 - old) * ((1 - old + 1e-8) / (1 - new + 1e-8)).log()
        up, down = (kl > p.delta_high) & (new > old), (kl > p.delta_low) & (new < old)
    out = torch.where(A > 0, up, down)
    r = _of(log).detach()
    r = r if p.ratio_cap is None else r.clamp(max=p.ratio_cap)
    return r * A * ~out * g.log_probs


def _gate_hard_mask(g: Given, log: Tensor, bounds: Any, p: Any) -> Tensor:
    low, high = bounds
    r, A = _of(log).detach(), g.advantages
    if p.sides == "one":
        dropped = ((A > 0) & (r > high)) | ((A < 0) & (r < low))
    else:
        dropped = (r > high) | (r < low)
        if p.sides == "ring":
            returns = ((A >= 0) & (r <= 1 - p.ring_low)) | ((A <= 0) & (r >= 1 + p.ring_high))
            dropped = dropped & ~returns
    return A * torch.where(dropped, 0.0, r if p.importance else torch.ones(())) * g.log_probs


def _gate_shaped(g: Given, log: Tensor, bounds: Any, p: Any) -> Tensor:
    probability = g.log_probs.exp()
    return g.advantages * probability / (probability + p.gamma)


def _gate_blended(g: Given, log: Tensor, bounds: Any, p: Any) -> Tensor:
    old = g["old_log_probs"].exp()
    return g.advantages * 2 * g.log_probs.exp() / (old + (old + 1) / 2)


def _gate_discriminative(g: Given, log: Tensor, bounds: Any, p: Any) -> Tensor:
    """A group's mean good score minus its bad scores' soft maximum, as rows that a mean over responses sums."""
    score = (log if p.score == "log" else _of(log))[:, 0]
    rows = torch.zeros_like(score)
    there = g.counted.sum(1) > 0
    for group in g.rows():
        of = group[g.scored()[group] & there[group]]
        good, bad = of[g["reward"][of] > 0], of[g["reward"][of] <= 0]
        if not len(good) or not len(bad):
            continue
        rows = rows.index_add(0, good, score[good] * len(group) / len(good))
        soft = p.tau * (torch.logsumexp(score[bad] / p.tau, 0) - math.log(len(bad)))
        rows = rows.index_add(0, bad, -soft.expand(len(bad)) * len(group) / len(bad))
    return rows[:, None]


def _gate_logistic(g: Given, log: Tensor, bounds: Any, p: Any) -> Tensor:
    """A group's −log(1 + Σ e^(−s/τ)) over good and −log(1 + Σ e^(s/τ)) over bad responses, spread over its rows."""
    score = log[:, 0]
    rows = torch.zeros_like(score)
    good = (g.advantages * g.counted).sum(1) > 0
    there = g.counted.sum(1) > 0
    if "reward" in g.at:
        there = there & g.scored()
    for group in g.rows():
        of = group[there[group]]
        kinds = (of[good[of]], -1), (of[~good[of]], 1)
        if all(len(kind) for kind, _ in kinds):
            for kind, sign in kinds:
                both = torch.cat([torch.zeros(1), sign * score[kind] / p.tau])
                value = -torch.logsumexp(both, 0).expand(len(kind)) * len(group) / len(kind)
                rows = rows.index_add(0, kind, value)
    return rows[:, None]


GATES: dict[str, Callable[..., Tensor]] = {
    "log_prob": lambda g, log, bounds, p: g.advantages * g.log_probs,
    "plain_ratio": lambda g, log, bounds, p: g.advantages * _of(log),
    "ppo_clip": _gate_ppo,
    "capped_weight": lambda g, log, bounds, p: torch.clamp(_of(log), *bounds).detach() * g.advantages * g.log_probs,
    "gradient_preserving_clip": _gate_preserving,
    "sigmoid": _gate_sigmoid,
    "gamma_weight": _gate_gamma,
    "tapered": _gate_tapered,
    "trust_region_mask": _gate_trust_region,
    "hard_mask": _gate_hard_mask,
    "shaped_probability": _gate_shaped,
    "blended_ratio": _gate_blended,
    "squared_residual": lambda g, log, bounds, p: -((p.beta * log - g.advantages) ** 2),
    "discriminative": _gate_discriminative,
    "group_logistic": _gate_logistic,
}

# --- weights ---------------------------------------------------------------------------------------------------------


def _sampler(g: Given, p: Any) -> Tensor:
    log = (g["old_log_probs"] - g["rollout_log_probs"]) * g.live
    if p.level == "token":
        return log.exp()
    return (log.sum(1, keepdim=True) if p.level == "sequence_product" else g.mean(log)).exp()


def _weight_banded(g: Given, p: Any) -> Tensor:
    ratio = _sampler(g, p)
    return ratio * (ratio >= p.band_low) * (ratio <= p.band_high)


def _weight_recorded(g: Given, p: Any) -> Tensor:
    weights = g.column("is_weights")
    if p.level == "token" or weights.shape[1] == 1:
        return weights
    return g.mean(weights.clamp(min=1e-10).log()).exp()


WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "recorded_weight": _weight_recorded,
    "truncated": lambda g, p: _sampler(g, p).clamp(p.floor, p.cap),
    "banded": _weight_banded,
    "indecision": lambda g, p: g.log_probs.exp() * (1 - g.log_probs.exp()),
    "exploration": lambda g, p: (1 - g.log_probs.exp()).clamp(min=0) ** p.power,
    "constant_weight": lambda g, p: torch.tensor(float(p.factor)),
}

# --- masks and filters -----------------------------------------------------------------------------------------------


def _mask_entropy(g: Given, p: Any) -> Tensor:
    entropies = g["entropies"][g.live > 0]
    if not len(entropies) or p.quantile >= 1:
        return g.live
    return ((g["entropies"] >= torch.quantile(entropies, 1 - p.quantile)) & (g.live > 0)).double()


def _mask_prefix(g: Given, p: Any) -> Tensor:
    keep = torch.zeros_like(g.counted)
    for row, counted in enumerate(g.counted):
        places = torch.nonzero(counted).flatten()
        keep[row, places[: math.ceil(p.share * len(places))]] = 1.0
    return keep


def _mask_advantage_entropy(g: Given, p: Any) -> Tensor:
    keep = torch.zeros_like(g.counted)
    score = g.advantages.abs() * g["entropies"]
    for row, counted in enumerate(g.counted):
        places = torch.nonzero(counted).flatten().tolist()
        best = sorted(places, key=lambda t, row=row: -float(score[row, t]))
        keep[row, best[: math.ceil(p.share * len(places))]] = 1.0
    return keep


def _mask_conflicts(g: Given, p: Any) -> Tensor:
    """Places are counted from the first position, and back from the last token that counts."""
    B, _ = g.counted.shape
    sign = g.mean(g.advantages.expand(g.counted.shape)).sign()[:, 0]
    places = [torch.nonzero(row).flatten().tolist() for row in g.counted]
    ids = g["ids"].long()
    factor = torch.ones_like(g.counted)
    for i, j in itertools.permutations(range(B), 2):
        if g["group"][i] != g["group"][j] or sign[i] * sign[j] >= 0 or not places[i] or not places[j]:
            continue
        for t in places[i]:
            mirror = t - places[i][-1] + places[j][-1]
            if any(u in places[j] and ids[i, t] == ids[j, u] for u in (t, mirror)):
                factor[i, t] = 2.0 if sign[i] > 0 else 0.0
    return factor


def _mask_drift(g: Given, p: Any) -> Tensor:
    drift = g.mean(g.fixed(p.reference) - g.log_probs.detach())
    return 1.0 - ((g.advantages < 0) & (drift > p.threshold)).double()


def _mask_entropy_ratio(g: Given, p: Any) -> Tensor:
    change = g["entropies"] / g["old_entropies"].clamp(min=1e-8)
    return ((change >= 1 - p.change_low) & (change <= 1 + p.change_high)).double()


def _mask_divergence(g: Given, p: Any) -> Tensor:
    """Estimators of KL(π_ref ‖ π_θ), π_ref having sampled."""
    log = (g.log_probs.detach() - g.fixed(p.reference)).clamp(-20, 20)
    value = {"k1": -log, "k2": log**2 / 2, "k3": log.exp() - 1 - log}[p.estimator]
    if p.level == "sequence_sum":
        value = (value * g.live).sum(1, keepdim=True)
    elif p.level == "sequence_mean":
        value = g.mean(value)
    elif p.level == "sequence_max":
        value = torch.where(g.live > 0, value, -math.inf).amax(1, keepdim=True)
    low = -math.inf if p.limit_low is None else p.limit_low
    return ((value <= p.limit_high) & (value >= low)).double()


MASKS: dict[str, Callable[..., Tensor]] = {
    "recorded_mask": lambda g, p: g["policy_mask"],
    "not_selected": lambda g, p: (g["selected"] <= 0).double(),
    "truncated_responses": lambda g, p: (g["truncated"] <= 0).double()[:, None].expand(g.counted.shape),
    "high_entropy": _mask_entropy,
    "unlikely_tokens": lambda g, p: (g["old_log_probs"] < math.log(p.probability)).double(),
    "off_policy_sequences": _mask_drift,
    "divergence_limit": _mask_divergence,
    "entropy_ratio": _mask_entropy_ratio,
    "prefix": _mask_prefix,
    "advantage_entropy": _mask_advantage_entropy,
    "conflict_tokens": _mask_conflicts,
}


def _filter_signal(g: Given, p: Any) -> Tensor:
    keep, reward, scored = torch.zeros(len(g.counted)), g["reward"], g.scored()
    for group in g.rows():
        keep[group] = float(len(torch.unique(reward[group][scored[group]])) > 1)
    return keep


def _filter_power(g: Given, p: Any) -> Tensor:
    weights = torch.nan_to_num(g["reward"], 0.0, 0.0, 0.0).abs() ** p.power + 1e-8
    weights = torch.where(g.scored(), weights, 1e-8)
    return weights / weights.sum() * len(weights)


def _filter_varied(g: Given, p: Any) -> Tensor:
    """The subset of that size with the largest variance of R − mean of its group, by trying all of them."""
    scored, centred = g.scored(), torch.zeros(len(g.counted))
    for group in g.rows():
        of = group[scored[group]]
        if len(of):
            centred[of] = g["reward"][of] - g["reward"][of].mean()
    size = max(1, math.ceil(p.share * len(centred)))
    best = max(
        itertools.combinations(range(len(centred)), size),
        key=lambda rows: round(float(centred[list(rows)].var(correction=0)), 12),
    )
    keep = torch.zeros(len(centred))
    keep[list(best)] = 1.0
    return keep


def _filter_positive(g: Given, p: Any) -> Tensor:
    return (torch.nan_to_num(g["reward"]) > g.column("baselines")[:, 0]).double()


FILTERS: dict[str, Callable[..., Tensor]] = {
    "groups_with_signal": _filter_signal,
    "reward_power": _filter_power,
    "most_varied": _filter_varied,
    "positive_advantages": _filter_positive,
}

# --- constraints: what is added to the loss --------------------------------------------------------------------------


def _kl(log: Tensor, estimator: str, clamp: float | None) -> Tensor:
    """Schulman's estimators of log = log π_θ − log π_ref; with + the value of one, the gradient of k2 (verl)."""
    k2 = log * log / 2
    if estimator.endswith("+"):
        return _stop(_kl(log, estimator[:-1], clamp), k2)
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
    there = len(counted) if p.rows == "all" else int((counted.sum(1) > 0).sum())
    return max(there, 1) * g.normalisers.accumulation_steps


def _per_response(counted: Tensor) -> Tensor:
    length = counted.sum(1, keepdim=True)
    return counted / torch.where(length > 0, length, 1.0).clamp(min=1)


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
    "sequence_mean_token_mean": lambda g, counted, p: _per_response(counted) / _responses(g, counted, p),
    "sequence_mean_token_sum": lambda g, counted, p: counted / _responses(g, counted, p),
    "sequence_mean_constant_length": _share_constant,
    "token_mean": _share_tokens,
    "group_token_mean": _share_groups,
    "token_sum": lambda g, counted, p: counted * g.normalisers.data_parallel_size / (p.length or 1),
    "sequence_sum_token_mean": lambda g, counted, p: _per_response(counted) / g.normalisers.accumulation_steps,
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
