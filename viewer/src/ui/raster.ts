/** A decoded picture, ready to be drawn at any scale. */

import type { Decoded } from "../decoder";

const TILE = 4096; // pixels per side of a canvas; browsers refuse those that are much larger

interface Tile {
  readonly left: number; // of the picture, in pixels
  readonly top: number;
  readonly right: number;
  readonly bottom: number;
  readonly levels: HTMLCanvasElement[]; // each half the size of the one before
}

export class Raster {
  readonly width: number;
  readonly height: number;
  private readonly tiles: Tile[] = [];

  constructor(
    picture: Decoded,
    readonly translucent: boolean,
    readonly space: PredefinedColorSpace,
  ) {
    const { width, height } = picture;
    this.width = width;
    this.height = height;
    const rgba = picture.rgba as Uint8ClampedArray<ArrayBuffer>;
    const image = new ImageData(rgba, width, height, { colorSpace: space });
    for (let top = 0; top < height; top += TILE) {
      for (let left = 0; left < width; left += TILE) {
        const right = Math.min(left + TILE, width);
        const bottom = Math.min(top + TILE, height);
        const [canvas, context] = surface(right - left, bottom - top, space);
        context.putImageData(image, -left, -top, left, top, right - left, bottom - top);
        this.tiles.push({ left, top, right, bottom, levels: [canvas] });
      }
    }
  }

  /**
   * Draw the picture with its corner at (x, y), `scale` pixels of the context for one of its own, which are
   * squares unless it is to be smooth. Below 1 what is drawn was halved first, so that nothing flickers.
   */
  draw(context: CanvasRenderingContext2D, x: number, y: number, scale: number, smooth = true): void {
    const level = Math.max(0, Math.floor(Math.log2(1 / scale)));
    const { width, height } = context.canvas;
    context.imageSmoothingEnabled = smooth;
    for (const tile of this.tiles) {
      const left = Math.round(x + tile.left * scale);
      const top = Math.round(y + tile.top * scale);
      const right = Math.max(left + 1, Math.round(x + tile.right * scale));
      const bottom = Math.max(top + 1, Math.round(y + tile.bottom * scale));
      if (right <= 0 || bottom <= 0 || left >= width || top >= height) continue;
      context.drawImage(this.level(tile, level), left, top, right - left, bottom - top);
    }
  }

  /** All pixels in one canvas, for a browser that allows one so large. */
  whole(): HTMLCanvasElement {
    return this.reduced(Infinity);
  }

  /** The whole picture in a canvas of its own, at most `side` pixels wide and high. */
  reduced(side: number): HTMLCanvasElement {
    const scale = Math.min(1, side / Math.max(this.width, this.height));
    const width = Math.max(1, Math.round(this.width * scale));
    const height = Math.max(1, Math.round(this.height * scale));
    const [canvas, context] = surface(width, height, this.space);
    this.draw(context, 0, 0, scale);
    return canvas;
  }

  private level(tile: Tile, wanted: number): HTMLCanvasElement {
    for (;;) {
      const canvas = tile.levels[tile.levels.length - 1] as HTMLCanvasElement;
      const found = tile.levels[wanted];
      if (found) return found;
      if (canvas.width === 1 && canvas.height === 1) return canvas;
      const [half, context] = surface(
        Math.ceil(canvas.width / 2),
        Math.ceil(canvas.height / 2),
        this.space,
      );
      context.drawImage(canvas, 0, 0, half.width, half.height);
      tile.levels.push(half);
    }
  }
}

/** A canvas and its context. */
export function surface(
  width: number,
  height: number,
  colorSpace: PredefinedColorSpace,
): [HTMLCanvasElement, CanvasRenderingContext2D] {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { colorSpace });
  if (!context) throw new Error("there is not enough memory to show the picture");
  return [canvas, context];
}
