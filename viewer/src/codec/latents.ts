/** The coded symbols to the latent that the synthesis takes. Exact, up to the last multiplication. */

import type { Header, Latents } from "./container";
import { crc32 } from "./crc";
import { corrupt } from "./errors";
import { Exact, saturate, type Activation } from "./exact";
import { levelOf, reach, type FrozenModel } from "./frozen";
import { RangeDecoder, Tables } from "./rangecoder";
import { tiles, type Area, type Tile } from "./tiles";

const CELL = 4; // elements of y per position of z, per side
const TILE = 64; // elements of y that the networks compute at once, per side, at most
const SLACK = 64; // bits that symbols may take up beyond their words: final zeros are not written

/** Lets the worker hear messages, and tells how much is done, 0..1. */
export type Report = (done: number) => Promise<void>;

/** z as it was decoded, and the stream behind it. */
export interface Started {
  z: Int16Array; // [Z, rows, columns]
  rows: number;
  columns: number;
  decoder: RangeDecoder;
}

/** Decodes the symbols of one entropy model. One picture at a time. */
export class LatentDecoder {
  readonly model: FrozenModel;
  readonly #exact: Exact;
  readonly #tablesY: Tables;
  readonly #tablesZ: Tables;

  private constructor(exact: Exact, model: FrozenModel) {
    this.model = model;
    this.#exact = exact;
    this.#tablesY = new Tables(exact, model.tablesY);
    this.#tablesZ = new Tables(exact, model.tablesZ);
  }

  static async create(model: FrozenModel): Promise<LatentDecoder> {
    return new LatentDecoder(await Exact.create(), model);
  }

  /** Decode z, which takes tables alone. What is damaged, or claims a picture that its few bytes cannot
   * hold, is nearly always refused here, before there is a network or memory for a picture. */
  start(latents: Latents, header: Header): Started {
    const { hyper, stride, z_max } = this.model;
    const rows = Math.ceil(header.height / stride);
    const columns = Math.ceil(header.width / stride);
    const first = levelOf(this.model, header.quality) * hyper;
    const least = this.#tablesZ.leastBits
      .subarray(first, first + hyper)
      .reduce((sum, bits) => sum + bits * rows * columns, 0);
    if (least > 8 * latents.words.length + SLACK) {
      throw corrupt(
        `${latents.words.length} bytes of symbols cannot be a picture of ${header.width}x${header.height} pixels`,
      );
    }
    const numbers = new Int32Array(hyper * rows * columns);
    for (let c = 0; c < hyper; c++) {
      numbers.fill(first + c, c * rows * columns, (c + 1) * rows * columns);
    }
    const decoder = new RangeDecoder(this.#exact, latents.words);
    try {
      const z = decoder.call(numbers, this.#tablesZ);
      if (latents.zCrc !== null && latents.zCrc !== symbolsCrc(z)) {
        throw corrupt("the decoded symbols of z have the wrong CRC");
      }
      if (z.some((symbol) => Math.abs(symbol) > z_max)) {
        throw corrupt("coded symbols are corrupt: a symbol is out of range");
      }
      return { z, rows, columns, decoder };
    } catch (fault) {
      decoder.close();
      throw fault;
    }
  }

  /** Decode y, of a stream of which `start` has decoded z. */
  async finish(
    started: Started,
    latents: Latents,
    quality: number,
    report: Report = async () => {},
  ): Promise<Latent> {
    const { decoder, z, rows, columns } = started;
    const { passes, latents: channels } = this.model;
    try {
      const latent = new Latent(this.model, CELL * rows, CELL * columns);
      await this.#features(started, quality, latent, (done) => report(done / (passes + 1)));
      let crc = symbolsCrc(z);
      for (let k = 0; k < passes; k++) {
        const order = new PassOrder(this.model, k, latent.height, latent.width);
        const numbers = new Uint8Array(order.count);
        const means = new Int16Array(order.count);
        const layers = k > 0 ? this.model.refine[k - 1]! : [];
        const around = tiles(latent.height, latent.width, TILE, reach(layers, 1));
        for (const [i, tile] of around.entries()) {
          let more: Activation | null = null;
          if (k > 0) {
            const { top, bottom, left, right } = tile.outer;
            const x = this.#exact.activation(bottom - top, right - left, 4 * channels);
            latent.seen(tile.outer, this.#exact.int16(x.at, x.height * x.width * x.filled), x.filled);
            more = this.#exact.run(layers, x);
          }
          this.#predict(latent, order, tile, more, numbers, means);
          if (more !== null) this.#exact.giveBack(more.at);
          await report((k + 1 + (i + 1) / around.length) / (passes + 1));
        }
        const symbols = decoder.call(numbers, this.#tablesY);
        crc = symbolsCrc(symbols, crc);
        order.scatter(symbols, means, latent);
      }
      decoder.finish();
      if (crc !== latents.symbolsCrc) throw corrupt("the decoded symbols have the wrong CRC");
      return latent;
    } finally {
      decoder.close();
    }
  }

  /** Fill the features of `latent`. */
  async #features(started: Started, quality: number, latent: Latent, report: Report): Promise<void> {
    const { z, rows, columns } = started;
    const { hyper, fraction, features: layers } = this.model;
    const level = levelOf(this.model, quality);
    const halo = Math.ceil(reach(layers, CELL) / CELL);
    const around = tiles(rows, columns, TILE / CELL, halo);
    for (const [i, { inner, outer }] of around.entries()) {
      const [height, width] = [outer.bottom - outer.top, outer.right - outer.left];
      const x = this.#exact.activation(height, width, hyper);
      const room = this.#exact.int16(x.at, height * width * x.filled);
      for (let c = 0; c < hyper; c++) {
        const told = this.model.embedding[level * hyper + c]!;
        for (let r = 0; r < height; r++) {
          const from = (c * rows + outer.top + r) * columns + outer.left;
          for (let q = 0; q < width; q++) {
            room[(r * width + q) * x.filled + c] = saturate((z[from + q]! << fraction) + told);
          }
        }
      }
      const made = this.#exact.run(layers, x);
      const found = this.#exact.int16(made.at, made.height * made.width * made.filled);
      for (let r = CELL * inner.top; r < CELL * inner.bottom; r++) {
        for (let q = CELL * inner.left; q < CELL * inner.right; q++) {
          const position = (r - CELL * outer.top) * made.width + q - CELL * outer.left;
          const from = position * made.filled;
          latent.features.set(
            found.subarray(from, from + made.channels),
            (r * latent.width + q) * made.channels,
          );
        }
      }
      this.#exact.giveBack(made.at);
      await report((i + 1) / around.length);
    }
  }

  /** The numbers of tables and the means of the elements of a pass in a tile, in the order of coding. */
  #predict(
    latent: Latent,
    order: PassOrder,
    { inner, outer }: Tile,
    more: Activation | null,
    numbers: Uint8Array,
    means: Int16Array,
  ): void {
    const { latents: channels, fraction, index_unit, scales, scale_zero } = this.model;
    const shift = fraction - Math.log2(index_unit); // of an index to tables
    const found = more && this.#exact.int16(more.at, more.height * more.width * more.filled);
    for (let r = inner.top; r < inner.bottom; r++) {
      for (let q = inner.left; q < inner.right; q++) {
        const features = (r * latent.width + q) * 3 * channels;
        const position = (r - outer.top) * (outer.right - outer.left) + q - outer.left;
        const added = more ? position * more.filled : 0;
        for (const { first, last, start, size, rank } of order.groupsAt(r, q)) {
          for (let c = first; c < last; c++) {
            let index = latent.features[features + channels + c]!;
            let mean = latent.features[features + 2 * channels + c]!;
            if (found) {
              index = saturate(index + found[added + c]!);
              mean = saturate(mean + found[added + channels + c]!);
            }
            const table = scale_zero + ((2 * index + (1 << shift)) >> (shift + 1));
            const at = start + (c - first) * size + rank;
            numbers[at] = Math.min(Math.max(table, 0), scales - 1);
            means[at] = mean;
          }
        }
      }
    }
  }
}

/** What is known of y, [N, height, width]. */
export class Latent {
  readonly height: number;
  readonly width: number;
  readonly features: Int16Array; // [height, width, 3 N]
  readonly v: Int32Array; // [N, height, width], 0 where it is yet to be decoded
  readonly unit: number; // of v, in one symbol
  readonly #model: FrozenModel;

  constructor(model: FrozenModel, height: number, width: number) {
    this.#model = model;
    this.height = height;
    this.width = width;
    this.features = new Int16Array(3 * model.latents * height * width);
    this.v = new Int32Array(model.latents * height * width);
    this.unit = 2 ** model.fraction / model.mean_unit;
  }

  /** Write what a pass sees in an area, v and then the features, into a map of `filled` channels. */
  seen({ top, bottom, left, right }: Area, room: Int16Array, filled: number): void {
    const channels = this.#model.latents;
    for (let r = top, to = 0; r < bottom; r++) {
      for (let q = left; q < right; q++, to += filled) {
        const from = (r * this.width + q) * 3 * channels;
        room.set(this.features.subarray(from, from + 3 * channels), to + channels);
      }
    }
    for (let c = 0; c < channels; c++) {
      for (let r = top, to = c; r < bottom; r++) {
        const from = (c * this.height + r) * this.width;
        for (let q = left; q < right; q++, to += filled) room[to] = saturate(this.v[from + q]!);
      }
    }
  }

  /** y of an area, float32 [N, rows, columns]. */
  y({ top, bottom, left, right }: Area): Float32Array {
    const { latents: channels, fraction, step_bits } = this.#model;
    const bound = step_bits << fraction;
    const steps = Float64Array.from(
      { length: 2 * bound + 1 },
      (_, i) => 2 ** ((i - bound) / 2 ** fraction) / this.unit,
    );
    const y = new Float32Array(channels * (bottom - top) * (right - left));
    let to = 0;
    for (let c = 0; c < channels; c++) {
      for (let r = top; r < bottom; r++) {
        const row = r * this.width;
        for (let q = left; q < right; q++) {
          const step = this.features[(row + q) * 3 * channels + c]!;
          const held = Math.min(Math.max(step, -bound), bound);
          y[to++] = this.v[c * this.height * this.width + row + q]! * steps[held + bound]!;
        }
      }
    }
    return y;
  }
}

/** A run of channels at an element of y, which are coded in the same pass. */
interface Group {
  first: number; // channel
  last: number; // the channel behind
  start: number; // place in the order of coding of the first element of the first channel
  size: number; // elements of each channel
  rank: number; // of this element among them
}

/** The order in which a pass codes its elements: channel by channel, row by row. */
class PassOrder {
  readonly count: number;
  readonly #width: number;
  readonly #cells: { first: number; last: number; start: number; size: number; turns: boolean[][] }[];

  constructor(model: FrozenModel, k: number, height: number, width: number) {
    this.#width = width;
    const size = model.latents / model.order.length;
    let start = 0;
    this.#cells = model.order.map((cell, g) => {
      const turns = cell.map((row) => row.map((pass) => pass === k));
      const elements = (turns.flat().filter(Boolean).length * height * width) / 4;
      const group = { first: g * size, last: (g + 1) * size, start, size: elements, turns };
      start += elements * size;
      return group;
    });
    this.count = start;
  }

  /** The groups that code the element in row r and column q. */
  groupsAt(r: number, q: number): Group[] {
    const found: Group[] = [];
    for (const { turns, ...group } of this.#cells) {
      const row = turns[r & 1]!;
      if (row[q & 1]) {
        const above = this.#inRow(turns[0]!) * ((r + 1) >> 1) + this.#inRow(turns[1]!) * (r >> 1);
        found.push({ ...group, rank: above + (row[0] && row[1] ? q : q >> 1) });
      }
    }
    return found;
  }

  /** Put decoded symbols where they belong. */
  scatter(symbols: Int16Array, means: Int16Array, latent: Latent): void {
    let at = 0;
    for (const { first, last, turns } of this.#cells) {
      for (let c = first; c < last; c++) {
        for (let r = 0; r < latent.height; r++) {
          const row = turns[r & 1]!;
          const to = (c * latent.height + r) * latent.width;
          if (!row[0] && !row[1]) continue;
          const step = row[0] && row[1] ? 1 : 2;
          for (let q = row[0] ? 0 : 1; q < latent.width; q += step, at++) {
            latent.v[to + q] = symbols[at]! * latent.unit + means[at]!;
          }
        }
      }
    }
  }

  #inRow(row: boolean[]): number {
    return (row.filter(Boolean).length * this.#width) / 2;
  }
}

/** CRC32 of symbols as little-endian int32, going on from `crc`. */
function symbolsCrc(symbols: Int16Array, crc = 0): number {
  const wide = new Int32Array(1 << 14);
  for (let at = 0; at < symbols.length; at += wide.length) {
    const part = symbols.subarray(at, at + wide.length);
    wide.set(part);
    crc = crc32(new Uint8Array(wide.buffer, 0, 4 * part.length), crc);
  }
  return crc;
}
