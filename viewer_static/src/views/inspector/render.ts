/** Rendered text as DOM, built node by node: nothing of a run is ever parsed as markup. */
import { count, integer } from "../../format";
import { drawMath } from "../../mathml";
import { appendPieces } from "./tokens";
import { type Block, type Inline, parse } from "./markdown";

/** A piece of rendered text, and which characters of the response it is. */
export interface Leaf {
  node: HTMLElement;
  start: number;
  end: number;
}

/** Characters of a response, and of one formula, that are rendered. */
const LONGEST = 20_000;
const LONGEST_FORMULA = 600;
/** Formulas of a response that are rendered, their characters in all, and milliseconds after which no other is begun. */
const MOST_FORMULAS = 200;
const MOST_LATEX = 6_000;
const MOST_TIME = 60;

/** What is left for the formulas of a response: a short formula can be long to lay out. */
interface Budget {
  formulas: number;
  latex: number;
  until: number;
  /** Formulas that are shown as they were written. */
  refused: number;
}

/** Replaces the container's content by the text rendered; the leaves are for colouring. */
export function renderText(container: HTMLElement, text: string): Leaf[] {
  const leaves: Leaf[] = [];
  const budget: Budget = { formulas: MOST_FORMULAS, latex: MOST_LATEX, until: performance.now() + MOST_TIME, refused: 0 };
  const fragment = document.createDocumentFragment();
  for (const block of parse(text.slice(0, LONGEST))) fragment.append(drawn(block, leaves, budget));
  const note = (words: string) => {
    const rest = element("p", "cap");
    rest.textContent = words;
    fragment.append(rest);
  };
  if (budget.refused) note(`${count(budget.refused, "formula")} too many or too long to render: shown as written.`);
  if (text.length > LONGEST) note(`${integer(text.length - LONGEST)} further characters are not rendered; the raw text has them.`);
  container.replaceChildren(fragment);
  return leaves;
}

function element(name: string, className: string): HTMLElement {
  const node = document.createElement(name);
  if (className) node.className = className;
  return node;
}

function drawn(block: Block, leaves: Leaf[], budget: Budget): HTMLElement {
  if (block.kind === "fence") {
    const pre = element("pre", "");
    const leaf = element("span", "lf");
    appendPieces(leaf, block.text, LONGEST);
    pre.append(leaf);
    leaves.push({ node: leaf, start: block.start, end: block.end });
    return pre;
  }
  const node = element("p", block.kind === "heading" ? `h h${block.level}` : block.kind === "item" ? "li" : "");
  if (block.kind === "item") {
    node.style.setProperty("--depth", String(block.depth));
    const marker = element("span", "marker");
    marker.textContent = block.marker;
    node.append(marker);
  }
  appendInline(node, block.children, leaves, budget);
  return node;
}

function appendInline(into: HTMLElement, children: readonly Inline[], leaves: Leaf[], budget: Budget): void {
  for (const child of children) {
    if (child.kind === "strong" || child.kind === "em") {
      const node = element(child.kind === "strong" ? "b" : "em", "");
      appendInline(node, child.children, leaves, budget);
      into.append(node);
      continue;
    }
    const node = element(child.kind === "code" ? "code" : "span", "lf");
    if (child.kind === "math") appendMath(node, child.tex, child.display, budget);
    else appendPieces(node, child.text, LONGEST);
    leaves.push({ node, start: child.start, end: child.end });
    into.append(node);
  }
}

/** A formula as MathML; as it was written where it is none. */
function appendMath(into: HTMLElement, tex: string, display: boolean, budget: Budget): void {
  const fits = tex.length <= LONGEST_FORMULA && budget.formulas > 0 && tex.length <= budget.latex && performance.now() < budget.until;
  if (fits) {
    budget.formulas--;
    budget.latex -= tex.length;
  } else budget.refused++;
  if (fits && drawMath(into, tex, display)) {
    if (display) into.classList.add("display");
  } else {
    into.classList.add("raw");
    appendPieces(into, tex, LONGEST_FORMULA);
  }
}
