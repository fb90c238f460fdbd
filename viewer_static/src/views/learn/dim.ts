/**
 * Makes everything in the panes step back but what a beat speaks of. The panes know nothing of it: their parts are found
 * by what they are called, and what is not there is passed over.
 */

const DIM = "data-dim";

/** Sets `data-dim` on the topmost elements of `root` that neither are, nor hold, nor lie in one of the `lit`. */
export function dim(root: ParentNode, panes: string, lit: readonly string[]): void {
  const selector = lit.join(",");
  for (const pane of root.querySelectorAll(panes)) {
    const keep = new Set<Element>(selector ? pane.querySelectorAll(selector) : []);
    const holds = new Set<Element>();
    for (const element of keep) {
      for (let parent = element.parentElement; parent && parent !== pane && !holds.has(parent); parent = parent.parentElement) holds.add(parent);
    }
    const before = new Set(pane.querySelectorAll(`[${DIM}]`));
    const visit = (element: Element) => {
      for (const child of element.children) {
        if (keep.has(child)) continue;
        // What sticks to the top of a pane covers what scrolls below it: it must not become transparent itself.
        if (holds.has(child) || sticks(child)) visit(child);
        else {
          before.delete(child);
          if (!child.hasAttribute(DIM)) child.setAttribute(DIM, "");
        }
      }
    };
    visit(pane);
    for (const element of before) element.removeAttribute(DIM);
  }
}

export function undim(root: ParentNode): void {
  for (const element of root.querySelectorAll(`[${DIM}]`)) element.removeAttribute(DIM);
}

function sticks(element: Element): boolean {
  return getComputedStyle(element).position === "sticky";
}

/** Scrolls every pane to what the beat speaks of: to the selected token or its response where that is part of it. */
export function reveal(root: ParentNode, panes: string, lit: readonly string[]): void {
  if (!lit.length) return;
  for (const pane of root.querySelectorAll<HTMLElement>(panes)) {
    const parts = [...pane.querySelectorAll<HTMLElement>(lit.join(","))].filter((part) => part.offsetParent);
    const selected = pane.querySelector<HTMLElement>("[data-selected]");
    const row = selected?.closest("[data-testid=response]");
    const own = parts.find((part) => selected && part.contains(selected)) ?? parts.find((part) => row?.contains(part));
    const target = own && selected && own.contains(selected) ? selected : (own ?? parts[0]);
    const body = target && scroller(target, pane);
    if (!target || !body) continue;
    const bars = [...body.children].flatMap((child) => [child, ...child.children]).filter(sticks);
    if (bars.some((bar) => bar.contains(target))) continue;
    const covered = bars.reduce((height, bar) => height + bar.clientHeight, 0);
    const [box, view] = [target.getBoundingClientRect(), body.getBoundingClientRect()];
    const middle = target === selected;
    if (box.top >= view.top + covered && box.bottom <= view.bottom) continue;
    body.scrollTop += box.top - view.top - covered - (middle ? Math.max(40, (view.height - covered) * 0.5) : 12);
  }
}

/** What scrolls around an element, in its pane. */
function scroller(element: HTMLElement, pane: HTMLElement): HTMLElement | null {
  for (let parent = element.parentElement; parent && pane.contains(parent); parent = parent.parentElement) {
    if (/auto|scroll/.test(getComputedStyle(parent).overflowY) && parent.scrollHeight > parent.clientHeight) return parent;
  }
  return null;
}
