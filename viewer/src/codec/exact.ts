/** Networks of integers in WebAssembly, and the memory that they share with the range decoder. */

import binary from "virtual:exact";

import { fromBase64 } from "./base64";
import { ACTIVATION_MAX, type Convolution, type Layer } from "./frozen";

const BASE = 4096; // bytes in front that assembly/index.ts has for itself
const PAGE = 1 << 16;
const INT32_MAX = 2 ** 31 - 1;

interface Kernels {
  begin(words: number, count: number): void;
  table(cumulative: number, length: number, count: number, out: number): number;
  uniform(m: number, count: number, out: number): number;
  ended(): number;
  largest(x: number, count: number): number;
  conv1x1(
    x: number, positions: number, inputs: number, outputs: number,
    weights: number, bias: number, half: number, shift: number, run: number, out: number,
  ): void;
  dw3x3(
    x: number, height: number, width: number, channels: number,
    weights: number, bias: number, half: number, shift: number, out: number,
  ): void;
  leaky(x: number, count: number): void;
  add(x: number, y: number, count: number): void;
  shuffle(
    x: number, height: number, width: number,
    inputs: number, channels: number, outputs: number, out: number,
  ): void;
}

/** A map [height, width, channels] of int16 in the memory; `filled` channels lie there for each element,
 * those behind `channels` are 0. */
export interface Activation {
  at: number;
  height: number;
  width: number;
  channels: number;
  filled: number;
}

/** A convolution in the memory. */
interface Placed {
  weights: number;
  bias: number;
  half: number;
  shift: number;
  runs: number[]; // the largest sums of |weight| over 1, 2, 4, ... pairs of inputs
}

/** One memory, and what runs in it. */
export class Exact {
  readonly kernels: Kernels;
  readonly #memory: WebAssembly.Memory;
  readonly #placed = new Map<Convolution, Placed>();
  readonly #sizes = new Map<number, number>(); // of all that was lent, by address
  readonly #free = new Map<number, number>(); // the same of what was given back
  #top = BASE;

  private constructor(kernels: Kernels, memory: WebAssembly.Memory) {
    this.kernels = kernels;
    this.#memory = memory;
  }

  static async create(): Promise<Exact> {
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 65536 });
    const code = fromBase64(binary);
    const { instance } = await WebAssembly.instantiate(code, { env: { memory, abort } });
    return new Exact(instance.exports as unknown as Kernels, memory);
  }

  /** Room for good; its bytes are 0. */
  keep(bytes: number): number {
    const at = this.#top;
    this.#top += Math.ceil(bytes / 16) * 16;
    const pages = Math.ceil(this.#top / PAGE) - this.#memory.buffer.byteLength / PAGE;
    if (pages > 0) this.#memory.grow(pages);
    return at;
  }

  /** Room until it is given back; its bytes are anything. */
  lend(bytes: number): number {
    let best: number | null = null;
    for (const [at, size] of this.#free) {
      if (size >= bytes && (best === null || size < this.#free.get(best)!)) best = at;
    }
    if (best !== null) {
      this.#free.delete(best);
      return best;
    }
    const at = this.keep(bytes);
    this.#sizes.set(at, bytes);
    return at;
  }

  giveBack(at: number): void {
    this.#free.set(at, this.#sizes.get(at)!);
  }

  // Views, which are good until more room is asked for.

  int16(at: number, length: number): Int16Array {
    return new Int16Array(this.#memory.buffer, at, length);
  }

  uint16(at: number, length: number): Uint16Array {
    return new Uint16Array(this.#memory.buffer, at, length);
  }

  uint32(at: number, length: number): Uint32Array {
    return new Uint32Array(this.#memory.buffer, at, length);
  }

  bytes(at: number, length: number): Uint8Array {
    return new Uint8Array(this.#memory.buffer, at, length);
  }

  #int64(at: number, length: number): BigInt64Array {
    return new BigInt64Array(this.#memory.buffer, at, length);
  }

  /** A map to be written, lent, with the channels that fill it up at 0. */
  activation(height: number, width: number, channels: number): Activation {
    const made = this.#room(height, width, channels);
    if (made.filled > channels) this.int16(made.at, height * width * made.filled).fill(0);
    return made;
  }

  /** What `layers` make of a map, which is given back; exact to the bit. */
  run(layers: Layer[], x: Activation): Activation {
    for (const layer of layers) x = this.#layer(layer, x);
    return x;
  }

  #layer(layer: Layer, x: Activation): Activation {
    const { height, width } = x;
    const count = height * width * x.filled;
    switch (layer.kind) {
      case "leaky":
        this.kernels.leaky(x.at, count);
        return x;
      case "residual": {
        const copy = this.#room(height, width, x.channels);
        this.int16(copy.at, count).set(this.int16(x.at, count));
        const branch = this.run(layer.layers, copy);
        this.kernels.add(x.at, branch.at, count);
        this.giveBack(x.at);
        return branch;
      }
      case "shuffle": {
        const out = this.#room(2 * height, 2 * width, x.channels / 4);
        this.kernels.shuffle(x.at, height, width, x.filled, out.channels, out.filled, out.at);
        this.giveBack(x.at);
        return out;
      }
      default: {
        const { weights, bias, half, shift, runs } = this.#place(layer);
        const out = this.#room(height, width, layer.outputs);
        if (layer.kind === "dw3x3") {
          this.kernels.dw3x3(x.at, height, width, x.filled, weights, bias, half, shift, out.at);
        } else {
          const most = this.kernels.largest(x.at, count);
          const fit = runs.findLastIndex((sum) => sum * most <= INT32_MAX);
          this.kernels.conv1x1(
            x.at, inFours(height * width), x.filled, out.filled,
            weights, bias, half, shift, 2 ** fit, out.at,
          );
        }
        this.giveBack(x.at);
        return out;
      }
    }
  }

  /** A map of anything, lent. Positions come in fours. */
  #room(height: number, width: number, channels: number): Activation {
    const filled = inEights(channels);
    const at = this.lend(2 * inFours(height * width) * filled);
    return { at, height, width, channels, filled };
  }

  #place(convolution: Convolution): Placed {
    let placed = this.#placed.get(convolution);
    if (placed === undefined) {
      placed = this.#made(convolution);
      this.#placed.set(convolution, placed);
    }
    return placed;
  }

  #made(convolution: Convolution): Placed {
    const { kind, inputs, outputs, weight } = convolution;
    const filled = inEights(outputs);
    const [bias, half, shift] = [0, 0, 0].map(() => this.keep(8 * filled)) as [number, number, number];
    const wide = kind === "conv1x1" ? inEights(inputs) : 9;
    const weights = this.keep(2 * filled * wide);
    this.#int64(bias, outputs).set(convolution.bias);
    const exponents = BigInt64Array.from(convolution.exponent, BigInt);
    this.#int64(half, filled).fill(1n).set(exponents.map((exponent) => 1n << exponent));
    this.#int64(shift, filled).fill(1n).set(exponents.map((exponent) => exponent + 1n));
    const room = this.int16(weights, filled * wide);
    if (kind === "dw3x3") {
      for (let o = 0; o < outputs; o++) {
        for (let tap = 0; tap < 9; tap++) room[tap * filled + o] = weight[9 * o + tap]!;
      }
      return { weights, bias, half, shift, runs: [] };
    }
    for (let o = 0; o < outputs; o++) {
      const block = (o >> 3) * 8 * wide + 2 * (o & 7);
      for (let i = 0; i < inputs; i++) {
        room[block + 16 * (i >> 1) + (i & 1)] = weight[o * inputs + i]!;
      }
    }
    return { weights, bias, half, shift, runs: largestSums(convolution) };
  }
}

/** Of a convolution of 1x1, the largest sum of |weight| of an output over 1, 2, 4, ... pairs of inputs,
 * until a single run has them all. A pair of the largest weights and activations fits in 32 bits. */
function largestSums({ inputs, outputs, weight }: Convolution): number[] {
  const sums: number[] = [];
  for (let length = 2; ; length *= 2) {
    let most = 0;
    for (let o = 0; o < outputs; o++) {
      for (let start = 0; start < inputs; start += length) {
        let sum = 0;
        const stop = Math.min(start + length, inputs);
        for (let i = start; i < stop; i++) sum += Math.abs(weight[o * inputs + i]!);
        most = Math.max(most, sum);
      }
    }
    sums.push(most);
    if (length >= inputs) return sums;
  }
}

/** Of a number, the nearest that an activation has. */
export function saturate(x: number): number {
  return Math.min(Math.max(x, -ACTIVATION_MAX), ACTIVATION_MAX);
}

function inEights(channels: number): number {
  return (channels + 7) & ~7;
}

function inFours(positions: number): number {
  return (positions + 3) & ~3;
}

function abort(): never {
  throw new Error("WebAssembly gave up");
}
