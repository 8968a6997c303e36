/* <picture-slider>: pictures of one size, two of them at a time on either side of a line that moves.

     <picture-slider left="input" right="aic">
       <img data-name="input" data-note="20.1 dB" src="...">
       <canvas data-name="aic" data-note="0.31 bpp, 28.4 dB"></canvas>
       <img data-name="original" src="...">
     </picture-slider>

   Children with data-name are its pictures, images or canvases, which may come, go and be drawn again
   at any time; other children are seen only where there is no JavaScript. The attributes `left` and
   `right` name what is shown, and follow what is chosen; the property `value` is the place of the
   line, 0 to 100 percent of what is seen, and `zoom` the CSS pixels per pixel, 0 for all that fits.

   The line is dragged, or moved by the arrow keys, Page Up and Down, Home and End. Keys 0, 1, 2, 4, +
   and - zoom, dragging beside the line or Shift and an arrow key pans, holding f swaps both sides.

   This is one classic script without needs, so that a page can hold it and be opened from a folder. */

(() => {
  "use strict";

  const ZOOMS = [0, 1, 2, 4];
  const REACH = 24; // CSS pixels on either side of the line where it can be taken
  const LEAST = [760, 200]; // width and height, where there is room, of the stage of small pictures

  const STYLE = `
    :host {
      --_ink: var(--ink, #1c1d1f); --_soft: var(--soft, #63666c); --_line: var(--line, #dcdee2);
      --_paper: var(--paper, #fff); --_wash: var(--wash, #f5f6f8); --_focus: #0072b2;
      display: block; color: var(--_ink); font: 14px/1.4 system-ui, sans-serif;
    }
    @media (prefers-color-scheme: dark) {
      :host {
        --_ink: var(--ink, #e8e9eb); --_soft: var(--soft, #a0a4ab); --_line: var(--line, #3a3d43);
        --_paper: var(--paper, #17181a); --_wash: var(--wash, #212327); --_focus: #56b4e9;
      }
    }
    :host([hidden]) { display: none; }
    * { box-sizing: border-box; }
    .frame { margin: 0 auto; max-width: 100%; }
    .sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; padding-bottom: .4rem; }
    .side { min-width: 0; }
    .side:last-child { text-align: right; }
    .name { font-weight: 600; overflow-wrap: anywhere; }
    .note { display: block; color: var(--_soft); font-size: .9em; margin-top: .15rem;
      font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
    select, button {
      font: inherit; color: inherit; background: var(--_paper); border: 1px solid var(--_line);
      border-radius: .4rem; min-height: 2.1rem; padding: .15rem .6rem; cursor: pointer;
    }
    select { max-width: 100%; font-weight: 600; text-overflow: ellipsis; }
    select:hover, button:hover { border-color: var(--_soft); }
    :focus-visible { outline: 2px solid var(--_focus); outline-offset: 2px; }
    .stage {
      position: relative; overflow: hidden; background: var(--_wash); border-radius: .4rem;
      touch-action: pan-y pinch-zoom; user-select: none; -webkit-user-select: none; cursor: ew-resize;
    }
    .stage.pans { touch-action: pinch-zoom; cursor: grab; }
    .stage.panning { cursor: grabbing; }
    .layer { position: absolute; inset: 0; }
    .plane { position: absolute; left: 0; top: 0; }
    ::slotted(*) {
      display: block !important; position: static !important; width: 100% !important;
      height: 100% !important; max-width: none !important; max-height: none !important;
      margin: 0 !important; border: 0 !important; padding: 0 !important; object-fit: fill !important;
      pointer-events: none !important; image-rendering: var(--_rendering) !important;
    }
    .line {
      position: absolute; top: 0; bottom: 0; width: 44px; margin-left: -22px; cursor: ew-resize;
      outline: none;
    }
    .line::before {
      content: ""; position: absolute; top: 0; bottom: 0; left: 21px; width: 2px;
      background: #fff; box-shadow: 0 0 0 1px rgb(0 0 0 / .45);
    }
    .grip {
      position: absolute; left: 5px; top: 50%; width: 34px; height: 34px; margin-top: -17px;
      border-radius: 50%; background: #fff;
      box-shadow: 0 0 0 1px rgb(0 0 0 / .35), 0 1px 5px rgb(0 0 0 / .4);
    }
    .grip svg { display: block; width: 34px; height: 34px; fill: none; stroke: #1c1d1f;
      stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
    .line:focus-visible .grip { box-shadow: 0 0 0 3px var(--_focus), 0 0 0 5px #fff; }
    .tools { display: flex; flex-wrap: wrap; gap: .5rem .8rem; align-items: center;
      padding-top: .5rem; }
    .zooms { display: flex; }
    .zooms button { border-radius: 0; margin-left: -1px; min-width: 2.7rem; }
    .zooms button:not([hidden]):first-of-type, .zooms button[hidden] + button {
      border-radius: .4rem 0 0 .4rem; margin-left: 0; }
    .zooms button:last-of-type { border-radius: 0 .4rem .4rem 0; }
    button[aria-pressed="true"] { background: var(--_ink); border-color: var(--_ink);
      color: var(--_paper); }
    .swap { touch-action: none; user-select: none; -webkit-user-select: none; }
    .hint { color: var(--_soft); font-size: .85em; }
    @media (hover: none) { .hint { display: none; } }
    [hidden] { display: none !important; }
  `;

  const SHEET = new CSSStyleSheet();
  SHEET.replaceSync(STYLE);

  const SHADOW = `
    <div class="frame" part="frame">
      <div class="sides">
        <div class="side"><select aria-label="Picture at left"></select><span class="name"></span>
          <span class="note"></span></div>
        <div class="side"><select aria-label="Picture at right"></select><span class="name"></span>
          <span class="note"></span></div>
      </div>
      <div class="stage">
        <div class="layer"><div class="plane"><slot name="left"></slot></div></div>
        <div class="layer"><div class="plane"><slot name="right"></slot></div></div>
        <div class="line" role="slider" tabindex="0" aria-label="Line between both pictures"
          aria-valuemin="0" aria-valuemax="100">
          <div class="grip"><svg viewBox="0 0 34 34" aria-hidden="true">
            <path d="M13 11.5 7.5 17l5.5 5.5M21 11.5l5.5 5.5-5.5 5.5"/></svg></div>
        </div>
      </div>
      <div class="tools">
        <div class="zooms" role="group" aria-label="Zoom">${ZOOMS.map(
          (zoom) => `<button type="button" data-zoom="${zoom}">${zoom ? `${zoom}×` : "Fit"}</button>`,
        ).join("")}</div>
        <button type="button" class="swap" aria-pressed="false">Hold to swap</button>
        <span class="hint">Arrow keys move the line, holding F swaps</span>
      </div>
    </div>`;

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  class PictureSlider extends HTMLElement {
    static observedAttributes = ["left", "right"];

    // Elements of the shadow tree; of pairs the left one comes first.
    #selects;
    #names;
    #notes;
    #layers;
    #planes;
    #buttons;
    #frame;
    #stage;
    #line;
    #button;

    #value = 50;
    #zoom = 0;
    #centre = [0.5, 0.5]; // the point in the middle of the stage, as shares of the picture's sides
    #swapped = false;
    #taken = null; // what the pointer drags: "line" or "picture", and where it was
    #place = null; // of the picture on the stage, as last laid out
    #resizes = new ResizeObserver(() => this.#layOut());
    #changes = new MutationObserver(() => this.#refresh());
    #loaded = () => this.#layOut();
    #release = () => this.#swap(false);

    constructor() {
      super();
      const root = this.attachShadow({ mode: "open" });
      root.innerHTML = SHADOW;
      root.adoptedStyleSheets = [SHEET]; // which a page's policy allows that forbids <style>
      const all = (selector) => [...root.querySelectorAll(selector)];
      [this.#selects, this.#names, this.#notes] = ["select", ".name", ".note"].map(all);
      [this.#layers, this.#planes, this.#buttons] = [".layer", ".plane", ".zooms button"].map(all);
      [this.#frame, this.#stage, this.#line, this.#button] = all(".frame, .stage, .line, .swap");
      this.#selects.forEach((select, side) => {
        select.addEventListener("change", () => this.#choose(side, select.value));
      });
      for (const button of this.#buttons) {
        button.addEventListener("click", () => (this.zoom = Number(button.dataset.zoom)));
      }
      this.#stage.addEventListener("pointerdown", (event) => this.#take(event));
      this.#stage.addEventListener("pointermove", (event) => this.#drag(event));
      this.#stage.addEventListener("pointerup", (event) => this.#drop(event, true));
      this.#stage.addEventListener("pointercancel", (event) => this.#drop(event, false));
      this.#button.addEventListener("pointerdown", (event) => {
        if (event.button === 0) {
          this.#button.setPointerCapture(event.pointerId);
          this.#swap(true);
        }
      });
      this.#button.addEventListener("mousedown", (event) => event.preventDefault()); // of the focus
      this.#button.addEventListener("lostpointercapture", this.#release);
      this.#button.addEventListener("contextmenu", (event) => event.preventDefault());
      this.addEventListener("keydown", (event) => this.#press(event));
      this.addEventListener("keyup", this.#release);
      this.addEventListener("focusout", this.#release);
    }

    connectedCallback() {
      this.#resizes.observe(this);
      this.#changes.observe(this, {
        childList: true,
        subtree: true,
        attributeFilter: ["data-name", "data-note", "width", "height", "src"],
      });
      this.addEventListener("load", this.#loaded, true); // it does not bubble
      window.addEventListener("resize", this.#loaded);
      window.addEventListener("blur", this.#release);
      this.#refresh();
    }

    disconnectedCallback() {
      this.#resizes.disconnect();
      this.#changes.disconnect();
      this.removeEventListener("load", this.#loaded, true);
      window.removeEventListener("resize", this.#loaded);
      window.removeEventListener("blur", this.#release);
    }

    attributeChangedCallback() {
      this.#refresh();
    }

    /** The children that are pictures, in their order. */
    get pictures() {
      return [...this.children].filter((child) => child.dataset.name !== undefined);
    }

    /** The place of the line: 0 shows the right picture alone, 100 the left one. */
    get value() {
      return this.#value;
    }

    set value(value) {
      this.#value = clamp(Number(value) || 0, 0, 100);
      this.#drawLine();
    }

    /** CSS pixels per pixel of the pictures: 0 (as large as fits, at most 1), 1, 2 or 4. */
    get zoom() {
      return this.#zoom;
    }

    set zoom(zoom) {
      this.#zoom = ZOOMS.includes(Number(zoom)) ? Number(zoom) : 0;
      this.#layOut();
    }

    /** The two pictures that are chosen, the left one first; of one picture that alone. */
    #chosen() {
      const pictures = this.pictures;
      const named = (name) => pictures.find((picture) => picture.dataset.name === name);
      const left = named(this.getAttribute("left"));
      const right = named(this.getAttribute("right"));
      const first = left ?? pictures.find((picture) => picture !== right);
      const second = right !== first ? right : undefined;
      return [first, second ?? pictures.find((picture) => picture !== first)].filter(Boolean);
    }

    /** Show a picture on a side; where it is on the other one, they change places. */
    #choose(side, name) {
      const names = this.#chosen().map((picture) => picture.dataset.name);
      if (names[1 - side] === name) {
        names[1 - side] = names[side];
      }
      names[side] = name;
      this.setAttribute("left", names[0]);
      this.setAttribute("right", names[1]);
    }

    /** Bring what is shown in line with children, attributes and the swap. */
    #refresh() {
      const pictures = this.pictures;
      const chosen = this.#chosen();
      const shown = this.#swapped ? [...chosen].reverse() : chosen;
      for (const picture of pictures) {
        const slot = ["left", "right"][shown.indexOf(picture)] ?? "";
        if (picture.slot !== slot) {
          picture.slot = slot;
        }
      }
      const list = pictures.map((picture) => picture.dataset.name);
      this.#selects.forEach((select, side) => {
        const listed = [...select.options].map((option) => option.value);
        if (listed.length !== list.length || listed.some((name, i) => name !== list[i])) {
          select.replaceChildren(...list.map((name) => new Option(name, name)));
        }
        const { name = "", note = "" } = shown[side]?.dataset ?? {};
        select.value = name;
        select.hidden = list.length < 3;
        this.#names[side].textContent = name;
        this.#names[side].hidden = list.length > 2;
        this.#notes[side].textContent = note;
      });
      this.#line.hidden = this.#button.hidden = chosen.length < 2;
      this.#layOut();
    }

    /** Width and height of the pictures in pixels, by the first that knows them. */
    #size() {
      for (const picture of [...this.#chosen(), ...this.pictures]) {
        const width = picture.naturalWidth || picture.width;
        const height = picture.naturalHeight || picture.height;
        if (width && height) {
          return [width, height];
        }
      }
      return [0, 0];
    }

    /** Give the stage its size and the pictures their place on it. */
    #layOut() {
      const [width, height] = this.#size();
      if (!width || !this.clientWidth) {
        return;
      }
      this.#frame.style.width = `${Math.max(width, LEAST[0])}px`;
      const across = this.#stage.clientWidth;
      const tallest = Math.max(0.8 * window.innerHeight, LEAST[1]);
      const fit = Math.min(1, across / width, tallest / height);
      const down = Math.max(Math.round(height * fit), LEAST[1]);
      const scale = this.#zoom || fit;
      // Where a side is longer than the stage, it fills it to the edges; else it lies in the middle.
      const along = (axis, stage, side) => {
        const free = stage - side;
        if (free >= 0) {
          this.#centre[axis] = 0.5;
          return Math.round(free / 2);
        }
        const start = clamp(stage / 2 - this.#centre[axis] * side, free, 0);
        this.#centre[axis] = (stage / 2 - start) / side;
        return Math.round(start);
      };
      const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
      const [x, y] = [along(0, across, w), along(1, down, h)];
      this.#place = { x, w, h, across, down };
      this.#stage.style.height = `${down}px`;
      this.#stage.style.setProperty("--_rendering", scale > 1 ? "pixelated" : "auto");
      this.#stage.classList.toggle("pans", w > across || h > down);
      for (const plane of this.#planes) {
        plane.style.cssText = `width: ${w}px; height: ${h}px; transform: translate(${x}px, ${y}px)`;
      }
      for (const button of this.#buttons) {
        const zoom = Number(button.dataset.zoom);
        button.hidden = zoom === 0 && fit === 1; // it were the same as 1
        const pressed = zoom === this.#zoom || (zoom === 1 && fit === 1 && !this.#zoom);
        button.setAttribute("aria-pressed", String(pressed));
      }
      this.#drawLine();
    }

    /** The part of the stage that the picture takes, from left to right in CSS pixels. */
    #span() {
      const { x, w, across } = this.#place;
      return [Math.max(x, 0), Math.min(x + w, across)];
    }

    #drawLine() {
      if (!this.#place) {
        return;
      }
      const [start, end] = this.#span();
      const alone = this.#line.hidden;
      const x = alone ? end : start + (this.#value / 100) * (end - start);
      this.#layers[0].style.clipPath = `inset(0 ${this.#place.across - x}px 0 0)`;
      this.#layers[1].style.clipPath = `inset(0 0 0 ${x}px)`;
      this.#line.style.left = `${x}px`;
      const value = Math.round(this.#value);
      const [left, right] = this.#names.map((name) => name.textContent);
      this.#line.setAttribute("aria-valuenow", String(value));
      this.#line.setAttribute("aria-valuetext", `${value} % ${left}, ${100 - value} % ${right}`);
    }

    #swap(swapped) {
      if (this.#swapped !== swapped) {
        this.#swapped = swapped;
        this.#button.setAttribute("aria-pressed", String(swapped));
        this.#refresh();
      }
    }

    /** Move the picture by so many CSS pixels, as far as it goes. */
    #pan(dx, dy) {
      const { w, h } = this.#place;
      this.#centre = [this.#centre[0] - dx / w, this.#centre[1] - dy / h];
      this.#layOut();
    }

    /** Move the line to where a pointer is. */
    #follow(event) {
      const [start, end] = this.#span();
      const x = event.clientX - this.#stage.getBoundingClientRect().left;
      this.value = (100 * (x - start)) / Math.max(end - start, 1);
    }

    #take(event) {
      if (event.button !== 0 || !this.#place || this.#taken) {
        return;
      }
      const line = this.#line.getBoundingClientRect();
      const near = Math.abs(event.clientX - (line.left + line.right) / 2) <= REACH;
      const what = near || !this.#stage.classList.contains("pans") ? "line" : "picture";
      this.#taken = { what, id: event.pointerId, x: event.clientX, y: event.clientY };
      this.#stage.setPointerCapture(event.pointerId);
      this.#stage.classList.toggle("panning", what === "picture");
      if (what === "line" && event.pointerType !== "touch") {
        this.#follow(event); // a finger may be about to scroll the page
      }
      event.preventDefault(); // of text, and of images out of the page
      this.#line.focus({ preventScroll: true });
    }

    #drag(event) {
      const taken = this.#taken;
      if (taken?.id !== event.pointerId) {
        return;
      }
      if (taken.what === "line") {
        this.#follow(event);
      } else {
        this.#pan(event.clientX - taken.x, event.clientY - taken.y);
        [taken.x, taken.y] = [event.clientX, event.clientY];
      }
    }

    #drop(event, here) {
      if (this.#taken?.id !== event.pointerId) {
        return;
      }
      if (here && this.#taken.what === "line") {
        this.#follow(event);
      }
      this.#taken = null;
      this.#stage.classList.remove("panning");
    }

    #press(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || !this.#place) {
        return;
      }
      const target = event.composedPath()[0];
      if (target instanceof HTMLSelectElement) {
        return; // it knows arrow keys and letters itself
      }
      const key = event.key;
      const arrow = {
        ArrowLeft: [-1, 0],
        ArrowRight: [1, 0],
        ArrowUp: [0, -1],
        ArrowDown: [0, 1],
      }[key];
      const at = ZOOMS.indexOf(this.#zoom);
      if (key === "f" || key === "F" || (target === this.#button && (key === " " || key === "Enter"))) {
        this.#swap(true);
      } else if (arrow && event.shiftKey) {
        this.#pan((-arrow[0] * this.#place.across) / 8, (-arrow[1] * this.#place.down) / 8);
      } else if (/^[0124]$/.test(key)) {
        this.zoom = Number(key);
      } else if (key === "+" || key === "-") {
        const lowest = this.#buttons[0].hidden ? 1 : 0;
        const from = Math.max(at, lowest);
        this.zoom = ZOOMS[clamp(from + (key === "+" ? 1 : -1), lowest, ZOOMS.length - 1)];
      } else if (target !== this.#line) {
        return; // the others are those of a slider
      } else if (arrow) {
        this.value += arrow[0] - arrow[1];
      } else if (key === "PageUp" || key === "PageDown") {
        this.value += key === "PageUp" ? 10 : -10;
      } else if (key === "Home" || key === "End") {
        this.value = key === "Home" ? 0 : 100;
      } else {
        return;
      }
      event.preventDefault();
    }
  }

  if (!customElements.get("picture-slider")) {
    customElements.define("picture-slider", PictureSlider);
  }
})();
