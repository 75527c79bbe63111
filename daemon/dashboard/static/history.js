// The last ten minutes: what came with the first answer, and what every later one adds.

export const WINDOW_SECONDS = 600;
const MEAN_SECONDS = 10;
const COLUMNS = ["hit_rate", "gets_per_second", "puts_per_second", "read_bytes_per_second", "put_bytes_per_second"];
const OF_TIER = ["fill", "read_bytes_per_second", "written_bytes_per_second"];

export class History {
  constructor() {
    this.clear();
  }

  clear() {
    this.next = 0;
    this.pid = null;
    this.times = [];
    this.columns = Object.fromEntries(COLUMNS.map((name) => [name, []]));
    this.tiers = new Map();
  }

  // A daemon that was started anew has a history of its own.
  isOf(state) {
    return this.pid === null || this.pid === state.pid;
  }

  add(state) {
    const added = state.history;
    if (added.first !== this.next) this.clear();
    this.pid = state.pid;
    this.next = added.next;
    const before = this.times.length;
    this.times.push(...added.uptime_seconds);
    for (const name of COLUMNS) this.columns[name].push(...added[name]);
    const tiers = new Map();
    for (const tier of added.tiers) {
      const known = this.tiers.get(tier.name) ?? blank(before);
      for (const name of OF_TIER) known[name].push(...tier[name]);
      tiers.set(tier.name, known);
    }
    if (added.uptime_seconds.length) this.tiers = tiers;
    this.trim();
  }

  trim() {
    const oldest = (this.times.at(-1) ?? 0) - WINDOW_SECONDS;
    const over = this.times.findIndex((time) => time >= oldest);
    if (over <= 0) return;
    this.times.splice(0, over);
    for (const name of COLUMNS) this.columns[name].splice(0, over);
    for (const tier of this.tiers.values()) for (const name of OF_TIER) tier[name].splice(0, over);
  }
}

// Each value as the mean of the ten seconds before it, weighted where weights are given: what the figures say, too.
export function smooth(times, values, weights = null) {
  let start = 0;
  return values.map((value, at) => {
    while (times[start] <= times[at] - MEAN_SECONDS) start += 1;
    let sum = 0;
    let weight = 0;
    for (let index = start; index <= at; index += 1) {
      if (values[index] === null || values[index] === undefined) continue;
      const share = weights === null ? 1 : weights[index];
      sum += values[index] * share;
      weight += share;
    }
    return weight ? sum / weight : null;
  });
}

function blank(length) {
  return Object.fromEntries(OF_TIER.map((name) => [name, Array(length).fill(null)]));
}
