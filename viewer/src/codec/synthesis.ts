/** g_s, the synthesis network: y to pixels, in float32, with ONNX Runtime. */

import * as ort from "onnxruntime-web/wasm";

import { GRAY, type Header } from "./container";
import type { Latent, Report } from "./latents";
import { tiles } from "./tiles";

/** A loaded synthesis network. */
export class Synthesis {
  readonly #session: ort.InferenceSession;

  private constructor(session: ort.InferenceSession) {
    this.#session = session;
  }

  /** Load a network, ONNX, with the runtime's WebAssembly. */
  static async create(runtime: Uint8Array<ArrayBuffer>, network: Uint8Array): Promise<Synthesis> {
    // A page that may not use threads is all there is; and none of this may be looked for elsewhere.
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.proxy = false;
    ort.env.wasm.wasmBinary = runtime;
    ort.env.logLevel = "error";
    const session = await ort.InferenceSession.create(network, {
      executionProviders: ["wasm"],
      enableCpuMemArena: false, // which would keep what the largest picture took
    });
    return new Synthesis(session);
  }

  /** Fill the colours of `rgba` [height, width, 4]. `halo` is how many elements of y a tile has to see
   * around itself, null where only the whole picture gives the right pixels. */
  async paint(
    rgba: Uint8ClampedArray,
    latent: Latent,
    header: Header,
    tile: number,
    halo: number | null,
    report: Report,
  ): Promise<void> {
    const side = halo === null ? Math.max(latent.height, latent.width) : tile;
    const quality = new ort.Tensor("float32", Float32Array.of(header.quality), [1]);
    const all = tiles(latent.height, latent.width, side, halo ?? 0);
    for (const [i, { inner, outer }] of all.entries()) {
      const [height, width] = [outer.bottom - outer.top, outer.right - outer.left];
      const y = latent.y(outer);
      const yHat = new ort.Tensor("float32", y, [1, y.length / (height * width), height, width]);
      const { x_hat } = await this.#session.run({ y_hat: yHat, quality });
      const stride = x_hat!.dims[3]! / width;
      const pixels = {
        top: stride * inner.top,
        bottom: Math.min(stride * inner.bottom, header.height),
        left: stride * inner.left,
        right: Math.min(stride * inner.right, header.width),
      };
      const planes = x_hat!.data as Float32Array;
      const size = stride * stride * height * width;
      for (let r = pixels.top; r < pixels.bottom; r++) {
        let from = (r - stride * outer.top) * stride * width + pixels.left - stride * outer.left;
        let to = 4 * (r * header.width + pixels.left);
        for (let q = pixels.left; q < pixels.right; q++, from++, to += 4) {
          let red = planes[from]!;
          let green = planes[from + size]!;
          let blue = planes[from + 2 * size]!;
          if (header.flags & GRAY) red = green = blue = (red + green + blue) / 3;
          // A clamped array would round halves to even.
          rgba[to] = Math.floor(red * 255 + 0.5);
          rgba[to + 1] = Math.floor(green * 255 + 0.5);
          rgba[to + 2] = Math.floor(blue * 255 + 0.5);
        }
      }
      x_hat!.dispose();
      await report((i + 1) / all.length);
    }
  }
}
