/** The worker: decodes one picture after the other, and asks the page for what it needs for that. */

import { fromBase64 } from "./codec/base64";
import { asAicError, incompatible } from "./codec/errors";
import { inflate } from "./codec/inflate";
import type { Model } from "./codec/models";
import { PictureDecoder } from "./codec/picture";
import type { FromWorker, ToWorker } from "./protocol";

const waiting = new Map<string, (answer: ToWorker) => void>();
const turn = new MessageChannel();
let decoder: PictureDecoder | null = null; // of the model of the last picture

self.onmessage = ({ data: message }: MessageEvent<ToWorker>) => {
  if (message.kind === "decode") {
    void decode(message.data, message.model);
  } else {
    waiting.get(message.name)?.(message);
    waiting.delete(message.name);
  }
};

async function decode(data: Uint8Array, model: Model): Promise<void> {
  try {
    if (decoder?.model.name !== model.name) decoder = new PictureDecoder(model, asset);
    const picture = await decoder.decode(data, report);
    send({ kind: "decoded", ...picture }, [picture.rgba.buffer]);
  } catch (thrown) {
    const { fault, message } = asAicError(thrown);
    send({ kind: "failed", fault, message });
  }
}

async function asset(name: string): Promise<Uint8Array<ArrayBuffer>> {
  const answer = await new Promise<ToWorker>((resolve) => {
    waiting.set(name, resolve);
    send({ kind: "need", name });
  });
  if (answer.kind !== "asset") {
    throw incompatible(answer.kind === "missing" ? answer.reason : "an asset is missing");
  }
  const packed = fromBase64(answer.packed);
  return inflate(packed, "deflate-raw").catch(() => {
    throw incompatible(`assets/${name}.js is damaged`);
  });
}

/** Tell how much is done, and let messages in. */
function report(done: number): Promise<void> {
  send({ kind: "progress", done });
  return new Promise((resolve) => {
    turn.port1.onmessage = () => resolve();
    turn.port2.postMessage(null);
  });
}

function send(message: FromWorker, transfer: Transferable[] = []): void {
  self.postMessage(message, { transfer });
}
