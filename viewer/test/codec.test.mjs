/** What decodes .aic files: exact where files depend on it, and closed to files that are damaged.
 *
 * AIC_MATERIAL is a folder that tests/test_viewer_core.py fills by means of the Python package, with what
 * only that can write; without it the tests that need it are skipped. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { deflateSync } from "node:zlib";

import { build } from "vite";

const HERE = import.meta.dirname;
const WEIGHTS = join(HERE, "..", "..", "weights");
const GOLDEN = join(HERE, "..", "..", "tests", "golden");
const RUNTIME = join(
  HERE, "..", "node_modules", "onnxruntime-web", "dist", "ort-wasm-simd-threaded.wasm",
);
const MATERIAL = process.env.AIC_MATERIAL;
const NEEDS_MATERIAL = { skip: MATERIAL ? false : "AIC_MATERIAL is not set" };

await build({
  configFile: join(HERE, "..", "vite.config.ts"),
  mode: "codec",
  logLevel: "warn",
});
const codec = await import(join(HERE, "built", "codec.js"));

const bytes = (...path) => new Uint8Array(readFileSync(join(...path)));
const material = (name) => bytes(MATERIAL, name);
const json = (name) => JSON.parse(readFileSync(join(MATERIAL, name), "utf-8"));
const goldens = readdirSync(GOLDEN).filter((name) => name.endsWith(".aic"));

/** A generator of the same numbers every time, 0 <= x < 1 (mulberry32). */
function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function refused(fault, message) {
  return (error) =>
    error instanceof codec.AicError && error.fault === fault && (!message || message.test(error.message));
}

/** A file with other payloads or another header, and with CRCs that are right. */
function repaired(data, change) {
  const { header, chunks } = codec.unpack(data);
  const file = {
    header: Buffer.from(data.subarray(0, 32)),
    chunks: chunks.map(([type, payload]) => [type, Buffer.from(payload)]),
  };
  change(file, header);
  const body = Buffer.concat(
    file.chunks.map(([type, payload]) => {
      const size = [];
      for (let n = payload.length; ; n = Math.floor(n / 128)) {
        size.push((n % 128) + (n > 127 ? 128 : 0));
        if (n <= 127) break;
      }
      const chunk = Buffer.concat([Buffer.from([type, ...size]), payload]);
      return Buffer.concat([chunk, uint32(codec.crc32(chunk))]);
    }),
  );
  file.header.writeUInt32LE(body.length, 24);
  file.header.writeUInt32LE(codec.crc32(file.header.subarray(0, 28)), 28);
  return new Uint8Array(Buffer.concat([file.header, body]));
}

function uint32(value) {
  const out = Buffer.alloc(4);
  out.writeUInt32LE(value);
  return out;
}

async function shipped() {
  const [model] = codec.models;
  const frozen = codec.readFrozen(bytes(WEIGHTS, `${model.entropy}.safetensors`), model.fingerprint);
  return codec.LatentDecoder.create(frozen);
}

async function decodeLatents(decoder, data) {
  const container = codec.unpack(data);
  const { header } = container;
  const coded = codec.unpackLatents(codec.payloadOf(container, codec.LATENTS), header.version);
  const started = decoder.start(coded, header);
  return { z: started.z, latent: await decoder.finish(started, coded, header.quality) };
}

/** All of y, [N, rows, columns]. */
function wholeY(latent) {
  return latent.y({ top: 0, bottom: latent.height, left: 0, right: latent.width });
}

describe("digests", () => {
  test("CRC32 and SHA-256 are those of others, of any length and in any parts", () => {
    assert.equal(codec.crc32(Buffer.from("123456789")), 0xcbf43926);
    const next = random(1);
    for (let length = 0; length < 200; length++) {
      const data = Uint8Array.from({ length }, () => 256 * next());
      const cut = Math.floor(next() * (length + 1));
      const parts = [data.subarray(0, cut), data.subarray(cut)];
      assert.equal(codec.crc32(parts[1], codec.crc32(parts[0])), codec.crc32(data));
      const expected = createHash("sha256").update(data).digest("hex");
      assert.equal(Buffer.from(codec.sha256(parts)).toString("hex"), expected);
    }
  });
});

describe("container", () => {
  test("every file that was cut off, lengthened or changed by a bit is refused", () => {
    for (const name of goldens) {
      const data = bytes(GOLDEN, name);
      codec.unpack(data);
      const step = Math.ceil(data.length / 250);
      for (let length = 0; length < data.length; length += step) {
        assert.throws(() => codec.unpack(data.subarray(0, length)), codec.AicError);
      }
      assert.throws(() => codec.unpack(Buffer.concat([data, Buffer.of(0)])), refused("corrupt"));
      for (let bit = 0; bit < 8 * data.length; bit += step) {
        const changed = data.slice();
        changed[bit >> 3] ^= 1 << (bit & 7);
        assert.throws(() => codec.unpack(changed), codec.AicError, `bit ${bit} of ${name}`);
      }
    }
  });

  test("what a later version may have is named as too new, not as damaged", () => {
    const data = bytes(GOLDEN, "v2-pixel.aic");
    const later = data.slice();
    later[4] = 3;
    assert.throws(() => codec.unpack(later), refused("incompatible", /version 3/));
    const flagged = repaired(data, (file) => (file.header[5] = 0x40));
    assert.throws(() => codec.unpack(flagged), refused("incompatible", /critical flags 0x40/));
    const critical = repaired(data, (file) => file.chunks.push([0x02, Buffer.alloc(3)]));
    assert.throws(() => codec.unpack(critical), refused("incompatible", /chunk type 0x02/));
    const unknown = repaired(data, (file) => {
      file.chunks.push([0x8f, Buffer.alloc(3)], [0x8f, Buffer.alloc(4)]);
    });
    assert.equal(codec.inspect(unknown).chunks["0x8f"], 7);
  });

  test("chunks are one LATENTS, others once, and no more than 1024", () => {
    const data = bytes(GOLDEN, "v2-pixel.aic");
    const changed = (change) => () => codec.unpack(repaired(data, (file) => change(file.chunks)));
    assert.throws(changed((chunks) => chunks.splice(0)), refused("corrupt", /no LATENTS/));
    assert.throws(changed((chunks) => chunks.push(chunks[0])), refused("corrupt", /more than one LATENTS/));
    const icc = [0x82, Buffer.alloc(0)];
    assert.throws(changed((chunks) => chunks.push(icc, icc)), refused("corrupt", /more than one ICC/));
    const empty = [0xff, Buffer.alloc(0)];
    const many = (count) =>
      changed((chunks) => chunks.push(...Array(count - chunks.length).fill(empty)));
    many(1024)();
    assert.throws(many(1025), refused("corrupt", /1024 chunks/));
  });

  test("lengths have no needless zeros and end within five bytes", () => {
    const [header, body] = [bytes(GOLDEN, "v2-pixel.aic").slice(0, 32), [0x83, 0x80, 0x00]];
    const file = (body) => {
      const data = Buffer.concat([header, Buffer.from(body)]);
      data.writeUInt32LE(body.length, 24);
      data.writeUInt32LE(codec.crc32(data.subarray(0, 28)), 28);
      return () => codec.unpack(data);
    };
    assert.throws(file(body), refused("corrupt", /needless zeros/));
    assert.throws(file([0x83, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), refused("corrupt", /does not end/));
    assert.throws(file([0x83, 0xff, 0xff, 0xff, 0xff, 0x7f]), refused("corrupt", /past the end/));
  });

  test("pictures beyond the limits of pixels and of memory are refused for their size alone", () => {
    const sized = (width, height) =>
      repaired(bytes(GOLDEN, "v2-pixel.aic"), (file) => {
        file.header.writeUInt32LE(width, 8);
        file.header.writeUInt32LE(height, 12);
      });
    codec.unpack(sized(16384, 8192));
    assert.throws(() => codec.unpack(sized(16384, 8193)), refused("limit", /16384x8193 pixels/));
    assert.throws(() => codec.unpack(sized(65536, 1)), refused("corrupt", /1..65535/));
    assert.throws(() => codec.unpack(sized(0, 1)), refused("corrupt", /1..65535/));
    const [whole, tiled] = [null, 3].map((halo) => ({ ...codec.models[0], halo }));
    assert.ok(codec.checkMemory(768, 512, codec.models[0]) === codec.inspect(sized(768, 512)).memory);
    assert.ok(codec.checkMemory(16384, 4096, tiled) < 2 ** 32);
    const message = /67.1 megapixels needs \d+ MiB of memory, there are \d+/;
    assert.throws(() => codec.checkMemory(16384, 4096, whole), refused("limit", message));
  });

  test("a file tells of itself without being decoded", () => {
    for (const name of goldens) {
      const data = bytes(GOLDEN, name);
      const expected = JSON.parse(readFileSync(join(GOLDEN, name.replace(".aic", ".json")), "utf-8"));
      const info = codec.inspect(data);
      for (const key of ["version", "quality", "width", "height", "fingerprint"]) {
        assert.equal(info[key], expected[key]);
      }
      const sizes = expected.chunks.map(([, size]) => size);
      assert.deepEqual(Object.values(info.chunks), sizes);
      assert.equal(info.bytes, data.length);
      assert.equal(info.model, "nano");
    }
  });
});

describe("range coder", NEEDS_MATERIAL, () => {
  test("symbols, and what is refused, are those of the package", async () => {
    const exact = await codec.Exact.create();
    let accepted = 0;
    for (const { tables, calls } of json("streams.json")) {
      const placed = new codec.Tables(exact, {
        frequencies: Int32Array.from(tables[0]),
        lengths: Int32Array.from(tables[1]),
        lows: Int32Array.from(tables[2]),
      });
      for (const [i, { words, indexes, symbols, ends }] of calls.entries()) {
        const decoder = new codec.RangeDecoder(exact, Buffer.from(words, "hex"));
        const decode = () =>
          indexes.map((numbers) => [...decoder.call(Int32Array.from(numbers), placed)]);
        if (symbols === null) {
          assert.throws(decode, refused("corrupt"));
        } else {
          try {
            assert.deepEqual(decode(), symbols);
            if (ends) decoder.finish();
            else assert.throws(() => decoder.finish(), refused("corrupt", /do not end/));
            accepted++;
          } catch (fault) {
            // The package counts bits, and is less strict with streams that no encoder wrote.
            if (i === 0 || !refused("corrupt", /behind their words/)(fault)) throw fault;
          }
        }
        decoder.close();
      }
    }
    assert.ok(accepted > 100);
  });
});

describe("networks", () => {
  const extremes = [-32767, 32767, 0, 1, -1];

  function convolution(next, kind, inputs, outputs) {
    const wide = next() < 0.5;
    const number = (most) =>
      wide ? (next() < 0.5 ? -1 : 1) * most : Math.floor(next() * (2 * most + 1)) - most;
    return {
      kind,
      inputs,
      outputs,
      weight: Int16Array.from({ length: outputs * (kind === "dw3x3" ? 9 : inputs) }, () => number(32767)),
      bias: BigInt64Array.from({ length: outputs }, () => BigInt(number(2 ** 51))),
      exponent: Int16Array.from({ length: outputs }, () => Math.floor(next() * 49)),
    };
  }

  /** Of docs/format.md, in integers without a limit. */
  function written({ kind, inputs, outputs, weight, bias, exponent }, x, height, width) {
    const out = [];
    for (let o = 0; o < outputs; o++) {
      for (let r = 0; r < height; r++) {
        for (let q = 0; q < width; q++) {
          let s = bias[o];
          if (kind === "conv1x1") {
            for (let i = 0; i < inputs; i++) {
              s += BigInt(weight[o * inputs + i]) * BigInt(x[(i * height + r) * width + q]);
            }
          } else {
            for (let i = 0; i < 3; i++) {
              for (let j = 0; j < 3; j++) {
                const [row, column] = [r + i - 1, q + j - 1];
                if (row < 0 || row >= height || column < 0 || column >= width) continue;
                s += BigInt(weight[9 * o + 3 * i + j]) * BigInt(x[(o * height + row) * width + column]);
              }
            }
          }
          const e = BigInt(exponent[o]);
          const value = (2n * s + (1n << e)) >> (e + 1n);
          out.push(Number(value > 32767n ? 32767n : value < -32767n ? -32767n : value));
        }
      }
    }
    return out;
  }

  function run(exact, layers, x, channels, height, width) {
    const map = exact.activation(height, width, channels);
    const room = exact.int16(map.at, height * width * map.filled);
    x.forEach((value, at) => {
      const position = at % (height * width);
      room[position * map.filled + Math.floor(at / (height * width))] = value;
    });
    const out = exact.run(layers, map);
    const found = exact.int16(out.at, out.height * out.width * out.filled);
    const size = out.height * out.width;
    const values = Array.from(
      { length: out.channels * size },
      (_, at) => found[(at % size) * out.filled + Math.floor(at / size)],
    );
    exact.giveBack(out.at);
    return values;
  }

  test("convolutions are exact, for all weights and activations that there may be", async () => {
    const exact = await codec.Exact.create();
    const next = random(2);
    for (let round = 0; round < 60; round++) {
      const kind = round % 3 ? "conv1x1" : "dw3x3";
      const [height, width] = [1 + Math.floor(5 * next()), 1 + Math.floor(9 * next())];
      const inputs = 1 + Math.floor(70 * next());
      const layer = convolution(next, kind, inputs, kind === "dw3x3" ? inputs : 1 + Math.floor(40 * next()));
      const most = [32767, 3000, 20][round % 3];
      const x = Array.from({ length: inputs * height * width }, () =>
        next() < 0.5 ? extremes[Math.floor(5 * next())] : Math.floor(next() * (2 * most + 1)) - most,
      );
      const expected = written(layer, x, height, width);
      assert.deepEqual(run(exact, [layer], x, inputs, height, width), expected);
    }
  });

  test("leaky, residual and shuffle are as written, for every activation", async () => {
    const exact = await codec.Exact.create();
    const x = Array.from({ length: 65536 }, (_, at) => Math.max(at - 32768, -32767));
    const leaky = x.map((value) => Math.max(value, Math.floor(value / 8 + 0.5)));
    assert.deepEqual(run(exact, [{ kind: "leaky" }], x, 16, 64, 64), leaky);
    const residual = [{ kind: "residual", layers: [{ kind: "leaky" }] }];
    const sums = x.map((value, at) => Math.min(Math.max(value + leaky[at], -32767), 32767));
    assert.deepEqual(run(exact, residual, x, 16, 64, 64), sums);
    const shuffled = run(exact, [{ kind: "shuffle" }], x.slice(0, 12 * 2 * 3), 12, 2, 3);
    for (let c = 0; c < 3; c++) {
      for (let r = 0; r < 4; r++) {
        for (let q = 0; q < 6; q++) {
          const from = ((4 * c + 2 * (r % 2) + (q % 2)) * 2 + (r >> 1)) * 3 + (q >> 1);
          assert.equal(shuffled[(c * 4 + r) * 6 + q], x[from]);
        }
      }
    }
  });
});

describe("entropy model", () => {
  test("every step of the golden files is the one that was written down", async () => {
    const decoder = await shipped();
    for (const name of goldens) {
      const { steps } = JSON.parse(readFileSync(join(GOLDEN, name.replace(".aic", ".json")), "utf-8"));
      const { z, latent } = await decodeLatents(decoder, bytes(GOLDEN, name));
      const size = latent.height * latent.width;
      const channels = latent.features.length / size;
      const features = Int32Array.from(
        latent.features,
        (_, at) => latent.features[(at % size) * channels + Math.floor(at / size)],
      );
      for (const [step, values] of Object.entries({ z: Int32Array.from(z), features, v: latent.v })) {
        const crc = codec.crc32(new Uint8Array(values.buffer)).toString(16).padStart(8, "0");
        assert.deepEqual([values.length, crc], [steps[step].count, steps[step].crc32], `${step} of ${name}`);
      }
    }
  });

  test("damage is refused, whoever repaired the CRCs of header and chunks", async () => {
    const decoder = await shipped();
    const next = random(3);
    const data = bytes(GOLDEN, "v2-alpha.aic");
    for (let round = 0; round < 60; round++) {
      const changed = repaired(data, (file) => {
        const payload = file.chunks.find(([type]) => type === codec.LATENTS)[1];
        // Neither in the last words, where a change may leave all symbols as they are.
        payload[Math.floor(next() * (payload.length - 8))] ^= 1 << Math.floor(8 * next());
      });
      await assert.rejects(() => decodeLatents(decoder, changed), refused("corrupt"));
    }
    // The file is whole again after each of them.
    await decodeLatents(decoder, data);
  });

  test("a few bytes that claim a large picture are refused before there is memory for it", async () => {
    const decoder = await shipped();
    const before = process.memoryUsage.rss();
    for (const words of [0, 4, 8, 400]) {
      const bomb = repaired(bytes(GOLDEN, "v2-pixel.aic"), (file) => {
        file.header.writeUInt32LE(16384, 8);
        file.header.writeUInt32LE(8192, 12);
        file.chunks = [[codec.LATENTS, Buffer.alloc(8 + words)]];
      });
      await assert.rejects(() => decodeLatents(decoder, bomb), refused("corrupt", /cannot be a picture/));
    }
    assert.ok(process.memoryUsage.rss() - before < 64 << 20);
  });

  test("a second generation decodes in tiles as in the package", NEEDS_MATERIAL, async () => {
    const { fingerprint, y } = json("second.json");
    const frozen = codec.readFrozen(material("second.safetensors"), fingerprint);
    assert.equal(frozen.passes, 4);
    const decoder = await codec.LatentDecoder.create(frozen);
    const { latent } = await decodeLatents(decoder, material("second.aic"));
    const expected = new Float32Array(material(y).buffer);
    const found = wholeY(latent);
    assert.equal(found.length, expected.length);
    assert.ok(found.every((value, at) => Math.abs(value - expected[at]) <= 1e-6 * Math.abs(value)));
  });

  test("weights that are not exact, or of another program, are refused", NEEDS_MATERIAL, () => {
    const data = Buffer.from(material("second.safetensors"));
    const start = 8 + Number(data.readBigUInt64LE());
    const header = JSON.parse(data.subarray(8, start));
    const read = (change) => {
      const tensors = new Map();
      for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
        if (name === "__metadata__") continue;
        const [from, to] = data_offsets.map((offset) => start + offset);
        const bytes = Buffer.from(data.subarray(from, to));
        tensors.set(name, { dtype, shape: [...shape], bytes });
      }
      const program = JSON.parse(tensors.get("program").bytes);
      change(program, tensors);
      const text = Buffer.from(JSON.stringify(program));
      tensors.set("program", { dtype: "U8", shape: [text.length], bytes: text });
      const types = { U8: "uint8", I16: "int16", I32: "int32", I64: "int64" };
      const digest = createHash("sha256");
      const entries = {};
      let at = 0;
      for (const name of [...tensors.keys()].sort()) {
        const { dtype, shape, bytes } = tensors.get(name);
        const tuple = `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
        digest.update(`${name} ${types[dtype]} ${tuple}\n`).update(bytes);
        entries[name] = { dtype, shape, data_offsets: [at, (at += bytes.length)] };
      }
      const head = Buffer.from(JSON.stringify(entries));
      const size = Buffer.alloc(8);
      size.writeBigUInt64LE(BigInt(head.length));
      const sorted = Object.keys(entries).map((name) => tensors.get(name).bytes);
      const file = Buffer.concat([size, head, ...sorted]);
      return () => codec.readFrozen(file, digest.digest("hex").slice(0, 16));
    };
    read(() => {})();
    const cases = [
      [/version 2/, (p) => (p.version = 2)],
      [/lacks or adds more/, (p) => (p.more = 1)],
      [/lacks or adds z_max/, (p) => delete p.z_max],
      [/impossible fraction/, (p) => (p.fraction = 13)],
      [/power of two/, (p) => (p.mean_unit = 3)],
      [/order of passes/, (p) => (p.order[0][0][0] = 9)],
      [/must have the networks/, (p) => delete p.networks.adaptor_2],
      [/need a layer gelu/, (p) => p.networks.body.push(["gelu"])],
      [/malformed/, (p) => p.networks.body.push(["leaky", 1])],
      [/do not fit together/, (p) => p.networks.body.push(["shuffle", 2])],
      [/names a convolution twice/, (p) => p.networks.body.push(p.networks.adaptor_1[0])],
      [/too deep/, (p) => (p.networks.body = Array(6).fill(0).reduce((inner) => [["residual", inner]], []))],
      [/another shape or type/, (p, t) => t.get(convolutionOf(p) + ".bias").shape.push(1)],
      [/no safetensors/, (p, t) => (t.get(convolutionOf(p) + ".bias").dtype = "F64")],
      [/too large for exact/, (p, t) => t.get(convolutionOf(p) + ".bias").bytes.writeBigInt64LE(2n ** 52n)],
      [/too large for exact/, (p, t) => t.get(convolutionOf(p) + ".exponent").bytes.writeInt16LE(49)],
      [/lack the convolution/, (p, t) => t.delete(convolutionOf(p) + ".weight")],
      [/sums to/, (p, t) => t.get("tables_y.frequencies").bytes.writeInt32LE(1 << 24)],
      [/as many tables/, (p) => (p.scales -= 1)],
    ];
    for (const [message, change] of cases) {
      const expected = refused("incompatible", message);
      assert.throws(read(change), (error) => expected(error) || assert.fail(`${message}: ${error}`));
    }
    const { fingerprint } = json("second.json");
    const other = fingerprint.replace(/.$/, (digit) => (digit === "0" ? "1" : "0"));
    assert.throws(() => codec.readFrozen(data, other), refused("incompatible", /another fingerprint/));
  });
});

function convolutionOf(program) {
  return program.networks.head.at(-1)[1];
}

describe("alpha", () => {
  function png(width, height, rows, { kind = [8, 0, 0, 0, 0], size = [width, height] } = {}) {
    const chunk = (name, body) => {
      const data = Buffer.concat([Buffer.from(name), body]);
      const out = Buffer.alloc(8 + data.length);
      out.writeUInt32BE(body.length);
      data.copy(out, 4);
      out.writeUInt32BE(codec.crc32(data), 4 + data.length);
      return out;
    };
    const header = Buffer.alloc(13);
    header.writeUInt32BE(size[0]);
    header.writeUInt32BE(size[1], 4);
    header.set(kind, 8);
    const packed = deflateSync(Buffer.from(rows));
    return new Uint8Array(
      Buffer.concat([
        Buffer.from("89504e470d0a1a0a", "hex"),
        chunk("IHDR", header),
        chunk("IDAT", packed.subarray(0, 5)),
        chunk("IDAT", packed.subarray(5)),
        chunk("tEXt", Buffer.from("skipped")),
        chunk("IEND", Buffer.alloc(0)),
      ]),
    );
  }

  test("every filter is undone", async () => {
    const next = random(4);
    const [width, height] = [7, 40];
    const samples = Array.from({ length: width * height }, () => Math.floor(256 * next()));
    const at = (r, q) => (r < 0 || q < 0 ? 0 : samples[r * width + q]);
    const rows = [];
    for (let r = 0; r < height; r++) {
      rows.push(r % 5);
      for (let q = 0; q < width; q++) {
        const [a, b, c] = [at(r, q - 1), at(r - 1, q), at(r - 1, q - 1)];
        const near = [a, b, c].sort((x, y) => Math.abs(a + b - c - x) - Math.abs(a + b - c - y))[0];
        rows.push(at(r, q) - [0, a, b, (a + b) >> 1, near][r % 5]);
      }
    }
    const found = await codec.unpackAlpha(png(width, height, rows), width, height);
    assert.deepEqual([...found], samples);
  });

  test("other PNGs and damaged ones are refused, and none is unpacked beyond its size", async () => {
    const rows = Array(3 * 2).fill(0);
    const is = (data, message) =>
      assert.rejects(() => codec.unpackAlpha(data, 2, 2), refused("corrupt", message));
    assert.equal((await codec.unpackAlpha(png(2, 2, rows), 2, 2)).length, 4);
    for (const kind of [[16, 0, 0, 0, 0], [8, 2, 0, 0, 0], [8, 4, 0, 0, 0], [8, 0, 0, 0, 1]]) {
      await is(png(2, 2, rows, { kind }), /not a gray PNG of 2x2/);
    }
    await is(png(2, 2, rows, { size: [2, 3] }), /not a gray PNG of 2x2/);
    await is(png(2, 2, rows.slice(1)), /damaged/);
    await is(png(2, 2, Array(1 << 20).fill(0)), /damaged/);
    await is(png(2, 2, [5, ...rows.slice(1)]), /filter/);
    const good = png(2, 2, rows);
    for (let length = 0; length < good.length; length++) await is(good.subarray(0, length));
    for (let at = 0; at < good.length; at++) {
      const changed = good.slice();
      changed[at] ^= 0x10;
      await is(changed);
    }
    const vast = png(2, 2, rows, { size: [8000, 8000] });
    await assert.rejects(() => codec.unpackAlpha(vast, 8000, 8000), refused("corrupt", /truncated/));
  });
});

describe("pictures", NEEDS_MATERIAL, () => {
  async function assertPictures(model, files, names) {
    const assets = new Map(Object.entries({ runtime: RUNTIME, ...files }));
    const decoder = new codec.PictureDecoder(model, async (name) => bytes(assets.get(name)));
    for (const [file, pixels] of names) {
      const told = [];
      const picture = await decoder.decode(bytes(file), async (done) => void told.push(done));
      const expected = material(pixels);
      assert.equal(picture.rgba.length, expected.length);
      let most = 0;
      expected.forEach((value, at) => {
        most = Math.max(most, Math.abs(value - picture.rgba[at]));
        if (at % 4 === 3) assert.equal(picture.rgba[at], value);
      });
      assert.ok(most <= 1, `${file} is off by ${most}`);
      assert.deepEqual(told, [...told].sort((a, b) => a - b));
      assert.equal(told.at(-1), 1);
    }
  }

  test("golden files have the pixels of the package", async () => {
    const [model] = codec.models;
    const files = {
      [model.entropy]: join(WEIGHTS, `${model.entropy}.safetensors`),
      [model.synthesis]: join(WEIGHTS, `${model.synthesis}.onnx`),
    };
    const names = goldens.map((name) => [join(GOLDEN, name), name.replace(".aic", ".rgba")]);
    await assertPictures(model, files, names);
  });

  test("a synthesis in tiles has the pixels of the package", async () => {
    const { fingerprint, halo } = json("second.json");
    assert.ok(halo > 0);
    const model = { name: "second", fingerprint, latents: 8, entropy: "e", synthesis: "s", halo };
    const files = { e: join(MATERIAL, "second.safetensors"), s: join(MATERIAL, "second.onnx") };
    await assertPictures(model, files, [[join(MATERIAL, "second.aic"), "second.rgba"]]);
  });
});
