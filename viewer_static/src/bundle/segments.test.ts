import { describe, expect, it } from "vitest";

import { decodeBase64 } from "./base64";
import { decodeParquet, segmentPath, Segments } from "./segments";
import { ConnectionError, type Source } from "./source";

// Written by pyarrow as the bundle writer does it (zstd, byte-stream-split, dictionaries), in two row groups:
// row 0 0 1 1, strings a "" é </script>, kept true true false false, log_probs -1.5 NaN -0.25 0.
const FILE = decodeBase64(`
UEFSMRUEFRAVIkwVBBUAEgAAKLUv/SAIQQAAAAAAAAEAAAAVABUSFSQsFQYVEBUGFQYcAAAAKLUv/SAJSQAAAgAAAAYBAQMEFQQVHhUwTBUGFQASAAAo
tS/9IA95AAABAAAAYQAAAAACAAAAw6kVABUUFSYsFQYVEBUGFQYcAAAAKLUv/SAKUQAAAgAAAAYBAgMkABUAFQ4VICwVBhUAFQYVBhwAAAAotS/9IAc5
AAACAAAABgEDFQAVJBU2LBUGFRIVBhUGHAAAACi1L/0gEpEAAAIAAAAGAQAAAAAAAMDAgL9/vhUEFQgVGkwVAhUAEgAAKLUv/SAEIQAAAQAAABUAFRIV
JCwVAhUQFQYVBhwAAAAotS/9IAlJAAACAAAAAgEBAgAVBBUaFSxMFQIVABIAACi1L/0gDWkAAAkAAAA8L3NjcmlwdD4VABUSFSQsFQIVEBUGFQYcAAAA
KLUv/SAJSQAAAgAAAAIBAQIAFQAVDhUgLBUCFQAVBhUGHAAAACi1L/0gBzkAAAIAAAACAQAVABUUFSYsFQIVEhUGFQYcAAAAKLUv/SAKUQAAAgAAAAIB
AAAAABUEGVw1ABgGc2NoZW1hFQgAFQIlAhgDcm93ABUMJQIYB3N0cmluZ3MlAEwcAAAAFQAlAhgEa2VwdAAVCCUCGAlsb2dfcHJvYnMAFggZLBlMJgAc
FQIZNQAGEBkYA3JvdxUMFgYWZBaIASZGJggpLBUEFQAVAgAVABUQFQIAPCkGGSYABgAAACYAHBUMGTUABhAZGAdzdHJpbmdzFQwWBhZ0FpgBJtwBJpAB
KSwVBBUAFQIAFQAVEBUCADwWBhkGGSYABgAAACYAHBUAGSUGABkYBGtlcHQVDBYGFjQWRiaoAkkcFQAVABUCADwpBhkmAAYAAAAmABwVCBklBhIZGAls
b2dfcHJvYnMVDBYGFkoWXCbuAkkcFQAVEhUCADwpBhkmAAYAAAAW1gIWBiYIFsIDABlMJgAcFQIZNQAGEBkYA3JvdxUMFgIWXBaAASaABCbKAyksFQQV
ABUCABUAFRAVAgA8KQYZJgACAAAAJgAcFQwZNQAGEBkYB3N0cmluZ3MVDBYCFm4WkgEmkgUmygQpLBUEFQAVAgAVABUQFQIAPBYSGQYZJgACAAAAJgAc
FQAZJQYAGRgEa2VwdBUMFgIWNBZGJtwFSRwVABUAFQIAPCkGGSYAAgAAACYAHBUIGSUGEhkYCWxvZ19wcm9icxUMFgIWOhZMJqIGSRwVABUSFQIAPCkG
GSYAAgAAABa4AhYCJsoDFqQDACggcGFycXVldC1jcHAtYXJyb3cgdmVyc2lvbiAyNi4wLjEZTBwAABwAABwAABwAAABKAgAAUEFSMQ==
`);

function source(read: Source["read"]): Source {
  return { where: "http", read };
}

describe("decodeParquet", () => {
  it("reads what the writer writes, row groups joined", async () => {
    const { rows, columns } = await decodeParquet("x", FILE);
    expect(rows).toBe(4);
    const column = (name: string) => Array.from(columns.get(name) ?? []);
    expect(column("row").map(Number)).toEqual([0, 0, 1, 1]);
    expect(column("strings")).toEqual(["a", "", "é", "</script>"]);
    expect(column("kept")).toEqual([true, true, false, false]);
    expect(columns.get("log_probs")).toEqual(Float32Array.of(-1.5, NaN, -0.25, 0));
  });

  it("names a file that is cut short", async () => {
    await expect(decodeParquet("segments/a.parquet", FILE.slice(0, 200))).rejects.toMatchObject({
      path: "segments/a.parquet",
      message: expect.stringContaining("damaged or cut short"),
    });
  });
});

describe("Segments", () => {
  it("fetches a file once", async () => {
    let reads = 0;
    const segments = new Segments(source(async () => (reads++, FILE)));
    const [a, b] = await Promise.all([segments.read("r0-000000", "responses"), segments.read("r0-000000", "responses")]);
    expect(a).toBe(b);
    expect(reads).toBe(1);
  });

  it("tries again after a failure", async () => {
    let reads = 0;
    const segments = new Segments(
      source(async () => {
        if (!reads++) throw new ConnectionError("refused");
        return FILE;
      }),
    );
    await expect(segments.read("r0-000000", "responses")).rejects.toMatchObject({
      path: "segments/r0-000000.responses.parquet",
      transient: true,
    });
    expect((await segments.read("r0-000000", "responses"))?.rows).toBe(4);
  });

  it("has nothing for a table without rows, and opens no other paths", async () => {
    const segments = new Segments(source(async () => null));
    expect(await segments.read("r0-000000", "update_tokens")).toBeNull();
    await expect(segments.read("../../secret", "responses")).rejects.toThrow("which is none");
    expect(() => segmentPath("r0-1", "responses")).toThrow();
  });
});
