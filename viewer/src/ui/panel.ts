/** What a file says of itself, in the words of `aic info`. */

import type { Info } from "../decoder";
import { exifDensity, plain, readExif } from "./exif";
import { readProfile } from "./icc";

/** The facts of a file, in a definition list under each heading. */
export function showInfo(root: HTMLElement, name: string, info: Info | null): void {
  if (!info) {
    root.replaceChildren(...group("File", [["name", name]]));
    return;
  }
  const chunks = Object.entries(info.chunks);
  root.replaceChildren(
    ...group("File", [
      ["name", name],
      ["bytes", grouped(info.bytes)],
      ["version", String(info.version)],
      ["width", grouped(info.width)],
      ["height", grouped(info.height)],
      ["bpp", String(Math.round(1e5 * info.bpp) / 1e5)],
      ["quality", String(info.quality)],
      ["flags", info.flags.join(", ") || "none"],
      ["fingerprint", info.fingerprint],
      ["model", info.model ?? "none of this page"],
      ["encoder", info.encoder === null ? "none" : plain(info.encoder)],
    ]),
    ...group(
      "Chunks, bytes",
      chunks.map(([kind, bytes]) => [kind, grouped(bytes)]),
      "chunks ",
    ),
    ...group("Picture", [
      ["density", density(info)],
      ["colours", colours(info)],
      ["comment", info.comment ?? ""],
    ]),
    ...group("Photograph", info.exif ? readExif(info.exif) : []),
  );
}

/** The colour space in which the pixels of a file are shown. */
export function shownAs(info: Info): PredefinedColorSpace {
  return (info.icc && readProfile(info.icc).space) || "srgb";
}

/** One line on a profile that a browser cannot apply to pixels; null where the colours are right. */
export function colourWarning(info: Info): string | null {
  if (!info.icc) return null;
  const { name, space } = readProfile(info.icc);
  if (space) return null;
  return `Colours are shown as if they were sRGB: the profile ${name ? `“${name}”` : "of the file"} is not applied.`;
}

function colours(info: Info): string {
  if (!info.icc) return "sRGB, no profile";
  const { name, space } = readProfile(info.icc);
  return `${name || "a profile without a name"}${space ? "" : ", shown as sRGB"}`;
}

function density(info: Info): string {
  const found = info.density ?? (info.exif && exifDensity(info.exif));
  if (!found) return "";
  const [x, y] = found.map((perMetre) => Math.round(perMetre * 2.54) / 100);
  return x === y ? `${x} dpi` : `${x} × ${y} dpi`;
}

/** Digits in groups of three, as `aic info` has them. */
function grouped(number: number): string {
  return String(number).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** Rows under a heading, without those that are empty; `data-fact` has the key behind a prefix. */
function group(heading: string, rows: [string, string][], prefix = ""): HTMLElement[] {
  const filled = rows.filter(([, value]) => value);
  if (!filled.length) return [];
  const title = document.createElement("h3");
  title.textContent = heading;
  const list = document.createElement("dl");
  for (const [key, value] of filled) {
    const pair = document.createElement("div");
    const term = document.createElement("dt");
    const description = document.createElement("dd");
    term.textContent = key;
    description.textContent = value;
    description.dataset["fact"] = prefix + key;
    pair.append(term, description);
    list.append(pair);
  }
  return [title, list];
}
