/** Scale: what the difference from the baseline is divided by. Rewards that are all equal give exactly 0. */
import { rowSums, type Prepared } from "../prepared";
import { clip, differ, grown, logGamma, mean, scaled, sum, timesRows, variance } from "../numbers";
import { allEqual, centred, finite, groupCount, groupStdOf, groupSum } from "./groups";
import { perToken, type Advantages, type Rewards, type Table } from "./types";

/** Each advantage divided by a number of its response; 0 where `usable` says that cannot be done. */
function over(
  batch: Prepared,
  advantages: Advantages,
  divisor: Float64Array,
  usable: (divisor: number) => boolean = () => true,
): Advantages {
  const { T } = batch;
  const values = perToken(batch);
  for (let b = 0; b < divisor.length; b++) {
    const by = divisor[b]!;
    if (usable(by)) for (let i = b * T; i < (b + 1) * T; i++) values[i] = advantages.values[i]! / by;
  }
  return { ...advantages, values };
}

function times(advantages: Advantages, factor: number): Advantages {
  return { ...advantages, values: scaled(advantages.values, factor) };
}

function zero(batch: Prepared, of: Advantages): Advantages {
  return { ...of, values: perToken(batch) };
}

const isPositive = (value: number) => value > 0;

export const SCALE = {
  /** Standard deviation of the group's rewards, plus ε. */
  group_std(
    batch: Prepared,
    rewards,
    advantages,
    { eps, ddof, singleton }: { eps: number; ddof: number; singleton: string },
  ) {
    const deviation = groupStdOf(batch, rewards.response, ddof, singleton).map((value) => value + eps);
    return over(batch, advantages, deviation, isPositive);
  },

  /**
   * Standard deviation of the group's rewards, a response counting once a token, plus ε (HAPO).
   *
   * A group in which an advantage reaches the limit gets that of GRPO instead: centred by its mean, divided by its
   * deviation plus ε.
   */
  token_weighted_std(batch: Prepared, rewards, advantages, { eps, limit }: { eps: number; limit: number | null }) {
    const { T, mask } = batch;
    const values = finite(batch, rewards.response);
    const length = rowSums(mask, T).map((value, b) => value * batch.scored[b]!);
    const total = groupSum(batch, length).map((value) => Math.max(value, 1e-300));
    const weighted = groupSum(batch, values.map((value, b) => value * length[b]!));
    const equal = allEqual(batch, values);
    const squares = values.map((value, b) => {
      const difference = equal[b] ? 0 : value - weighted[b]! / total[b]!;
      return grown(difference * difference) * length[b]!;
    });
    const deviation = groupSum(batch, squares).map((value, b) => Math.sqrt(value / total[b]!) + eps);
    const divided = over(batch, advantages, deviation, isPositive);
    if (limit === null) return divided;
    const reaches = new Float64Array(batch.B);
    divided.values.forEach((value, i) => {
      if (Math.abs(value) >= limit && mask[i]! > 0) reaches[Math.floor(i / T)] = 1;
    });
    const extreme = groupSum(batch, reaches);
    const std = groupStdOf(batch, values, 1, "self");
    const plain = centred(batch, values, "self").map((value, b) => value / (std[b]! + Math.max(eps, 1e-300)));
    return {
      ...divided,
      values: divided.values.map((value, i) => {
        const b = Math.floor(i / T);
        return extreme[b]! > 0 ? plain[b]! : value;
      }),
    };
  },

  /** Standard deviation of all rewards of the batch, plus ε. */
  batch_std_of_rewards(batch: Prepared, rewards, advantages, { eps }: { eps: number }) {
    const values = rewards.response.filter((_, b) => batch.scored[b]);
    const deviation = (values.length > 1 ? Math.sqrt(variance(values, 1)) : 0) + eps;
    if (!(deviation > 0)) return zero(batch, advantages);
    return { ...advantages, values: advantages.values.map((value) => value / deviation) };
  },

  /**
   * Minus the batch's mean advantage, divided by its standard deviation, plus ε.
   *
   * Over responses where each has one advantage; over the tokens that count where each token has one of its own.
   */
  batch_whiten(batch: Prepared, _rewards, advantages, { eps }: { eps: number }) {
    const { T, mask, scored } = batch;
    const ofTokens = advantages.perToken && T > 1;
    const isCounted = (i: number) => scored[Math.floor(i / T)] === 1 && (!ofTokens || mask[i]! > 0);
    const values = advantages.values.filter((_, i) => isCounted(i) && (ofTokens || i % T === 0));
    if (values.length === 0) return advantages;
    if (!differ(values)) return zero(batch, advantages);
    const deviation = (values.length > 1 ? Math.sqrt(variance(values, 1)) : 0) + eps;
    if (!(deviation > 0)) return zero(batch, advantages);
    const centre = mean(values);
    return {
      ...advantages,
      values: advantages.values.map((value, i) => (isCounted(i) ? (value - centre) / deviation : 0)),
    };
  },

  /** Minus the mean over all tokens, divided by √(variance + ε) or by the deviation + ε; long responses count more. */
  token_whiten(
    batch: Prepared,
    _rewards,
    { values },
    { eps, eps_on, ddof }: { eps: number; eps_on: string; ddof: number },
  ) {
    const { T, scored } = batch;
    const mask = batch.mask.map((value, i) => value * scored[Math.floor(i / T)]!);
    const nothing = { values: perToken(batch), perToken: true };
    const count = sum(mask);
    if (count < 2 || !differ(values.filter((_, i) => mask[i]! > 0))) return nothing;
    const centre = grown(sum(values.map((value, i) => value * mask[i]!))) / count;
    const squares = sum(values.map((value, i) => grown((value - centre) ** 2) * mask[i]!));
    const spread = grown(squares) / (count - ddof);
    const divisor = eps_on === "variance" ? Math.sqrt(spread + eps) : Math.sqrt(spread) + eps;
    if (!(divisor > 0)) return nothing;
    return { values: values.map((value, i) => ((value - centre) / divisor) * mask[i]!), perToken: true };
  },

  /** Mean reward of the group plus ε (MaxRL). */
  group_mean_reward(batch: Prepared, rewards, advantages, { eps }: { eps: number }) {
    const count = groupCount(batch);
    const total = groupSum(batch, finite(batch, rewards.response));
    const divisor = total.map((value, b) => value / Math.max(count[b]!, 1) + eps);
    return over(batch, advantages, divisor, (value) => value !== 0);
  },

  /** Share of responses whose reward is not 0, times a constant (GPG as in verl). */
  share_with_reward(batch: Prepared, rewards, advantages, { divisor }: { divisor: number }) {
    const nonzero = finite(batch, rewards.response).filter((value) => value !== 0).length;
    return times(advantages, batch.B / Math.max(nonzero, 1) / divisor);
  },

  /** Share of responses in a group whose rewards differ, times a constant (GPG as in its paper). */
  share_with_signal(batch: Prepared, rewards, advantages, { divisor }: { divisor: number }) {
    const alive = allEqual(batch, finite(batch, rewards.response)).filter((is) => !is).length;
    return times(advantages, batch.B / Math.max(alive, 1) / divisor);
  },

  /** Density of a Beta distribution fitted to the batch's success rates (BNPO). */
  beta_density(batch: Prepared, rewards, advantages, { limit }: { limit: number }) {
    const count = groupCount(batch);
    const total = groupSum(batch, finite(batch, rewards.response));
    const rate = total.map((value, b) => value / Math.max(count[b]!, 1));
    const rates = batch.members.map((rows) => rate[rows[0]!]!);
    const centre = mean(rates);
    const spread = rates.length > 1 ? variance(rates, 1) : 0;
    const common = spread > 0 ? (centre * (1 - centre)) / spread - 1 : 0;
    const alpha = Math.max(1 + Math.max(common > 0 ? centre * common : 0, 0) / 3, 1);
    const beta = Math.max(1 + Math.max(common > 0 ? (1 - centre) * common : 0, 0) / 3, 1);
    const logBeta = logGamma(alpha) + logGamma(beta) - logGamma(alpha + beta);
    const factor = rate.map((value) => {
      const inside = clip(value, 1e-12, 1 - 1e-12);
      const logDensity = (alpha - 1) * Math.log(inside) + (beta - 1) * Math.log(1 - inside) - logBeta;
      return Math.min(grown(Math.exp(-logDensity)), limit);
    });
    return { ...advantages, values: timesRows(advantages.values, factor, batch.T) };
  },

  /** Standard deviation of every reward ever seen for the prompt, plus ε (Reinforce-Ada). */
  pool_std(batch: Prepared, _rewards, advantages, { eps }: { eps: number }) {
    return over(batch, advantages, batch.get("pool_std").map((value) => value + eps));
  },
} satisfies Table<[batch: Prepared, rewards: Rewards, advantages: Advantages], Advantages>;
