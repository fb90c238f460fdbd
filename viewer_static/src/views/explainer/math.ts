/** The numbers on a formula's terms. What Temml cannot read is shown as plain text. */
import { drawMath } from "../../mathml";
import { CLOSE, OPEN } from "./latex";

/** One mark as it is drawn. */
export interface Dressed {
  /** The number, "" for none. */
  text: string;
  /** What assistive technology adds to the symbol: `ratio: 1.216, wins`. */
  label: string;
  /** Names the term to tests and to who copies numbers: all digits. */
  name: string;
  value: number | null;
  state?: "wins" | "loses" | "ties";
  tone?: "more" | "less";
}

/**
 * Draws the formula into `into`, with `terms[n]` where `annotate` marked it. Returns whether Temml could read it. Numbers
 * are no part of the LaTeX, so that another token's formula is the same one with other numbers on it.
 */
export function draw(into: HTMLElement, latex: string, terms: readonly Dressed[], display = false): boolean {
  const drawn = drawMath(into, latex, display);
  if (drawn) dress(into, terms);
  return drawn;
}

const MARK = new RegExp(`${OPEN}(\\d+)([uib])${CLOSE}`);

/** Turns marks into terms: buttons with a number beneath, with the number in place of the symbol, or the bare symbol. */
function dress(into: HTMLElement, terms: readonly Dressed[]): void {
  const math = into.querySelector("math");
  if (!math) return;
  // What can be pressed may not be inside what is read as one formula.
  if (terms.length) math.setAttribute("role", "group");
  // Innermost first, so that what is moved is already dressed.
  const marks = [...math.querySelectorAll("munder")].reverse();
  for (const munder of marks) {
    const [base, under] = [...munder.children];
    const match = MARK.exec(under?.textContent ?? "");
    const term = match ? terms[Number(match[1])] : undefined;
    if (!match || !base || !under) continue;
    if (!term) {
      munder.replaceWith(base);
      continue;
    }
    const how = match[2];
    let element: Element = munder;
    if (how === "u" && (term.text || term.state)) {
      under.replaceWith(written(`${term.state === "wins" ? "✓ " : ""}${term.text}`, "number"));
    } else if (how === "i" && term.text) {
      element = written(term.text, "instead");
      munder.replaceWith(element);
    } else {
      element = document.createElementNS(MATHML, "mrow");
      element.append(base);
      munder.replaceWith(element);
    }
    element.classList.add("term-of");
    if (term.state) element.classList.add(term.state);
    if (term.tone) element.setAttribute("data-tone", term.tone);
    // Terms inside a term are buttons of their own: of the outer one its number is pressed.
    const button = element.querySelector("[data-term]") ? element.lastElementChild : element;
    if (!button || (button !== element && !button.classList.contains("number"))) continue;
    button.setAttribute("data-term", match[1] ?? "");
    button.setAttribute("data-name", term.name);
    if (term.value !== null) button.setAttribute("data-value", String(term.value));
    button.setAttribute("role", "button");
    button.setAttribute("tabindex", "-1");
    button.setAttribute("aria-description", term.label);
  }
}

const MATHML = "http://www.w3.org/1998/Math/MathML";

function written(text: string, className: string): Element {
  const element = document.createElementNS(MATHML, "mtext");
  element.setAttribute("class", className);
  element.textContent = text;
  return element;
}
