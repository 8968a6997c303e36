/** Large binaries beside the page. Each is a script that hands over its bytes as text, because a page
 * that was opened from a folder may neither fetch nor import, but may run scripts. */

import { incompatible } from "./codec/errors";

declare global {
  /** Called by assets/NAME.js with base64 of the deflated bytes. */
  var aicAsset: (name: string, packed: string) => void;
}

const arrived = new Map<string, string>();
const loading = new Map<string, Promise<string>>();

globalThis.aicAsset = (name, packed) => void arrived.set(name, packed);

/** Base64 of the deflated bytes of an asset; loaded once, and tried again where that failed. */
export function loadAsset(name: string): Promise<string> {
  let promise = loading.get(name);
  if (promise === undefined) {
    promise = insert(name);
    loading.set(name, promise);
    promise.catch(() => loading.delete(name));
  }
  return promise;
}

function insert(name: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `assets/${name}.js`;
    script.onload = () => {
      script.remove();
      const packed = arrived.get(name);
      if (packed === undefined) reject(incompatible(`assets/${name}.js is damaged`));
      else resolve(packed);
    };
    script.onerror = () => {
      script.remove();
      reject(incompatible(`assets/${name}.js cannot be loaded`));
    };
    document.head.append(script);
  });
}
