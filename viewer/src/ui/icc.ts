/** What an ICC profile is: its name, and whether a canvas can show its colours. */

import { plain } from "./exif";

export interface Profile {
  readonly name: string; // empty where it has none
  readonly space: PredefinedColorSpace | null; // null: neither sRGB nor Display P3
}

// The colourants of red, green and blue, X Y Z under D50.
const COLOURANTS: [PredefinedColorSpace, number[]][] = [
  ["srgb", [0.4361, 0.2225, 0.0139, 0.3851, 0.7169, 0.0971, 0.1431, 0.0606, 0.7141]],
  ["display-p3", [0.5151, 0.2412, -0.0011, 0.292, 0.6922, 0.0419, 0.1571, 0.0666, 0.7841]],
];
const MAX_TAGS = 256;

/** Of a damaged profile nothing is known. */
export function readProfile(icc: Uint8Array): Profile {
  const view = new DataView(icc.buffer, icc.byteOffset, icc.byteLength);
  const tags = new Map<string, number>();
  whereIntact(() => {
    for (let i = 0; i < Math.min(view.getUint32(128), MAX_TAGS); i++) {
      tags.set(ascii(view, 132 + 12 * i, 4), view.getUint32(136 + 12 * i));
    }
  });
  return {
    name: whereIntact(() => name(view, tags.get("desc"))) ?? "",
    space: whereIntact(() => space(view, tags)) ?? null,
  };
}

/** What is read, or undefined where the profile ends before it does. */
function whereIntact<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (fault) {
    if (fault instanceof RangeError) return undefined;
    throw fault;
  }
}

function name(view: DataView, at: number | undefined): string {
  if (at === undefined) return "";
  if (ascii(view, at, 4) === "desc") {
    return plain(ascii(view, at + 12, view.getUint32(at + 8)).split("\0")[0] ?? "");
  }
  const start = at + view.getUint32(at + 24);
  const length = Math.min(view.getUint32(at + 20), 1024);
  const bytes = new Uint8Array(view.buffer, view.byteOffset + start, length);
  return plain(new TextDecoder("utf-16be").decode(bytes));
}

function space(view: DataView, tags: Map<string, number>): PredefinedColorSpace | null {
  const gray = ascii(view, 16, 4) === "GRAY";
  const curves = gray ? ["kTRC"] : ["rTRC", "gTRC", "bTRC"];
  if (!curves.every((tag) => isCurveOfSrgb(view, tags.get(tag)))) return null;
  if (gray) return "srgb";
  const found = ["rXYZ", "gXYZ", "bXYZ"].flatMap((tag) => {
    const at = tags.get(tag) ?? Infinity;
    return [8, 12, 16].map((offset) => view.getInt32(at + offset) / 65536);
  });
  const near = ([, wanted]: [unknown, number[]]) =>
    wanted.every((value, i) => Math.abs(value - (found[i] ?? Infinity)) < 0.005);
  return COLOURANTS.find(near)?.[0] ?? null;
}

function isCurveOfSrgb(view: DataView, at: number | undefined): boolean {
  if (at === undefined) return false;
  return [0.1, 0.25, 0.5, 0.75].every((x) => {
    const wanted = ((x + 0.055) / 1.055) ** 2.4;
    return Math.abs(curve(view, at, x) - wanted) < 0.01;
  });
}

/** What a curve makes of x, 0..1. */
function curve(view: DataView, at: number, x: number): number {
  if (ascii(view, at, 4) === "curv") {
    const count = view.getUint32(at + 8);
    if (count === 0) return x;
    if (count === 1) return x ** (view.getUint16(at + 12) / 256);
    return view.getUint16(at + 12 + 2 * Math.round(x * (count - 1))) / 65535;
  }
  if (ascii(view, at, 4) !== "para") return NaN;
  const kind = view.getUint16(at + 8);
  const parameter = (i: number) => view.getInt32(at + 12 + 4 * i) / 65536;
  if (kind === 0) return x ** parameter(0);
  const [g, a, b] = [parameter(0), parameter(1), parameter(2)];
  if (kind === 3 || kind === 4) {
    const offset = kind === 4 ? [parameter(5), parameter(6)] : [0, 0];
    if (x < parameter(4)) return parameter(3) * x + (offset[1] ?? 0);
    return (a * x + b) ** g + (offset[0] ?? 0);
  }
  const added = kind === 2 ? parameter(3) : 0;
  return x >= -b / a ? (a * x + b) ** g + added : added;
}

function ascii(view: DataView, at: number, length: number): string {
  let text = "";
  for (let i = 0; i < Math.min(length, 256); i++) text += String.fromCharCode(view.getUint8(at + i));
  return text;
}
