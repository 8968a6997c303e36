/** What the page knows of a model before its weights are loaded, from weights/manifest.json. */
export interface Model {
  name: string;
  fingerprint: string; // of the entropy model, 16 hexadecimal digits
  latents: number; // channels of y
  entropy: string; // the asset with the entropy model
  synthesis: string; // the asset with g_s
  halo: number | null; // elements of y to compute around a tile of g_s; null: only the whole is right
}

/** The model that decodes files of a fingerprint: of several the first, null if there is none. */
export function modelFor(models: readonly Model[], fingerprint: string): Model | null {
  return models.find((model) => model.fingerprint === fingerprint) ?? null;
}
