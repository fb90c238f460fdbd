"""Every part of an objective as a value in torch, with `.detach()` where its definition stops the gradient.

What `torch_objective` puts together. No derivative is written down here. Axes: B responses, T token positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unipo_hooks.objective.inputs import Normalisers
from unipo_hooks.objective.parts.types import LOG_LIMIT


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
    often: Tensor
    """(B,) how many times filters let a response stand."""

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


# --- ratios: the logarithm, with its gradient -----------------------------------------------------------------------


def _log(g: Given, p: Any) -> Tensor:
    return g.log_probs - g.fixed(p.reference)


def stopped(value: Tensor, through: Tensor) -> Tensor:
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
    among = g.counted if p.over == "mask" else g.counted * torch.where(g.live > 0, g[p.over], 1.0)
    return (pessimistic * among).sum(1, keepdim=True) / among.sum(1, keepdim=True).clamp(min=1)


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
    log = stopped(g.mean(_log(g, p)), g.log_probs)
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
        log_is = g["is_weights"].clamp(min=1e-300).log().clamp(lowest, 20)
        log_w = log_w + (log_is[:, None] if log_is.ndim == 1 else (log_is * g.live).sum(1, keepdim=True))
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


def most_entropic(g: Given, p: Any) -> Tensor:
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
    "high_entropy": most_entropic,
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
