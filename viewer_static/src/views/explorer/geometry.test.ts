import fc from "fast-check";
import { describe, expect, it } from "vitest";

import {
  arc, arrive, band, bent, follow, type Lens, lensPower, nearest, point, pointed, rest, rings, shareOf, sparse, spread, ticks,
  toPlace, toShare, updateAt,
} from "./geometry";

const length = fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 20_000 }));
/** Where a pointer is: anywhere along the dial, its ends included. */
const pointer = fc.oneof(fc.double({ min: 0, max: 1, noNaN: true }), fc.constantFrom(0, 1, 1e-9, 1 - 1e-9));

/** A lens as it can come to be: at rest on an update, and then moved about. */
const lenses = fc.tuple(length, fc.nat(), fc.array(pointer, { maxLength: 12 }), fc.array(fc.double({ min: -0.05, max: 0.05, noNaN: true }), { maxLength: 40 })).map(
  ([count, update, jumps, drift]) => {
    let lens: Lens = rest(shareOf(update % count, 0, count - 1), lensPower(count));
    for (const at of jumps) lens = arrive(lens, at);
    for (const by of drift) lens = follow(lens, Math.max(0, Math.min(1, lens.place + by)));
    return { count, lens };
  },
);

describe("the fisheye", () => {
  it("is strictly monotone for every run length and wherever the pointer was", () => {
    let closest = Infinity;
    fc.assert(
      fc.property(lenses, ({ count, lens }) => {
        let before = -Infinity;
        for (let update = 0; update < count; update++) {
          const place = toPlace(lens, shareOf(update, 0, count - 1));
          if (!(place > before && place >= 0 && place <= 1)) throw new Error(`update ${update} of ${count} is drawn at ${place}, after ${before}: ${JSON.stringify(lens)}`);
          closest = Math.min(closest, (place - before) * count);
          before = place;
        }
      }),
      { numRuns: 200 },
    );
    expect(closest).toBeGreaterThan(0.02);
  });

  it("is monotone for each of the hovers of a run in turn", () => {
    for (const count of [1, 2, 3, 12, 13, 60, 137, 20_000]) {
      const step = Math.max(1, Math.floor(count / 60));
      for (let hover = 0; hover < count; hover += step) {
        const lens = arrive(rest(shareOf(count >> 1, 0, count - 1), lensPower(count)), shareOf(hover, 0, count - 1));
        let before = -Infinity;
        for (let update = 0; update < count; update += count > 1000 ? 7 : 1) {
          const place = toPlace(lens, shareOf(update, 0, count - 1));
          if (!(place > before)) throw new Error(`${count} updates, hover ${hover}, update ${update}`);
          before = place;
        }
      }
    }
  });

  it("squeezes nothing together as the pointer creeps to an end", () => {
    for (const count of [40, 200, 20_000]) {
      for (const mirrored of [false, true]) {
        let lens = arrive(rest(0.5, lensPower(count)), 0.5);
        // The lens trails behind: its middle comes within a hair of the end.
        for (let at = 0.5; at > 0.0301; at -= 0.0004) lens = follow(lens, mirrored ? 1 - at : at);
        lens = follow(lens, mirrored ? 0.97 - 1e-9 : 0.03 + 1e-9);
        let before = -Infinity;
        for (let update = 0; update < count; update++) {
          const place = toPlace(lens, shareOf(update, 0, count - 1));
          expect((place - before) * count > 0.02).toBe(true);
          before = place;
        }
      }
    }
  });

  it("squeezes nothing together as the pointer jumps towards an end", () => {
    let lens = rest(0.5, 5);
    for (const at of [0.9, 0.97, 0.99, 0.997, 0.999]) lens = arrive(lens, at);
    for (let share = 0; share < 1; share += 0.001) {
      expect((toPlace(lens, share + 0.001) - toPlace(lens, share)) * 1000).toBeGreaterThan(0.02);
    }
  });

  it("gives the same update back from where it is drawn", () => {
    fc.assert(
      fc.property(lenses, fc.nat(), ({ count, lens }, some) => {
        const update = some % count;
        const place = toPlace(lens, shareOf(update, 0, count - 1));
        expect(updateAt(toShare(lens, place), 0, count - 1)).toBe(update);
        // And from the pixels it is drawn at.
        const [x, y] = point(150, place);
        const back = pointed(x, y).place as number;
        expect(updateAt(toShare(lens, back), 0, count - 1)).toBe(update);
      }),
      { numRuns: 2000 },
    );
  });

  it("leaves what is under the pointer where it is as the pointer arrives", () => {
    fc.assert(
      fc.property(lenses, pointer, ({ lens }, at) => {
        const arrived = arrive(lens, at);
        expect(toShare(arrived, at)).toBeCloseTo(toShare(lens, at), 6);
      }),
    );
  });

  it("stays while the pointer moves little, and returns to its own share as it moves on", () => {
    let lens = arrive(rest(0.1, 5), 0.7);
    expect(follow(lens, 0.715)).toBe(lens);
    for (let at = 0.7; at > 0.3; at -= 0.01) lens = follow(lens, at);
    expect(Math.abs(lens.focus - lens.place)).toBeLessThan(0.06);
    for (let at = lens.place; at < 1; at += 0.01) lens = follow(lens, at);
    expect(toShare(lens, 1)).toBe(1);
  });

  it("is none where every update has room", () => {
    expect([1, 12, 132, 20_000].map(lensPower)).toEqual([0, 0, 5, 5]);
    expect(toPlace(rest(0.3, 0), 0.7)).toBeCloseTo(0.7, 12);
  });
});

describe("the dial", () => {
  it("starts at 12 o'clock and ends at 9, and the quadrant between is free", () => {
    expect(point(10, 0).map(Math.round).map(Math.abs)).toEqual([0, 10]);
    expect(point(10, 1)[0]).toBeCloseTo(-10);
    expect(pointed(0, -10).place).toBeCloseTo(0);
    expect(pointed(10, 0).place).toBeCloseTo(1 / 3);
    expect(pointed(-80, -80).place).toBeNull();
    // A little beyond either end still is that end.
    expect(pointed(-5, -100).place).toBe(0);
    expect(pointed(-100, -5).place).toBe(1);
  });

  it("has rings that touch and never overlap, and keeps the pointer in the ring it widens", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 20 }), fc.integer({ min: -1, max: 19 }), fc.double({ min: 0.001, max: 0.999, noNaN: true }), (count, hot, share) => {
        const wide = hot < count ? hot : -1;
        const made = rings(count, 40, 150, wide);
        expect(made[0]?.outer).toBe(150);
        expect(made.at(-1)?.inner).toBeCloseTo(40, 9);
        made.forEach((ring, i) => {
          expect(ring.outer).toBeGreaterThan(ring.inner);
          if (i) expect(ring.outer).toBe(made[i - 1]?.inner);
        });
        const radius = 40 + share * 110;
        const under = made.findIndex((ring) => radius <= ring.outer && radius > ring.inner);
        const after = rings(count, 40, 150, under)[under];
        expect(radius).toBeLessThanOrEqual((after?.outer ?? 0) + 1e-9);
        expect(radius).toBeGreaterThan((after?.inner ?? 0) - 1e-9);
      }),
    );
  });

  it("draws arcs the long way round where they are long, and bends lines", () => {
    expect(arc(10, 0, 1)).toContain(" 0 1 1 ");
    expect(arc(10, 0, 0.3)).toContain(" 0 0 1 ");
    expect(band({ inner: 5, outer: 10 })).toMatch(/^M.*Z$/);
    // No corner of a line from noon to 9 o'clock comes nearer to the middle than the line is.
    const corners = [...bent([10, 10], [0, 1]).matchAll(/[ML](-?[\d.]+) (-?[\d.]+)/g)].map((m) => Math.hypot(Number(m[1]), Number(m[2])));
    expect(Math.min(...corners)).toBeGreaterThan(9.9);
    expect(corners.length).toBeGreaterThan(70);
  });
});

describe("ticks, labels and marks", () => {
  it("has round ticks inside the run", () => {
    expect(ticks(0, 38, 5)).toEqual([0, 10, 20, 30]);
    expect(ticks(7, 7, 5)).toEqual([7]);
    fc.assert(
      fc.property(fc.nat(20_000), fc.nat(20_000), (first, more) => {
        const found = ticks(first, first + more, 9);
        expect(found[0]).toBe(first);
        expect(found.length).toBeLessThanOrEqual(11);
        expect(found.every((at) => Number.isInteger(at) && at <= first + more)).toBe(true);
      }),
    );
  });

  it("keeps labels apart, and where they belong if there is room", () => {
    expect(spread([-100, -80, -60], 11, -150)).toEqual([-100, -80, -60]);
    const made = spread([-100, -96, -92, -88], 11, -110);
    made.slice(1).forEach((at, i) => expect(at - (made[i] as number)).toBeGreaterThanOrEqual(11 - 1e-9));
    expect(made[0]).toBeGreaterThanOrEqual(-110);
  });

  it("thins marks and finds the nearest", () => {
    expect(sparse([0, 1, 2, 3, 7], 2)).toEqual([0, 2, 4]);
    expect([-5, 0, 1, 2, 6, 7, 99].map((v) => nearest([0, 3, 10], v))).toEqual([0, 0, 0, 1, 1, 2, 2]);
    expect(nearest([], 1)).toBe(-1);
  });
});
