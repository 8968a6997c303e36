/** Where files come from: a picker, a drop of files or folders, the clipboard, links. */

import { MAX_FILE_BYTES, type Source } from "./queue";

const MAGIC = [0x8a, 0x41, 0x49, 0x43];
const MAX_FILES = 10_000; // of a folder

/** Whether a file begins as an .aic file does. */
export async function isAic(file: Blob): Promise<boolean> {
  try {
    const start = new Uint8Array(await file.slice(0, MAGIC.length).arrayBuffer());
    return start.length === MAGIC.length && MAGIC.every((byte, i) => start[i] === byte);
  } catch {
    return false; // whoever reads all of it says why it cannot be read
  }
}

export function fromFile(file: File): Source {
  return {
    name: file.name,
    read: async () => {
      if (file.size > MAX_FILE_BYTES) throw new Error(`larger than ${MAX_FILE_BYTES} bytes`);
      try {
        return new Uint8Array(await file.arrayBuffer());
      } catch {
        throw new Error("the file cannot be read, it may have been moved or changed since it was opened");
      }
    },
  };
}

/** A file behind a link, relative to the page. */
export function fromLink(link: string): Source {
  const url = URL.canParse(link, document.baseURI) ? new URL(link, document.baseURI) : null;
  return { name: nameOf(url, link), read: (signal) => fetched(url, signal) };
}

/** The links of an address such as `#src=a.aic&src=b.aic`. */
export function linksIn(hash: string): string[] {
  return new URLSearchParams(hash.replace(/^#/, "")).getAll("src").filter(Boolean);
}

/** All files of a drop or of the clipboard, those in folders only where they are .aic files. */
export async function filesOf(transfer: DataTransfer): Promise<File[]> {
  // What lies on the list is gone as soon as the event is over: it is asked for before anything is waited for.
  const found = [...transfer.items]
    .filter((item) => item.kind === "file")
    .map((item) => {
      const entry = item.webkitGetAsEntry?.();
      if (!entry?.isDirectory) return item.getAsFile();
      // A page that was opened from a folder cannot list the older kind of directory in Chromium.
      const handle = (item as WithHandle).getAsFileSystemHandle?.();
      return within(handle ? handle.then(ofHandle) : ofEntry(entry));
    });
  return (await Promise.all(found)).flat().filter((file) => file !== null);
}

interface WithHandle {
  getAsFileSystemHandle?(): Promise<FileSystemHandle>;
}

/** A file or a folder, as either of two interfaces of browsers has it. */
interface Node {
  readonly name: string;
  readonly isFolder: boolean;
  file(): Promise<File>;
  list(): Promise<Node[]>;
}

function ofHandle(handle: FileSystemHandle): Node {
  return {
    name: handle.name,
    isFolder: handle.kind === "directory",
    file: () => (handle as FileSystemFileHandle).getFile(),
    list: async () => {
      const nodes: Node[] = [];
      const folder = handle as unknown as { values(): AsyncIterable<FileSystemHandle> };
      for await (const each of folder.values()) nodes.push(ofHandle(each));
      return nodes;
    },
  };
}

function ofEntry(entry: FileSystemEntry): Node {
  return {
    name: entry.name,
    isFolder: entry.isDirectory,
    file: () => new Promise((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject)),
    list: async () => {
      const reader = (entry as FileSystemDirectoryEntry).createReader();
      const nodes: Node[] = [];
      // The reader gives a hundred at a time, and an empty list in the end.
      for (;;) {
        const some = await new Promise<FileSystemEntry[]>((resolve, reject) =>
          reader.readEntries(resolve, reject),
        );
        if (!some.length) return nodes;
        nodes.push(...some.map(ofEntry));
      }
    },
  };
}

/** The .aic files in a folder and in those below it, as far as they can be read. */
async function within(folder: Node | Promise<Node>): Promise<File[]> {
  const found: File[] = [];
  const pending = [await folder];
  for (let next = pending.shift(); next && found.length < MAX_FILES; next = pending.shift()) {
    const nodes = await next.list().catch(() => []);
    nodes.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
    pending.push(...nodes.filter((node) => node.isFolder));
    for (const node of nodes.filter((each) => !each.isFolder)) {
      const file = await node.file().catch(() => null);
      if (file && (await isAic(file))) found.push(file);
    }
  }
  return found;
}

function nameOf(url: URL | null, link: string): string {
  if (!url) return link.slice(0, 60);
  if (url.protocol === "data:" || url.protocol === "blob:") return "link";
  const last = url.pathname.split("/").pop() || url.host;
  try {
    return decodeURIComponent(last);
  } catch {
    return last;
  }
}

async function fetched(url: URL | null, signal: AbortSignal): Promise<Uint8Array> {
  if (!url) throw new Error("the link is no address");
  if (url.protocol === "file:") {
    throw new Error("a browser lets no page follow a link to a file on disk; drop the file here instead");
  }
  let response: Response;
  try {
    response = await fetch(url, { signal });
  } catch {
    const reason = "the server is not reachable, or does not let other sites read it (CORS)";
    throw new Error(`the link cannot be fetched: ${navigator.onLine ? reason : "there is no network"}`);
  }
  if (!response.ok) {
    const answer = `${response.status} ${response.statusText}`.trim();
    throw new Error(`the link cannot be fetched: ${url.host || "the server"} answers ${answer}`);
  }
  return body(response);
}

/** What a server sends, which may have no end. */
async function body(response: Response): Promise<Uint8Array> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  let bytes = 0;
  const reader = response.body?.getReader();
  try {
    for (let part = await reader?.read(); part && !part.done; part = await reader?.read()) {
      parts.push(part.value);
      bytes += part.value.length;
      if (bytes > MAX_FILE_BYTES) break;
    }
  } catch {
    throw new Error("the link cannot be fetched: the connection broke off");
  }
  if (bytes > MAX_FILE_BYTES) {
    await reader?.cancel();
    throw new Error(`larger than ${MAX_FILE_BYTES} bytes`);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
