// The daemon's answers: JSON, or an error that says whether the daemon was there at all.

const TIMEOUT_MS = 10_000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Unreachable extends Error {}

async function ask(method, path, headers = {}) {
  let response;
  try {
    response = await fetch(path, { method, headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  } catch {
    throw new Unreachable("no answer");
  }
  if (response.ok) return response.status === 204 ? null : read(response);
  const body = await response.json().catch(() => ({}));
  throw new Refused(response.status, body.message ?? `the daemon answered ${response.status}`);
}

async function read(response) {
  try {
    return await response.json();
  } catch {
    throw new Unreachable("the answer broke off");
  }
}

export const state = (since) => ask("GET", `/dashboard/state?since=${since}`);
export const chunk = (key) => ask("GET", `/dashboard/chunks/${key}`);
export const logIn = (key) => ask("POST", "/dashboard/session", { Authorization: `Bearer ${key}` });
export const logOut = () => ask("DELETE", "/dashboard/session");
