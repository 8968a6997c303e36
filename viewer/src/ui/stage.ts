/** Where a picture is looked at: zoom and pan, by wheel, fingers, mouse and keys. */

import { type Raster, surface } from "./raster";

const SMOOTH = 2; // CSS pixels for one of the picture, beyond which its pixels are seen as squares
const MAX_SCALE = 64; // pixels of the screen for one of the picture
const STEP = 1.25; // of a key or button
const SQUARE = 8; // CSS pixels of the checkerboard

interface Point {
  readonly x: number; // pixels of the screen from the corner of the view
  readonly y: number;
}

export class Stage {
  private raster: Raster | null = null;
  private scale = 1; // pixels of the screen for one of the picture
  private center: Point = { x: 0, y: 0 }; // of the view, in pixels of the picture
  private fitted = true; // stays so when the window changes
  private drawing = 0;
  private canvas: HTMLCanvasElement = document.createElement("canvas"); // fills the view
  private context: CanvasRenderingContext2D | null = null;
  private readonly pointers = new Map<number, Point>();

  /** @param changed is called after each drawing. */
  constructor(
    private readonly view: HTMLElement,
    private readonly changed: () => void,
  ) {
    view.append(this.canvas);
    view.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    view.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      view.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, this.point(event));
      view.classList.add("held");
    });
    view.addEventListener("pointermove", (event) => this.move(event));
    for (const type of ["pointerup", "pointercancel", "lostpointercapture"] as const) {
      view.addEventListener(type, (event) => {
        this.pointers.delete(event.pointerId);
        view.classList.toggle("held", this.pointers.size > 0);
      });
    }
    view.addEventListener("dblclick", (event) => {
      if (this.fitted && this.fit !== 1) this.zoomTo(1, this.point(event));
      else this.showAll();
    });
    new ResizeObserver(() => this.resize()).observe(view);
  }

  /** Show another picture; one of the same size is looked at through the same window. */
  show(raster: Raster | null): void {
    const before = this.raster;
    this.raster = raster;
    if (!raster) {
      this.draw();
      return;
    }
    if (before?.space !== raster.space) {
      // A canvas keeps the colour space that it was made with.
      const [canvas, context] = surface(1, 1, raster.space);
      this.canvas.replaceWith(canvas);
      this.canvas = canvas;
      this.context = context;
    }
    if (before?.width !== raster.width || before.height !== raster.height) this.fitted = true;
    this.resize();
  }

  /** Pixels of the screen for one of the picture. */
  get zoom(): number {
    return this.scale;
  }

  get fits(): boolean {
    return this.fitted;
  }

  /** The whole picture, at most a CSS pixel for each of its own. */
  showAll(): void {
    this.fitted = true;
    this.draw();
  }

  actualSize(): void {
    this.zoomTo(1);
  }

  larger(): void {
    this.zoomTo(this.settled * STEP);
  }

  smaller(): void {
    this.zoomTo(this.settled / STEP);
  }

  /** Look at another part; in parts of the view, to the right and down. */
  pan(x: number, y: number): void {
    const scale = this.settled;
    this.shift((x * this.canvas.width) / scale, (y * this.canvas.height) / scale);
  }

  /** The scale, where the view may have changed since it was painted: it has come into sight, for one. */
  private get settled(): number {
    if (this.fitted) this.resize();
    return this.scale;
  }

  private get fit(): number {
    if (!this.raster) return 1;
    const { width, height } = this.canvas;
    const largest = Math.max(1, window.devicePixelRatio || 1);
    return Math.min(largest, width / this.raster.width, height / this.raster.height);
  }

  /** Change the scale so that what lies under a point stays there. */
  private zoomTo(scale: number, at: Point = this.middle): void {
    if (!this.raster) return;
    const next = Math.min(Math.max(scale, Math.min(this.fit, 1 / 8)), MAX_SCALE);
    const { x, y } = this.middle;
    const share = 1 / this.scale - 1 / next;
    this.fitted = false;
    this.scale = next;
    this.shift((at.x - x) * share, (at.y - y) * share);
  }

  private shift(x: number, y: number): void {
    this.fitted = false;
    this.center = { x: this.center.x + x, y: this.center.y + y };
    this.draw();
  }

  private get middle(): Point {
    return { x: this.canvas.width / 2, y: this.canvas.height / 2 };
  }

  private point(event: MouseEvent): Point {
    const box = this.view.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * this.canvas.width) / box.width,
      y: ((event.clientY - box.top) * this.canvas.height) / box.height,
    };
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? 1 : 20;
    // Two fingers that are spread on a touchpad come as small steps of a wheel with Ctrl.
    const speed = event.ctrlKey ? 0.01 : 0.002;
    const delta = Math.max(-200, Math.min(200, event.deltaY * lines));
    this.zoomTo(this.settled * Math.exp(-delta * speed), this.point(event));
  }

  private move(event: PointerEvent): void {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.point(event);
    this.pointers.set(event.pointerId, now);
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (!other) {
      this.shift((before.x - now.x) / this.scale, (before.y - now.y) / this.scale);
      return;
    }
    const apart = (point: Point) => Math.hypot(point.x - other.x, point.y - other.y) || 1;
    const half = { x: (before.x - now.x) / 2, y: (before.y - now.y) / 2 };
    this.shift(half.x / this.scale, half.y / this.scale);
    const at = { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 };
    this.zoomTo((this.settled * apart(now)) / apart(before), at);
  }

  private resize(): void {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(this.view.clientWidth * ratio));
    const height = Math.max(1, Math.round(this.view.clientHeight * ratio));
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    this.paint();
  }

  private draw(): void {
    this.drawing ||= requestAnimationFrame(() => this.paint());
  }

  private paint(): void {
    cancelAnimationFrame(this.drawing);
    this.drawing = 0;
    const { context, raster, canvas } = this;
    context?.clearRect(0, 0, canvas.width, canvas.height);
    if (context && raster) {
      if (this.fitted) {
        this.scale = this.fit;
        this.center = { x: raster.width / 2, y: raster.height / 2 };
      }
      const { scale } = this;
      this.center = {
        x: within(this.center.x, raster.width, canvas.width / scale),
        y: within(this.center.y, raster.height, canvas.height / scale),
      };
      const x = Math.round(canvas.width / 2 - this.center.x * scale);
      const y = Math.round(canvas.height / 2 - this.center.y * scale);
      if (raster.translucent) {
        const right = Math.min(canvas.width, Math.round(x + raster.width * scale));
        const bottom = Math.min(canvas.height, Math.round(y + raster.height * scale));
        checkerboard(context, Math.max(0, x), Math.max(0, y), right, bottom);
      }
      raster.draw(context, x, y, scale, scale <= SMOOTH * (window.devicePixelRatio || 1));
    }
    this.changed();
  }
}

/** Where the view has its centre: that of the picture where all of it is seen, else not beyond an edge. */
function within(center: number, picture: number, view: number): number {
  if (picture <= view) return picture / 2;
  return Math.min(Math.max(center, view / 2), picture - view / 2);
}

function checkerboard(
  context: CanvasRenderingContext2D,
  left: number,
  top: number,
  right: number,
  bottom: number,
): void {
  const side = Math.round(SQUARE * (window.devicePixelRatio || 1));
  context.fillStyle = "#fff";
  context.fillRect(left, top, right - left, bottom - top);
  context.fillStyle = "#ccc";
  for (let row = 0; top + row * side < bottom; row++) {
    for (let x = left + (row % 2) * side; x < right; x += 2 * side) {
      const y = top + row * side;
      context.fillRect(x, y, Math.min(side, right - x), Math.min(side, bottom - y));
    }
  }
}
