/** What has to be fast and exact: the range decoder in 64 bits, and networks of integers.
 *
 * Memory belongs to the caller, who says where things lie (src/codec/exact.ts). An activation is int16
 * [positions, channels], the channels filled up to a multiple of 8 with channels that are 0; all of it
 * lies within +-32767. */

// ------------------------------------------------------------------------- range decoder

let words: usize = 0; // the next one
let wordsEnd: usize = 0;
let missing: i32 = 0; // words that were read behind the last one
let offset: u64 = 0;
let range: u64 = 0;

const CORRUPT: i32 = 1;
const BEHIND: i32 = 2;

/** Begin with `count` words at `start`. */
export function begin(start: usize, count: i32): void {
  words = start;
  wordsEnd = start + 4 * <usize>count;
  missing = 0;
  range = u64.MAX_VALUE;
  offset = nextWord() << 32;
  offset |= nextWord();
}

@inline
function nextWord(): u64 {
  if (words >= wordsEnd) {
    missing++;
    return 0;
  }
  const word = <u64>load<u32>(words);
  words += 4;
  return word;
}

@inline
function take(scale: u64, left: u64, frequency: u64): void {
  offset -= scale * left;
  range = scale * frequency;
  if (range < 0x1_0000_0000) {
    offset = (offset << 32) | nextWord();
    range <<= 32;
  }
}

/** Decode `count` entries of a table into `out`, uint16 [count]. The table is uint32 [length + 1], what is
 * left of each entry, and then 2^24. Returns 0, or why the stream is refused. */
export function table(cumulative: usize, length: i32, count: i32, out: usize): i32 {
  for (let i = 0; i < count; i++) {
    if (missing >= 2) return BEHIND;
    const scale = range >> 24;
    const quotient = offset / scale;
    if (quotient >> 24) return CORRUPT;
    const quantile = <u32>quotient;
    let low = 0;
    let high = length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (load<u32>(cumulative + ((<usize>middle) << 2)) <= quantile) low = middle;
      else high = middle;
    }
    const at = cumulative + ((<usize>low) << 2);
    const left = load<u32>(at);
    take(scale, left, load<u32>(at, 4) - left);
    store<u16>(out + ((<usize>i) << 1), <u16>low);
  }
  return missing >= 2 ? BEHIND : 0;
}

/** The same for entries that are uniform over `m`, 2..2^16. */
export function uniform(m: u32, count: i32, out: usize): i32 {
  const share: u32 = (1 << 24) / m;
  for (let i = 0; i < count; i++) {
    if (missing >= 2) return BEHIND;
    const scale = range >> 24;
    const quotient = offset / scale;
    if (quotient >> 24) return CORRUPT;
    const entry = min(<u32>quotient / share, m - 1);
    take(scale, entry * share, entry == m - 1 ? (1 << 24) - entry * share : share);
    store<u16>(out + ((<usize>i) << 1), <u16>entry);
  }
  return missing >= 2 ? BEHIND : 0;
}

/** Whether the stream ends here. */
export function ended(): bool {
  return words == wordsEnd && offset < 0x1_ffff_ffff;
}

// ------------------------------------------------------------------------- networks

/** The largest magnitude of `count` numbers, a multiple of 8. */
export function largest(x: usize, count: i32): i32 {
  let most = i16x8.splat(0);
  const end = x + 2 * <usize>count;
  for (; x < end; x += 16) most = i16x8.max_s(most, i16x8.abs(v128.load(x)));
  let found: i32 = 0;
  store<v128>(SCRATCH, most);
  for (let i: usize = 0; i < 16; i += 2) found = max(found, <i32>load<i16>(SCRATCH + i));
  return found;
}

/** 4 x 8 sums of 64 bits. The caller leaves the first 512 bytes of the memory alone. */
const SCRATCH: usize = 0;

@inline
function widen(sum: v128, at: usize): void {
  v128.store(at, i64x2.add(v128.load(at), i64x2.extend_low_i32x4_s(sum)));
  v128.store(at, i64x2.add(v128.load(at, 16), i64x2.extend_high_i32x4_s(sum)), 16);
}

/** 8 sums at `sums`, rounded half up after a division by 2^exponent, and saturated, to int16 at `out`.
 * `half` and `shift`, int64 [8] each, are 2^exponent and exponent + 1. */
@inline
function round(sums: usize, half: usize, shift: usize, out: usize): void {
  for (let i: usize = 0; i < 8; i++) {
    const at = i << 3;
    const value = (2 * load<i64>(sums + at) + load<i64>(half + at)) >> load<i64>(shift + at);
    store<i16>(out + (i << 1), <i16>min(max(value, -32767), 32767));
  }
}

@inline
function step(sum: v128, x: v128, weight: v128): v128 {
  return i32x4.add(sum, i32x4.dot_i16x8_s(x, weight));
}

/** A convolution of 1x1 pixels: x [positions, inputs] to out [positions, outputs]; positions is a multiple
 * of 4, inputs and outputs are multiples of 8. `weights` are int16 [outputs / 8, inputs / 2, 8, 2]; bias,
 * half and shift int64 [outputs]. Sums of `run` pairs of inputs fit in 32 bits. */
export function conv1x1(
  x: usize, positions: i32, inputs: i32, outputs: i32,
  weights: usize, bias: usize, half: usize, shift: usize, run: i32, out: usize,
): void {
  const pairs = inputs >> 1;
  const row = (<usize>inputs) << 1;
  const outRow = (<usize>outputs) << 1;
  const block: i32 = 32; // positions whose activations stay in the first cache
  for (let first = 0; first < positions; first += block) {
    const last = min(first + block, positions);
    for (let o = 0; o < outputs; o += 8) {
      const o8 = (<usize>o) << 3;
      const blockWeights = weights + <usize>o * row;
      for (let p = first; p < last; p += 4) {
        let a = x + <usize>p * row;
        let w = blockWeights;
        for (let i: usize = 0; i < 64; i += 16) {
          const start = v128.load(bias + o8 + i);
          v128.store(SCRATCH + i, start);
          v128.store(SCRATCH + i, start, 64);
          v128.store(SCRATCH + i, start, 128);
          v128.store(SCRATCH + i, start, 192);
        }
        for (let left = pairs; left > 0; left -= run) {
          let s00 = i32x4.splat(0), s01 = i32x4.splat(0);
          let s10 = i32x4.splat(0), s11 = i32x4.splat(0);
          let s20 = i32x4.splat(0), s21 = i32x4.splat(0);
          let s30 = i32x4.splat(0), s31 = i32x4.splat(0);
          const stop = a + ((<usize>min(run, left)) << 2);
          while (a < stop) {
            const w0 = v128.load(w);
            const w1 = v128.load(w, 16);
            const x0 = v128.load32_splat(a);
            s00 = step(s00, x0, w0);
            s01 = step(s01, x0, w1);
            const x1 = v128.load32_splat(a + row);
            s10 = step(s10, x1, w0);
            s11 = step(s11, x1, w1);
            const x2 = v128.load32_splat(a + 2 * row);
            s20 = step(s20, x2, w0);
            s21 = step(s21, x2, w1);
            const x3 = v128.load32_splat(a + 3 * row);
            s30 = step(s30, x3, w0);
            s31 = step(s31, x3, w1);
            a += 4;
            w += 32;
          }
          widen(s00, SCRATCH);
          widen(s01, SCRATCH + 32);
          widen(s10, SCRATCH + 64);
          widen(s11, SCRATCH + 96);
          widen(s20, SCRATCH + 128);
          widen(s21, SCRATCH + 160);
          widen(s30, SCRATCH + 192);
          widen(s31, SCRATCH + 224);
        }
        let target = out + <usize>p * outRow + ((<usize>o) << 1);
        for (let i: usize = 0; i < 256; i += 64) {
          round(SCRATCH + i, half + o8, shift + o8, target);
          target += outRow;
        }
      }
    }
  }
}

/** A convolution of 3x3 pixels in every channel: x [height, width, channels] to out, of the same shape.
 * `weights` are int16 [3, 3, channels]; bias, half and shift int64 [channels]. */
export function dw3x3(
  x: usize, height: i32, width: i32, channels: i32,
  weights: usize, bias: usize, half: usize, shift: usize, out: usize,
): void {
  const element = (<usize>channels) << 1;
  for (let r = 0; r < height; r++) {
    const top = max(r - 1, 0);
    const bottom = min(r + 1, height - 1);
    for (let q = 0; q < width; q++) {
      const left = max(q - 1, 0);
      const right = min(q + 1, width - 1);
      for (let c: usize = 0; c < element; c += 16) {
        const c8 = c << 2;
        let s0 = v128.load(bias + c8);
        let s1 = v128.load(bias + c8, 16);
        let s2 = v128.load(bias + c8, 32);
        let s3 = v128.load(bias + c8, 48);
        for (let i = top; i <= bottom; i++) {
          for (let j = left; j <= right; j++) {
            const value = v128.load(x + <usize>(i * width + j) * element + c);
            const weight = v128.load(
              weights + <usize>((i - r + 1) * 3 + (j - q + 1)) * element + c,
            );
            const low = i32x4.extmul_low_i16x8_s(value, weight);
            const high = i32x4.extmul_high_i16x8_s(value, weight);
            s0 = i64x2.add(s0, i64x2.extend_low_i32x4_s(low));
            s1 = i64x2.add(s1, i64x2.extend_high_i32x4_s(low));
            s2 = i64x2.add(s2, i64x2.extend_low_i32x4_s(high));
            s3 = i64x2.add(s3, i64x2.extend_high_i32x4_s(high));
          }
        }
        v128.store(SCRATCH, s0);
        v128.store(SCRATCH, s1, 16);
        v128.store(SCRATCH, s2, 32);
        v128.store(SCRATCH, s3, 48);
        round(SCRATCH, half + c8, shift + c8, out + <usize>(r * width + q) * element + c);
      }
    }
  }
}

/** max(x, floor(x / 8 + 1/2)) in place, for a multiple of 8 numbers. */
export function leaky(x: usize, count: i32): void {
  const end = x + 2 * <usize>count;
  for (; x < end; x += 16) {
    const value = v128.load(x);
    // The sum saturates only where the number itself is the larger one.
    const eighth = i16x8.shr_s(i16x8.add_sat_s(value, i16x8.splat(4)), 3);
    v128.store(x, i16x8.max_s(value, eighth));
  }
}

/** x + y, saturated, into y; for a multiple of 8 numbers. */
export function add(x: usize, y: usize, count: i32): void {
  const end = x + 2 * <usize>count;
  for (; x < end; x += 16) {
    const sum = i16x8.add_sat_s(v128.load(x), v128.load(y));
    v128.store(y, i16x8.max_s(sum, i16x8.splat(-32767)));
    y += 16;
  }
}

/** [height, width, 4 channels] to [2 height, 2 width, channels]; `inputs` and `outputs` are the channels
 * of x and of out as they are filled up. */
export function shuffle(
  x: usize, height: i32, width: i32, inputs: i32, channels: i32, outputs: i32, out: usize,
): void {
  const element = (<usize>outputs) << 1;
  for (let r = 0; r < 2 * height; r++) {
    for (let q = 0; q < 2 * width; q++) {
      const part = <usize>(2 * (r & 1) + (q & 1));
      const from = x + ((<usize>((r >> 1) * width + (q >> 1)) * inputs + part) << 1);
      for (let c = 0; c < channels; c++) {
        store<i16>(out + ((<usize>c) << 1), load<i16>(from + ((<usize>c) << 3)));
      }
      for (let c = channels; c < outputs; c++) store<i16>(out + ((<usize>c) << 1), 0);
      out += element;
    }
  }
}
