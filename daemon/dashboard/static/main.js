// Login, and the loop that asks for the state: every two seconds, more rarely while the daemon is away or unseen.

import { logIn, logOut, Refused, state as ask } from "./api.js";
import { byId, say, set, show } from "./dom.js";
import { ago } from "./format.js";
import { History } from "./history.js";
import { Inspector } from "./inspector.js";
import { Figures, Links, Namespaces, Network, Slow, Tiers, Trends } from "./panels.js";
import { Planner } from "./planner.js";
import { Quality } from "./quality.js";

const EVERY_MS = 2_000;
const AWAY_MS_MAX = 30_000;

const history = new History();
const inspector = new Inspector();
const panels = [
  new Figures(), new Trends(), new Tiers(), new Links(), new Network(), new Namespaces(), new Planner(), new Quality(), new Slow(), inspector,
];
let timer = null;
let failures = 0;
let answeredAt = null;
let asking = false;
let nextAt = 0;
let reason = "";

function later(milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(poll, milliseconds);
}

async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  let state = null;
  try {
    state = await answer();
  } catch (error) {
    fail(error);
  } finally {
    asking = false;
  }
  if (state !== null) {
    failures = 0;
    answeredAt = new Date();
    later(EVERY_MS);
    draw(state);
  }
  tell();
}

async function answer() {
  const state = await ask(history.next);
  if (history.isOf(state)) return state;
  history.clear();
  return ask(0);
}

function fail(error) {
  if (error instanceof Refused && error.status === 401) {
    close(answeredAt === null ? "" : "The session has ended. Log in again.");
    return;
  }
  if (byId("board").hidden && error instanceof Refused) {
    close(error.message);
    return;
  }
  failures += 1;
  clearTimeout(timer);
  nextAt = Date.now() + Math.min(AWAY_MS_MAX, EVERY_MS * 2 ** (failures - 1));
  reason = error instanceof Refused ? `The daemon refused: ${error.message}.` : "Daemon not reachable.";
  later(nextAt - Date.now());
}

// Where nobody has seen anything yet the login says it, else a banner over the figures that were seen last.
function tell() {
  const away = failures > 0;
  document.body.toggleAttribute("data-away", away);
  show(byId("banner"), away);
  if (!away) {
    say(byId("updated"), answeredAt === null ? "" : `Updated ${answeredAt.toLocaleTimeString()}, every 2 seconds.`);
    return;
  }
  if (byId("board").hidden) show(byId("board"), true);
  show(byId("login"), false);
  const seen = answeredAt === null ? "Nothing has been seen of it yet." : `Figures are from ${answeredAt.toLocaleTimeString()}.`;
  say(byId("banner-text"), `${reason} ${seen}`);
  say(byId("banner-next"), asking ? "Trying now." : `Next try in ${ago(Math.max(1, (nextAt - Date.now()) / 1000))}.`);
  say(byId("phase"), "not reachable");
  set(byId("phase"), "data-tone", "bad");
}

function draw(state) {
  history.add(state);
  show(byId("login"), false);
  show(byId("board"), true);
  say(byId("phase"), state.phase);
  set(byId("phase"), "data-tone", state.phase === "ready" ? "good" : "warn");
  say(byId("about"), `${location.host}, up ${ago(state.uptime_seconds, 2)}, version ${state.version}`);
  say(byId("who"), state.scopes.includes("admin") ? `${state.tenant} (admin)` : `namespace ${state.tenant}`);
  document.title = `kvloom ${location.host}`;
  for (const panel of panels) panel.update(state, history);
}

function close(message) {
  clearTimeout(timer);
  failures = 0;
  answeredAt = null;
  history.clear();
  inspector.clear();
  show(byId("board"), false);
  show(byId("login"), true);
  complain(message);
  byId("login-key").focus();
}

function complain(message) {
  say(byId("login-error"), message);
  show(byId("login-error"), message !== "");
  set(byId("login-key"), "aria-invalid", message ? "true" : null);
}

byId("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = byId("login-key").value.trim();
  complain("");
  try {
    await logIn(key);
  } catch (error) {
    const wrong = error instanceof Refused && error.status === 401;
    complain(wrong ? "This key does not hold." : error instanceof Refused ? error.message : "Daemon not reachable. Try again.");
    return;
  }
  byId("login-key").value = "";
  poll();
});

byId("logout").addEventListener("click", async () => {
  try {
    await logOut();
  } catch (error) {
    if (!(error instanceof Refused)) {
      fail(error);
      tell();
      return;
    }
  }
  close("");
});

byId("banner-retry").addEventListener("click", poll);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !byId("board").hidden) poll();
});
setInterval(() => {
  if (failures > 0) tell();
}, 1_000);
poll();
