/** A PNG of exactly the pixels that were decoded, with all metadata. A canvas would round those that alpha covers. */

import type { Decoded, Info } from "../decoder";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const BATCH = 1 << 18; // bytes of rows between two pauses
const [NONE, SUB, UP, PAETH] = [0, 1, 2, 4] as const; // the filters of rows that are tried
const text = new TextEncoder();

/** Made in pieces, so that the page goes on; an Error where the browser cannot compress. */
export async function writePng(picture: Decoded, info: Info): Promise<Blob> {
  const gray = info.flags.includes("gray");
  const alpha = "alpha" in info.chunks;
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, picture.width);
  view.setUint32(4, picture.height);
  header[8] = 8; // bits per sample
  header[9] = (gray ? 0 : 2) + (alpha ? 4 : 0);
  const parts = [new Uint8Array(SIGNATURE), ...chunk("IHDR", header)];
  if (info.icc) {
    const profile = await deflated([info.icc]);
    parts.push(...chunk("iCCP", text.encode("ICC profile\0\0"), profile));
  }
  if (info.density) {
    const density = new Uint8Array(9);
    new DataView(density.buffer).setUint32(0, info.density[0]);
    new DataView(density.buffer).setUint32(4, info.density[1]);
    density[8] = 1; // per metre
    parts.push(...chunk("pHYs", density));
  }
  if (info.exif) parts.push(...chunk("eXIf", info.exif));
  if (info.xmp) parts.push(...chunk("iTXt", text.encode("XML:com.adobe.xmp\0\0\0\0\0"), info.xmp));
  if (info.comment !== null) {
    const comment = info.comment.replaceAll("\0", " ");
    parts.push(...chunk("iTXt", text.encode(`Comment\0\0\0\0\0${comment}`)));
  }
  const samples = [0, ...(gray ? [] : [1, 2]), ...(alpha ? [3] : [])];
  parts.push(...chunk("IDAT", await deflated(rows(picture, samples))), ...chunk("IEND"));
  return new Blob(parts as BlobPart[], { type: "image/png" });
}

/** The rows of a picture, each behind the number of its filter and filtered. */
function* rows(picture: Decoded, samples: number[]): Generator<Uint8Array> {
  const { width, height, rgba } = picture;
  const step = samples.length; // bytes per pixel
  const size = width * step;
  let above = new Uint8Array(size);
  let row = new Uint8Array(size);
  const candidates = [NONE, SUB, UP, PAETH].map((kind) => {
    const candidate = new Uint8Array(1 + size);
    candidate[0] = kind;
    return candidate;
  });
  for (let y = 0; y < height; y++) {
    for (let x = 0, to = 0, from = 4 * y * width; x < width; x++, from += 4) {
      for (const sample of samples) row[to++] = rgba[from + sample] as number;
    }
    yield filter(row, above, step, candidates).slice();
    [above, row] = [row, above];
  }
}

/** The candidate, of the filters that their first bytes name, with the smallest sum of differences. */
function filter(
  row: Uint8Array,
  above: Uint8Array,
  step: number,
  candidates: Uint8Array[],
): Uint8Array {
  let best = candidates[0] as Uint8Array;
  let least = Infinity;
  for (const candidate of candidates) {
    const kind = candidate[0];
    let sum = 0;
    for (let i = 0; i < row.length; i++) {
      const left = i < step ? 0 : (row[i - step] as number);
      const up = above[i] as number;
      let guess = 0;
      if (kind === SUB) guess = left;
      else if (kind === UP) guess = up;
      else if (kind === PAETH) guess = paeth(left, up, i < step ? 0 : (above[i - step] as number));
      const difference = ((row[i] as number) - guess) & 255;
      candidate[1 + i] = difference;
      sum += difference < 128 ? difference : 256 - difference;
    }
    if (sum < least) {
      least = sum;
      best = candidate;
    }
  }
  return best;
}

function paeth(left: number, up: number, corner: number): number {
  const guess = left + up - corner;
  const [l, u, c] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
  if (l <= u && l <= c) return left;
  return u <= c ? up : corner;
}

/** A zlib stream of all parts one after the other. */
async function deflated(parts: Iterable<Uint8Array>): Promise<Uint8Array> {
  const stream = new CompressionStream("deflate");
  const result = new Response(stream.readable).arrayBuffer();
  const writer = stream.writable.getWriter();
  let pending = 0;
  for (const part of parts) {
    await writer.write(part as Uint8Array<ArrayBuffer>);
    pending += part.length;
    if (pending >= BATCH) {
      pending = 0;
      await new Promise((resolve) => setTimeout(resolve));
    }
  }
  await writer.close();
  return new Uint8Array(await result);
}

function chunk(type: string, ...data: Uint8Array[]): Uint8Array[] {
  const head = new Uint8Array(8);
  const length = data.reduce((sum, part) => sum + part.length, 0);
  new DataView(head.buffer).setUint32(0, length);
  head.set(text.encode(type), 4);
  let crc = crc32(0xffffffff, head.subarray(4));
  for (const part of data) crc = crc32(crc, part);
  const tail = new Uint8Array(4);
  new DataView(tail.buffer).setUint32(0, ~crc);
  return [head, ...data, tail];
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
  return value;
});

function crc32(crc: number, data: Uint8Array): number {
  for (const byte of data) crc = (crc >>> 8) ^ (TABLE[(crc ^ byte) & 255] as number);
  return crc;
}
