/** Finding text in responses. */
import type { ResponseTokens } from "../../bundle/join";

/** Places of a response that are found; a page that marks more of them tells nobody more. */
export const MOST_HITS = 1000;

/** Half-open ranges of the tokens that hold a piece of text, in order, up to `MOST_HITS`; upper and lower case are the same. */
export function findText(tokens: ResponseTokens, text: string): [number, number][] {
  if (!text) return [];
  const starts: number[] = [];
  let whole = "";
  for (let i = 0; i < tokens.n; i++) {
    starts.push(whole.length);
    whole += tokens.strings[i] ?? "";
  }
  const ranges: [number, number][] = [];
  const pattern = new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi");
  let at = 0;
  for (const match of whole.matchAll(pattern)) {
    const end = match.index + match[0].length;
    while (at + 1 < starts.length && (starts[at + 1] as number) <= match.index) at++;
    let to = at;
    while (to < starts.length && (starts[to] as number) < end) to++;
    ranges.push([at, to]);
    if (ranges.length === MOST_HITS) break;
  }
  return ranges;
}
