/** What is decoded when, and what stays in memory; with a decoder that does as it is told. */

import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import { build } from "vite";

const SOURCE = join(import.meta.dirname, "..", "src", "ui", "queue.ts");
const DECODER = `
  export class AicError extends Error {
    constructor(fault, message) { super(message); this.fault = fault; }
  }
  export class Decoder {}
  export const inspect = (data) => {
    if (data[0] === 0) throw new AicError("corrupt", "not an .aic file");
    return { bytes: data.length };
  };`;

const [built] = await build({
  configFile: false,
  logLevel: "warn",
  build: { write: false, minify: false, lib: { entry: SOURCE, formats: ["es"] } },
  plugins: [
    {
      name: "told-decoder",
      enforce: "pre",
      resolveId: (id) => (id === "../decoder" ? "\0decoder" : undefined),
      load: (id) => (id === "\0decoder" ? DECODER : undefined),
    },
  ],
});
const { Queue } = await import(`data:text/javascript,${encodeURIComponent(built.output[0].code)}`);

const MIB = 2 ** 20;

/** A queue, the names of what was decoded in their order, and a way to wait until nothing is left to do. */
function made({ bytes = MIB } = {}) {
  const order = [];
  const held = new Map(); // names to what lets their decoding go on
  const decoder = {
    async decode(data, progress, signal) {
      const name = String.fromCharCode(data[0]);
      order.push(name);
      progress(0.5);
      await Promise.race([
        held.get(name)?.promise,
        new Promise((_, reject) => {
          signal.addEventListener("abort", () => reject(signal.reason));
        }),
      ]);
      return { width: 1, height: 1, rgba: { byteLength: bytes } };
    },
  };
  const queue = new Queue(decoder, () => ({}), () => {});
  const settled = async () => {
    do await new Promise((resolve) => setTimeout(resolve));
    while (queue.entries.some((entry) => entry.state === "waiting" || entry.state === "decoding"));
  };
  const hold = (name) => {
    const holding = {};
    holding.promise = new Promise((resolve) => (holding.release = resolve));
    held.set(name, holding);
  };
  return { queue, order, settled, hold, release: (name) => held.get(name).release() };
}

const source = (name) => ({ name, read: async () => Uint8Array.of(name.charCodeAt(0)) });
const sources = (names) => [...names].map(source);
const named = (queue, name) => queue.entries.find((entry) => entry.name === name);
const states = (queue) => queue.entries.map((entry) => entry.state).join(" ");

test("files are decoded in their order, but the one that is looked at first", async () => {
  const { queue, order, settled, hold, release } = made();
  hold("a");
  queue.add(sources("abcd"));
  queue.step(Infinity);
  assert.equal(queue.selected.name, "d");
  release("a");
  await settled();
  assert.deepEqual(order, ["a", "d", "b", "c"]);
});

test("decoded pictures stay within a bound, and those that went are decoded again", async () => {
  const { queue, order, settled } = made({ bytes: 200 * MIB });
  queue.add(sources("abcde"));
  await settled();
  const kept = queue.entries.filter((entry) => entry.picture).map((entry) => entry.name);
  assert.deepEqual(kept, ["a", "e"]);
  assert.equal(states(queue), "done done done done done");
  queue.select(named(queue, "c"));
  await settled();
  assert.ok(named(queue, "c").picture);
  assert.equal(queue.entries.filter((entry) => entry.picture).length, 2);
  assert.deepEqual(order, ["a", "b", "c", "d", "e", "c"]);
});

test("a picture beyond the bound is shown nevertheless", async () => {
  const { queue, order, settled } = made({ bytes: 1000 * MIB });
  queue.add(sources("ab"));
  await settled();
  assert.ok(named(queue, "a").picture);
  assert.equal(named(queue, "b").picture, null);
  assert.deepEqual(order, ["a", "b"]);
});

test("what is stopped stays so until it is wanted again", async () => {
  const { queue, order, settled, hold, release } = made();
  hold("b");
  queue.add(sources("abc"));
  while (order.at(-1) !== "b") await new Promise((resolve) => setTimeout(resolve));
  queue.stop();
  await settled();
  assert.equal(states(queue), "done stopped stopped");
  assert.equal(queue.busy, false);
  release("b");
  queue.again(queue.entries);
  await settled();
  assert.equal(states(queue), "done done done");
});

test("one file is cancelled or removed, and the others go on", async () => {
  const { queue, order, settled, hold } = made();
  hold("a");
  hold("b");
  queue.add(sources("abc"));
  while (order.at(-1) !== "a") await new Promise((resolve) => setTimeout(resolve));
  queue.cancel(named(queue, "a"));
  while (order.at(-1) !== "b") await new Promise((resolve) => setTimeout(resolve));
  queue.remove(named(queue, "b"));
  await settled();
  assert.equal(states(queue), "stopped done");
});

test("whatever is wrong with a file, the next one is decoded", async () => {
  const { queue, settled } = made();
  const gone = {
    name: "gone",
    read: async () => {
      throw new Error("the file cannot be read");
    },
  };
  queue.add([gone, source("\0"), source("a")]);
  await settled();
  assert.equal(states(queue), "failed failed done");
  assert.deepEqual(
    queue.entries.map((entry) => entry.failure?.fault),
    ["unreadable", "corrupt", undefined],
  );
});
