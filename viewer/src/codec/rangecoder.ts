/** Words of a range coder to symbols, in the order of calls. See docs/format.md. */

import { corrupt } from "./errors";
import type { Exact } from "./exact";
import type { FrequencyTables } from "./frozen";

const PIECE = 1 << 14; // symbols that are decoded at once
const ESCAPE_BITS = 16;
const PRECISION = 24; // bits of a probability

/** Frequency tables in the memory of the range decoder. */
export class Tables {
  readonly count: number;
  readonly lengths: Int32Array;
  readonly lows: Int32Array;
  readonly cumulative: Float64Array; // where each one lies
  readonly leastBits: Float64Array; // of a symbol of each

  constructor(exact: Exact, { frequencies, lengths, lows }: FrequencyTables) {
    this.count = lengths.length;
    this.lengths = lengths;
    this.lows = lows;
    this.cumulative = new Float64Array(this.count);
    this.leastBits = new Float64Array(this.count);
    const start = exact.keep(4 * (frequencies.length + this.count));
    const room = exact.uint32(start, frequencies.length + this.count);
    let from = 0;
    let to = 0;
    lengths.forEach((length, t) => {
      this.cumulative[t] = start + 4 * to;
      let left = 0;
      let most = 0;
      for (const frequency of frequencies.subarray(from, from + length)) {
        room[to++] = left;
        left += frequency;
        most = Math.max(most, frequency);
      }
      room[to++] = left;
      from += length;
      this.leastBits[t] = PRECISION - Math.log2(most);
    });
  }
}

/** One stream. Another one that begins in the same memory ends it. */
export class RangeDecoder {
  readonly #exact: Exact;
  readonly #words: number;
  readonly #entries: number;

  constructor(exact: Exact, words: Uint8Array) {
    this.#exact = exact;
    this.#words = exact.lend(words.length);
    this.#entries = exact.lend(2 * PIECE);
    exact.bytes(this.#words, words.length).set(words);
    exact.kernels.begin(this.#words, words.length / 4);
  }

  /** The symbols of the next call, whose tables have these numbers. */
  call(numbers: Uint8Array | Int32Array, tables: Tables): Int16Array {
    const cursors = new Int32Array(tables.count + 1);
    for (let i = 0; i < numbers.length; i++) cursors[numbers[i]! + 1]!++;
    for (let t = 0; t < tables.count; t++) cursors[t + 1]! += cursors[t]!;
    const sorted = new Int16Array(numbers.length);
    const escaped: number[] = [];
    for (let t = 0; t < tables.count; t++) {
      const low = tables.lows[t]!;
      const escape = tables.lengths[t]! - 1;
      for (let at = cursors[t]!; at < cursors[t + 1]!; ) {
        const count = Math.min(PIECE, cursors[t + 1]! - at);
        const { kernels } = this.#exact;
        check(kernels.table(tables.cumulative[t]!, escape + 1, count, this.#entries));
        for (const entry of this.#exact.uint16(this.#entries, count)) {
          if (entry === escape) escaped.push(at);
          sorted[at++] = low + entry;
        }
      }
    }
    if (escaped.length) this.#escapes(escaped, sorted);
    const symbols = new Int16Array(numbers.length);
    for (let i = 0; i < numbers.length; i++) symbols[i] = sorted[cursors[numbers[i]!]!++]!;
    return symbols;
  }

  /** Refuses the stream unless it ends here. */
  finish(): void {
    if (!this.#exact.kernels.ended()) throw corrupt("coded symbols do not end where they should");
  }

  close(): void {
    this.#exact.giveBack(this.#words);
    this.#exact.giveBack(this.#entries);
  }

  /** Decode the symbols at these places. */
  #escapes(places: number[], symbols: Int16Array): void {
    const sizes = this.#uniform(ESCAPE_BITS + 1, places.length);
    const byBits: number[][] = Array.from({ length: ESCAPE_BITS + 1 }, () => []);
    sizes.forEach((bits, i) => byBits[bits]!.push(places[i]!));
    byBits.forEach((group, bits) => {
      const leading = bits ? 2 ** (bits - 1) : 0;
      const rest = leading > 1 ? this.#uniform(leading, group.length) : null;
      group.forEach((place, i) => {
        const code = leading + (rest ? rest[i]! : 0);
        if (code === 65535) throw corrupt("coded symbols are corrupt: a symbol is out of range");
        symbols[place] = code & 1 ? -((code + 1) >> 1) : code >> 1;
      });
    });
  }

  #uniform(m: number, count: number): Uint16Array {
    const found = new Uint16Array(count);
    for (let at = 0; at < count; at += PIECE) {
      const size = Math.min(PIECE, count - at);
      check(this.#exact.kernels.uniform(m, size, this.#entries));
      found.set(this.#exact.uint16(this.#entries, size), at);
    }
    return found;
  }
}

function check(status: number): void {
  if (status === 1) throw corrupt("coded symbols are corrupt");
  if (status === 2) throw corrupt("coded symbols are corrupt: they go on behind their words");
}
