/** The pipeline: .aic bytes to pixels. The only module that knows the whole order. */

import { unpackAlpha } from "./alpha";
import { ALPHA, LATENTS, payloadOf, unpack, unpackLatents } from "./container";
import { incompatible } from "./errors";
import { readFrozen } from "./frozen";
import { LatentDecoder, type Report } from "./latents";
import type { Model } from "./models";
import { Synthesis } from "./synthesis";

/** The bytes of an asset by its name. */
export type Assets = (name: string) => Promise<Uint8Array<ArrayBuffer>>;

export interface Picture {
  width: number;
  height: number;
  rgba: Uint8ClampedArray<ArrayBuffer>; // [height, width, 4]
  times: Record<string, number>; // milliseconds of the parts of the work
}

/** Decodes the pictures of one model. One at a time. */
export class PictureDecoder {
  readonly model: Model;
  readonly #assets: Assets;
  #latents: Promise<LatentDecoder> | null = null;
  #synthesis: Promise<Synthesis> | null = null;

  constructor(model: Model, assets: Assets) {
    this.model = model;
    this.#assets = assets;
  }

  /** The pixels of a file; AicError for one that is damaged or needs another model. */
  async decode(data: Uint8Array, report: Report = async () => {}): Promise<Picture> {
    const clock = new Clock();
    const container = unpack(data);
    const { header } = container;
    if (header.fingerprint !== this.model.fingerprint) {
      throw incompatible(
        `made with entropy model ${header.fingerprint}, model ${this.model.name} has ${this.model.fingerprint}`,
      );
    }
    const { width, height } = header;
    const coded = unpackLatents(payloadOf(container, LATENTS)!, header.version);
    const latents = await this.#latentDecoder();
    clock.lap("entropy model");
    const packedAlpha = payloadOf(container, ALPHA);
    const started = latents.start(coded, header);
    clock.lap("z");
    const alpha =
      packedAlpha &&
      (await unpackAlpha(packedAlpha, width, height).catch((fault: unknown) => {
        started.decoder.close();
        throw fault;
      }));
    clock.lap("alpha");
    // The browser compiles the runtime beside what follows; of a failure is told once it is waited for.
    const loading = this.#synthesisNetwork();
    loading.catch(() => {});
    const latent = await latents.finish(started, coded, header.quality, (done) => report(0.4 * done));
    clock.lap("y");
    const synthesis = await loading;
    clock.lap("synthesis network");
    const rgba = new Uint8ClampedArray(4 * width * height).fill(255);
    const { tile } = latents.model;
    await synthesis.paint(rgba, latent, header, tile, this.model.halo, (done) =>
      report(0.4 + 0.6 * done),
    );
    if (alpha) alpha.forEach((value, i) => (rgba[4 * i + 3] = value));
    clock.lap("pixels");
    return { width, height, rgba, times: clock.times };
  }

  #latentDecoder(): Promise<LatentDecoder> {
    this.#latents ??= this.#assets(this.model.entropy).then((weights) =>
      LatentDecoder.create(readFrozen(weights, this.model.fingerprint)),
    );
    this.#latents.catch(() => (this.#latents = null));
    return this.#latents;
  }

  #synthesisNetwork(): Promise<Synthesis> {
    this.#synthesis ??= Promise.all([
      this.#assets("runtime"),
      this.#assets(this.model.synthesis),
    ]).then(([runtime, network]) => Synthesis.create(runtime, network));
    this.#synthesis.catch(() => (this.#synthesis = null));
    return this.#synthesis;
  }
}

class Clock {
  readonly times: Record<string, number> = {};
  #last = performance.now();

  lap(name: string): void {
    const now = performance.now();
    this.times[name] = now - this.#last;
    this.#last = now;
  }
}
