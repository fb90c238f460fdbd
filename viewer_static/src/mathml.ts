/**
 * LaTeX to MathML by Temml.
 *
 * Formulas of models and of users' own algorithms are hostile: Temml trusts none (`trust: false`: no links, images, classes
 * or styles), expands few macros, and builds nodes through the DOM; colours and sizes it would still allow are taken off.
 */
import temml from "temml";

/** Longer ones are no formula of a person's. */
const MAX_LENGTH = 4000;
const OPTIONS = { trust: false, throwOnError: true, maxExpand: 200, maxSize: [12, 40] as [number, number] };

/** The formula as MathML text; `null` where Temml refuses it. For tests: the page builds nodes. */
export function markup(latex: string): string | null {
  if (latex.length > MAX_LENGTH) return null;
  try {
    return temml.renderToString(latex, OPTIONS);
  } catch {
    return null;
  }
}

/** Draws the formula into `into`. Returns whether Temml could read it; where it could not, nothing is drawn. */
export function drawMath(into: HTMLElement, latex: string, display = false): boolean {
  const blank = template(latex, display);
  into.replaceChildren(...(blank ? [blank.cloneNode(true)] : []));
  return blank !== null;
}

const TEMPLATES = new Map<string, Element | null>();
const MOST_TEMPLATES = 400;

/** The formula without numbers; `null` where Temml refuses it. */
function template(latex: string, display: boolean): Element | null {
  const key = `${display ? "d" : "i"}${latex}`;
  const known = TEMPLATES.get(key);
  if (known !== undefined) return known;
  if (TEMPLATES.size >= MOST_TEMPLATES) TEMPLATES.clear();
  const made = built(latex, display);
  TEMPLATES.set(key, made);
  return made;
}

function built(latex: string, display: boolean): Element | null {
  const box = document.createElement("span");
  try {
    if (latex.length > MAX_LENGTH) return null;
    temml.render(latex, box, { ...OPTIONS, displayMode: display });
  } catch {
    return null;
  }
  for (const element of box.querySelectorAll<HTMLElement>("*")) {
    for (const name of ["mathcolor", "mathbackground", "href", "id"]) element.removeAttribute(name);
    element.style.removeProperty("color");
    element.style.removeProperty("background-color");
  }
  return box.querySelector("math");
}
