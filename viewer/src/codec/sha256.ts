/** SHA-256 (FIPS 180-4). Browsers have one too, but not on pages that come without TLS. */

const ROUNDS = primes(64);
const K = Uint32Array.from(ROUNDS, (prime) => fraction(Math.cbrt(prime)));
const START = Uint32Array.from(ROUNDS.slice(0, 8), (prime) => fraction(Math.sqrt(prime)));

/** The digest of all `parts`, one behind the other, 32 bytes. */
export function sha256(parts: Iterable<Uint8Array>): Uint8Array {
  const state = START.slice();
  const block = new Uint8Array(64);
  const words = new Uint32Array(64);
  let filled = 0;
  let length = 0;
  for (const part of parts) {
    length += part.length;
    let at = 0;
    if (filled > 0) {
      at = Math.min(64 - filled, part.length);
      block.set(part.subarray(0, at), filled);
      filled += at;
      if (filled < 64) continue;
      compress(state, words, block, 0);
    }
    for (; at + 64 <= part.length; at += 64) compress(state, words, part, at);
    block.set(part.subarray(at));
    filled = part.length - at;
  }
  const end = new Uint8Array(filled < 56 ? 64 : 128);
  end.set(block.subarray(0, filled));
  end[filled] = 0x80;
  new DataView(end.buffer).setBigUint64(end.length - 8, 8n * BigInt(length));
  for (let at = 0; at < end.length; at += 64) compress(state, words, end, at);
  const digest = new Uint8Array(32);
  const view = new DataView(digest.buffer);
  state.forEach((word, i) => view.setUint32(4 * i, word));
  return digest;
}

function compress(state: Uint32Array, w: Uint32Array, data: Uint8Array, start: number): void {
  for (let i = 0; i < 16; i++) {
    const at = start + 4 * i;
    w[i] = (data[at]! << 24) | (data[at + 1]! << 16) | (data[at + 2]! << 8) | data[at + 3]!;
  }
  for (let i = 16; i < 64; i++) {
    const x = w[i - 15]!;
    const y = w[i - 2]!;
    const s0 = turn(x, 7) ^ turn(x, 18) ^ (x >>> 3);
    const s1 = turn(y, 17) ^ turn(y, 19) ^ (y >>> 10);
    w[i] = (w[i - 16]! + s0 + w[i - 7]! + s1) | 0;
  }
  let a = state[0]! | 0, b = state[1]! | 0, c = state[2]! | 0, d = state[3]! | 0;
  let e = state[4]! | 0, f = state[5]! | 0, g = state[6]! | 0, h = state[7]! | 0;
  for (let i = 0; i < 64; i++) {
    const s1 = turn(e, 6) ^ turn(e, 11) ^ turn(e, 25);
    const t1 = (h + s1 + ((e & f) ^ (~e & g)) + K[i]! + w[i]!) | 0;
    const s0 = turn(a, 2) ^ turn(a, 13) ^ turn(a, 22);
    const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g;
    g = f;
    f = e;
    e = (d + t1) | 0;
    d = c;
    c = b;
    b = a;
    a = (t1 + t2) | 0;
  }
  [a, b, c, d, e, f, g, h].forEach((value, i) => (state[i] = state[i]! + value));
}

function turn(x: number, bits: number): number {
  return (x >>> bits) | (x << (32 - bits));
}

function primes(count: number): number[] {
  const found: number[] = [];
  for (let n = 2; found.length < count; n++) if (found.every((p) => n % p)) found.push(n);
  return found;
}

/** The first 32 bits of what is behind the point. */
function fraction(x: number): number {
  return Math.floor((x - Math.floor(x)) * 2 ** 32);
}
