import { describe, expect, it, vi } from "vitest";

import { cut, isSpecial, oneLine, pieces, promptTitle } from "./text";

describe("pieces", () => {
  it("loses nothing, whatever the text", () => {
    for (const text of ["", "plain", "a\n\nb", "\u0000\u202eevil\u202c\t", "👨‍👩‍👧 é 你好 مرحبا", "<script>alert(1)</script>", "\ud800 lone"]) {
      expect(pieces(text).map((p) => p.text).join("")).toBe(text);
    }
  });

  it("marks what cannot be seen or would disturb the page", () => {
    expect(pieces("a\n\u202eb\u200b")).toEqual([
      { kind: "text", text: "a" },
      { kind: "newline", text: "\n" },
      { kind: "control", text: "\u202e", code: "202E" },
      { kind: "text", text: "b" },
      { kind: "control", text: "\u200b", code: "200B" },
    ]);
    expect(pieces("\t")).toEqual([{ kind: "tab", text: "\t" }]);
    expect(pieces("\u{e0041}")).toEqual([{ kind: "control", text: "\u{e0041}", code: "E0041" }]);
  });

  it("leaves the joiners of emoji alone", () => {
    expect(pieces("👨‍👩‍👧")).toEqual([{ kind: "text", text: "👨‍👩‍👧" }]);
  });
});

describe("cut", () => {
  it("keeps what fits, and ends in … where it does not", () => {
    expect(cut("completions/mean_length", 8)).toBe("complet…");
    expect(["", "12345678", "1"].map((text) => cut(text, 8))).toEqual(["", "12345678", "1"]);
  });

  it("counts characters and halves none", () => {
    expect(cut("😀😀😀😀", 4)).toBe("😀😀😀😀");
    expect(cut("😀😀😀😀😀", 4)).toBe("😀😀😀…");
    expect(cut("a😀😀😀😀", 3)).toBe("a😀…");
  });
});

describe("isSpecial", () => {
  it("knows the usual special tokens and nothing else", () => {
    for (const token of ["<|im_end|>", "<|endoftext|>", "</s>", "<s>", "[PAD]", "<eos>", "<｜end▁of▁sentence｜>"]) expect(isSpecial(token)).toBe(true);
    for (const token of ["<script>", "</script>", "<b>", "s", "[1]", "<", "<||>"]) expect(isSpecial(token)).toBe(false);
  });
});

describe("titles", () => {
  it("show what the user asked, on one line", () => {
    const prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is\n 2 + 2?<|im_end|>\n<|im_start|>assistant\n";
    expect(promptTitle(prompt)).toBe("What is 2 + 2?");
    expect(promptTitle("7+6=")).toBe("7+6=");
    expect(promptTitle("")).toBe("(empty prompt)");
  });

  it("hold no control characters and no end of text", () => {
    expect(oneLine("a\u202e\u0000b\n\nc")).toBe("a b c");
    expect(oneLine("word ".repeat(100), 12)).toBe("word word wo…");
  });

  it("are what was asked even where the turn has no end, and take no more than the head of a prompt", () => {
    expect(promptTitle("<|im_start|>user\nWhat is 2 + 2?")).toBe("What is 2 + 2?");
    expect(promptTitle("<|im_start|>user\n<|im_end|>rest")).toBe("user rest");
    const read: number[] = [];
    const exec = RegExp.prototype.exec;
    const spy = vi.spyOn(RegExp.prototype, "exec").mockImplementation(function (this: RegExp, text) {
      read.push(text.length);
      return exec.call(this, text);
    });
    const title = promptTitle("<|im_start|>user\n".repeat(60_000));
    spy.mockRestore();
    expect(title).toMatch(/^<\|im_start\|>user/);
    expect(Math.max(...read)).toBeLessThanOrEqual(20_000);
  });
});
