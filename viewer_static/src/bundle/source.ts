/**
 * Where a bundle's files come from: inlined in the page, beside the page over HTTP, or a folder the person chose.
 * A source knows nothing of what the files mean.
 */
import { decodeBase64 } from "./base64";

export type Where = "inlined" | "http" | "folder";

export interface Source {
  readonly where: Where;
  /** What the person called the bundle, where the source knows. */
  readonly name?: string;
  /** The file's bytes; `null` where there is no such file. `fresh` asks past the browser's cache. */
  read(path: string, fresh?: boolean): Promise<Uint8Array<ArrayBuffer> | null>;
}

/** A file that is there and cannot be read, or that should be there and is not. */
export class FileError extends Error {
  readonly path: string;
  /** Whether only the connection failed, so that another try may succeed. */
  readonly transient: boolean;

  constructor(path: string, message: string, transient = false) {
    super(message);
    this.name = "FileError";
    this.path = path;
    this.transient = transient;
  }
}

/** The server did not answer at all: worth another try. */
export class ConnectionError extends Error {}

/** Bundle files inlined as `<script type="text/plain" data-bundle-file="path">base64</script>`; `null` without any. */
export function inlinedSource(root: ParentNode): Source | null {
  const elements = new Map<string, Element>();
  for (const element of root.querySelectorAll('script[type="text/plain"][data-bundle-file]')) {
    elements.set(element.getAttribute("data-bundle-file") ?? "", element);
  }
  if (!elements.size) return null;
  return {
    where: "inlined",
    async read(path) {
      const element = elements.get(path);
      if (!element) return null;
      try {
        return decodeBase64((element.textContent ?? "").trim());
      } catch {
        throw new FileError(path, "its base64 text in this page is damaged");
      }
    },
  };
}

/** Files beside the page, fetched whole: many servers have no Range requests, and a segment needs none. */
export function httpSource(base: string): Source {
  return {
    where: "http",
    async read(path, fresh = false) {
      const url = new URL(path.split("/").map(encodeURIComponent).join("/"), base);
      let response: Response;
      try {
        response = await fetch(url, { cache: fresh ? "no-cache" : "default" });
      } catch (error) {
        throw new ConnectionError(error instanceof Error ? error.message : String(error));
      }
      if (response.status === 404) return null;
      if (response.status >= 500) throw new ConnectionError(`the server answered ${response.status}`);
      if (!response.ok) throw new FileError(path, `the server answered ${response.status} ${response.statusText}`.trim());
      try {
        return new Uint8Array(await response.arrayBuffer());
      } catch (error) {
        throw new ConnectionError(error instanceof Error ? error.message : String(error));
      }
    },
  };
}

/** Bundles that one page opens side by side, at most. */
export const MOST_BUNDLES = 200;

/** What was found in a folder or a list, and how many bundles there were in all. */
export interface Found {
  sources: Source[];
  all: number;
}

/**
 * The bundles in folders that were dropped or chosen; `files` by path. A bundle is where a manifest.json is; where there
 * are several, where the lines of a run lie beside it too. A bundle inside another one's folder is a copy, and left out.
 *
 * @throws where there is none, in words.
 */
export function bundleFolders(files: ReadonlyMap<string, File>): Found {
  let folders = [...files.keys()].filter((path) => /(^|\/)manifest\.json$/.test(path)).map((path) => path.slice(0, -"manifest.json".length));
  folders.sort((a, b) => a.split("/").length - b.split("/").length || a.localeCompare(b, undefined, { numeric: true }));
  const outer = new Set<string>();
  for (const folder of folders) {
    if (!ancestors(folder).some((each) => outer.has(each))) outer.add(folder);
  }
  folders = [...outer];
  if (!folders.length) {
    throw new Error("There is no manifest.json in what you chose. Choose the folder that holds it: the bundle itself.");
  }
  if (folders.length > 1) {
    const withLines = new Set([...files.keys()].flatMap((path) => /^(.*\/|)(?:index|metrics)\.r\d+\.jsonl$/.exec(path)?.[1] ?? []));
    // Other programs have manifests too. Where none has lines they are shown all, with what is wrong with them.
    const runs = folders.filter((folder) => withLines.has(folder));
    if (runs.length) folders = runs;
  }
  const names = distinct(folders);
  const sources = folders.slice(0, MOST_BUNDLES).map((folder, i) => folderSource(files, folder, names[i] ?? ""));
  return { sources, all: folders.length };
}

/** The folders a folder lies in, the topmost ("") included: of `a/b/` these are "" and `a/`. */
function ancestors(folder: string): string[] {
  const parts = folder.split("/").slice(0, -1);
  return parts.map((_, i) => parts.slice(0, i).map((part) => `${part}/`).join(""));
}

/** What each folder is called: its last part, with as many of those before it as tell it from the others. */
function distinct(folders: readonly string[]): string[] {
  const parts = folders.map((folder) => folder.split("/").slice(0, -1));
  const most = Math.max(...parts.map((each) => each.length));
  const name = (of: readonly string[], length: number) => of.slice(-length).join("/");
  return parts.map((own) => {
    let length = 1;
    while (length < most && parts.some((other) => other !== own && name(other, length) === name(own, length))) length++;
    return name(own, length);
  });
}

/** One bundle among dropped or chosen files: that in `folder`, which ends in a slash or is empty. */
function folderSource(files: ReadonlyMap<string, File>, folder: string, name: string): Source {
  return {
    where: "folder",
    name,
    async read(path) {
      const file = files.get(folder + path);
      if (!file) return null;
      try {
        return new Uint8Array(await file.arrayBuffer());
      } catch {
        throw new FileError(path, "the browser can no longer read it: choose the folder again");
      }
    },
  };
}

/**
 * The bundles that `bundles.json` beside the page lists: `{"bundles": [{"name": "a", "path": "runs/a/"}]}`. Paths are
 * plain text, not encoded, and lead into the page's own folder; any other entry is left out.
 *
 * @throws where it is no such list.
 */
export function listedBundles(text: string, base: string): Found {
  let list: unknown;
  try {
    list = (JSON.parse(text) as { bundles?: unknown } | null)?.bundles;
  } catch {
    list = null;
  }
  if (!Array.isArray(list)) throw new FileError("bundles.json", "it is not a list of bundles");
  const sources: Source[] = [];
  let all = 0;
  for (const entry of list as unknown[]) {
    const { name, path } = (typeof entry === "object" && entry !== null ? entry : {}) as { name?: unknown; path?: unknown };
    const folder = typeof path === "string" ? inside(path) : null;
    if (folder === null) continue;
    all++;
    if (all > MOST_BUNDLES) continue;
    const called = typeof name === "string" && name.trim() ? name : String(path).replace(/\/$/, "");
    sources.push({ ...httpSource(new URL(folder, base).href), name: called.slice(0, 200) });
  }
  return { sources, all };
}

/** A plain relative path as a URL that cannot lead out of its folder; `null` where it would, or is none. */
function inside(path: string): string | null {
  const parts = path.replace(/\/$/, "").split("/");
  if (parts.some((part) => part === "" || part === "." || part === ".." || /[\\\u0000-\u001f]/.test(part))) return null;
  try {
    return `./${parts.map(encodeURIComponent).join("/")}/`;
  } catch {
    return null; // half of a surrogate pair
  }
}

/** The files of a `<input webkitdirectory>` or of dropped files, by their path in the folder. */
export function filesByPath(files: Iterable<File>): Map<string, File> {
  const paths = new Map<string, File>();
  for (const file of files) paths.set(file.webkitRelativePath || file.name, file);
  return paths;
}

/** All files of what was dropped, folders walked through; `found` hears how many there are so far. */
export async function droppedFiles(items: DataTransferItemList, found?: (files: number) => void): Promise<Map<string, File>> {
  const paths = new Map<string, File>();
  const roots = [...items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  await Promise.all(roots.map((entry) => walk(entry, paths, found)));
  return paths;
}

async function walk(entry: FileSystemEntry, paths: Map<string, File>, found?: (files: number) => void): Promise<void> {
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    paths.set(entry.fullPath.replace(/^\//, ""), file);
    found?.(paths.size);
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  // A directory reader hands out its entries in batches; an empty batch is the end.
  for (;;) {
    const batch = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return;
    await Promise.all(batch.map((child) => walk(child, paths, found)));
  }
}
