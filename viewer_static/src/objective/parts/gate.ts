/**
 * Gate: what the ratio and the advantage make of a token, with the derivative in closed form.
 *
 * At a tie (a ratio exactly at a bound, an advantage of exactly 0) nothing counts as clipped and the derivative is that
 * of the side inside: what autograd gives for PyTorch's clamp and min.
 */
import { rowSums, spread, type Prepared } from "../prepared";
import { LOG_LIMIT, cappedExp, clip, times } from "../numbers";
import { discriminated, logistic } from "./contrast";
import {
  CAPPED_HIGH,
  CAPPED_LOW,
  DELTA,
  DUAL,
  HIGH,
  LOW,
  REGION,
  perToken,
  type Bounds,
  type Gate,
  type Ratio,
  type Table,
} from "./types";

/** factor · log π_θ with a detached factor. */
function logProbGate(batch: Prepared, factor: Float64Array, clipped: Uint8Array | null = null): Gate {
  return { objective: times(factor, batch.get("log_probs")), dLogRatio: null, dLogProb: factor, clipped };
}

export const GATE = {
  /** A · log π_θ: REINFORCE. */
  log_prob(batch: Prepared, advantages) {
    return logProbGate(batch, advantages);
  },

  /** A · ratio, never clipped. */
  plain_ratio(_batch: Prepared, advantages, ratio) {
    const objective = times(advantages, ratio.value);
    return { objective, dLogRatio: objective, dLogProb: null, clipped: ratio.clipped };
  },

  /** min(ratio·A, clip(ratio)·A); with a dual clip at least c·A where A < 0; with δ the ratio is capped first. */
  ppo_clip(
    batch: Prepared,
    advantages,
    ratio,
    { low, high },
    { dual_clip, delta }: { dual_clip: number | null; delta: number | null },
  ) {
    const { value } = ratio;
    const objective = perToken(batch);
    const dLogRatio = perToken(batch);
    const clipped = new Uint8Array(objective.length);
    for (let i = 0; i < objective.length; i++) {
      const advantage = advantages[i]!;
      const now = value[i]!;
      const free = (delta === null ? now : Math.min(now, delta)) * advantage;
      const bounded = clip(now, low[i]!, high[i]!) * advantage;
      const bends = bounded < free;
      let objectiveNow = bends ? bounded : free;
      // Where clip(ratio)·A is the smaller one, the ratio is outside its range, except where δ lies inside it.
      let code = bends && (now < low[i]! || now > high[i]!) ? (advantage > 0 ? HIGH : LOW) : 0;
      if (delta !== null && !bends && now > delta && advantage !== 0) code = DELTA;
      if (dual_clip !== null && advantage < 0 && objectiveNow < dual_clip * advantage) {
        objectiveNow = dual_clip * advantage;
        code = DUAL;
      }
      objective[i] = objectiveNow;
      dLogRatio[i] = code === 0 ? now * advantage : 0;
      clipped[i] = code;
    }
    return { objective, dLogRatio, dLogProb: null, clipped };
  },

  /** A · sg(clip(ratio)) · log π_θ: every token keeps a gradient (CISPO). */
  capped_weight(batch: Prepared, advantages, { value }, { low, high }) {
    const factor = perToken(batch);
    const codes = new Uint8Array(factor.length);
    for (let i = 0; i < factor.length; i++) {
      const now = value[i]!;
      factor[i] = clip(now, low[i]!, high[i]!) * advantages[i]!;
      codes[i] = now > high[i]! ? CAPPED_HIGH : now < low[i]! ? CAPPED_LOW : 0;
    }
    return logProbGate(batch, factor, codes);
  },

  /** PPO's clip, but a clipped token keeps the gradient of the bound, times β (GPPO, CE-GPPO). */
  gradient_preserving_clip(
    batch: Prepared,
    advantages,
    { value },
    { low, high },
    { beta_low, beta_high, dual_clip }: { beta_low: number; beta_high: number; dual_clip: number | null },
  ) {
    const objective = perToken(batch);
    const dLogRatio = perToken(batch);
    const clipped = new Uint8Array(objective.length);
    for (let i = 0; i < objective.length; i++) {
      const advantage = advantages[i]!;
      const now = value[i]!;
      const above = advantage > 0 && now > high[i]!;
      const below = advantage < 0 && now < low[i]!;
      objective[i] = (above ? beta_high * high[i]! : below ? beta_low * low[i]! : now) * advantage;
      dLogRatio[i] = objective[i]!;
      clipped[i] = above ? CAPPED_HIGH : below ? CAPPED_LOW : 0;
      if (dual_clip !== null && advantage < 0 && now > dual_clip) {
        objective[i] = dual_clip * advantage;
        dLogRatio[i] = 0;
        clipped[i] = DUAL;
      }
    }
    return { objective, dLogRatio, dLogProb: null, clipped };
  },

  /** A · (4/τ) σ(τ(ratio − 1)): a soft gate around 1 (SAPO). */
  sigmoid(
    batch: Prepared,
    advantages,
    { value },
    _bounds,
    { tau_positive, tau_negative }: { tau_positive: number; tau_negative: number },
  ) {
    const objective = perToken(batch);
    const dLogRatio = perToken(batch);
    for (let i = 0; i < objective.length; i++) {
      const advantage = advantages[i]!;
      const tau = advantage > 0 ? tau_positive : tau_negative;
      // tanh does not overflow: σ(x) = (1 + tanh(x/2))/2
      const gate = 0.5 * (1 + Math.tanh(0.5 * tau * (value[i]! - 1)));
      objective[i] = (4 / tau) * gate * advantage;
      dLogRatio[i] = 4 * gate * (1 - gate) * value[i]! * advantage;
    }
    return { objective, dLogRatio, dLogProb: null, clipped: null };
  },

  /** A · sg(φ(W)) · log π_θ, φ(W) = W^k e^{λ(1 − W)} of the whole response's ratio (VESPO). */
  gamma_weight(
    batch: Prepared,
    advantages,
    ratio,
    _bounds,
    values: {
      k_positive: number;
      lambda_positive: number;
      k_negative: number;
      lambda_negative: number;
      correction: string;
    },
  ) {
    let log = ratio.log;
    if (values.correction !== "none") {
      const each = batch.get("is_weights").map((weight) => Math.min(Math.log(Math.max(weight, 1e-8)), 20));
      // One of the whole response is its W already.
      const perResponse = batch.isPerToken("is_weights") ? rowSums(times(each, batch.valid), batch.T) : each;
      log = log.map((value, i) => value + perResponse[Math.floor(i / batch.T)]!);
    }
    const factor = advantages.map((advantage, i) => {
      const logW = clip(log[i]!, Math.log(1e-8), 20);
      const k = advantage >= 0 ? values.k_positive : values.k_negative;
      const lambda = advantage >= 0 ? values.lambda_positive : values.lambda_negative;
      return Math.exp(clip(lambda + k * logW - lambda * Math.exp(logW), -LOG_LIMIT, LOG_LIMIT)) * advantage;
    });
    return logProbGate(batch, factor);
  },

  /** A · log π_θ; negative tokens are weighted by sg(clip(ratio, 0, 1)) (TOPR). */
  tapered(batch: Prepared, advantages, { value }) {
    return logProbGate(
      batch,
      advantages.map((advantage, i) => (advantage > 0 ? 1 : clip(value[i]!, 0, 1)) * advantage),
    );
  },

  /** A · sg(min(ratio, c)) · log π_θ where π_θ is near enough to π_old, or moving back (DPPO). */
  trust_region_mask(
    batch: Prepared,
    advantages,
    { value },
    _bounds,
    values: { divergence: string; delta_low: number; delta_high: number; ratio_cap: number | null },
  ) {
    const { delta_low, delta_high, ratio_cap } = values;
    const logNew = batch.get("log_probs");
    const logOld = batch.get("old_log_probs");
    const factor = perToken(batch);
    const codes = new Uint8Array(factor.length);
    for (let i = 0; i < factor.length; i++) {
      const advantage = advantages[i]!;
      const up = advantage > 0;
      const now = Math.exp(logNew[i]!);
      const old = Math.exp(logOld[i]!);
      let inside: boolean;
      if (values.divergence === "tv") {
        inside = up ? now - old <= delta_high : now - old >= -delta_low;
      } else {
        // verl 0.9.1 compute_policy_loss_dppo_kl: KL of two Bernoulli variables, with its 1e-8
        const other = Math.log((1 - old + 1e-8) / Math.max(1 - now + 1e-8, 1e-300));
        const kl = old * (logOld[i]! - logNew[i]!) + (1 - old) * other;
        inside = up ? kl <= delta_high || now <= old : kl <= delta_low || now >= old;
      }
      const limited = ratio_cap === null ? value[i]! : Math.min(value[i]!, ratio_cap);
      factor[i] = limited * advantage * (inside ? 1 : 0);
      codes[i] = inside ? (limited < value[i]! ? CAPPED_HIGH : 0) : REGION;
    }
    return logProbGate(batch, factor, codes);
  },

  /**
   * A · log π_θ, or A · sg(ratio) · log π_θ, only where the ratio is inside its bounds (REC).
   *
   * One side: a token is dropped only where its advantage pushes it further out. Two sides: wherever it is outside.
   * Ring: inside, or beyond the ring on the side the advantage pulls it back from.
   */
  hard_mask(
    batch: Prepared,
    advantages,
    { value },
    { low, high },
    values: { sides: string; importance: boolean; ring_low: number; ring_high: number },
  ) {
    const { sides, importance, ring_low, ring_high } = values;
    const factor = perToken(batch);
    const codes = new Uint8Array(factor.length);
    for (let i = 0; i < factor.length; i++) {
      const advantage = advantages[i]!;
      const now = value[i]!;
      let inside: boolean;
      if (sides === "one") {
        inside = (advantage >= 0 && now <= high[i]!) || (advantage <= 0 && now >= low[i]!);
      } else {
        inside = now >= low[i]! && now <= high[i]!;
        if (sides === "ring") {
          inside ||= (advantage >= 0 && now <= 1 - ring_low) || (advantage <= 0 && now >= 1 + ring_high);
        }
      }
      factor[i] = advantage * (inside ? 1 : 0) * (importance ? now : 1);
      codes[i] = inside || advantage === 0 ? 0 : now > high[i]! ? HIGH : LOW;
    }
    return logProbGate(batch, factor, codes);
  },

  /** A · p/(p + γ): an unlikely token of another's response counts most (LUFFY). */
  shaped_probability(batch: Prepared, advantages, _ratio, _bounds, { gamma }: { gamma: number }) {
    const log = batch.get("log_probs");
    const objective = advantages.map((advantage, i) => {
      const probability = cappedExp(log[i]!);
      return advantage * (probability / (probability + gamma));
    });
    const dLogProb = objective.map((value, i) => (value * gamma) / (cappedExp(log[i]!) + gamma));
    return { objective, dLogRatio: null, dLogProb, clipped: null };
  },

  /** A · 2p/(q + (q + 1)/2): the ratio to a mixture of its source and the uniform guess (RL-PLUS). */
  blended_ratio(batch: Prepared, advantages) {
    const log = batch.get("log_probs");
    const old = batch.get("old_log_probs");
    const objective = advantages.map((advantage, i) => {
      const sampled = cappedExp(old[i]!);
      return (advantage * 2 * cappedExp(log[i]!)) / (sampled + 0.5 * (sampled + 1));
    });
    return { objective, dLogRatio: null, dLogProb: objective, clipped: null };
  },

  /** −(β log ratio − A)²: the ratio is fitted to the advantage (A*-PO). */
  squared_residual(_batch: Prepared, advantages, ratio, _bounds, { beta }: { beta: number }) {
    const residual = advantages.map((advantage, i) => beta * ratio.log[i]! - advantage);
    return {
      objective: residual.map((value) => -value * value),
      dLogRatio: residual.map((value) => -2 * beta * value),
      dLogProb: null,
      clipped: null,
    };
  },

  /** −log(1 + Σ e^{−s/τ}) over a prompt's good responses, −log(1 + Σ e^{s/τ}) over its bad ones (REAL). */
  group_logistic(batch: Prepared, advantages, ratio, _bounds, { tau }: { tau: number }) {
    return ofResponses(batch, logistic(batch, advantages, ratio, tau));
  },

  /** Mean score of a prompt's good responses − τ log-mean-exp of its bad ones' scores over τ (DisCO). */
  discriminative(batch: Prepared, _advantages, ratio, _bounds, { tau, score }: { tau: number; score: string }) {
    return ofResponses(batch, discriminated(batch, ratio, tau, score));
  },
} satisfies Table<[batch: Prepared, advantages: Float64Array, ratio: Ratio, bounds: Bounds], Gate>;

function ofResponses(batch: Prepared, { objective, slope }: { objective: Float64Array; slope: Float64Array }): Gate {
  return {
    objective: spread(objective, batch.T),
    dLogRatio: spread(slope, batch.T),
    dLogProb: null,
    clipped: null,
  };
}
