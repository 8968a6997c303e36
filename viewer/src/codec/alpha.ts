/** The alpha channel: an 8-bit gray PNG of the size of the picture. */

import { crc32 } from "./crc";
import { AicError, corrupt } from "./errors";
import { inflate } from "./inflate";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const DEFLATE_MOST = 1032; // bytes that one byte of Deflate can stand for

/** Alpha [height, width] of an ALPHA payload; AicError for anything but an intact 8-bit gray PNG of this
 * size. The size is compared before a pixel is decoded. */
export async function unpackAlpha(
  data: Uint8Array,
  width: number,
  height: number,
): Promise<Uint8Array> {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const begins = data.length >= 33 && SIGNATURE.every((byte, at) => data[at] === byte);
  const header = begins && [view.getUint32(8), view.getUint32(12), view.getUint32(16), view.getUint32(20)];
  // Depth 8, gray, and 0 for Deflate, the usual filters and no interlacing.
  const kind = begins && [...data.subarray(24, 29)].join();
  if (!header || header.join() !== [13, 0x49484452, width, height].join() || kind !== "8,0,0,0,0") {
    throw corrupt(`the alpha plane is not a gray PNG of ${width}x${height} pixels`);
  }
  const length = (width + 1) * height;
  if (length > DEFLATE_MOST * data.length) throw corrupt("the alpha plane is truncated");
  try {
    const rows = await inflate(pixelData(data, view), "deflate", length);
    return unfilter(rows, width, height);
  } catch (fault) {
    if (fault instanceof AicError || fault instanceof RangeError) throw fault;
    throw corrupt(`the alpha plane is damaged: ${(fault as Error).message}`);
  }
}

/** What all IDAT chunks hold together. */
function pixelData(data: Uint8Array, view: DataView): Uint8Array<ArrayBuffer> {
  const parts: Uint8Array[] = [];
  for (let at = 8; ; ) {
    if (at + 12 > data.length) throw corrupt("the alpha plane is truncated");
    const length = view.getUint32(at);
    const end = at + 8 + length;
    if (end + 4 > data.length) throw corrupt("the alpha plane is truncated");
    if (view.getUint32(end) !== crc32(data.subarray(at + 4, end))) {
      throw corrupt("the alpha plane is damaged: a chunk has the wrong CRC");
    }
    const name = String.fromCharCode(...data.subarray(at + 4, at + 8));
    if (name === "IDAT") parts.push(data.subarray(at + 8, end));
    else if (name === "IEND") break;
    at = end + 4; // all other chunks are skipped
  }
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let filled = 0;
  for (const part of parts) {
    joined.set(part, filled);
    filled += part.length;
  }
  return joined;
}

/** Rows of a filter and `width` bytes to the samples, [height, width]. */
function unfilter(rows: Uint8Array, width: number, height: number): Uint8Array {
  const out = new Uint8Array(width * height);
  let above: Uint8Array = new Uint8Array(width);
  for (let r = 0; r < height; r++) {
    const start = r * (width + 1);
    const coded = rows.subarray(start + 1, start + 1 + width);
    const row = out.subarray(r * width, (r + 1) * width);
    switch (rows[start]) {
      case 0:
        row.set(coded);
        break;
      case 1:
        for (let q = 0; q < width; q++) row[q] = coded[q]! + (q ? row[q - 1]! : 0);
        break;
      case 2:
        for (let q = 0; q < width; q++) row[q] = coded[q]! + above[q]!;
        break;
      case 3:
        for (let q = 0; q < width; q++) {
          row[q] = coded[q]! + (((q ? row[q - 1]! : 0) + above[q]!) >> 1);
        }
        break;
      case 4:
        for (let q = 0; q < width; q++) {
          const [a, c] = q ? [row[q - 1]!, above[q - 1]!] : [0, 0];
          row[q] = coded[q]! + nearest(a, above[q]!, c);
        }
        break;
      default:
        throw corrupt("the alpha plane is damaged: a row has a filter that is none");
    }
    above = row;
  }
  return out;
}

/** Whichever of a, b and c is nearest to a + b - c; of several the first. */
function nearest(a: number, b: number, c: number): number {
  const [toA, toB, toC] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
  if (toA <= toB && toA <= toC) return a;
  return toB <= toC ? b : c;
}
