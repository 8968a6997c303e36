/** What people read in the EXIF of a photograph. The block may hold anything: what cannot be read is left out. */

const SIZES: Record<number, number> = { 1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8 };
const MAX_TAGS = 512; // of a directory
const MAX_TEXT = 200; // characters that are shown

const EXIF_DIRECTORY = 0x8769;
const GPS_DIRECTORY = 0x8825;

type Directory = ReadonlyMap<number, { kind: number; count: number; at: number }>;

/** Names and values, in the order in which they are shown. */
export function readExif(block: Uint8Array): [string, string][] {
  const reader = new Reader(block);
  const first = reader.directory(reader.number(4));
  const exif = reader.directory(reader.value(first, EXIF_DIRECTORY));
  const gps = reader.directory(reader.value(first, GPS_DIRECTORY));
  const text = (tag: number) => reader.text(exif, tag) || reader.text(first, tag);

  const maker = text(0x010f);
  const model = text(0x0110);
  const named = model.toLowerCase().startsWith(maker.split(" ")[0]?.toLowerCase() || "\0");
  const seconds = reader.value(exif, 0x829a);
  const aperture = reader.value(exif, 0x829d);
  const sensitivity = reader.value(exif, 0x8827);
  const length = reader.value(exif, 0x920a);
  const equivalent = reader.value(exif, 0xa405);
  const bias = reader.value(exif, 0x9204);
  const time = text(0x9003) || text(0x0132);
  const exposure = [
    seconds > 0 && (seconds < 0.3 ? `1/${Math.round(1 / seconds)} s` : `${short(seconds)} s`),
    aperture > 0 && `f/${short(aperture)}`,
    sensitivity > 0 && `ISO ${sensitivity}`,
    length > 0 && `${short(length)} mm`,
    equivalent > 0 && equivalent !== length && `as ${short(equivalent)} mm on 35 mm film`,
    bias && `${bias > 0 ? "+" : ""}${short(bias)} EV`,
  ];
  const found: [string, string][] = [
    ["camera", named ? model : `${maker} ${model}`.trim()],
    ["lens", text(0xa434)],
    ["exposure", exposure.filter(Boolean).join(", ")],
    ["taken", [time.replace(/^(\d{4}):(\d\d):/, "$1-$2-"), text(0x9011)].join(" ").trim()],
    ["description", text(0x010e)],
    ["artist", text(0x013b)],
    ["copyright", text(0x8298)],
    ["software", text(0x0131)],
    ["place", gps.size > 0 ? "the file says where it was taken (GPS)" : ""],
  ];
  return found.filter(([, value]) => value);
}

/** Pixels per metre along x and y; null where the block has none. */
export function exifDensity(block: Uint8Array): [number, number] | null {
  const reader = new Reader(block);
  const first = reader.directory(reader.number(4));
  const unit = { 2: 0.0254, 3: 0.01 }[reader.value(first, 0x0128) || 2];
  const x = reader.value(first, 0x011a);
  const y = reader.value(first, 0x011b);
  return unit && x > 0 && y > 0 ? [x / unit, y / unit] : null;
}

/** Up to three digits behind the point. */
function short(value: number): string {
  return String(Math.round(value * 1000) / 1000);
}

/** Everything is 0, empty or left out that lies beyond the end of the block. */
class Reader {
  private readonly view: DataView;
  private readonly little: boolean;

  constructor(private readonly block: Uint8Array) {
    this.view = new DataView(block.buffer, block.byteOffset, block.byteLength);
    this.little = block[0] === 0x49;
  }

  number(at: number, kind = 4): number {
    const size = SIZES[kind] ?? 0;
    if (!size || !Number.isInteger(at) || at < 0 || at + size > this.block.length) return 0;
    switch (kind) {
      case 3:
        return this.view.getUint16(at, this.little);
      case 4:
        return this.view.getUint32(at, this.little);
      case 5:
      case 10: {
        const whole = kind === 5 ? 4 : 9;
        const under = this.number(at + 4, whole);
        return under ? this.number(at, whole) / under : 0;
      }
      case 6:
        return this.view.getInt8(at);
      case 8:
        return this.view.getInt16(at, this.little);
      case 9:
        return this.view.getInt32(at, this.little);
      case 11:
        return this.view.getFloat32(at, this.little);
      case 12:
        return this.view.getFloat64(at, this.little);
      default:
        return this.view.getUint8(at);
    }
  }

  directory(at: number): Directory {
    const found = new Map<number, { kind: number; count: number; at: number }>();
    if (at < 8) return found;
    const tags = Math.min(this.number(at, 3), MAX_TAGS);
    for (let i = 0; i < tags; i++) {
      const entry = at + 2 + 12 * i;
      if (entry + 12 > this.block.length) break;
      const kind = this.number(entry + 2, 3);
      const count = this.number(entry + 4);
      const within = count * (SIZES[kind] ?? 0) <= 4;
      const place = within ? entry + 8 : this.number(entry + 8);
      found.set(this.number(entry, 3), { kind, count, at: place });
    }
    return found;
  }

  /** The first number of a tag, 0 where there is none. */
  value(directory: Directory, tag: number): number {
    const entry = directory.get(tag);
    return entry?.count && entry.kind !== 2 ? this.number(entry.at, entry.kind) : 0;
  }

  text(directory: Directory, tag: number): string {
    const entry = directory.get(tag);
    if (entry?.kind !== 2) return "";
    const bytes = this.block.subarray(entry.at, entry.at + Math.min(entry.count, 4 * MAX_TEXT));
    return plain(new TextDecoder().decode(bytes).split("\0")[0] ?? "");
  }
}

/** Text of a file as one line without control characters. */
export function plain(text: string): string {
  const line = text.replace(/[\p{C}\s]+/gu, " ").trim();
  return line.length > MAX_TEXT ? `${line.slice(0, MAX_TEXT)}…` : line;
}
