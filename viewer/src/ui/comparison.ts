/** A decoded picture beside an ordinary one of the same size, on either side of a line that moves. */

import "../../../aiocodec/evaluate/slider.js";

/** What to compare with: a picture that the browser itself can show. */
export interface Other {
  readonly name: string;
  readonly width: number; // pixels
  readonly height: number;
  readonly image: HTMLImageElement;
}

/** Load a picture; null where the browser cannot show the file. */
export async function loadOther(file: File): Promise<Other | null> {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(image.src);
  }
  return { name: file.name, width: image.naturalWidth, height: image.naturalHeight, image };
}

export class Comparison {
  constructor(private readonly root: HTMLElement) {}

  /** Show both, the ordinary one at left. */
  show(name: string, note: string, picture: HTMLCanvasElement, other: Other): void {
    const slider = document.createElement("picture-slider");
    other.image.dataset["name"] = other.name === name ? `${other.name} (picture)` : other.name;
    other.image.alt = other.name;
    picture.dataset["name"] = name;
    picture.dataset["note"] = note;
    slider.append(other.image, picture);
    this.root.style.setProperty("--ratio", String(picture.width / picture.height));
    this.root.replaceChildren(slider);
  }

  /** Make the keys those of the line. */
  focus(): void {
    const line = this.root.firstElementChild?.shadowRoot?.querySelector<HTMLElement>("[role=slider]");
    line?.focus({ preventScroll: true });
  }

  /** Show nothing, and keep nothing. */
  clear(): void {
    this.root.replaceChildren();
  }
}
