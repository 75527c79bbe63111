// One chunk: what each level has of each layer, how large and how old it is, and where it lies.

import { chunk as ask, Refused } from "./api.js";
import { byId, el, say, set, show, svg } from "./dom.js";
import { ago, bytes, count, percent, shortKey } from "./format.js";

const KEY = /^[0-9a-f]{64}$/;
const STRIP = 1000;
const HOW = "Of each level: the stronger the colour, the more bytes. Point at a cell to read it.";

export class Inspector {
  constructor() {
    this.nowMs = 0;
    this.recent = "";
    this.shown = null;
    byId("chunk-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.inspect(byId("chunk-key").value.trim().toLowerCase());
    });
    byId("chunk").replaceChildren(hint());
  }

  clear() {
    this.shown = null;
    byId("chunk-key").value = "";
    byId("chunk").replaceChildren(hint());
    this.refuse("");
  }

  update(state) {
    this.nowMs = state.now_ms;
    show(byId("chunk-panel"), state.scopes.includes("read"));
    const rows = state.recent.map((item) => ({ ...item, age: ago((this.nowMs - item.stored_at_ms) / 1000) }));
    const text = JSON.stringify(rows);
    if (text === this.recent) return;
    this.recent = text;
    this.list(rows);
  }

  // The buttons stay where they are as long as the chunks do, so that one that has the focus keeps it.
  list(rows) {
    const before = [...byId("recent").querySelectorAll("button")].map((button) => button.dataset.key);
    if (before.join() === rows.map((row) => row.key).join() && rows.length) {
      byId("recent").querySelectorAll("small").forEach((small, index) => say(small, about(rows[index])));
      return;
    }
    byId("recent").replaceChildren(rows.length
      ? el("ul", { class: "recent" }, ...rows.map((row) => el("li", {}, el("button", {
        type: "button", "data-key": row.key, "aria-pressed": String(row.key === this.shown),
        onclick: () => this.inspect(row.key),
      }, el("code", {}, shortKey(row.key)), el("small", {}, about(row))))))
      : el("p", { class: "empty" }, "Nothing since the daemon started. Any key that is stored can be entered above."));
  }

  async inspect(key) {
    byId("chunk-key").value = key;
    if (!KEY.test(key)) {
      this.refuse("A content key has 64 hexadecimal digits, 0 to 9 and a to f.");
      return;
    }
    this.refuse("");
    try {
      const found = await ask(key);
      this.shown = key;
      byId("chunk").replaceChildren(...chunkOf(found, this.nowMs));
    } catch (error) {
      this.shown = null;
      byId("chunk").replaceChildren(hint());
      this.refuse(error instanceof Refused ? said(error) : "The daemon did not answer. Try again.");
    }
    for (const button of byId("recent").querySelectorAll("button")) {
      set(button, "aria-pressed", String(button.dataset.key === this.shown));
    }
  }

  refuse(text) {
    say(byId("chunk-error"), text);
    show(byId("chunk-error"), text !== "");
    set(byId("chunk-key"), "aria-invalid", text ? "true" : null);
  }
}

function said(error) {
  return error.status === 404 ? "No chunk with this key is stored in your namespace." : error.message;
}

function about(row) {
  return `${bytes(row.payload_bytes)}, ${row.age} ago`;
}

function hint() {
  return el("p", { class: "empty" }, "Choose a chunk to see what each level has of each layer.");
}

function chunkOf(found, nowMs) {
  const { detail, levels } = found;
  const stored = detail.chunk;
  const facts = [
    ["Tiers", stored.tiers.join(", ")],
    ["Stored", `${bytes(stored.payload_bytes)}, ${percent(stored.payload_bytes / detail.raw_bytes)} of ${bytes(detail.raw_bytes)} raw`],
    ["Age", ago((nowMs - stored.stored_at_ms) / 1000, 2)],
    ["Expires", stored.expires_at_ms === null ? "never" : `in ${ago((stored.expires_at_ms - nowMs) / 1000, 2)}`],
    ["Tokens", `${count(detail.tokens)} from position ${count(detail.first_position)}`],
    ["Layers", `${count(detail.layers)}, ${detail.dtype}`],
    ["Codec", detail.codec ?? "lossless only"],
  ];
  return [
    el("h3", {}, el("code", { class: "whole" }, stored.key)),
    el("dl", { class: "facts across" }, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    heatTable(levels, detail.layers),
  ];
}

function heatTable(levels, layers) {
  const perLayer = (cell) => cell.payload_bytes / cell.layers;
  const all = levels.reduce((sum, level) => sum + total(level), 0);
  const readout = el("p", { class: "readout", "aria-hidden": "true" }, HOW);
  const rows = levels.map((level) => el("tr", {},
    el("th", { scope: "row" }, level.level),
    el("td", { class: "number" }, bytes(total(level))),
    el("td", { class: "number wide" }, percent(all ? total(level) / all : null)),
    el("td", { class: "strip" }, strip(level, layers, perLayer, readout))));
  return el("div", { class: "heat" },
    el("div", { class: "scroll" }, el("table", { "aria-label": "Bytes of each level and layer" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Level"), el("th", { scope: "col", class: "number" }, "Bytes"),
        el("th", { scope: "col", class: "number wide" }, "Share"),
        el("th", { scope: "col" }, `Layers 0 to ${layers - 1}`))),
      el("tbody", {}, ...rows))),
    readout);
}

function strip(level, layers, perLayer, readout) {
  const sizes = level.cells.map(perLayer);
  const most = Math.max(1, ...sizes);
  const label = `${level.level}: ${level.cells.length} parts, ${bytes(Math.min(...sizes))} to ${bytes(Math.max(...sizes))} per layer`;
  const cells = level.cells.map((cell) => {
    const width = (STRIP / layers) * cell.layers;
    const gap = Math.min(2, width / 6);
    const node = svg("rect", {
      x: (STRIP / layers) * cell.first_layer, y: 0, width: width - gap, height: 24, class: "cell",
      "fill-opacity": (0.08 + 0.92 * (perLayer(cell) / most)).toFixed(3),
    });
    const last = cell.first_layer + cell.layers - 1;
    const where = cell.layers === 1 ? `layer ${cell.first_layer}` : `layers ${cell.first_layer} to ${last}`;
    node.addEventListener("pointerenter", () => say(readout, `${level.level}, ${where}: ${bytes(cell.payload_bytes)}`));
    node.addEventListener("pointerleave", () => say(readout, HOW));
    return node;
  });
  return svg("svg", { role: "img", "aria-label": label, viewBox: `0 0 ${STRIP} 24`, preserveAspectRatio: "none", class: "cells" }, ...cells);
}

function total(level) {
  return level.cells.reduce((sum, cell) => sum + cell.payload_bytes, 0);
}
