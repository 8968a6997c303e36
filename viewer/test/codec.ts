/** The parts that tests look at, for a module that Node can load. */

export { unpackAlpha } from "../src/codec/alpha";
export { LATENTS, payloadOf, unpack, unpackLatents } from "../src/codec/container";
export { crc32 } from "../src/codec/crc";
export { AicError } from "../src/codec/errors";
export { Exact } from "../src/codec/exact";
export { readFrozen } from "../src/codec/frozen";
export { LatentDecoder } from "../src/codec/latents";
export { checkMemory } from "../src/codec/memory";
export { PictureDecoder } from "../src/codec/picture";
export { RangeDecoder, Tables } from "../src/codec/rangecoder";
export { sha256 } from "../src/codec/sha256";
export { inspect } from "../src/decoder";
export { models } from "virtual:models";
