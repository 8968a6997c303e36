/** The frozen entropy model: integers, and a program over them. See docs/format.md. */

import { incompatible } from "./errors";
import { aligned, readSafetensors, type Tensor } from "./safetensors";
import { sha256 } from "./sha256";

export const ACTIVATION_MAX = 32767;

const VERSION = 1;
const MAX_PROGRAM = 1 << 16; // bytes of its text
const MAX_EXPONENT = 48;
const EXACT = 2 ** 52; // no sum reaches it
const MAX_PASSES = 16;
const MAX_LAYERS = 100; // of a network or of a branch in it
const MAX_DEPTH = 4; // of branches within branches
const TOTAL = 2 ** 24; // the frequencies of a table
const MAX_SYMBOL = 32767;

/** The pass that codes an element of y: [group of channels][row % 2][column % 2]. */
export type Order = number[][][];

export interface Convolution {
  kind: "conv1x1" | "dw3x3";
  inputs: number;
  outputs: number;
  weight: Int16Array; // [outputs, inputs] or [outputs, 3, 3]
  bias: BigInt64Array; // [outputs]
  exponent: Int16Array; // [outputs], 0..48
}

export type Layer =
  | Convolution
  | { kind: "leaky" }
  | { kind: "shuffle" }
  | { kind: "residual"; layers: Layer[] };

const KINDS: Layer["kind"][] = ["conv1x1", "dw3x3", "leaky", "residual", "shuffle"];

/** Frequency tables, one behind the other. */
export interface FrequencyTables {
  frequencies: Int32Array;
  lengths: Int32Array; // the entries of every table, the escape is the last
  lows: Int32Array; // the first symbol of every table
}

/** The numbers of a program, by the names that docs/format.md gives them, with their ranges. */
const NUMBERS = {
  latents: [1, 4096],
  hyper: [1, 4096],
  latent_stride: [16, 16],
  stride: [64, 64],
  tile: [8, 256],
  halo: [0, 32],
  fraction: [4, 12],
  activation_max: [ACTIVATION_MAX, ACTIVATION_MAX],
  mean_unit: [1, 16],
  step_bits: [0, 8],
  scales: [1, 256],
  scale_zero: [0, 255],
  index_unit: [1, 16],
  z_max: [1, ACTIVATION_MAX >> 4],
  quality_levels: [1, 101],
} as const;

type Numbers = Record<keyof typeof NUMBERS, number>;

/** A checked entropy model. */
export interface FrozenModel extends Numbers {
  order: Order;
  passes: number; // K
  features: Layer[]; // h_s and fusion: Z channels to 3 N, at four times the resolution
  refine: Layer[][]; // for the passes from 1 on, adaptor, body and head: 4 N channels to 2 N
  embedding: Int16Array; // [quality_levels, hyper]
  tablesY: FrequencyTables; // [scales]
  tablesZ: FrequencyTables; // [quality_levels, hyper]
}

/** The model in a file of weights; AicError unless it is one, in all that makes its arithmetic exact, and
 * the one of the fingerprint. */
export function readFrozen(data: Uint8Array, fingerprint: string): FrozenModel {
  const tensors = readSafetensors(data);
  if (fingerprintOf(tensors) !== fingerprint) {
    throw incompatible("the entropy model has another fingerprint than its name");
  }
  const program = readProgram(tensors.get("program"));
  const numbers = program as unknown as Numbers;
  for (const [name, [low, high]] of Object.entries(NUMBERS)) {
    const value = program[name];
    if (!Number.isInteger(value) || (value as number) < low || (value as number) > high) {
      throw incompatible(`the program of the weights has an impossible ${name}`);
    }
  }
  const { latents, hyper, fraction, scales, quality_levels } = numbers;
  if (numbers.scale_zero >= scales) {
    throw incompatible("the program of the weights has an impossible scale_zero");
  }
  if (numbers.z_max > ACTIVATION_MAX >> fraction) {
    throw incompatible("the program of the weights has an impossible z_max");
  }
  for (const unit of [numbers.mean_unit, numbers.index_unit]) {
    if (unit & (unit - 1)) {
      throw incompatible("the program of the weights has a unit that is no power of two");
    }
  }
  const order = readOrder(program["order"], latents);
  const passes = 1 + Math.max(...order.flat(2));
  const networks = new Networks(program["networks"], passes, tensors);
  const h_s = networks.build("h_s", hyper, null, 4);
  const fusion = networks.build("fusion", h_s.outputs, 3 * latents, 1);
  const adaptors = [...Array(passes - 1).keys()].map((k) =>
    networks.build(`adaptor_${k + 1}`, 4 * latents, null, 1),
  );
  const rest: Layer[] = [];
  if (passes > 1) {
    const width = adaptors[0]!.outputs;
    if (adaptors.some((adaptor) => adaptor.outputs !== width)) throw unfit();
    const body = networks.build("body", width, null, 1);
    const head = networks.build("head", body.outputs, 2 * latents, 1);
    rest.push(...body.layers, ...head.layers);
  }
  return {
    ...numbers,
    order,
    passes,
    features: [...h_s.layers, ...fusion.layers],
    refine: adaptors.map((adaptor) => [...adaptor.layers, ...rest]),
    embedding: readEmbedding(tensors.get("embedding"), quality_levels, hyper),
    tablesY: readTables(tensors, "y", scales),
    tablesZ: readTables(tensors, "z", quality_levels * hyper),
  };
}

/** The level of quality by which z is coded. */
export function levelOf(model: FrozenModel, quality: number): number {
  return Math.floor((2 * quality * (model.quality_levels - 1) + 100) / 200);
}

/** Elements of y that `layers` see around each element of their output, per side; the input of the first
 * one has 1 / `scale` of the resolution of y, per side. */
export function reach(layers: Layer[], scale: number): number {
  let seen = 0;
  for (const layer of layers) {
    if (layer.kind === "dw3x3") seen += scale;
    else if (layer.kind === "residual") seen += reach(layer.layers, scale);
    else if (layer.kind === "shuffle") scale /= 2;
  }
  return seen;
}

function fingerprintOf(tensors: Map<string, Tensor>): string {
  const encoder = new TextEncoder();
  const parts: Uint8Array[] = [];
  for (const name of [...tensors.keys()].sort()) {
    const { type, shape, bytes } = tensors.get(name)!;
    const tuple = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
    parts.push(encoder.encode(`${name} ${type} ${tuple}\n`), bytes);
  }
  return Array.from(sha256(parts).subarray(0, 8), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");
}

function readProgram(tensor: Tensor | undefined): Record<string, unknown> {
  let program: Record<string, unknown>;
  if (tensor === undefined) throw incompatible("the weights have no program");
  if (tensor.type !== "uint8" || tensor.shape.length !== 1 || tensor.bytes.length > MAX_PROGRAM) {
    throw incompatible("the program of the weights is malformed: it is no text");
  }
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(tensor.bytes);
    program = JSON.parse(text) as Record<string, unknown>;
    if (!isObject(program)) throw new Error("it is no object");
  } catch (fault) {
    throw incompatible(`the program of the weights is malformed: ${(fault as Error).message}`);
  }
  if (program["version"] !== VERSION) {
    throw incompatible(`the weights need version ${String(program["version"])} of programs`);
  }
  const expected = new Set(["version", "order", "networks", ...Object.keys(NUMBERS)]);
  const odd = [...expected].filter((name) => !(name in program));
  odd.push(...Object.keys(program).filter((name) => !expected.has(name)));
  if (odd.length) throw incompatible(`the program of the weights lacks or adds ${odd.join(", ")}`);
  return program;
}

function readOrder(value: unknown, latents: number): Order {
  const isPair = (x: unknown): x is unknown[] => Array.isArray(x) && x.length === 2;
  const isPass = (x: unknown) => Number.isInteger(x) && (x as number) >= 0 && (x as number) < MAX_PASSES;
  if (
    !Array.isArray(value) ||
    !value.length ||
    !value.every((group) => isPair(group) && group.every((row) => isPair(row) && row.every(isPass)))
  ) {
    throw incompatible("the order of passes is not one for 2x2 cells");
  }
  const order = value as Order;
  const used = new Set(order.flat(2));
  if (used.size !== 1 + Math.max(...used)) {
    throw incompatible("the order of passes leaves a pass out");
  }
  if (latents % order.length) {
    throw incompatible("the channels are not a multiple of the groups of the order of passes");
  }
  return order;
}

/** The networks of a program, with the convolutions that they name. */
class Networks {
  readonly #networks: Record<string, unknown>;
  readonly #tensors: Map<string, Tensor>;
  readonly #named = new Set<string>();

  constructor(networks: unknown, passes: number, tensors: Map<string, Tensor>) {
    const expected = ["h_s", "fusion"];
    for (let k = 1; k < passes; k++) expected.push(`adaptor_${k}`);
    if (passes > 1) expected.push("body", "head");
    if (!isObject(networks) || Object.keys(networks).join() !== expected.join()) {
      throw incompatible(`the program of the weights must have the networks ${expected.join(", ")}`);
    }
    this.#networks = networks;
    this.#tensors = tensors;
  }

  /** A network that takes `inputs` channels; `outputs` is null where any number will do. `scale` is how
   * much higher the resolution of its output is. */
  build(
    name: string,
    inputs: number,
    outputs: number | null,
    scale: number,
  ): { layers: Layer[]; outputs: number } {
    const built = this.#layers(this.#networks[name], inputs, 0);
    if (built.scale !== scale || (outputs !== null && built.outputs !== outputs)) throw unfit();
    return built;
  }

  #layers(
    entries: unknown,
    inputs: number,
    depth: number,
  ): { layers: Layer[]; outputs: number; scale: number } {
    if (!Array.isArray(entries)) {
      throw incompatible("a network of the weights is no list of layers");
    }
    if (depth > MAX_DEPTH || entries.length > MAX_LAYERS) {
      throw incompatible("a network of the weights is too deep");
    }
    const layers: Layer[] = [];
    let channels = inputs;
    let scale = 1;
    for (const entry of entries as unknown[]) {
      const [kind, argument, ...more] = Array.isArray(entry) ? (entry as unknown[]) : [entry];
      if (!KINDS.includes(kind as Layer["kind"])) {
        throw incompatible(
          `the weights need a layer ${String(kind).slice(0, 40)}, which this page does not know`,
        );
      }
      const malformed = incompatible(`a layer ${String(kind)} of the weights is malformed`);
      if (more.length || (kind === "leaky") !== (argument === undefined)) throw malformed;
      if (kind === "conv1x1" || kind === "dw3x3") {
        if (typeof argument !== "string") throw malformed;
        const convolution = this.#convolution(kind, argument, channels);
        channels = convolution.outputs;
        layers.push(convolution);
      } else if (kind === "leaky") {
        layers.push({ kind });
      } else if (kind === "residual") {
        const branch = this.#layers(argument, channels, depth + 1);
        if (branch.outputs !== channels || branch.scale !== 1) {
          throw incompatible("a residual branch of the weights changes the shape");
        }
        layers.push({ kind, layers: branch.layers });
      } else {
        if (argument !== 2 || channels % 4 || scale >= 4) throw malformed;
        layers.push({ kind: "shuffle" });
        channels /= 4;
        scale *= 2;
      }
    }
    return { layers, outputs: channels, scale };
  }

  #convolution(kind: "conv1x1" | "dw3x3", name: string, inputs: number): Convolution {
    if (this.#named.has(name)) {
      throw incompatible("the program of the weights names a convolution twice");
    }
    this.#named.add(name);
    const [weight, bias, exponent] = ["weight", "bias", "exponent"].map((part) =>
      this.#tensors.get(`${name}.${part}`),
    );
    if (!weight || !bias || !exponent) {
      throw incompatible(`the weights lack the convolution ${name.slice(0, 40)} of their program`);
    }
    const outputs = weight.shape[0] ?? 0;
    const shape = kind === "conv1x1" ? [outputs, inputs, 1, 1] : [inputs, 1, 3, 3];
    if (
      outputs < 1 ||
      !isTensor(weight, "int16", shape) ||
      !isTensor(bias, "int64", [outputs]) ||
      !isTensor(exponent, "int16", [outputs])
    ) {
      throw incompatible(
        `the convolution ${name.slice(0, 40)} of the weights has another shape or type`,
      );
    }
    const convolution: Convolution = {
      kind,
      inputs,
      outputs,
      weight: new Int16Array(aligned(weight)),
      bias: new BigInt64Array(aligned(bias)),
      exponent: new Int16Array(aligned(exponent)),
    };
    if (!isExact(convolution)) {
      throw incompatible(
        `the convolution ${name.slice(0, 40)} of the weights is too large for exact arithmetic`,
      );
    }
    return convolution;
  }
}

/** Whether no sum, partial or not, can reach 2^52: Numbers hold such integers, and 64 bits do. */
function isExact({ outputs, weight, bias, exponent }: Convolution): boolean {
  const each = weight.length / outputs;
  for (let o = 0; o < outputs; o++) {
    let sum = 0;
    for (let i = o * each; i < (o + 1) * each; i++) sum += Math.abs(weight[i]!);
    if (sum * ACTIVATION_MAX + Math.abs(Number(bias[o]!)) >= EXACT) return false;
    if (exponent[o]! < 0 || exponent[o]! > MAX_EXPONENT) return false;
  }
  return true;
}

function readEmbedding(tensor: Tensor | undefined, levels: number, hyper: number): Int16Array {
  if (tensor === undefined) return new Int16Array(levels * hyper);
  if (!isTensor(tensor, "int16", [levels, hyper])) {
    throw incompatible(
      "the embedding of the quality has another shape than the program says",
    );
  }
  return new Int16Array(aligned(tensor));
}

function readTables(tensors: Map<string, Tensor>, which: string, count: number): FrequencyTables {
  const [frequencies, lengths, lows] = ["frequencies", "lengths", "lows"].map((part) => {
    const tensor = tensors.get(`tables_${which}.${part}`);
    if (tensor?.type !== "int32" || tensor.shape.length !== 1) {
      throw incompatible(`the weights have no tables of ${part} for ${which}`);
    }
    return new Int32Array(aligned(tensor));
  }) as [Int32Array, Int32Array, Int32Array];
  if (lengths.length !== count || lows.length !== count) {
    throw incompatible("the weights do not have as many tables as their program says");
  }
  let at = 0;
  for (let t = 0; t < count; t++) {
    const [length, low] = [lengths[t]!, lows[t]!];
    if (length < 2 || low < -MAX_SYMBOL || low + length - 2 > MAX_SYMBOL) {
      throw incompatible("the tables of the weights are malformed: one has impossible symbols");
    }
    let sum = 0;
    for (const frequency of frequencies.subarray(at, at + length)) {
      if (frequency < 1) sum = NaN;
      sum += frequency;
    }
    if (sum !== TOTAL) {
      throw incompatible(`the tables of the weights are malformed: one sums to ${sum}`);
    }
    at += length;
  }
  if (at !== frequencies.length) {
    throw incompatible("the tables of the weights are malformed: they have other lengths");
  }
  return { frequencies, lengths, lows };
}

function isTensor(tensor: Tensor, type: Tensor["type"], shape: number[]): boolean {
  return tensor.type === type && tensor.shape.join() === shape.join();
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function unfit(): Error {
  return incompatible("the networks of the weights do not fit together");
}
