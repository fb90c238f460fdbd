/**
 * Baselines that give every token, segment or turn an advantage of its own: credit assignment.
 *
 * They fill the same slot as those of `baseline`, and treat what is not finite or not scored in the same way.
 */
import type { Prepared } from "../prepared";
import { grown, sum, variance } from "../numbers";
import { centred, finite, groupStdOf } from "./groups";
import { atTokens, numbersOf, perNumber } from "./places";
import { perToken, type Advantages, type Rewards, type Table } from "./types";

/** Rewards of tokens; a scalar one stands at the last token that counts. */
export function rewardsPerToken(batch: Prepared, rewards: Rewards): Float64Array {
  if (rewards.token !== null) return rewards.token;
  const { B, T, mask, scored } = batch;
  const token = perToken(batch);
  for (let b = 0; b < B; b++) {
    for (let i = (b + 1) * T - 1; i >= b * T; i--) {
      if (!(mask[i]! > 0)) continue;
      token[i] = (scored[b] ? rewards.response[b]! : 0) * mask[i]!;
      break;
    }
  }
  return token;
}

/** Σ γ^k r over what counts from each position of a row of `width` on; 0 where it does not count. */
export function discounted(rewards: Float64Array, mask: Float64Array, width: number, gamma: number): Float64Array {
  const returns = new Float64Array(rewards.length);
  let running = 0;
  for (let i = rewards.length - 1; i >= 0; i--) {
    if (i % width === width - 1) running = 0;
    if (!(mask[i]! > 0)) continue;
    running = rewards[i]! + gamma * running;
    returns[i] = running;
  }
  return returns;
}

/** Σ (γλ)^k δ over rows of `width`; what does not count is stepped over. */
function generalised(
  rewards: Float64Array,
  values: Float64Array,
  mask: Float64Array,
  width: number,
  { gamma, lam }: { gamma: number; lam: number },
): Float64Array {
  const advantages = new Float64Array(rewards.length);
  let [next, running] = [0, 0];
  for (let i = rewards.length - 1; i >= 0; i--) {
    if (i % width === width - 1) next = running = 0;
    if (!(mask[i]! > 0)) continue;
    running = rewards[i]! + gamma * next - values[i]! + gamma * lam * running;
    next = values[i]!;
    advantages[i] = running;
  }
  return advantages;
}

function ofTokens(values: Float64Array): Advantages {
  return { values, perToken: true };
}

/** Rewards of turns, discounted to the turn they are still to come from; `size`: tokens of a turn that count. */
function turnReturns(batch: Prepared, rewards: Rewards, gamma: number) {
  const turns = numbersOf(batch, "turns");
  const { sums, size } = perNumber(batch, rewardsPerToken(batch, rewards), turns);
  return { turns, size, returns: discounted(sums, size, turns.count, gamma) };
}

/** The advantage of each reward inside its group, in units of the group's deviation. */
function normalised(batch: Prepared, rewards: Rewards, eps: number): Float64Array {
  const deviation = groupStdOf(batch, rewards.response, 1, "self");
  return centred(batch, rewards.response, "self").map((value, b) => value / (deviation[b]! + eps));
}

export const CREDIT = {
  /** Discounted sum of the token rewards from here on; tokens that do not count are stepped over. */
  return_to_go(batch: Prepared, rewards, { gamma }: { gamma: number }) {
    return ofTokens(discounted(rewardsPerToken(batch, rewards), batch.mask, batch.T, gamma));
  },

  /** Generalised advantage estimation with the critic's values (arXiv 1506.02438). */
  gae(batch: Prepared, rewards, values: { gamma: number; lam: number }) {
    return ofTokens(generalised(rewardsPerToken(batch, rewards), batch.get("values"), batch.mask, batch.T, values));
  },

  /** GAE over macro actions: a segment's tokens share one advantage, with its tokens' mean value (MA-RLHF). */
  macro_gae(batch: Prepared, rewards, values: { gamma: number; lam: number }) {
    const segments = numbersOf(batch, "segments");
    const { sums, size } = perNumber(batch, rewardsPerToken(batch, rewards), segments);
    const total = perNumber(batch, batch.get("values"), segments).sums;
    const critic = total.map((value, i) => value / Math.max(size[i]!, 1));
    return ofTokens(atTokens(batch, generalised(sums, critic, size, segments.count, values), segments));
  },

  /**
   * Return minus the group's mean return at the same position, weighted by Σ(1 − 2q + Σπ²) (optimal token baseline).
   *
   * `by` is `position`, or `count` to compare the n-th counting token of each response where tool output lies between.
   */
  optimal_token(
    batch: Prepared,
    rewards,
    { by, zero_tail, eps }: { by: string; zero_tail: boolean; eps: number },
  ) {
    const { B, T, mask } = batch;
    const returns = rewardsPerToken(batch, rewards).map((value, i) => value * mask[i]!);
    for (let i = returns.length - 2; i >= 0; i--) if (i % T !== T - 1) returns[i]! += returns[i + 1]!;
    const squares = batch.get("sum_pi_squared");
    const sampler = batch.has("is_weights") ? batch.spread("is_weights") : null;
    const weight = batch.get("old_log_probs").map((old, i) => {
      const own = 1 - 2 * Math.exp(old) + squares[i]!;
      return (sampler === null ? own : own * grown(sampler[i]! ** 2)) * mask[i]!;
    });
    for (let i = 1; i < weight.length; i++) if (i % T !== 0) weight[i]! += weight[i - 1]!;

    /** Where the value compared at a place stands; by count, what counts is moved to the front. */
    const places = Int32Array.from(mask, (_, i) => i);
    const lengths = new Int32Array(B);
    for (let b = 0; b < B; b++) {
      const start = b * T;
      for (let i = start; i < start + T; i++) {
        if (mask[i] === 0) continue;
        if (by === "count") places[start + lengths[b]!] = i;
        lengths[b]!++;
      }
    }
    const counts = (b: number, t: number) => (by === "count" ? t < lengths[b]! : mask[b * T + t] !== 0);
    const advantages = returns.slice();
    for (const group of batch.members) {
      const rows = by === "count" ? group.filter((b) => lengths[b]! > 0) : group;
      if (rows.length < 2) continue;
      const [longest, second] = rows.map((b) => lengths[b]!).sort((a, b) => b - a) as [number, number];
      const tail = zero_tail && longest > second ? rows.find((b) => lengths[b] === longest) : undefined;
      for (let t = 0; t < T; t++) {
        let weighted = 0;
        let total = 0;
        for (const b of rows) {
          if (!counts(b, t)) continue;
          const i = places[b * T + t]!;
          weighted += returns[i]! * weight[i]!;
          total += weight[i]!;
        }
        for (const b of rows) {
          if (!counts(b, t) || (b === tail && t >= second)) continue;
          advantages[places[b * T + t]!]! -= weighted / (total + eps);
        }
      }
    }
    return ofTokens(advantages.map((value, i) => value * mask[i]!));
  },

  /**
   * V(end of the segment) − V(its start), the values estimated by sampling on from there (SPO).
   *
   * `values` holds V at the segment's start on each of its tokens; the last segment ends at the reward.
   */
  segment_values(batch: Prepared, rewards) {
    const { B, T, mask, scored } = batch;
    const segments = batch.get("segments").map(Math.trunc);
    const values = batch.get("values");
    const advantages = perToken(batch);
    for (let b = 0; b < B; b++) {
      let next = scored[b] ? rewards.response[b]! : 0;
      let current = next;
      let segment = -1;
      for (let i = (b + 1) * T - 1; i >= b * T; i--) {
        if (!(mask[i]! > 0)) continue;
        if (segments[i] !== segment) {
          next = current;
          segment = segments[i]!;
        }
        current = values[i]!;
        advantages[i] = next - current;
      }
    }
    return ofTokens(advantages);
  },

  /** Return from a turn on, minus the mean of the group's other responses at the same turn (TRLOO). */
  turn_leave_one_out(batch: Prepared, rewards, { gamma, singleton }: { gamma: number; singleton: string }) {
    const { turns, size, returns } = turnReturns(batch, rewards, gamma);
    const advantages = new Float64Array(returns.length);
    for (const rows of batch.members) {
      for (let n = 0; n < turns.count; n++) {
        const places = rows.map((b) => b * turns.count + n).filter((place) => size[place]! > 0);
        const total = sum(places.map((place) => returns[place]!));
        for (const place of places) {
          const own = returns[place]!;
          if (places.length > 1) advantages[place] = own - (total - own) / (places.length - 1);
          else advantages[place] = singleton === "zero" ? own : 0;
        }
      }
    }
    return ofTokens(atTokens(batch, advantages, turns));
  },

  /** Turn rewards normalised inside the group, then their discounted sum over the turns to come (IGPO). */
  normalised_turn_returns(
    batch: Prepared,
    rewards,
    { gamma, eps, variance_eps }: { gamma: number; eps: number; variance_eps: number },
  ) {
    const turns = numbersOf(batch, "turns");
    const { sums, size } = perNumber(batch, rewardsPerToken(batch, rewards), turns);
    const normal = new Float64Array(sums.length);
    for (const rows of batch.members) {
      const places = rows.flatMap((b) => Array.from({ length: turns.count }, (_, n) => b * turns.count + n));
      const present = places.filter((place) => size[place]! > 0);
      const values = present.map((place) => sums[place]!);
      if (values.every((value) => value === values[0])) continue;
      const mean = grown(sum(values)) / values.length;
      const deviation = Math.sqrt(variance(values, 0) + variance_eps) + eps;
      for (const place of present) normal[place] = (sums[place]! - mean) / deviation;
    }
    return ofTokens(atTokens(batch, discounted(normal, size, turns.count, gamma), turns));
  },

  /** Group advantage of the episode plus that of each step among steps from the same state (GiGPO). */
  episode_and_step(
    batch: Prepared,
    rewards,
    values: { gamma: number; step_weight: number; normalise: boolean; eps: number },
  ) {
    const { gamma, step_weight, normalise, eps } = values;
    const { T, mask } = batch;
    const episode = normalise ? normalised(batch, rewards, eps) : centred(batch, rewards.response, "self");
    const { turns, size, returns } = turnReturns(batch, rewards, gamma);
    const given = batch.get("anchors");
    const anchors = new Float64Array(returns.length);
    mask.forEach((is, i) => {
      if (is !== 0) anchors[Math.floor(i / T) * turns.count + turns.numbers[i]!] = given[i]!;
    });
    const step = new Float64Array(returns.length);
    for (const rows of batch.members) {
      const same = new Map<number, number[]>();
      for (const b of rows) {
        for (let place = b * turns.count; place < (b + 1) * turns.count; place++) {
          if (!(size[place]! > 0)) continue;
          const known = same.get(anchors[place]!);
          if (known === undefined) same.set(anchors[place]!, [place]);
          else known.push(place);
        }
      }
      for (const places of same.values()) {
        const among = places.map((place) => returns[place]!);
        const deviation = among.length > 1 ? Math.sqrt(variance(among, 1)) : 0;
        const mean = grown(sum(among)) / among.length;
        for (const place of places) step[place] = (returns[place]! - mean) / (normalise ? deviation + eps : 1);
      }
    }
    const steps = atTokens(batch, step, turns);
    return ofTokens(steps.map((value, i) => (episode[Math.floor(i / T)]! + step_weight * value) * mask[i]!));
  },

  /**
   * Mean return of the budgets still to come minus a baseline mixed from past budgets and the group (BRPO).
   *
   * A segment is the part of a response between two budgets; `rewards` holds, on a segment's last token, the score an
   * answer at that budget gets. A response that ended early would give its last answer at the later budgets too.
   */
  budget_relative(batch: Prepared, rewards, { growth }: { growth: number }) {
    const { B } = batch;
    const segments = numbersOf(batch, "segments");
    const S = segments.count;
    const { sums, size } = perNumber(batch, rewardsPerToken(batch, rewards), segments);
    const toCome = new Float64Array(B * S);
    const past = new Float64Array(B * S);
    for (let b = 0; b < B; b++) {
      const scores: number[] = [];
      for (let s = 0, last = 0; s < S; s++) {
        if (size[b * S + s]! > 0) last = s;
        scores.push(sums[b * S + last]!);
      }
      let total = 0;
      for (let s = S - 1; s >= 0; s--) toCome[b * S + s] = (total += scores[s]!) / S;
      // Of the past, a later budget says more: it weighs `growth` times as much as the one before.
      let before = 0;
      let weighted = 0;
      for (let s = 0; s < S; s++) {
        past[b * S + s] = weighted / (before > 0 ? before : 1);
        before += grown(growth ** s);
        weighted += grown(scores[s]! * growth ** s);
      }
    }
    const advantages = new Float64Array(B * S);
    for (const group of batch.members) {
      const rows = group.filter((b) => batch.scored[b]);
      for (let s = 0; s < S; s++) {
        const mean = sum(rows.map((b) => toCome[b * S + s]!)) / rows.length;
        for (const b of rows) {
          const baseline = ((s * past[b * S + s]! * (S - s)) / S + (S - s) * mean) / S;
          advantages[b * S + s] = toCome[b * S + s]! - baseline;
        }
      }
    }
    return ofTokens(atTokens(batch, advantages, segments));
  },

  /**
   * Group-normalised reward plus a correction where responses of a group part ways (TEMPO).
   *
   * V(prefix) is the mean reward of the responses that begin with it; the correction at a token is V after − V before.
   */
  prefix_tree(batch: Prepared, rewards, { eps, td_weight }: { eps: number; td_weight: number }) {
    const { T, mask } = batch;
    const base = normalised(batch, rewards, eps);
    const ids = batch.get("ids").map(Math.trunc);
    const values = finite(batch, rewards.response);
    const correction = perToken(batch);
    const valueOf = (rows: readonly number[]) => grown(sum(rows.map((b) => values[b]!))) / rows.length;
    for (const group of batch.members) {
      let nodes = [group.filter((b) => batch.scored[b])];
      for (let t = 0; t < T && nodes.length > 0; t++) {
        const following: number[][] = [];
        for (const rows of nodes) {
          const children = new Map<number, number[]>();
          for (const b of rows) {
            if (!(mask[b * T + t]! > 0)) continue;
            const known = children.get(ids[b * T + t]!);
            if (known === undefined) children.set(ids[b * T + t]!, [b]);
            else known.push(b);
          }
          for (const below of children.values()) {
            if (children.size > 1) for (const b of below) correction[b * T + t] = valueOf(below) - valueOf(rows);
            if (below.length > 1) following.push(below);
          }
        }
        nodes = following;
      }
    }
    return ofTokens(correction.map((value, i) => (base[Math.floor(i / T)]! + td_weight * value) * mask[i]!));
  },
} satisfies Table<[batch: Prepared, rewards: Rewards], Advantages>;
