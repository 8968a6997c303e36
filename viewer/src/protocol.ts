/** What the page and its worker say to each other. One picture is decoded at a time. */

import type { Model } from "./codec/models";
import type { Fault } from "./codec/errors";

export type ToWorker =
  | { kind: "decode"; data: Uint8Array; model: Model }
  | { kind: "asset"; name: string; packed: string } // base64 of the deflated bytes
  | { kind: "missing"; name: string; reason: string };

export type FromWorker =
  | { kind: "need"; name: string } // answered by "asset" or "missing"
  | { kind: "progress"; done: number } // 0..1
  | { kind: "decoded"; width: number; height: number; rgba: Uint8ClampedArray<ArrayBuffer>; times: Times }
  | { kind: "failed"; fault: Fault; message: string };

/** Milliseconds that the parts of the work took, for whoever makes it faster. */
export type Times = Record<string, number>;
