/** The row of files: small pictures, names, and how far each is. */

import type { Entry, Queue } from "./queue";

const WORDS = {
  waiting: "waiting",
  decoding: "decoding",
  done: "decoded",
  stopped: "stopped",
  failed: "error",
} as const;

interface Item {
  readonly root: HTMLLIElement;
  readonly open: HTMLButtonElement;
  readonly state: HTMLElement;
  readonly bar: HTMLElement;
  readonly remove: HTMLButtonElement;
  thumbnail: HTMLCanvasElement | null;
}

export class Strip {
  private readonly items = new Map<Entry, Item>();

  constructor(
    private readonly list: HTMLElement,
    private readonly template: HTMLTemplateElement,
    private readonly queue: Queue,
  ) {}

  /** Show what changed of an entry; null: which entries there are, or which one is selected. */
  update(entry: Entry | null): void {
    if (entry) {
      const item = this.items.get(entry);
      if (item) this.fill(entry, item);
      return;
    }
    const focused = this.list.contains(document.activeElement);
    const present = new Set(this.queue.entries);
    for (const [gone, item] of this.items) {
      if (!present.has(gone)) {
        item.root.remove();
        this.items.delete(gone);
      }
    }
    for (const each of this.queue.entries) {
      let item = this.items.get(each);
      if (!item) {
        item = this.make(each);
        this.items.set(each, item);
        this.list.append(item.root);
      }
      this.fill(each, item);
    }
    const selected = this.queue.selected && this.items.get(this.queue.selected);
    if (focused && !selected?.root.contains(document.activeElement)) {
      selected?.open.focus({ preventScroll: true });
    }
  }

  private make(entry: Entry): Item {
    const root = (this.template.content.cloneNode(true) as DocumentFragment)
      .firstElementChild as HTMLLIElement;
    const part = (name: string) => root.querySelector(`[data-part=${name}]`) as HTMLElement;
    const open = part("open") as HTMLButtonElement;
    const remove = part("remove") as HTMLButtonElement;
    part("name").textContent = entry.name;
    remove.setAttribute("aria-label", `Remove ${entry.name}`);
    open.addEventListener("click", () => this.queue.select(entry));
    remove.addEventListener("click", () => this.queue.remove(entry));
    return { root, open, state: part("state"), bar: part("bar"), remove, thumbnail: null };
  }

  private fill(entry: Entry, item: Item): void {
    const selected = entry === this.queue.selected;
    item.root.dataset["state"] = entry.state;
    item.bar.style.inlineSize = `${Math.round(100 * entry.progress)}%`;
    item.state.textContent = WORDS[entry.state];
    item.open.title = entry.failure ? `${entry.name}: ${entry.failure.message}` : entry.name;
    if (entry.thumbnail && item.thumbnail !== entry.thumbnail) {
      item.thumbnail = entry.thumbnail;
      item.open.querySelector("[data-part=picture]")?.replaceChildren(entry.thumbnail);
    }
    // Only one of all files is on the way of the Tab key; arrows lead to the others.
    item.open.tabIndex = item.remove.tabIndex = selected ? 0 : -1;
    if (selected && item.open.getAttribute("aria-current") !== "true") {
      item.open.setAttribute("aria-current", "true");
      item.root.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else if (!selected) {
      item.open.removeAttribute("aria-current");
    }
  }
}
