// Numbers as people read them, always with their unit; "–" is for what is not known or means nothing.

const NONE = "–";
const GAP = "\u00a0";
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function missing(value) {
  return value === null || value === undefined;
}

function digits(value) {
  const size = Math.abs(value);
  return size === 0 || size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function bytes(value) {
  if (missing(value)) return NONE;
  let size = value;
  let unit = 0;
  while (Math.abs(size) >= 1000 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return (unit === 0 ? size.toFixed(0) : digits(size)) + GAP + UNITS[unit];
}

export function byteRate(value) {
  return missing(value) ? NONE : `${bytes(value)}/s`;
}

export function count(value) {
  return missing(value) ? NONE : grouped.format(value);
}

export function many(value, one) {
  return `${count(value)} ${one}${value === 1 ? "" : "s"}`;
}

export function perSecond(value) {
  if (missing(value)) return NONE;
  if (value > 0 && value < 0.01) return "<0.01/s";
  return `${value >= 1000 ? grouped.format(value) : digits(value)}/s`;
}

// Nothing short of all is 100 %, nothing more than none is 0 %.
export function percent(share) {
  if (missing(share)) return NONE;
  const value = share * 100;
  if (value === 0 || value === 100) return value.toFixed(0) + GAP + "%";
  return Math.min(99.9, Math.max(0.1, value)).toFixed(1) + GAP + "%";
}

export function duration(seconds) {
  if (missing(seconds)) return NONE;
  if (seconds < 1) return digits(seconds * 1000) + GAP + "ms";
  if (seconds < 60) return digits(seconds) + GAP + "s";
  return ago(seconds, 2);
}

// The largest units of a time: one of them, or two where it matters.
export function ago(seconds, parts = 1) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let rest = Math.max(0, Math.floor(seconds));
  const first = units.findIndex(([, length]) => rest >= length);
  const said = [];
  for (const [name, length] of units.slice(first === -1 ? 3 : first).slice(0, parts)) {
    if (said.length && rest < length) break;
    said.push(Math.floor(rest / length) + GAP + name);
    rest %= length;
  }
  return said.join(" ");
}

export function shortKey(key) {
  return `${key.slice(0, 16)}…`;
}
