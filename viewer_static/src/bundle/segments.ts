/** Reading the Parquet files of segments: fetched whole, decoded once, kept while they are in use. */
import { decompress } from "fzstd";
import { type Compressors, parquetMetadata, parquetRead } from "hyparquet";

import { ConnectionError, FileError, type Source } from "./source";

export type Table = "responses" | "rollout_tokens" | "update_responses" | "update_tokens";
export type Column = ArrayLike<unknown>;

/** The columns of one file; a channel without data has none. */
export interface Columns {
  path: string;
  rows: number;
  columns: Map<string, Column>;
}

const COMPRESSORS: Compressors = {
  ZSTD: (input, outputLength) => decompress(input, new Uint8Array(outputLength)),
};

/** Decoded files to keep; about 64k tokens each. */
const KEEP = 16;

/** Path of a segment's table. Names come from data and lead to paths, so anything else is refused. */
export function segmentPath(segment: string, table: Table): string {
  if (!/^r\d{1,6}-\d{6,12}$/.test(segment)) throw new FileError("index", `it names a segment “${segment}”, which is none`);
  return `segments/${segment}.${table}.parquet`;
}

/** Columns that only repeat what the index line says of its rows. */
const IMPLIED = new Set(["kind", "update"]);

/** Decodes one Parquet file, but for the columns the index implies. Floats come as `Float32Array`. */
export async function decodeParquet(path: string, bytes: Uint8Array<ArrayBuffer>): Promise<Columns> {
  const file = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  const parts = new Map<string, { start: number; data: Column }[]>();
  const types = new Map<string, string | undefined>();
  let rows = 0;
  try {
    const metadata = parquetMetadata(file);
    rows = Number(metadata.num_rows);
    for (const element of metadata.schema.slice(1)) {
      if (!IMPLIED.has(element.name)) types.set(element.name, element.type);
    }
    await parquetRead({
      file,
      metadata,
      columns: [...types.keys()],
      compressors: COMPRESSORS,
      onChunk({ columnName, columnData, rowStart }) {
        const chunks = parts.get(columnName);
        if (chunks) chunks.push({ start: rowStart, data: columnData });
        else parts.set(columnName, [{ start: rowStart, data: columnData }]);
      },
    });
  } catch (error) {
    throw new FileError(path, `it is damaged or cut short (${error instanceof Error ? error.message : String(error)})`);
  }
  const columns = new Map<string, Column>();
  for (const [name, chunks] of parts) {
    const data = chunks.sort((a, b) => a.start - b.start).map((chunk) => chunk.data);
    columns.set(name, types.get(name) === "FLOAT" ? joinFloats(data, rows) : joinAny(data));
  }
  return { path, rows, columns };
}

/** A column of several pages comes as a plain array, twice the size. A missing value is NaN. */
function joinFloats(chunks: Column[], rows: number): Float32Array {
  const [first] = chunks;
  if (chunks.length === 1 && first instanceof Float32Array) return first;
  const out = new Float32Array(rows);
  let at = 0;
  for (const chunk of chunks) {
    for (let i = 0; i < chunk.length; i++) out[at++] = (chunk[i] as number | null) ?? NaN;
  }
  return out;
}

function joinAny(chunks: Column[]): Column {
  const [first] = chunks;
  return chunks.length === 1 && first ? first : chunks.flatMap((chunk) => Array.from(chunk));
}

/** What reads tables. */
export interface SegmentReader {
  /** Columns of a segment's table; `null` where the file does not exist, as for a table without rows. */
  read(segment: string, table: Table): Promise<Columns | null>;
}

/** Reads segment files of a source, each once. */
export class Segments implements SegmentReader {
  readonly #source: Source;
  readonly #files = new Map<string, Promise<Columns | null>>();

  constructor(source: Source) {
    this.#source = source;
  }

  async read(segment: string, table: Table): Promise<Columns | null> {
    const path = segmentPath(segment, table);
    const known = this.#files.get(path);
    if (known) {
      this.#files.delete(path);
      this.#files.set(path, known); // the most recently used goes last
      return known;
    }
    const reading = this.#load(path);
    this.#files.set(path, reading);
    // A failure is not kept: the next try may find a server that answers.
    reading.catch(() => this.#files.delete(path));
    for (const oldest of this.#files.keys()) {
      if (this.#files.size <= KEEP) break;
      this.#files.delete(oldest);
    }
    return reading;
  }

  async #load(path: string): Promise<Columns | null> {
    let bytes: Uint8Array<ArrayBuffer> | null;
    try {
      bytes = await this.#source.read(path);
    } catch (error) {
      if (error instanceof ConnectionError) {
        throw new FileError(path, "it could not be fetched", true);
      }
      throw error;
    }
    return bytes ? decodeParquet(path, bytes) : null;
  }
}
