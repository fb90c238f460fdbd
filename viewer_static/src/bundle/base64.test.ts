import { describe, expect, it } from "vitest";

import { decodeBase64, decodeBase64Slowly } from "./base64";

const BYTES = Uint8Array.from({ length: 256 }, (_, i) => i);
const TEXT = Buffer.from(BYTES).toString("base64");

describe("base64", () => {
  it("decodes every byte, with and without the browser's own decoder", () => {
    expect(decodeBase64(TEXT)).toEqual(BYTES);
    expect(decodeBase64Slowly(TEXT)).toEqual(BYTES);
  });

  it("allows line breaks, as in a page that wraps its lines", () => {
    expect(decodeBase64(TEXT.replace(/.{76}/g, "$&\n"))).toEqual(BYTES);
  });

  it("decodes nothing to nothing and refuses damage", () => {
    expect(decodeBase64("")).toEqual(new Uint8Array());
    expect(() => decodeBase64("%%%")).toThrow();
  });
});
