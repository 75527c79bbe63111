// What was decided for how many chunks and for which reason, and the latest plans with what came of them.

import { byId, say, show } from "./dom.js";
import { ago, count, duration, many, percent } from "./format.js";
import { bar, fillBar, Table } from "./table.js";

const ACTIONS = { load: "loaded", recompute: "computed", race: "raced" };
const REASONS = {
  not_offered: "not stored",
  after_cut: "behind the prefix",
  compute_faster: "computing is sooner",
  quality_floor: "stored too coarse",
  load_faster: "loading is sooner",
  uncertain: "either may be sooner",
  done: "there already",
};

export class Planner {
  constructor() {
    this.all = 1;
    this.decisions = new Table({
      label: "Decisions since the start", key: (row) => `${row.action} ${row.reason}`, empty: "",
      columns: [
        { title: "Chunks were", text: (row) => ACTIONS[row.action] ?? row.action },
        { title: "Why", text: (row) => REASONS[row.reason] ?? row.reason },
        { title: "Share", node: bar, fill: (node, row) => fillBar(node, row.chunks / this.all, percent(row.chunks / this.all), 2) },
        { title: "Count", text: (row) => count(row.chunks), number: true, middle: true },
      ],
    });
    this.plans = new Table({
      label: "Latest plans", key: (row) => row.id, empty: "",
      columns: [
        { title: "Made", text: (row) => `${ago(row.age_seconds)} ago` },
        { title: "Engine", text: (row) => row.engine, wide: true },
        { title: "Namespace", text: (row) => row.namespace, wide: true },
        { title: "Loaded", text: (row) => `${count(row.loaded)} of ${count(row.chunks)}`, number: true },
        { title: "Raced", text: (row) => count(row.raced), number: true, middle: true },
        { title: "Expected", hint: "Time to first token, as planned", text: (row) => duration(row.expected_seconds), number: true },
        { title: "All computed", hint: "What computing everything was expected to take", text: (row) => duration(row.recompute_seconds), number: true, middle: true },
        { title: "Took", hint: "As the engine reported", text: (row) => duration(row.real_seconds), number: true,
          tone: (row) => row.real_seconds !== null && row.real_seconds > row.recompute_seconds ? "warn" : null },
      ],
    });
    byId("decisions").replaceChildren(this.decisions.element);
    byId("plans").replaceChildren(this.plans.element);
  }

  update(state) {
    show(byId("planner-panel"), state.planner !== null);
    if (state.planner === null) return;
    const { plans, outcomes, slower, regret_seconds: regret, decisions, recent } = state.planner;
    this.all = decisions.reduce((sum, row) => sum + row.chunks, 0) || 1;
    this.decisions.update(decisions);
    this.plans.update(recent.map((row, index) => ({ ...row, id: plans - index })));
    const known = outcomes
      ? `, ${count(slower)} of ${count(outcomes)} reported took longer than computing all, regret ${duration(regret / outcomes)} each`
      : "";
    say(byId("planner-sum"), many(plans, "plan") + known);
  }
}
