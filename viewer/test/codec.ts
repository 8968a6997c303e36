/** The parts that tests look at, for a module that Node can load. */

export { unpackAlpha } from "../src/codec/alpha";
export { payloadOf, unpack, unpackLatents } from "../src/codec/container";
export { crc32 } from "../src/codec/crc";
export { readFrozen } from "../src/codec/frozen";
export { LatentDecoder } from "../src/codec/latents";
export { PictureDecoder } from "../src/codec/picture";
export { sha256 } from "../src/codec/sha256";
export { models } from "virtual:models";
