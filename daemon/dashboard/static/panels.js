// Each panel shows one part of the state; where there is nothing to show it says so.

import { LineChart, niceBytes, Sparkline } from "./chart.js";
import { byId, el, say, set, show } from "./dom.js";
import { ago, byteRate, bytes, count, duration, many, percent, perSecond } from "./format.js";
import { smooth } from "./history.js";
import { bar, fillBar, Table } from "./table.js";

const KINDS = { pool: "decoded, in an engine", memory: "memory", disk: "disk", network: "shared" };
const FIGURES = [
  ["Hit rate", (state) => percent(state.figures.hit_rate), (state) => `${percent(state.figures.hit_rate_since_start)} since the start`],
  ["Reads", (state) => perSecond(state.figures.gets_per_second), (state) => byteRate(state.figures.read_bytes_per_second)],
  ["Writes", (state) => perSecond(state.figures.puts_per_second), (state) => byteRate(state.figures.put_bytes_per_second)],
  ["Inside now", (state) => bytes(state.load?.bytes_inflight),
    (state) => state.load && `${many(state.load.requests_inflight, "request")}, limit ${bytes(state.load.bytes_inflight_max)}`],
  ["Not on disk yet", (state) => bytes(state.load?.dirty_bytes), (state) => state.load && `limit ${bytes(state.load.dirty_bytes_max)}`],
  ["Pinned", (state) => bytes(state.figures.pinned_bytes), (state) => state.load && many(state.load.leases, "lease")],
];

export class Figures {
  constructor() {
    this.items = FIGURES.map(([name, value, more]) => {
      const big = el("dd", { class: "big" });
      const small = el("dd", { class: "small" });
      return { value, more, big, small, node: el("div", {}, el("dt", {}, name), big, small) };
    });
    byId("figures").replaceChildren(el("dl", {}, ...this.items.map((item) => item.node)));
  }

  update(state) {
    for (const item of this.items) {
      const more = item.more(state);
      say(item.big, item.value(state));
      say(item.small, more ?? "");
      show(item.node, state.load !== null || more !== null);
    }
  }
}

export class Trends {
  constructor() {
    this.hits = new LineChart({
      title: "Hit rate", series: [{ name: "answered", format: percent }], top: 1, empty: "no reads in the last 10 minutes",
    });
    this.traffic = new LineChart({
      title: "Bytes read and written", top: niceBytes, empty: "no traffic in the last 10 minutes",
      series: [{ name: "read", format: byteRate }, { name: "written", format: byteRate }],
    });
    byId("hits-chart").replaceChildren(this.hits.element);
    byId("traffic-chart").replaceChildren(this.traffic.element);
  }

  update(state, history) {
    const { hit_rate, gets_per_second, read_bytes_per_second, put_bytes_per_second } = history.columns;
    const { times } = history;
    this.hits.update(times, [smooth(times, hit_rate, gets_per_second)]);
    this.traffic.update(times, [smooth(times, read_bytes_per_second), smooth(times, put_bytes_per_second)]);
  }
}

export class Tiers {
  constructor() {
    this.history = null;
    this.daemon = new Table({
      label: "Tiers of the daemon", key: (tier) => tier.name, empty: "This daemon has no tiers.",
      columns: [
        { title: "Tier", text: (tier) => tier.name },
        { title: "Kind", text: (tier) => KINDS[tier.kind], wide: true },
        { title: "Fill", node: bar, fill: (node, tier) => fillBar(node, share(tier), percent(share(tier))), grow: true },
        { title: "Trend", node: () => spark(), fill: (node, tier) => this.spark(node, tier), wide: true },
        { title: "Used", text: (tier) => bytes(tier.used_bytes), number: true },
        { title: "Limit", text: (tier) => limit(tier), number: true, middle: true },
        { title: "Chunks", text: (tier) => count(tier.chunks), number: true, wide: true },
        { title: "Answered", hint: "Share of all reads, in the last 10 seconds", text: (tier) => percent(tier.hit_share), number: true },
        { title: "Evicted", text: (tier) => perSecond(tier.evictions_per_second), number: true, wide: true },
        { title: "Errors", text: (tier) => perSecond(tier.errors_per_second), number: true, wide: true,
          tone: (tier) => tier.errors_per_second ? "bad" : null },
      ],
    });
    this.tenant = new Table({
      label: "What the namespace has of each tier", key: (tier) => tier.name, empty: "Nothing is stored yet.",
      columns: [
        { title: "Tier", text: (tier) => tier.name },
        { title: "Kind", text: (tier) => KINDS[tier.kind], wide: true },
        { title: "Of the quota", node: bar, grow: true,
          fill: (node, tier) => fillBar(node, share(tier), tier.limit_bytes === null ? "no quota" : percent(share(tier))) },
        { title: "Used", text: (tier) => bytes(tier.used_bytes), number: true },
        { title: "Quota", text: (tier) => bytes(tier.limit_bytes), number: true, middle: true },
        { title: "Chunks", text: (tier) => count(tier.chunks), number: true },
      ],
    });
    byId("tiers").replaceChildren(this.daemon.element, this.tenant.element);
  }

  update(state, history) {
    this.history = history;
    show(this.daemon.element, state.load !== null);
    show(this.tenant.element, state.load === null);
    say(byId("tiers-title"), state.load === null ? "Held by this namespace" : "Tiers");
    (state.load === null ? this.tenant : this.daemon).update(state.tiers);
  }

  spark(node, tier) {
    const known = this.history.tiers.get(tier.name);
    node.sparkline.update(this.history.times, known?.fill ?? []);
  }
}

function spark() {
  const line = new Sparkline();
  line.element.sparkline = line;
  return line.element;
}

function share(tier) {
  return tier.limit_bytes && tier.used_bytes !== null ? tier.used_bytes / tier.limit_bytes : null;
}

function limit(tier) {
  return tier.limit_bytes === null ? "not known" : bytes(tier.limit_bytes);
}

export class Links {
  constructor() {
    this.charts = new Map();
  }

  update(state, history) {
    show(byId("links-panel"), state.load !== null);
    if (state.load === null) return;
    const names = state.tiers.filter((tier) => tier.kind !== "pool").map((tier) => tier.name);
    if (names.join() !== [...this.charts.keys()].join()) {
      this.charts = new Map(names.map((name) => [name, chartOf(name)]));
      byId("links").replaceChildren(...names.map((name) => el("div", {}, el("h3", {}, name), this.charts.get(name).element)));
    }
    for (const [name, chart] of this.charts) {
      const known = history.tiers.get(name);
      const columns = [known?.read_bytes_per_second ?? [], known?.written_bytes_per_second ?? []];
      chart.update(history.times, columns.map((column) => smooth(history.times, column)));
    }
  }
}

function chartOf(name) {
  return new LineChart({
    title: `Bandwidth of ${name}`, top: niceBytes, height: 96, empty: "idle",
    series: [{ name: "read", format: byteRate }, { name: "written", format: byteRate }],
  });
}

export class Network {
  update(state) {
    show(byId("network-panel"), state.network !== null);
    if (state.network === null) return;
    const rows = state.network.map((tier) => networkTier(tier));
    const text = JSON.stringify(state.network.map((tier) => ({ ...tier, last_error: said(tier.last_error) })));
    if (text === this.before) return;
    this.before = text;
    byId("network").replaceChildren(...(rows.length ? rows : [el("p", { class: "empty" },
      "None is configured: chunks stay on this machine.")]));
  }
}

function said(error) {
  return error && [error.operation, error.detail, ago(error.seconds_ago)];
}

function networkTier(tier) {
  const away = tier.breaker === "open";
  const facts = [
    ["Found away", many(tier.openings, "time")],
    ["Errors", count(tier.errors)],
    ["Waiting to be sent", `${bytes(tier.waiting_bytes)} of ${bytes(tier.waiting_bytes_max)}`],
    ["Not sent, too slow", many(tier.dropped, "chunk")],
  ];
  const error = tier.last_error;
  return el("div", { class: "health" },
    el("p", { class: "verdict", "data-tone": away ? "bad" : "good" },
      el("span", { class: "sign", "aria-hidden": "true" }, away ? "▲" : "●"),
      el("b", {}, tier.tier), ` ${away ? "is away" : "answers"}`),
    el("p", { class: "more" }, away ? "Reads and writes go on without it; it is asked again every few seconds." : null),
    el("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    error
      ? el("p", { class: "last-error" }, el("b", {}, `Last error, ${ago(error.seconds_ago)} ago, in ${error.operation}: `), error.detail)
      : el("p", { class: "last-error" }, "No error since the daemon started."));
}

export class Namespaces {
  constructor() {
    this.table = new Table({
      label: "Namespaces over the last minute", key: (row) => row.name, empty: "No namespace has been used yet.",
      columns: [
        { title: "Namespace", text: (row) => row.name },
        { title: "Reads", text: (row) => perSecond(row.gets_per_second), number: true },
        { title: "Hit rate", text: (row) => percent(row.hit_rate), number: true },
        { title: "Read", text: (row) => byteRate(row.read_bytes_per_second), number: true, wide: true },
        { title: "Writes", text: (row) => perSecond(row.puts_per_second), number: true },
        { title: "Written", text: (row) => byteRate(row.put_bytes_per_second), number: true, wide: true },
        { title: "Held", hint: "On all local tiers together", text: (row) => bytes(row.used_bytes), number: true },
      ],
    });
    this.more = el("p", { class: "more" });
    byId("namespaces").replaceChildren(this.table.element, this.more);
  }

  update(state) {
    set(byId("namespaces-panel"), "class", state.network === null ? "panel" : "panel rest");
    this.table.update(state.namespaces);
    say(this.more, state.namespaces_more ? `and ${count(state.namespaces_more)} more` : "");
  }
}

export class Slow {
  constructor() {
    this.longest = 0;
    this.table = new Table({
      label: "Slowest requests of the last 5 minutes", key: (row) => row.request_id + row.operation + row.seconds,
      empty: "No request in the last 5 minutes.",
      columns: [
        { title: "Took", node: bar, grow: true, fill: (node, row) => fillBar(node, row.seconds / this.longest, duration(row.seconds), 2) },
        { title: "Operation", text: (row) => row.operation.replaceAll("_", " ") },
        { title: "Tier", text: (row) => row.tiers.join(", ") || "–" },
        { title: "Bytes", text: (row) => row.size_bytes ? bytes(row.size_bytes) : "–", number: true, middle: true },
        { title: "Answer", text: (row) => row.outcome, wide: true },
        { title: "Over", text: (row) => row.edge === "grpc" ? "gRPC" : "HTTP", wide: true },
        { title: "Namespace", text: (row) => row.tenant, wide: true },
        { title: "Ended", text: (row) => `${ago(row.seconds_ago)} ago`, number: true },
        { title: "Request id", text: (row) => row.request_id, mono: true, wide: true },
      ],
    });
    byId("slow").replaceChildren(this.table.element);
  }

  update(state) {
    this.longest = state.slowest[0]?.seconds ?? 1;
    this.table.update(state.slowest);
  }
}
