/** The files of the page: which there are, which is decoded next, and which pictures stay in memory. */

import { AicError, type Decoded, Decoder, type Fault, type Info, inspect } from "../decoder";

export type State = "waiting" | "decoding" | "done" | "stopped" | "failed";

/** A file that can be read, once or again. What `read` throws as an Error has a sentence for people. */
export interface Source {
  readonly name: string;
  read(signal: AbortSignal): Promise<Uint8Array>;
}

/** Why there is no picture; "unreadable" is a file that could not be had at all. */
export interface Failure {
  readonly fault: Fault | "unreadable";
  readonly message: string;
}

export class Entry {
  state: State = "waiting";
  progress = 0; // 0..1 of the decoding
  started = 0; // when the decoding was, in milliseconds since the page was opened
  info: Info | null = null; // known as soon as the file was read
  failure: Failure | null = null;
  picture: Decoded | null = null; // may be gone from memory though it was decoded
  thumbnail: HTMLCanvasElement | null = null;
  lastUse = 0;
  data: Promise<Uint8Array> | null = null;
  readonly removed = new AbortController();

  constructor(readonly source: Source) {}

  get name(): string {
    return this.source.name;
  }
}

class Unreadable extends Error {}

export const MAX_FILE_BYTES = 2 ** 30; // of a file, as `aic` has it
const MAX_PICTURE_BYTES = 2 ** 29; // of all decoded pictures, but one always stays

export class Queue {
  readonly entries: Entry[] = [];
  selected: Entry | null = null;
  private running: { entry: Entry; abort: AbortController } | null = null;
  private clock = 0;

  /**
   * @param changed is called whenever something of an entry, or with null the list, is another.
   * @param thumbnail makes the small picture that stays when the large one has to go.
   */
  constructor(
    private readonly decoder: Decoder,
    private readonly thumbnail: (entry: Entry, picture: Decoded) => HTMLCanvasElement,
    private readonly changed: (entry: Entry | null) => void,
  ) {}

  /** Append files and select the first of them. */
  add(sources: readonly Source[]): void {
    const added = sources.map((source) => new Entry(source));
    this.entries.push(...added);
    if (added[0]) this.select(added[0]);
    else this.next();
  }

  /** Make an entry the one that is shown; it is decoded before all others. */
  select(entry: Entry): void {
    this.selected = entry;
    entry.lastUse = ++this.clock;
    this.changed(null);
    if (entry.state === "waiting") {
      // What the file says is shown while another one is still being decoded; the queue itself says what is wrong.
      this.inspected(entry).catch(() => undefined);
    }
    this.next();
  }

  /** Select the entry so many places on, or the first or last one. */
  step(by: number): void {
    const at = this.selected ? this.entries.indexOf(this.selected) : 0;
    const entry = this.entries[Math.min(Math.max(at + by, 0), this.entries.length - 1)];
    if (entry && entry !== this.selected) this.select(entry);
  }

  remove(entry: Entry): void {
    const at = this.entries.indexOf(entry);
    if (at < 0) return;
    this.entries.splice(at, 1);
    entry.removed.abort();
    if (this.running?.entry === entry) this.running.abort.abort();
    if (this.selected === entry) {
      this.selected = null;
      const neighbour = this.entries[Math.min(at, this.entries.length - 1)];
      if (neighbour) return this.select(neighbour);
    }
    this.changed(null);
  }

  /** Whether anything is still to be decoded or being decoded. */
  get busy(): boolean {
    return this.running !== null || this.entries.some((entry) => entry.state === "waiting");
  }

  /** Do not decode an entry, or no further. */
  cancel(entry: Entry): void {
    if (entry.state === "waiting") entry.state = "stopped";
    if (this.running?.entry === entry) this.running.abort.abort();
    this.changed(entry);
  }

  /** Decode nothing more; what was decoded stays. */
  stop(): void {
    for (const entry of this.entries) if (entry.state === "waiting") entry.state = "stopped";
    this.running?.abort.abort();
    this.changed(null);
  }

  /** Try entries once more that were stopped or failed. */
  again(entries: readonly Entry[]): void {
    for (const entry of entries) {
      if (entry.state === "stopped" || entry.state === "failed") {
        if (entry.state === "failed") entry.data = null;
        entry.state = "waiting";
        entry.failure = null;
      }
    }
    this.changed(null);
    this.next();
  }

  private next(): void {
    if (this.running) return;
    const wanted = this.selected;
    const first =
      wanted && (wanted.state === "waiting" || (wanted.state === "done" && !wanted.picture))
        ? wanted
        : this.entries.find((entry) => entry.state === "waiting");
    if (first) void this.decode(first);
  }

  private async decode(entry: Entry): Promise<void> {
    const abort = new AbortController();
    this.running = { entry, abort };
    entry.state = "decoding";
    entry.progress = 0;
    entry.started = performance.now();
    this.changed(entry);
    try {
      const data = await Promise.race([this.inspected(entry), end(abort.signal)]);
      const progress = (done: number) => {
        entry.progress = done;
        this.changed(entry);
      };
      const picture = await this.decoder.decode(data, progress, abort.signal);
      entry.thumbnail ??= this.thumbnail(entry, picture);
      entry.picture = picture;
      entry.state = "done";
      entry.lastUse = ++this.clock;
      this.trim();
    } catch (fault) {
      if (abort.signal.aborted) {
        entry.state = "stopped";
      } else {
        entry.state = "failed";
        entry.failure = failure(fault);
      }
    }
    this.running = null;
    if (!entry.removed.signal.aborted) this.changed(entry);
    this.next();
  }

  /** The bytes of a file, after its header and chunks were looked at. */
  private inspected(entry: Entry): Promise<Uint8Array> {
    entry.data ??= entry.source.read(entry.removed.signal).then(
      (data) => {
        entry.info = inspect(data);
        this.changed(entry);
        return data;
      },
      (fault: unknown) => {
        throw new Unreadable(fault instanceof Error ? fault.message : String(fault));
      },
    );
    return entry.data;
  }

  /** Keep the picture that is shown, and of the others those last used, as far as the bound goes. */
  private trim(): void {
    const kept = this.entries.filter((entry) => entry.picture);
    const rank = (entry: Entry) => (entry === this.selected ? Infinity : entry.lastUse);
    kept.sort((one, two) => rank(two) - rank(one));
    let bytes = 0;
    for (const [i, entry] of kept.entries()) {
      const size = entry.picture?.rgba.byteLength ?? 0;
      if (i > 0 && bytes + size > MAX_PICTURE_BYTES) entry.picture = null;
      else bytes += size;
    }
  }
}

/** Never fulfilled; rejected as soon as the signal is given. */
function end(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason));
  });
}

function failure(fault: unknown): Failure {
  if (fault instanceof AicError) return { fault: fault.fault, message: fault.message };
  const text = fault instanceof Error ? fault.message : String(fault);
  if (fault instanceof Unreadable) return { fault: "unreadable", message: text };
  const name = fault instanceof Error ? fault.name : typeof fault;
  return { fault: "internal", message: `internal error: ${name}: ${text}` };
}
