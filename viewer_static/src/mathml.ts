/**
 * LaTeX to MathML by Temml.
 *
 * Formulas of models and of users' own algorithms are hostile: Temml trusts none (`trust: false`: no links, images, classes
 * or styles), expands few macros, and builds nodes through the DOM; colours and sizes it would still allow are taken off.
 */
import temml from "temml";

/** Longer ones are no formula of a person's. */
const MAX_LENGTH = 4000;
/** Em by which a formula's own spaces, heights and shifts are bounded. */
const MOST_SPACE = 4;
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
    // A formula stays where it is: space may be wide, nothing moves far up, down or back.
    for (const name of ["margin-left", "padding-top", "padding-bottom"]) {
      const size = bounded(element.style.getPropertyValue(name));
      if (size !== null) element.style.setProperty(name, size);
    }
    for (const name of ["width", "height", "depth", "voffset", "lspace"]) {
      const size = bounded(element.getAttribute(name) ?? "", name === "voffset" ? -MOST_SPACE : -1);
      if (size !== null) element.setAttribute(name, size);
    }
  }
  for (const link of box.querySelectorAll("a")) link.replaceWith(...link.childNodes);
  return box.querySelector("math");
}

/** A length that is allowed, in place of one that is too large or too small; `null` where it may stay. */
function bounded(length: string, least = -1): string | null {
  const size = parseFloat(length);
  return size < least || size > MOST_SPACE ? `${Math.max(least, Math.min(MOST_SPACE, size))}em` : null;
}
