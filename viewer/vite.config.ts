/** Builds the page into ../aiocodec/viewer: index.html, classic scripts, and assets.
 *
 * All of it works from a folder, where a browser refuses modules, fetch() and workers with an address of
 * their own: the worker is text inside the script of the page, and large binaries are scripts too. */

import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { deflateRawSync } from "node:zlib";

import asc from "assemblyscript/asc";
import { build, defineConfig, type Plugin } from "vite";

import type { Model } from "./src/codec/models";

const HERE = import.meta.dirname;
const WEIGHTS = join(HERE, "..", "weights");
const PAGE = join(HERE, "..", "aiocodec", "viewer");
const RUNTIME = createRequire(import.meta.url).resolve(
  "onnxruntime-web/ort-wasm-simd-threaded.wasm",
);

interface Manifest {
  models: Record<
    string,
    {
      config: { entropy: { latents: number } };
      fingerprint: string;
      entropy: string[];
      synthesis?: { file: string; halo: number | null };
    }
  >;
  files: Record<string, { bytes: number; sha256: string }>;
}

/** The models that have a synthesis network, and what is in their assets by name. */
function weights(): { models: Model[]; assets: Map<string, Buffer> } {
  const manifest = JSON.parse(readFileSync(join(WEIGHTS, "manifest.json"), "utf-8")) as Manifest;
  const assets = new Map([["runtime", readFileSync(RUNTIME)]]);
  const models: Model[] = [];

  function asset(file: string): string {
    const data = readFileSync(join(WEIGHTS, file));
    const sha256 = createHash("sha256").update(data).digest("hex");
    if (sha256 !== manifest.files[file]?.sha256) throw new Error(`${file} is damaged`);
    const name = file.replace(/\.[a-z]+$/, "");
    assets.set(name, data);
    return name;
  }

  for (const [name, entry] of Object.entries(manifest.models)) {
    if (entry.synthesis === undefined) continue;
    if (entry.entropy.length !== 1) throw new Error(`the entropy model of ${name} is in parts`);
    models.push({
      name,
      fingerprint: entry.fingerprint,
      latents: entry.config.entropy.latents,
      entropy: asset(entry.entropy[0]!),
      synthesis: asset(entry.synthesis.file),
      halo: entry.synthesis.halo,
    });
  }
  return { models, assets };
}

/** assembly/index.ts as WebAssembly. */
async function exact(): Promise<Uint8Array> {
  let binary: Uint8Array | undefined;
  const { error, stderr } = await asc.main(
    ["index.ts", "--baseDir", join(HERE, "assembly"), "--outFile", "index.wasm",
      "-O3", "--noAssert", "--enable", "simd", "--runtime", "stub", "--importMemory",
      "--maximumMemory", "65536", "--initialMemory", "1"],
    {
      writeFile(name, contents) {
        if (name.endsWith(".wasm")) binary = contents as Uint8Array;
      },
    },
  );
  if (error !== null || binary === undefined) throw new Error(`asc: ${stderr.toString()}`);
  return binary;
}

/** Takes its own address from the runtime: a script that is no module has none, and what is beside it is
 * given to it as bytes. The runtime only wants an address that it can parse. */
function runtime(): Plugin {
  return {
    name: "aic-runtime",
    enforce: "pre",
    transform: {
      filter: { id: /onnxruntime-web/, code: "import.meta.url" },
      handler: (code) => ({
        code: code.replaceAll("import.meta.url", '"aic://runtime/"'),
        map: null,
      }),
    },
  };
}

/** The modules that src/virtual.d.ts declares; the worker is empty where only parts of it are wanted. */
function virtual({ withWorker }: { withWorker: boolean }): Plugin {
  const modules: Record<string, () => unknown> = {
    "virtual:models": () => `export const models = ${JSON.stringify(weights().models)}`,
    "virtual:exact": async () => asText(Buffer.from(await exact()).toString("base64")),
    "virtual:worker": async () => asText(withWorker ? await worker() : ""),
  };
  return {
    name: "aic-virtual",
    resolveId: (id) => (id in modules ? `\0${id}` : undefined),
    load: (id) => modules[id.slice(1)]?.() as Promise<string> | undefined,
  };
}

function asText(text: string): string {
  return `export default ${JSON.stringify(text)}`;
}

/** src/worker.ts with all it needs, as one classic script. */
async function worker(): Promise<string> {
  const built = await build({
    ...SHARED,
    build: {
      write: false,
      target: "es2022",
      lib: { entry: join(HERE, "src", "worker.ts"), formats: ["iife"], name: "aicWorker" },
    },
  });
  const [output] = Array.isArray(built) ? built : [built];
  if (output === undefined || !("output" in output)) throw new Error("the worker was not built");
  return output.output[0].code;
}

/** Scripts that are no modules, and the assets beside them. */
function page(): Plugin {
  return {
    name: "aic-page",
    apply: "build",
    transformIndexHtml: {
      order: "post",
      handler: (html) =>
        html
          .replace(/<script type="module" crossorigin/g, "<script defer")
          .replace(/<link rel="stylesheet" crossorigin/g, '<link rel="stylesheet"'),
    },
    writeBundle() {
      mkdirSync(join(PAGE, "assets"), { recursive: true });
      for (const [name, data] of weights().assets) {
        const packed = deflateRawSync(data, { level: 9 }).toString("base64");
        writeFileSync(join(PAGE, "assets", `${name}.js`), `aicAsset("${name}","${packed}");\n`);
      }
    },
  };
}

const SHARED = {
  root: HERE,
  configFile: false as const,
  logLevel: "warn" as const,
  publicDir: false as const,
  plugins: [virtual({ withWorker: false }), runtime()],
};

export default defineConfig(({ mode }) =>
  mode === "codec"
    ? {
        ...SHARED, // a module for the tests in test/
        build: {
          outDir: join(HERE, "test", "built"),
          target: "es2022",
          lib: { entry: join(HERE, "test", "codec.ts"), formats: ["es"], fileName: "codec" },
        },
      }
    : {
        root: HERE,
        base: "./",
        plugins: [virtual({ withWorker: true }), page()],
        build: {
          outDir: PAGE,
          emptyOutDir: true,
          target: "es2022",
          modulePreload: false,
          cssCodeSplit: false, // else a script writes the styles, and the page's policy forbids that
          rolldownOptions: {
            output: {
              format: "iife",
              entryFileNames: "assets/[name].js",
              assetFileNames: "assets/[name][extname]",
            },
          },
        },
      },
);
