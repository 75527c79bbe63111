// Lines over the last minutes, drawn by hand. The pointer or the arrow keys read a moment off them.

import { el, say, set, svg } from "./dom.js";
import { ago } from "./format.js";

const LABEL = 7;
const RIGHT = 4;
const TOP = 8;
const BOTTOM = 20;
const GAP_SECONDS = 7;
const WINDOWS = [60, 120, 300, 600];
const observer = new ResizeObserver((entries) => {
  for (const entry of entries) entry.target.chart?.draw();
});

// The next round number of bytes, or 100 % where the values are shares.
export function niceBytes(value) {
  let top = 1024;
  while (top < value) top *= 2;
  return top;
}

// How far back the axis goes: to where there is something, ten minutes at most.
export function spanOf(times) {
  const seconds = times.length ? times.at(-1) - times[0] : 0;
  return WINDOWS.find((window) => window >= seconds) ?? WINDOWS.at(-1);
}

// Where values stop, the line stops; a value between two that are missing is a dot.
export function linePath(points) {
  let path = "";
  let before = null;
  for (const point of points) {
    if (point === null) {
      before = null;
      continue;
    }
    const joined = before !== null && point.time - before.time <= GAP_SECONDS;
    path += joined ? `L${point.x} ${point.y}` : `M${point.x} ${point.y}h0.01`;
    before = point;
  }
  return path;
}

export class LineChart {
  // series: [{name, format}]; top: what the largest value becomes the axis of, or a number.
  constructor({ title, series, top, height = 132, empty }) {
    this.title = title;
    this.series = series;
    this.top = top;
    this.height = height;
    this.empty = empty;
    this.times = [];
    this.columns = series.map(() => []);
    this.cursor = null;
    this.labels = [""];
    this.legend = series.map((item, index) => {
      const value = el("b", {});
      const line = svg("svg", { width: 18, height: 8, "aria-hidden": "true" },
        svg("path", { d: "M1 4H17", class: `line s${index}` }));
      return { value, node: el("span", { class: "key" }, line, `${item.name} `, value) };
    });
    this.moment = el("span", { class: "moment" });
    this.spoken = el("span", { class: "unseen", role: "status" });
    this.plot = svg("svg", { role: "img", tabindex: 0, class: "plot" });
    this.plot.chart = this;
    this.element = el("figure", { class: "chart" },
      el("figcaption", { class: "legend" }, ...this.legend.map((item) => item.node), this.moment),
      this.plot, this.spoken);
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.moveTo(null));
    this.plot.addEventListener("blur", () => this.moveTo(null));
    this.plot.addEventListener("keydown", (event) => this.press(event));
    observer.observe(this.plot);
  }

  update(times, columns) {
    const ageOfCursor = this.cursor === null ? null : this.times.length - this.cursor;
    this.times = times;
    this.columns = columns;
    if (ageOfCursor !== null) this.cursor = Math.max(0, times.length - ageOfCursor);
    this.draw();
  }

  // Room for the labels of the axis, which is as much as the longest of them needs.
  get left() {
    return 10 + LABEL * Math.max(...this.labels.map((label) => label.length));
  }

  get width() {
    return Math.max(120, Math.round(this.plot.clientWidth || 320));
  }

  x(time) {
    const last = this.times.at(-1) ?? 0;
    const share = 1 - (last - time) / spanOf(this.times);
    return round(this.left + share * (this.width - this.left - RIGHT));
  }

  draw() {
    const { width, height } = this;
    const values = this.columns.flat().filter((value) => value !== null && value !== undefined);
    const largest = Math.max(0, ...values);
    const top = typeof this.top === "number" ? this.top : this.top(largest);
    const bottom = height - BOTTOM;
    const seen = values.length > 0 && (largest > 0 || typeof this.top === "number");
    this.labels = seen ? ["0", ...[0.5, 1].map((share) => short(this.series[0].format(top * share)))] : [""];
    const { left } = this;
    const y = (value) => round(bottom - (value / top) * (bottom - TOP));
    set(this.plot, "viewBox", `0 0 ${width} ${height}`);
    set(this.plot, "height", height);
    const parts = [];
    [0, 0.5, 1].forEach((share, index) => {
      parts.push(svg("path", { class: share ? "grid" : "axis", d: `M${left} ${y(top * share)}H${width - RIGHT}` }));
      if (seen) {
        parts.push(svg("text", { class: "tick", x: left - 6, y: y(top * share) + 4, "text-anchor": "end" }, this.labels[index]));
      }
    });
    if (seen) {
      this.columns.forEach((column, index) => {
        const points = column.map((value, at) => value === null || value === undefined
          ? null : { time: this.times[at], x: this.x(this.times[at]), y: y(value) });
        parts.push(svg("path", { class: `line s${index}`, d: linePath(points) }));
      });
    } else {
      parts.push(svg("text", { class: "none", x: width / 2, y: (TOP + bottom) / 2 + 4, "text-anchor": "middle" },
        this.times.length ? this.empty : "no samples yet"));
    }
    const span = spanOf(this.times);
    for (const [share, anchor, text] of [[0, "start", `${ago(span)} ago`], [0.5, "middle", ago(span / 2, 2)], [1, "end", "now"]]) {
      const at = left + share * (width - left - RIGHT);
      parts.push(svg("text", { class: "tick", x: at, y: height - 5, "text-anchor": anchor }, text));
    }
    if (this.cursor !== null && this.times.length) {
      const at = this.x(this.times[this.cursor]);
      parts.push(svg("path", { class: "cursor", d: `M${at} ${TOP}V${bottom}` }));
      this.columns.forEach((column, index) => {
        const value = column[this.cursor];
        if (seen && value !== null && value !== undefined) {
          parts.push(svg("circle", { class: `dot s${index}`, cx: at, cy: y(value), r: 3 }));
        }
      });
    }
    this.plot.replaceChildren(...parts);
    this.read();
  }

  read() {
    const at = this.cursor ?? this.times.length - 1;
    const said = this.series.map((item, index) => item.format(this.columns[index][at]));
    said.forEach((text, index) => say(this.legend[index].value, text));
    const when = this.cursor === null ? "" : `${ago((this.times.at(-1) ?? 0) - this.times[at], 2)} ago`;
    say(this.moment, when);
    const now = this.series.map((item, index) => `${item.name} ${item.format(this.columns[index].at(-1))}`);
    set(this.plot, "aria-label", `${this.title}, last ${ago(spanOf(this.times))}. Now: ${now.join(", ")}`);
    return `${when}: ${this.series.map((item, index) => `${item.name} ${said[index]}`).join(", ")}`;
  }

  point(event) {
    if (!this.times.length) return;
    const at = event.offsetX;
    let best = 0;
    for (let index = 1; index < this.times.length; index += 1) {
      if (Math.abs(this.x(this.times[index]) - at) < Math.abs(this.x(this.times[best]) - at)) best = index;
    }
    this.moveTo(best);
  }

  press(event) {
    const last = this.times.length - 1;
    const from = this.cursor ?? last + 1;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.moveTo(null);
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.moveTo(Math.min(last, Math.max(0, to)));
    say(this.spoken, this.read());
  }

  moveTo(index) {
    if (this.cursor === index) return;
    this.cursor = index;
    if (index === null) say(this.spoken, "");
    this.draw();
  }
}

// A line as small as a word, from 0 to 1, that says nothing a number beside it does not say.
export class Sparkline {
  constructor() {
    this.path = svg("path", { class: "line s0" });
    this.element = svg("svg", { class: "spark", viewBox: "0 0 120 24", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("path", { class: "axis", d: "M0 23.5H120" }), this.path);
  }

  update(times, values) {
    const last = times.at(-1) ?? 0;
    const points = values.map((value, index) => value === null || value === undefined ? null : {
      time: times[index],
      x: round(120 * (1 - (last - times[index]) / spanOf(times))),
      y: round(23 - 22 * Math.min(1, value)),
    });
    set(this.path, "d", linePath(points));
  }
}

// Labels of an axis are round numbers, and say no more digits than that.
function short(text) {
  return text.replace(/\.0+(?=\D|$)/, "");
}

function round(value) {
  return Math.round(value * 10) / 10;
}
