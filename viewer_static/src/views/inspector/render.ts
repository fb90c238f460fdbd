/** Rendered text as DOM, built node by node: nothing of a run is ever parsed as markup. */
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
const LONGEST_FORMULA = 2_000;

/** Replaces the container's content by the text rendered; the leaves are for colouring. */
export function renderText(container: HTMLElement, text: string): Leaf[] {
  const leaves: Leaf[] = [];
  const fragment = document.createDocumentFragment();
  for (const block of parse(text.slice(0, LONGEST))) fragment.append(drawn(block, leaves));
  if (text.length > LONGEST) {
    const rest = element("p", "cap");
    rest.textContent = `${text.length - LONGEST} further characters are not rendered; the raw text has them.`;
    fragment.append(rest);
  }
  container.replaceChildren(fragment);
  return leaves;
}

function element(name: string, className: string): HTMLElement {
  const node = document.createElement(name);
  if (className) node.className = className;
  return node;
}

function drawn(block: Block, leaves: Leaf[]): HTMLElement {
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
  appendInline(node, block.children, leaves);
  return node;
}

function appendInline(into: HTMLElement, children: readonly Inline[], leaves: Leaf[]): void {
  for (const child of children) {
    if (child.kind === "strong" || child.kind === "em") {
      const node = element(child.kind === "strong" ? "b" : "em", "");
      appendInline(node, child.children, leaves);
      into.append(node);
      continue;
    }
    const node = element(child.kind === "code" ? "code" : "span", "lf");
    if (child.kind === "math") appendMath(node, child.tex, child.display);
    else appendPieces(node, child.text, LONGEST);
    leaves.push({ node, start: child.start, end: child.end });
    into.append(node);
  }
}

/** A formula as MathML; as it was written where it is none. */
function appendMath(into: HTMLElement, tex: string, display: boolean): void {
  if (tex.length <= LONGEST_FORMULA && drawMath(into, tex, display)) {
    if (display) into.classList.add("display");
  } else {
    into.classList.add("raw");
    appendPieces(into, tex, LONGEST_FORMULA);
  }
}
