/** The page: what is opened, shown, said, saved, and which keys do it. */

import { type Decoded, Decoder, type Info, inspect } from "./decoder";
import { Comparison, loadOther, type Other } from "./ui/comparison";
import { colourWarning, showInfo, shownAs } from "./ui/panel";
import { writePng } from "./ui/png";
import { type Entry, Queue } from "./ui/queue";
import { Raster } from "./ui/raster";
import { filesOf, fromFile, fromLink, isAic, linksIn } from "./ui/sources";
import { Stage } from "./ui/stage";
import { Strip } from "./ui/strip";

declare global {
  /** For scripts of users and tests: the same decoder as that of the page, and what `aic info` says. */
  var aic: {
    decode(data: Uint8Array): Promise<Decoded>;
    inspect(data: Uint8Array): Info;
  };
}

const THUMBNAIL = 200; // pixels of the screen, the longer side
const NOTE = 6000; // milliseconds that a note stays
const WEBP_QUALITY = 0.9;
const FAULTS = {
  corrupt: "Damaged",
  incompatible: "Needs something else",
  limit: "Too large here",
  internal: "Internal error",
  unreadable: "Cannot be read",
} as const;

function find<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

const body = document.body;
const picker = find<HTMLInputElement>("picker");
const otherPicker = find<HTMLInputElement>("other-picker");
const help = find<HTMLDialogElement>("help");
const panel = find("panel");
const view = find("view");

const decoder = new Decoder();
const stage = new Stage(view, showZoom);
const queue = new Queue(decoder, thumbnail, changed);
const strip = new Strip(
  find("files"),
  document.getElementById("file") as HTMLTemplateElement,
  queue,
);
const comparison = new Comparison(find("comparison"));
let shown: Decoded | null = null; // the picture that the stage has
let raster: Raster | null = null; // the same, to be drawn
let other: Other | null = null; // the picture to compare with, as long as somebody does
let compared: Decoded | null = null; // the picture that is beside it
let noteTimer = 0;

globalThis.aic = { decode: (data) => decoder.decode(data), inspect };

// ----------------------------------------------------------------- what is opened

/** Open files of any kind: a single ordinary picture is compared with the .aic file that it comes with, or
 * that is shown. */
async function open(files: readonly File[]): Promise<void> {
  const aic = await Promise.all(files.map(isAic));
  const ordinary = files.filter((_, i) => !aic[i]);
  const [first] = ordinary;
  const comparable = ordinary.length === 1 && first && (files.length > 1 || queue.selected);
  const found = comparable ? await loadOther(first) : null;
  const sources = files.filter((file) => !found || file !== first).map(fromFile);
  if (sources.length) queue.add(sources);
  if (found) compareWith(found);
}

async function openOther(file: File): Promise<void> {
  const found = await loadOther(file);
  if (found) compareWith(found);
  else note(`${file.name} is not a picture that this browser can show`);
}

/** Compare with a picture, every file that has its size, until it is enough. */
function compareWith(found: Other | null): void {
  const info = queue.selected?.info;
  if (found && info && !sameSize(found, info)) {
    const sizes = [found, info].map(({ width, height }) => `${width} × ${height}`);
    note(`only pictures of one size can be compared: ${found.name} has ${sizes[0]} pixels, not ${sizes[1]}`);
    return;
  }
  other = found;
  compared = null;
  show(queue.selected);
  if (found) comparison.focus();
}

function sameSize(one: { width: number; height: number }, two: typeof one): boolean {
  return one.width === two.width && one.height === two.height;
}

function openLinks(address: string): void {
  const links = linksIn(new URL(address).hash);
  if (links.length) queue.add(links.map(fromLink));
}

function thumbnail(entry: Entry, picture: Decoded): HTMLCanvasElement {
  const made = rasterOf(entry, picture);
  if (entry === queue.selected) display(picture, made); // a large one is not to be made twice
  return made.reduced(THUMBNAIL);
}

function display(picture: Decoded | null, made: Raster | null): void {
  shown = picture;
  raster = made;
  stage.show(made);
}

function rasterOf(entry: Entry, picture: Decoded): Raster {
  const { info } = entry;
  return new Raster(picture, info !== null && "alpha" in info.chunks, info ? shownAs(info) : "srgb");
}

// ----------------------------------------------------------------- what is shown

/** Called by the queue: an entry has changed, or with null the list or what is selected. */
function changed(entry: Entry | null): void {
  strip.update(entry);
  if (entry === null || entry === queue.selected) show(queue.selected);
  showQueue();
  if (entry?.state === "failed") say(`${entry.name}: ${entry.failure?.message}`);
  if (entry?.state === "done" && entry === queue.selected) {
    say(`${entry.name}: ${entry.picture?.width} by ${entry.picture?.height} pixels`);
  }
}

function show(entry: Entry | null): void {
  // A picture that had to leave the memory is being decoded again.
  const state = !entry ? "empty" : entry.state === "done" && !entry.picture ? "decoding" : entry.state;
  body.dataset["state"] = state === "waiting" ? "decoding" : state;
  const picture = entry?.picture ?? null;
  if (picture !== shown) display(picture, entry && picture && rasterOf(entry, picture));
  showComparison(entry);
  find("name").textContent = entry?.name ?? "aic viewer";
  document.title = entry ? `${entry.name} – aic viewer` : "aic viewer";
  const count = queue.entries.length;
  find("place").textContent =
    entry && count > 1 ? `${queue.entries.indexOf(entry) + 1} of ${count}` : "";
  for (const element of document.querySelectorAll(".of-selected")) {
    element.textContent = entry?.name ?? "";
  }
  find("task").textContent = state === "waiting" ? "Waiting to decode" : "Decoding";
  find<HTMLProgressElement>("progress").value = entry?.progress ?? 0;
  if (entry?.failure) {
    find("failed").dataset["fault"] = entry.failure.fault;
    find("fault").textContent = FAULTS[entry.failure.fault];
    find("message").textContent = sentence(entry.failure.message);
  }
  view.setAttribute(
    "aria-label",
    entry && picture ? `${entry.name}, ${picture.width} by ${picture.height} pixels` : "No picture",
  );
  const warning = entry?.info && picture ? colourWarning(entry.info) : null;
  find("warning").textContent = warning;
  find("warning").hidden = !warning;
  if (!panel.hidden) showPanel();
}

function showComparison(entry: Entry | null): void {
  const comparing = other !== null && shown !== null && sameSize(other, shown);
  if (comparing && entry?.info && raster && compared !== shown) {
    const { bpp, quality } = entry.info;
    comparison.show(entry.name, `${bpp.toFixed(3)} bpp, quality ${quality}`, raster.whole(), other as Other);
  }
  if (!comparing) comparison.clear();
  compared = comparing ? shown : null;
  body.toggleAttribute("data-comparing", comparing);
  press("compare", comparing);
}

function showPanel(): void {
  const entry = queue.selected;
  showInfo(find("facts"), entry?.name ?? "no file", entry?.info ?? null);
}

function showQueue(): void {
  find("strip").hidden = queue.entries.length < 2;
  const stopped = queue.entries.some((entry) => entry.state === "stopped");
  const button = find("queue");
  button.hidden = !queue.busy && !stopped;
  (button.firstElementChild as HTMLElement).textContent = queue.busy ? "Stop" : "Go on";
}

function showZoom(): void {
  const zoom = 100 * stage.zoom;
  find("zoom").textContent = `${zoom < 10 ? zoom.toFixed(1) : Math.round(zoom)} %`;
  press("fit", stage.fits);
  press("actual", stage.zoom === 1);
}

/** Whether the buttons of an action look pressed. */
function press(action: string, pressed: boolean): void {
  for (const button of document.querySelectorAll(`[data-action=${action}][aria-pressed]`)) {
    button.setAttribute("aria-pressed", String(pressed));
  }
}

/** Parts of the decoding take long and say nothing of how far they are: the seconds go on at least. */
function showElapsed(): void {
  const entry = queue.selected;
  const seconds = entry?.state === "decoding" ? (performance.now() - entry.started) / 1000 : 0;
  find("elapsed").textContent = seconds < 3 ? "" : `${Math.floor(seconds)} s`;
}

/** For screen readers. */
function say(text: string): void {
  find("said").textContent = text;
}

/** For everybody, for a while. */
function note(text: string): void {
  const element = find("note");
  element.textContent = text;
  element.hidden = false;
  clearTimeout(noteTimer);
  noteTimer = window.setTimeout(() => (element.hidden = true), NOTE);
  say(text);
}

function sentence(text: string): string {
  const first = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(first) ? first : `${first}.`;
}

// ----------------------------------------------------------------- what is saved

/** Run what may fail on a decoded entry, and say so where it does. */
async function withPicture(
  task: string,
  run: (entry: Entry, picture: Decoded, info: Info) => Promise<void>,
): Promise<void> {
  const entry = queue.selected;
  if (!entry?.picture || !entry.info) return;
  try {
    await run(entry, entry.picture, entry.info);
  } catch (fault) {
    note(`${entry.name} could not be ${task}: ${fault instanceof Error ? fault.message : fault}`);
  }
}

function savePng(): Promise<void> {
  return withPicture("saved", async (entry, picture, info) => {
    download(await writePng(picture, info), entry.name, "png");
  });
}

function saveWebp(): Promise<void> {
  return withPicture("saved", async (entry, picture) => {
    const canvas = rasterOf(entry, picture).whole();
    const blob = await new Promise<Blob | null>((resolve) =>
      canvas.toBlob(resolve, "image/webp", WEBP_QUALITY),
    );
    if (blob?.type !== "image/webp") throw new Error("this browser cannot write it as WebP");
    download(blob, entry.name, "webp");
  });
}

function copy(): Promise<void> {
  return withPicture("copied", async (entry, picture, info) => {
    if (!("ClipboardItem" in globalThis)) throw new Error("this browser lets no page copy pictures");
    // Some browsers want to be asked before any time has passed, and wait for the picture themselves.
    await navigator.clipboard.write([new ClipboardItem({ "image/png": writePng(picture, info) })]);
    note(`${entry.name} is copied`);
  });
}

function download(blob: Blob, name: string, suffix: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${name.replace(/\.aic$/i, "")}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  note(`${link.download} is saved`);
}

// ----------------------------------------------------------------- what is done

const actions: Record<string, () => void> = {
  open: () => picker.click(),
  larger: () => stage.larger(),
  smaller: () => stage.smaller(),
  fit: () => stage.showAll(),
  actual: () => stage.actualSize(),
  info: toggleInfo,
  theme: toggleTheme,
  help: () => help.showModal(),
  png: () => void savePng(),
  webp: () => void saveWebp(),
  copy: () => void copy(),
  compare: () => (other ? compareWith(null) : shown && otherPicker.click()),
  cancel: () => (other ? compareWith(null) : queue.selected && queue.cancel(queue.selected)),
  again: () => queue.selected && queue.again([queue.selected]),
  queue: () => (queue.busy ? queue.stop() : queue.again(queue.entries)),
  remove: () => queue.selected && queue.remove(queue.selected),
  previous: () => queue.step(-1),
  next: () => queue.step(1),
  first: () => queue.step(-Infinity),
  last: () => queue.step(Infinity),
  left: () => stage.pan(-1 / 8, 0),
  right: () => stage.pan(1 / 8, 0),
  up: () => stage.pan(0, -1 / 8),
  down: () => stage.pan(0, 1 / 8),
};

const KEYS: Record<string, string> = {
  o: "open",
  "+": "larger",
  "=": "larger",
  "-": "smaller",
  "0": "fit",
  "1": "actual",
  i: "info",
  t: "theme",
  c: "compare",
  s: "png",
  "?": "help",
  ArrowLeft: "previous",
  ArrowRight: "next",
  PageUp: "previous",
  PageDown: "next",
  Home: "first",
  End: "last",
  ArrowUp: "up",
  ArrowDown: "down",
  Delete: "remove",
  Escape: "cancel",
};

const PAN: Record<string, string> = { ArrowLeft: "left", ArrowRight: "right" };

function toggleInfo(): void {
  panel.hidden = !panel.hidden;
  press("info", !panel.hidden);
  remember("info", panel.hidden ? null : "open");
  if (!panel.hidden) showPanel();
}

function toggleTheme(): void {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const theme = (root.dataset["theme"] ?? system) === "dark" ? "light" : "dark";
  if (theme === system) delete root.dataset["theme"];
  else root.dataset["theme"] = theme;
  remember("theme", theme === system ? null : theme);
}

/** Keep a setting for the next time, where the browser lets the page keep anything. */
function remember(key: string, value: string | null): void {
  try {
    if (value === null) localStorage.removeItem(`aic-${key}`);
    else localStorage.setItem(`aic-${key}`, value);
  } catch {
    // It is a setting for this time, then.
  }
}

function remembered(key: string): string | null {
  try {
    return localStorage.getItem(`aic-${key}`);
  } catch {
    return null;
  }
}

document.addEventListener("click", (event) => {
  const button = (event.target as Element).closest<HTMLElement>("[data-action]");
  if (!button) return;
  button.closest<HTMLElement>("[popover]")?.hidePopover();
  actions[button.dataset["action"] as string]?.();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || help.open) return;
  if (document.querySelector(":popover-open")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const name = (event.shiftKey && PAN[key]) || KEYS[key];
  // Where there is something to be scrolled, these keys do that.
  if (!name || (key.length > 4 && key !== "Escape" && panel.contains(event.target as Node))) return;
  event.preventDefault();
  actions[name]?.();
});

picker.addEventListener("change", () => {
  const files = [...(picker.files ?? [])];
  picker.value = ""; // so that the same files can be chosen once more
  void open(files);
});

otherPicker.addEventListener("change", () => {
  const [file] = otherPicker.files ?? [];
  otherPicker.value = "";
  if (file) void openOther(file);
});

document.addEventListener("paste", (event) => {
  const { clipboardData } = event;
  if (!clipboardData) return;
  const text = clipboardData.getData("text/plain").trim();
  if (/^https?:\S+$/.test(text)) queue.add([fromLink(text)]);
  else void filesOf(clipboardData).then(open);
});

let depth = 0; // of elements that what is dragged has entered
for (const [type, change] of [
  ["dragenter", 1],
  ["dragleave", -1],
] as const) {
  document.addEventListener(type, (event) => {
    depth = Math.max(0, depth + change);
    body.toggleAttribute("data-over", depth > 0 && !!event.dataTransfer?.types.includes("Files"));
  });
}
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  body.removeAttribute("data-over");
  if (event.dataTransfer) {
    void filesOf(event.dataTransfer).then((files) => {
      if (files.length) return open(files);
      return note("nothing that was dropped is an .aic file");
    });
  }
});

// The address of the event: by now there may be another, whose own event is to come.
window.addEventListener("hashchange", ({ newURL }) => openLinks(newURL));
setInterval(showElapsed, 500);

const theme = remembered("theme");
if (theme) document.documentElement.dataset["theme"] = theme;
if (remembered("info")) toggleInfo();
openLinks(location.href);
