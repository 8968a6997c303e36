/** safetensors: named tensors behind a header of JSON. */

import { incompatible } from "./errors";

/** The types of a frozen entropy model, by their names in safetensors, as numpy names them. */
const TYPES = { U8: "uint8", I16: "int16", I32: "int32", I64: "int64" } as const;
const SIZES = { uint8: 1, int16: 2, int32: 4, int64: 8 } as const;

export interface Tensor {
  type: keyof typeof SIZES;
  shape: number[];
  bytes: Uint8Array; // little-endian, the last index fastest
}

/** The tensors of a file; AicError where it is malformed or has tensors of other types. */
export function readSafetensors(data: Uint8Array): Map<string, Tensor> {
  try {
    return read(data);
  } catch (fault) {
    throw incompatible(`the weights are no safetensors: ${(fault as Error).message}`);
  }
}

/** The bytes of a tensor where an array of larger numbers may begin. */
export function aligned(tensor: Tensor): ArrayBuffer {
  return new Uint8Array(tensor.bytes).buffer;
}

function read(data: Uint8Array): Map<string, Tensor> {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const start = 8 + Number(view.getBigUint64(0, true));
  if (start > data.length) throw new Error("it ends within its header");
  const text = new TextDecoder("utf-8", { fatal: true }).decode(data.subarray(8, start));
  const tensors = new Map<string, Tensor>();
  for (const [name, entry] of Object.entries(JSON.parse(text) as Record<string, unknown>)) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets } = entry as Record<string, unknown>;
    const type = TYPES[dtype as keyof typeof TYPES];
    if (type === undefined) throw new Error(`a tensor has the type ${String(dtype)}`);
    if (!isSizes(shape) || !isSizes(data_offsets)) throw new Error("a tensor is malformed");
    const [from = 0, to = 0] = data_offsets;
    const length = shape.reduce((product, side) => product * side, SIZES[type]);
    if (to - from !== length || start + to > data.length) {
      throw new Error("a tensor has another length than its shape");
    }
    tensors.set(name, { type, shape, bytes: data.subarray(start + from, start + to) });
  }
  return tensors;
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((side) => Number.isSafeInteger(side) && side >= 0);
}
