/** UNIPO's own cards, of an algorithm that is only shown: hostile data, read into plain texts. */

export interface DisplayCard {
  title: string;
  description: string;
  sections: { label: string; katex: string; header: string }[];
}

/** At most this many cards and sections are read. */
const MOST = 40;

export function displayCards(display: Readonly<Record<string, unknown>>): DisplayCard[] {
  return list(display.cards).map((card) => ({
    title: text(card.title),
    description: text(card.description),
    sections: list(card.sections).map((section) => ({ label: text(section.label), katex: text(section.katex), header: text(section.header) })),
  }));
}

function list(value: unknown): Record<string, unknown>[] {
  if (!Array.isArray(value)) return [];
  return value.slice(0, MOST).filter((each): each is Record<string, unknown> => typeof each === "object" && each !== null);
}

function text(value: unknown): string {
  return typeof value === "string" ? value.slice(0, 4000) : "";
}
