/** Maps in tiles, so that memory is bounded. */

/** Rows and columns of a map, from the first to before the last. */
export interface Area {
  top: number;
  bottom: number;
  left: number;
  right: number;
}

export interface Tile {
  inner: Area; // those of all tiles are the map, without overlap
  outer: Area; // the same and what has to be seen around it, as far as the map goes
}

/** A map in tiles of nearly equal size, at most `side` per side, each with `halo` around it. */
export function tiles(height: number, width: number, side: number, halo: number): Tile[] {
  const found: Tile[] = [];
  for (const [top, bottom] of spans(height, side)) {
    for (const [left, right] of spans(width, side)) {
      const outer = {
        top: Math.max(0, top - halo),
        bottom: Math.min(height, bottom + halo),
        left: Math.max(0, left - halo),
        right: Math.min(width, right + halo),
      };
      found.push({ inner: { top, bottom, left, right }, outer });
    }
  }
  return found;
}

function spans(length: number, side: number): [number, number][] {
  const count = Math.ceil(length / side);
  const edge = (i: number) => Math.floor((length * i) / count);
  return Array.from({ length: count }, (_, i) => [edge(i), edge(i + 1)]);
}
