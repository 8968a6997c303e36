/** What Deflate packed, by the browser. */

/** The unpacked bytes, which must be `length`, or any number where that is null; rejects for damaged data
 * and for another length, as soon as it is known. */
export async function inflate(
  packed: Uint8Array<ArrayBuffer>,
  format: "deflate" | "deflate-raw",
  length: number | null = null,
): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream(format));
  if (length === null) return new Uint8Array(await new Response(stream).arrayBuffer());
  const out = new Uint8Array(length);
  let filled = 0;
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (filled + value.length > length) {
      await reader.cancel();
      throw new Error("more bytes than expected");
    }
    out.set(value, filled);
    filled += value.length;
  }
  if (filled < length) throw new Error("fewer bytes than expected");
  return out;
}
