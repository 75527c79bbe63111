// A table whose rows are kept from one update to the next: what did not change is not touched.

import { el, say, set } from "./dom.js";

export class Table {
  // columns: [{title, text(row)} or {title, node(), fill(node, row)}, with number, wide, narrow-only classes].
  constructor({ label, columns, key, empty }) {
    this.columns = columns;
    this.key = key;
    this.rows = new Map();
    this.body = el("tbody", {});
    const heads = columns.map((column) => el("th", { scope: "col", class: classes(column), title: column.hint }, column.title));
    this.table = el("table", { "aria-label": label }, el("thead", {}, el("tr", {}, ...heads)), this.body);
    this.empty = el("p", { class: "empty" }, empty);
    this.element = el("div", { class: "scroll" }, this.table, this.empty);
  }

  update(items) {
    const kept = new Map();
    items.forEach((item, index) => {
      const key = this.key(item);
      const row = this.rows.get(key) ?? this.make();
      kept.set(key, row);
      this.columns.forEach((column, at) => {
        if (column.fill) column.fill(row.cells[at].firstChild, item);
        else say(row.cells[at], column.text(item));
        if (column.tone) set(row.cells[at], "data-tone", column.tone(item));
      });
      if (this.body.children[index] !== row.node) this.body.insertBefore(row.node, this.body.children[index] ?? null);
    });
    for (const [key, row] of this.rows) if (kept.get(key) !== row) row.node.remove();
    this.rows = kept;
    this.table.hidden = items.length === 0;
    this.empty.hidden = items.length !== 0;
  }

  make() {
    const cells = this.columns.map((column, index) =>
      el(index === 0 ? "th" : "td", { scope: index === 0 ? "row" : null, class: classes(column, column.mono && "mono") },
        column.node ? column.node() : null));
    return { cells, node: el("tr", {}, ...cells) };
  }
}

function classes(column, ...more) {
  const names = [...more, column.number && "number", column.wide && "wide", column.middle && "middle", column.grow && "grow"].filter(Boolean);
  return names.length ? names.join(" ") : null;
}

// How much of something is taken, or is what of the most; the number stands beside it.
export function bar() {
  return el("div", { class: "bar" }, el("i", {}), el("span", {}));
}

export function fillBar(node, share, text, full = 0.95) {
  const [track, label] = node.children;
  track.style.setProperty("--share", share === null ? "0" : String(Math.min(1, share)));
  set(node, "data-none", share === null ? "" : null);
  set(node, "data-full", share !== null && share >= full ? "" : null);
  say(label, text);
}
