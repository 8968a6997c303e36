/** How much memory a picture takes, and how much there may be. */

import { AicError } from "./errors";
import type { Model } from "./models";

export const LARGE = 1 << 30; // bytes, from which on they are given back after a picture

const ADDRESSABLE = 2 ** 32; // bytes, of WebAssembly
const FIXED = 160 << 20; // bytes: the runtime, the weights, and a tile of every network

/** An estimate of the bytes that decoding a picture takes at its peak. */
export function neededMemory(width: number, height: number, model: Model | null): number {
  const latents = model?.latents ?? 0;
  // Padded to elements of z; per element of y: features, v, what a pass codes, and pixels.
  const elements = 16 * Math.ceil(width / 64) * Math.ceil(height / 64);
  const whole = model !== null && model.halo === null ? 60_000 : 0;
  return FIXED + elements * (17 * latents + 256 * 8 + whole);
}

/** The bytes that a picture takes; throws AicError where there are not so many. */
export function checkMemory(width: number, height: number, model: Model): number {
  const needed = neededMemory(width, height, model);
  // In GiB, coarse, and missing where the browser does not tell. Half is for all else.
  const { deviceMemory } = navigator as { deviceMemory?: number };
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
