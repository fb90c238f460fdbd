/** Numbers and words as a reader sees them. */

const MINUS = "−";

/** A number in about `digits` significant digits, a real minus sign, no exponent between 0.001 and a million. */
export function number(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : `${MINUS}∞`;
  if (value === 0) return "0";
  const size = Math.abs(value);
  let text: string;
  if (size >= 1e6 || size < 1e-3) text = size.toExponential(Math.max(0, digits - 2)).replace("e+", "e");
  else text = size.toFixed(Math.max(0, Math.min(4, digits - 1 - Math.floor(Math.log10(size)))));
  return (value < 0 ? MINUS : "") + text.replace("e-", `e${MINUS}`);
}

/** The same with a plus sign where the sign carries meaning. */
export function signed(value: number | null | undefined, digits = 4): string {
  const text = number(value, digits);
  return typeof value === "number" && value > 0 ? `+${text}` : text;
}

/** A number in up to `digits` significant digits, without zeros that say nothing: 0.2 and not 0.2000. */
export function short(value: number, digits = 4): string {
  const size = Math.abs(value);
  const text = size >= 1e-3 && size < 1 ? size.toFixed(digits - 1 - Math.floor(Math.log10(size))) : number(size, digits);
  const bare = text.replace(/(\.\d*?)0+(?=$|e)/, "$1").replace(/\.(?=$|e)/, "");
  return (value < 0 ? MINUS : "") + bare;
}

/** The same with a plus where the sign carries meaning. */
export function shortSigned(value: number, digits = 4): string {
  return (value > 0 ? "+" : "") + short(value, digits);
}

/** As many digits as a comparison of two losses needs. */
export function exact(value: number): string {
  return value.toPrecision(9).replaceAll("-", MINUS);
}

/** A fixed number of decimals, for columns of numbers. */
export function fixed(value: number, decimals: number): string {
  if (Number.isNaN(value)) return "–";
  // No minus before what rounds to zero.
  return value.toFixed(decimals).replace(/^-(?=0(\.0*)?$)/, "").replace("-", MINUS);
}

/** A probability: more digits where it is small. */
export function probability(value: number): string {
  return value > 0 && value < 0.001 ? number(value, 3) : fixed(value, 3);
}

/** A share in per cent. */
export function percent(share: number | undefined): string {
  return share === undefined || Number.isNaN(share) ? "–" : `${number(share * 100, 3)} %`;
}

/** `1 update`, `2 updates`. */
export function count(n: number, one: string, many = `${one}s`): string {
  return `${integer(n)} ${n === 1 ? one : many}`;
}

/** Thousands apart by a thin space. */
export function integer(n: number): string {
  return String(n).replace(/\B(?=(\d{3})+$)/g, "\u2009");
}

/** How a probability changed, from the log-ratio, in words: `22 % more likely now than when it was sampled`. */
export function change(logRatio: number): string {
  if (Number.isNaN(logRatio)) return "";
  const factor = Math.exp(logRatio);
  const percent = Math.abs(factor - 1) * 100;
  if (logRatio === 0) return "Exactly as likely as when it was sampled.";
  if (percent < 0.05) return "As good as unchanged since it was sampled.";
  const more = logRatio > 0;
  if (factor >= 2) return `${number(factor, 2)} times as likely now as when it was sampled.`;
  const amount = percent < 10 ? percent.toFixed(1) : percent.toFixed(0);
  return `${amount} % ${more ? "more" : "less"} likely now than when it was sampled.`;
}

/** A span of time, by the unit that suits it: `14 min`, `3 h`, `2 days`. */
export function span(seconds: number): string {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h` : `${Math.floor(hours / 24)} days`;
}

/** Numbers as a list in words: `3`, `3 and 4`, `3, 4 and 5`. */
export function list(numbers: readonly number[]): string {
  if (numbers.length < 2) return numbers.join("");
  return `${numbers.slice(0, -1).join(", ")} and ${numbers.at(-1)}`;
}

const ALGORITHMS: Readonly<Record<string, string>> = { dr_grpo: "Dr. GRPO", reinforce: "REINFORCE" };

/** An algorithm's id as a title: `dapo` is DAPO. */
export function algorithmName(id: string): string {
  return ALGORITHMS[id] ?? (/^[a-z]{2,5}$/.test(id) ? id.toUpperCase() : id);
}
