/** The one door to decoding: .aic bytes to what is said of a file, and to its pixels. */

import { models } from "virtual:models";
import workerText from "virtual:worker";

import { loadAsset } from "./assets";
import {
  EXIF,
  ICC,
  XMP,
  chunkSizes,
  comment,
  density,
  flagNames,
  payloadOf,
  provenance,
  unpack,
} from "./codec/container";
import { AicError, asAicError, incompatible } from "./codec/errors";
import { LARGE, checkMemory, neededMemory } from "./codec/memory";
import { modelFor } from "./codec/models";
import type { FromWorker, ToWorker } from "./protocol";

export { AicError, type Fault } from "./codec/errors";

/** What a file says of itself, as `aic info` does. */
export interface Info {
  bytes: number; // of the whole file
  version: number; // 1 or 2
  width: number; // pixels
  height: number; // pixels
  bpp: number; // bits per pixel
  quality: number; // 0..100
  flags: string[]; // of "gray", "alpha", "sixteen_bit", "oriented"
  fingerprint: string; // of the entropy model, 16 hexadecimal digits
  model: string | null; // the one that decodes it here, null if this page lacks it
  encoder: string | null; // what wrote the file
  chunks: Record<string, number>; // payload bytes by lower-case name, unknown ones as "0x8f"
  icc: Uint8Array | null;
  exif: Uint8Array | null;
  xmp: Uint8Array | null;
  density: [number, number] | null; // pixels per metre along x and y
  comment: string | null; // bytes that are no UTF-8 are replaced
  memory: number; // estimated bytes that decoding takes at its peak
}

/** A decoded picture. */
export interface Decoded {
  width: number; // pixels
  height: number; // pixels
  rgba: Uint8ClampedArray<ArrayBuffer>; // [height, width, 4], straight alpha, 255 where opaque
}

/** Told again and again how much is done, 0..1, never less than before. */
export interface Progress {
  (done: number): void;
}

/** What a file says of itself; nothing is decoded. Throws AicError for a file that the container alone
 * gives away as damaged, too new or too large. */
export function inspect(data: Uint8Array): Info {
  const container = unpack(data);
  const { version, width, height, quality, flags, fingerprint } = container.header;
  const model = modelFor(models, fingerprint);
  return {
    bytes: data.length,
    version,
    width,
    height,
    bpp: (8 * data.length) / (width * height),
    quality,
    flags: flagNames(flags),
    fingerprint,
    model: model?.name ?? null,
    encoder: provenance(container),
    chunks: chunkSizes(container),
    icc: payloadOf(container, ICC),
    exif: payloadOf(container, EXIF),
    xmp: payloadOf(container, XMP),
    density: density(container),
    comment: comment(container),
    memory: neededMemory(width, height, model),
  };
}

/** Decodes pictures, one after the other, in a worker of its own that is made when it is first needed. An
 * error ends the picture and not the decoder. */
export class Decoder {
  #worker: Worker | null = null;
  #last: Promise<unknown> = Promise.resolve();
  #closed = false;
  #stop: ((reason: unknown) => void) | null = null; // ends the picture that is being decoded

  /** The pixels of a file. Rejects with an AicError, or with the reason of `signal` once that aborts. */
  decode(data: Uint8Array, progress?: Progress, signal?: AbortSignal): Promise<Decoded> {
    const turn = this.#last.then(() => this.#decode(data, progress, signal));
    this.#last = turn.catch(() => undefined);
    return turn;
  }

  /** Ends the worker; what is being decoded and what waits fails. */
  close(): void {
    this.#closed = true;
    this.#stop?.(closed());
    this.#end();
  }

  async #decode(data: Uint8Array, progress?: Progress, signal?: AbortSignal): Promise<Decoded> {
    if (this.#closed) throw closed();
    signal?.throwIfAborted();
    const { header } = unpack(data);
    const model = modelFor(models, header.fingerprint);
    if (model === null) {
      throw incompatible(
        `made with entropy model ${header.fingerprint}, which this page does not have`,
      );
    }
    const needed = checkMemory(header.width, header.height, model);
    // They arrive while the worker starts, which asks for them once it needs them.
    for (const name of [model.entropy, "runtime", model.synthesis]) loadAsset(name).catch(() => {});
    const abort = () => this.#stop?.(signal?.reason);
    signal?.addEventListener("abort", abort);
    let intact = false;
    try {
      const decoded = await this.#run({ kind: "decode", data, model }, progress);
      intact = needed < LARGE; // the memory of a worker never shrinks
      return decoded;
    } catch (thrown) {
      intact = thrown instanceof AicError && ["corrupt", "incompatible"].includes(thrown.fault);
      throw thrown;
    } finally {
      signal?.removeEventListener("abort", abort);
      if (!intact) this.#end();
    }
  }

  #run(request: ToWorker, progress?: Progress): Promise<Decoded> {
    return new Promise<Decoded>((resolve, reject) => {
      this.#stop = reject;
      const worker = (this.#worker ??= startWorker());
      const send = (message: ToWorker) => worker.postMessage(message);
      worker.onerror = (event) => {
        event.preventDefault();
        reject(asAicError(new Error(event.message || "the worker cannot be started")));
      };
      worker.onmessageerror = () => reject(asAicError(new Error("a message was lost")));
      worker.onmessage = ({ data: message }: MessageEvent<FromWorker>) => {
        switch (message.kind) {
          case "need":
            loadAsset(message.name).then(
              (packed) => send({ kind: "asset", name: message.name, packed }),
              (fault: Error) => send({ kind: "missing", name: message.name, reason: fault.message }),
            );
            break;
          case "progress":
            progress?.(message.done);
            break;
          case "decoded":
            performance.mark("aic-decoded", { detail: message.times });
            resolve({ width: message.width, height: message.height, rgba: message.rgba });
            break;
          case "failed":
            reject(new AicError(message.fault, message.message));
        }
      };
      send(request);
    }).finally(() => (this.#stop = null));
  }

  #end(): void {
    this.#worker?.terminate();
    this.#worker = null;
  }
}

function closed(): AicError {
  return new AicError("internal", "the decoder is closed");
}

let workerUrl: string | null = null;

function startWorker(): Worker {
  // A page that was opened from a folder may only run workers that it carries in itself.
  workerUrl ??= URL.createObjectURL(new Blob([workerText], { type: "text/javascript" }));
  return new Worker(workerUrl, { name: "aic-decoder" });
}
