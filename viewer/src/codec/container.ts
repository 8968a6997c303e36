/** The .aic container, versions 1 and 2: bytes to header and chunks. See docs/format.md. */

import { crc32 } from "./crc";
import { AicError, corrupt, incompatible } from "./errors";

export const MAX_PIXELS = 1 << 27; // of a picture; its file may be a stranger's

const MAGIC = [0x8a, 0x41, 0x49, 0x43];
const HEADER_SIZE = 32;
const MAX_SIDE = 65535; // pixels
const MAX_CHUNKS = 1024;
const MAX_LENGTH_BYTES = 5;
const MAX_COMMENT = 65536; // bytes

export const LATENTS = 0x01;
export const ALPHA = 0x81;
export const ICC = 0x82;
export const EXIF = 0x83;
export const XMP = 0x84;
export const PROVENANCE = 0x85;
export const DENSITY = 0x86;
export const COMMENT = 0x87;

const NAMES = new Map([
  [LATENTS, "latents"],
  [ALPHA, "alpha"],
  [ICC, "icc"],
  [EXIF, "exif"],
  [XMP, "xmp"],
  [PROVENANCE, "provenance"],
  [DENSITY, "density"],
  [COMMENT, "comment"],
]);

export const GRAY = 1;
const FLAGS = ["gray", "alpha", "sixteen_bit", "oriented"]; // by bit

export interface Header {
  version: number; // 1 or 2
  flags: number; // 0..255
  quality: number; // 0..100
  width: number; // pixels, 1..65535
  height: number; // pixels, 1..65535
  fingerprint: string; // 16 hexadecimal digits
}

export interface Container {
  header: Header;
  chunks: [type: number, payload: Uint8Array][]; // in the order of the file, as views of it
}

export interface Latents {
  zCrc: number | null; // CRC32 of the symbols of z; null in version 1
  symbolsCrc: number; // CRC32 of all symbols
  words: Uint8Array; // of the range coder, 4 bytes each
}

/** Take a whole file apart; throws AicError for all that docs/format.md has a reader refuse, but for the
 * frame of LATENTS. */
export function unpack(data: Uint8Array): Container {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  if (MAGIC.some((byte, at) => data[at] !== byte)) throw corrupt("not an .aic file");
  const version = data[4];
  if (version !== undefined && version !== 1 && version !== 2) {
    throw incompatible(`unknown bitstream version ${version}, 1 to 2 are supported`);
  }
  if (version === undefined || data.length < HEADER_SIZE) {
    throw corrupt(`truncated: ${data.length} of ${HEADER_SIZE} header bytes`);
  }
  if (view.getUint32(28, true) !== crc32(data.subarray(0, 28))) {
    throw corrupt("the header is corrupt (wrong CRC)");
  }
  const critical = view.getUint8(5);
  if (critical !== 0) throw incompatible(`unknown critical flags 0x${hex(critical)}`);
  const quality = view.getUint8(7);
  if (quality > 100) throw corrupt(`quality ${quality} is not in 0..100`);
  const width = view.getUint32(8, true);
  const height = view.getUint32(12, true);
  if (Math.min(width, height) < 1 || Math.max(width, height) > MAX_SIDE) {
    throw corrupt(`${width}x${height} pixels: each side must be in 1..${MAX_SIDE}`);
  }
  if (width * height > MAX_PIXELS) {
    throw new AicError("limit", `${width}x${height} pixels are more than the limit of ${MAX_PIXELS}`);
  }
  const present = data.length - HEADER_SIZE;
  const bodyLength = view.getUint32(24, true);
  if (present < bodyLength) {
    throw corrupt(`truncated: ${present} of ${bodyLength} bytes follow the header`);
  }
  if (present > bodyLength) {
    throw corrupt(`bytes after the end of the image: ${present - bodyLength}`);
  }
  const fingerprint = Array.from(data.subarray(16, 24), hex).join("");
  const header = { version, flags: view.getUint8(6), quality, width, height, fingerprint };
  return { header, chunks: unpackChunks(data, view) };
}

/** Take a LATENTS payload of a file of this version apart. */
export function unpackLatents(payload: Uint8Array, version: number): Latents {
  const start = version === 1 ? 4 : 8;
  if (payload.length < start || payload.length % 4) {
    throw corrupt(`the LATENTS chunk has an impossible length of ${payload.length} bytes`);
  }
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  return {
    zCrc: version === 1 ? null : view.getUint32(0, true),
    symbolsCrc: view.getUint32(start - 4, true),
    words: payload.subarray(start),
  };
}

/** The payload of the chunk of this type, null if the file has none. */
export function payloadOf(container: Container, type: number): Uint8Array | null {
  return container.chunks.find(([known]) => known === type)?.[1] ?? null;
}

/** Payload bytes by the name of the chunk, in lower case; unknown ones by their number. */
export function chunkSizes(container: Container): Record<string, number> {
  const sizes: Record<string, number> = {};
  for (const [type, payload] of container.chunks) {
    const name = NAMES.get(type) ?? `0x${hex(type)}`;
    sizes[name] = (sizes[name] ?? 0) + payload.length;
  }
  return sizes;
}

/** The flags that are set and known. */
export function flagNames(flags: number): string[] {
  return FLAGS.filter((_, bit) => flags & (1 << bit));
}

/** Pixels per metre along x and y; null where the file does not say, or is malformed there. */
export function density(container: Container): [number, number] | null {
  const payload = payloadOf(container, DENSITY);
  if (payload?.length !== 8) return null;
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const [x, y] = [view.getUint32(0, true), view.getUint32(4, true)];
  return x && y ? [x, y] : null;
}

/** The remark in the file, without bytes that are no UTF-8; null where there is none, or it is too long. */
export function comment(container: Container): string | null {
  const payload = payloadOf(container, COMMENT);
  return payload === null || payload.length > MAX_COMMENT ? null : new TextDecoder().decode(payload);
}

/** What wrote the file; null where it does not say. */
export function provenance(container: Container): string | null {
  const payload = payloadOf(container, PROVENANCE);
  return payload === null ? null : new TextDecoder().decode(payload);
}

function unpackChunks(data: Uint8Array, view: DataView): Container["chunks"] {
  const chunks: Container["chunks"] = [];
  let at = HEADER_SIZE;
  while (at < data.length) {
    if (chunks.length === MAX_CHUNKS) throw corrupt(`more than ${MAX_CHUNKS} chunks`);
    const [length, start] = unpackLength(data, at + 1);
    const end = start + length;
    if (end + 4 > data.length) {
      throw corrupt(`the chunk at byte ${at} runs past the end of the file`);
    }
    if (view.getUint32(end, true) !== crc32(data.subarray(at, end))) {
      throw corrupt(`the chunk at byte ${at} is corrupt (wrong CRC)`);
    }
    chunks.push([view.getUint8(at), data.subarray(start, end)]);
    at = end + 4;
  }
  for (const [type] of chunks) {
    if (type < 0x80 && type !== LATENTS) {
      throw incompatible(`unknown critical chunk type 0x${hex(type)}`);
    }
  }
  for (const [type, name] of NAMES) {
    const count = chunks.filter(([known]) => known === type).length;
    if (count > 1) throw corrupt(`more than one ${name.toUpperCase()} chunk`);
    if (count === 0 && type === LATENTS) throw corrupt("no LATENTS chunk");
  }
  return chunks;
}

/** The LEB128 number at `start`, and where it ends. */
function unpackLength(data: Uint8Array, start: number): [number, number] {
  let value = 0;
  for (let i = 0; i < MAX_LENGTH_BYTES; i++) {
    const byte = data[start + i];
    if (byte === undefined) break;
    value += (byte & 0x7f) * 2 ** (7 * i); // five bytes are more than the 32 bits of an operator
    if (byte < 0x80) {
      if (i > 0 && byte === 0) throw corrupt(`the chunk length at byte ${start} has needless zeros`);
      return [value, start + i + 1];
    }
  }
  throw corrupt(`the chunk length at byte ${start} does not end`);
}

function hex(byte: number): string {
  return byte.toString(16).padStart(2, "0");
}
