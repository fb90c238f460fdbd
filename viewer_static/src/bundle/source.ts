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

/** A folder that was dropped or chosen; `files` by path. The bundle is where the topmost manifest.json is. */
export function folderSource(files: ReadonlyMap<string, File>): Source {
  const manifests = [...files.keys()].filter((path) => path === "manifest.json" || path.endsWith("/manifest.json"));
  manifests.sort((a, b) => a.split("/").length - b.split("/").length || a.localeCompare(b));
  const [first, second] = manifests;
  if (first === undefined) {
    throw new Error("There is no manifest.json in what you chose. Choose the folder that holds it: the bundle itself.");
  }
  if (second !== undefined && second.split("/").length === first.split("/").length) {
    throw new Error(`There are ${manifests.length} bundles in that folder. Choose one of them.`);
  }
  const prefix = first.slice(0, -"manifest.json".length);
  return {
    where: "folder",
    name: prefix.split("/").at(-2) ?? "",
    async read(path) {
      const file = files.get(prefix + path);
      if (!file) return null;
      try {
        return new Uint8Array(await file.arrayBuffer());
      } catch {
        throw new FileError(path, "the browser can no longer read it: choose the folder again");
      }
    },
  };
}

/** The files of a `<input webkitdirectory>` or of dropped files, by their path in the folder. */
export function filesByPath(files: Iterable<File>): Map<string, File> {
  const paths = new Map<string, File>();
  for (const file of files) paths.set(file.webkitRelativePath || file.name, file);
  return paths;
}

/** All files of what was dropped, folders walked through. */
export async function droppedFiles(items: DataTransferItemList): Promise<Map<string, File>> {
  const paths = new Map<string, File>();
  const roots = [...items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  await Promise.all(roots.map((entry) => walk(entry, paths)));
  return paths;
}

async function walk(entry: FileSystemEntry, paths: Map<string, File>): Promise<void> {
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    paths.set(entry.fullPath.replace(/^\//, ""), file);
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  // A directory reader hands out its entries in batches; an empty batch is the end.
  for (;;) {
    const batch = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return;
    await Promise.all(batch.map((child) => walk(child, paths)));
  }
}
