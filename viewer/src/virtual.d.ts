/** What vite.config.ts makes while it builds. */

/** The models whose weights have a synthesis network for this page, the package's default first. */
declare module "virtual:models" {
  export const models: readonly import("./codec/models").Model[];
}

/** src/worker.ts as the text of a classic script. */
declare module "virtual:worker" {
  const text: string;
  export default text;
}

/** assembly/index.ts as WebAssembly, in base64. */
declare module "virtual:exact" {
  const base64: string;
  export default base64;
}
