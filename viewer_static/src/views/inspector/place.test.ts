import { describe, expect, it } from "vitest";

import { place } from "./place";

describe("the card's place", () => {
  const token = (left: number, top: number) => ({ left, right: left + 40, top, bottom: top + 20 });
  const pane = { left: 0, right: 1000, top: 48, bottom: 800 };

  it("is below its token, above where there is no room, else beside, and inside the pane", () => {
    expect(place(token(100, 50), 300, 200, pane, 1000)).toEqual({ left: 88, top: 80 });
    expect(place(token(100, 700), 300, 200, pane, 1000)).toEqual({ left: 88, top: 490 });
    expect(place(token(990, 50), 300, 200, pane, 1000)?.left).toBe(690);
    expect(place(token(400, 50), 300, 200, { ...pane, left: 350, right: 800 }, 1000)).toEqual({ left: 388, top: 80 });
    expect(place(token(700, 50), 300, 200, { ...pane, left: 350, right: 800 }, 1000)).toEqual({ left: 490, top: 80 });
    expect(place(token(100, 90), 300, 190, { ...pane, bottom: 200 }, 1000)).toEqual({ left: 150, top: 10 });
    expect(place(token(900, 90), 300, 190, { ...pane, bottom: 200 }, 1000)).toEqual({ left: 590, top: 10 });
  });

  it("is nowhere while its token is out of sight", () => {
    expect(place(token(0, 10), 300, 200, pane, 1000)).toBeNull();
  });
});
