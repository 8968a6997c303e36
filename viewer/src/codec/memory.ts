/** How much memory a picture takes, and how much there may be. */

import { AicError } from "./errors";
import type { Model } from "./models";

export const LARGE = 1 << 30; // bytes, from which on they are given back after a picture

const ADDRESSABLE = 2 ** 32; // bytes, of WebAssembly
const FIXED = 256 << 20; // bytes: the runtime, the weights, compiled code, and a tile of every network
const PIXELS = 256; // of an element of y

/** An estimate of the bytes that decoding a picture takes at its peak. */
export function neededMemory(width: number, height: number, model: Model | null): number {
  // The maps are padded to whole elements of z.
  const elements = 16 * Math.ceil(width / 64) * Math.ceil(height / 64);
  // Of an element, features, v, what a pass codes and y, in bytes for each channel; and its pixels.
  let each = 19 * (model?.latents ?? 0) + (4 + 1) * PIXELS;
  // The maps of g_s, as measured, and its result where all of the picture is computed at once.
  if (model !== null && model.halo === null) each += (122 + 12) * PIXELS;
  return FIXED + elements * each;
}

/** The bytes that a picture takes; throws AicError where there are not so many. */
export function checkMemory(width: number, height: number, model: Model): number {
  const needed = neededMemory(width, height, model);
  // In GiB, coarse, and missing where the browser does not tell. Half is for all else.
  const { deviceMemory } = (globalThis.navigator ?? {}) as { deviceMemory?: number };
  const limit = Math.min(ADDRESSABLE, deviceMemory ? deviceMemory * 2 ** 29 : Infinity);
  if (needed > limit) {
    const megapixels = ((width * height) / 1e6).toFixed(1);
    throw new AicError(
      "limit",
      `a picture of ${megapixels} megapixels needs ${needed >>> 20} MiB of memory, there are ${limit >>> 20}`,
    );
  }
  return needed;
}
