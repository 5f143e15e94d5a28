// The status page: asks /api/status and /api/sessions each second, and shows what they say. Everything that comes from
// the gateway is set as text, never as markup. It is a classic script, because browsers ask for a module with an Origin,
// and whoever asks with one is refused.
"use strict";

const SECONDS = 120;
const ROWS = 200;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

// Words and numbers for people.

function amount(number, units) {
  let unit = 0;
  while (number >= 999.5 && unit + 1 < units.length) {
    number /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || number >= 99.95 ? 0 : 1;
  return `${number.toFixed(digits)} ${units[unit]}`;
}
const bytes = (number) => amount(number, ["B", "kB", "MB", "GB", "TB", "PB"]);
const speed = (number) => (number === null ? "–" : `${bytes(number)}/s`);
const count = (number) => number.toLocaleString("en");
const perSecond = (number) => `${number < 10 ? number.toFixed(1) : Math.round(number)}/s`;

function duration(seconds) {
  const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = parts.findIndex(([, length]) => seconds >= length);
  if (first < 0) return "0 s";
  const words = [];
  for (const [unit, length] of parts.slice(first, first + 2)) {
    const whole = Math.floor(seconds / length);
    if (whole > 0) words.push(`${whole} ${unit}`);
    seconds -= whole * length;
  }
  return words.join(" ");
}

// Elements.

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Lines over the last two minutes, the newest at the right edge. `lines`: [{name, values, shown}]. */
function plot(figure, lines, most) {
  const top = Math.max(most ?? 0, ...lines.flatMap((line) => line.values), 1e-9) * 1.05;
  const svg = figure.querySelector("svg");
  svg.setAttribute("viewBox", `0 0 ${SECONDS} 60`);
  svg.setAttribute("preserveAspectRatio", "none");
  const ground = document.createElementNS(SVG, "line");
  for (const [name, value] of [["x1", 0], ["x2", SECONDS], ["y1", 59.5], ["y2", 59.5], ["class", "ground"]]) {
    ground.setAttribute(name, value);
  }
  const drawn = lines.map((line, index) => {
    const polyline = document.createElementNS(SVG, "polyline");
    const start = SECONDS - line.values.length + 1;
    const points = line.values.map((value, at) => `${start + at},${(59 - (value / top) * 57).toFixed(2)}`);
    polyline.setAttribute("points", points.join(" "));
    polyline.setAttribute("class", `c${index}`);
    return polyline;
  });
  svg.replaceChildren(ground, ...drawn);
  const caption = figure.querySelector("figcaption").textContent;
  const said = lines.map((line) => `${line.name} ${line.shown}`).join(", ");
  svg.setAttribute("aria-label", `${caption}: ${said || "nothing"}`);
  const items = lines.map((line, index) => {
    const item = element("li", line.name, `c${index}`);
    item.append(element("b", line.shown));
    return item;
  });
  figure.querySelector("ul").replaceChildren(...(items.length ? items : [element("li", "nobody", "plain")]));
}

// What was seen, second by second.

const past = [];
const series = (of) => past.map(of);
const newest = (of) => (past.length ? of(past.at(-1)) : 0);
let before = null;

/** Notes what has changed since the last look. */
function note(status, at) {
  // Asked for out of turn.
  if (before && at - before.at < 500) return;
  const ends = new Map(status.ends.map((end) => [end.reason, end]));
  if (before && status.started === before.status.started) {
    const seconds = Math.max((at - before.at) / 1000, 0.001);
    const rate = (now, then) => Math.max(now - then, 0) / seconds;
    const refused = new Map();
    for (const [reason, end] of ends) {
      if (end.at !== "refused" && end.at !== "dial") continue;
      refused.set(reason, rate(end.count, before.ends.get(reason)?.count ?? 0));
    }
    past.push({
      in: rate(status.bytes_in, before.status.bytes_in),
      out: rate(status.bytes_out, before.status.bytes_out),
      sessions: status.sessions.in_use,
      handshakes: status.handshakes.in_use,
      opened: rate(status.sessions_opened, before.status.sessions_opened),
      refused,
    });
    if (past.length > SECONDS) past.shift();
  } else {
    past.length = 0;
  }
  before = { status, at, ends };
}

function showPlots(status) {
  plot(byId("throughput"), [
    { name: "from clients", values: series((seen) => seen.in), shown: speed(newest((seen) => seen.in)) },
    { name: "to clients", values: series((seen) => seen.out), shown: speed(newest((seen) => seen.out)) },
  ]);
  plot(byId("live"), [
    { name: "live", values: series((seen) => seen.sessions), shown: count(status.sessions.in_use) },
  ]);
  plot(byId("arrivals"), [
    { name: "under way", values: series((seen) => seen.handshakes), shown: count(status.handshakes.in_use) },
    { name: "new sessions", values: series((seen) => seen.opened), shown: perSecond(newest((seen) => seen.opened)) },
  ]);
  const sums = new Map();
  for (const seen of past) {
    for (const [reason, rate] of seen.refused) sums.set(reason, (sums.get(reason) ?? 0) + rate);
  }
  const reasons = [...sums].filter(([, sum]) => sum > 0).sort((a, b) => b[1] - a[1]).slice(0, 4);
  plot(byId("refusals"), reasons.map(([reason]) => ({
    name: reason,
    values: series((seen) => seen.refused.get(reason) ?? 0),
    shown: perSecond(newest((seen) => seen.refused.get(reason) ?? 0)),
  })));
}

// The parts that are told as they are.

function showState(status) {
  const words = status.draining ? "draining" : status.ready ? "ready" : "not ready";
  setText(byId("state"), words);
  byId("state").className = `state ${status.ready ? "good" : "bad"}`;
  document.title = `${status.sessions.in_use} sessions, ${words} – Portcullis`;
  const age = duration((Date.parse(status.now) - Date.parse(status.started)) / 1000);
  const loaded = new Date(status.loaded).toLocaleString();
  const memory = status.process.resident_bytes === null ? "" : `, ${bytes(status.process.resident_bytes)} of memory`;
  const failed = status.reloads.failed ? `, ${status.reloads.failed} refused` : "";
  setText(byId("facts"), `version ${status.version}, running for ${age}, configuration of ${loaded}${failed}${memory}`);
  byId("drain").disabled = status.draining;
  byId("reload").disabled = status.draining;
}

const meters = new Map();

function showLimits(status) {
  const { process } = status;
  const limits = [
    ["Sessions", status.sessions.in_use, status.sessions.limit],
    ["Handshakes", status.handshakes.in_use, status.handshakes.limit],
  ];
  if (process.open_fds !== null && process.max_fds !== null) {
    limits.push(["Descriptors", process.open_fds, process.max_fds]);
  }
  for (const [name, used, most] of limits) {
    let shown = meters.get(name);
    if (!shown) {
      shown = { meter: element("meter"), words: element("dd") };
      shown.meter.setAttribute("aria-label", name);
      const bar = element("dd");
      bar.append(shown.meter);
      byId("limits").append(element("dt", name), bar, shown.words);
      meters.set(name, shown);
    }
    Object.assign(shown.meter, { max: most, low: most * 0.7, high: most * 0.9, optimum: 0, value: used });
    const share = most > 0 ? (100 * used) / most : 100;
    setText(shown.words, `${count(used)} of ${count(most)}, ${share.toFixed(share < 10 ? 1 : 0)} %`);
  }
}

function showListeners(listeners) {
  const rows = listeners.map((listener) => {
    const row = element("tr");
    row.append(element("td", listener.address));
    const left = listener.expires_in_seconds;
    let [words, mark] = ["none: plain ws://", ""];
    if (left !== null && left <= 0) {
      [words, mark] = ["has expired", "bad"];
    } else if (left !== null) {
      const day = (listener.certificate_expiry ?? "").slice(0, 10);
      [words, mark] = [`ends in ${duration(left)}${day && `, on ${day}`}`, left < 14 * 86400 ? "bad" : "good"];
    } else if (listener.tls) {
      words = "does not tell its end";
    }
    row.append(element("td", words, mark));
    return row;
  });
  const none = element("tr");
  none.append(element("td", "none: nobody is accepted"), element("td", "–"));
  byId("listeners").tBodies[0].replaceChildren(...(rows.length ? rows : [none]));
}

function showBackends(backends) {
  byId("backends").tBodies[0].replaceChildren(...backends.map((backend) => {
    const row = element("tr");
    row.append(
      element("td", backend.route),
      element("td", backend.backend),
      element("td", backend.up ? "up" : "down", backend.up ? "good" : "bad"),
      element("td", count(backend.sessions), "number"),
    );
    return row;
  }));
}

function showEnds(ends) {
  byId("ends").replaceChildren(...ends.map((end) => {
    const item = element("li", `${end.reason} `);
    item.append(element("b", count(end.count)));
    return item;
  }));
  if (!ends.length) byId("ends").append(element("li", "none has ended yet"));
}

// Sessions: a row keeps its place and its button while the session lives, so that nobody clicks on the wrong one.

const rows = new Map();

function rowOf(session) {
  let shown = rows.get(session.id);
  if (!shown) {
    const row = element("tr");
    const numbers = new Set([0, 4, 5, 6, 7, 8, 9, 10]);
    const cells = Array.from({ length: 11 }, (_, at) => element("td", "", numbers.has(at) ? "number" : ""));
    const button = element("button", "End …", "grave");
    button.type = "button";
    button.setAttribute("aria-label", `End session ${session.id} …`);
    button.addEventListener("click", () => askToKill(session));
    const last = element("td");
    last.append(button);
    row.append(...cells, last);
    row.dataset.session = session.id;
    shown = { row, cells };
    rows.set(session.id, shown);
  }
  [
    String(session.id), session.peer, session.route, session.backend ?? "–",
    duration(session.age_seconds), bytes(session.bytes_in), bytes(session.bytes_out),
    speed(session.rate_in), speed(session.rate_out),
    session.round_trip_ms === null ? "–" : `${session.round_trip_ms.toFixed(1)} ms`,
    session.buffered ? bytes(session.buffered) : "–",
  ].forEach((text, at) => setText(shown.cells[at], text));
  return shown.row;
}

function showSessions(list) {
  const body = byId("sessions").tBodies[0];
  const live = new Set(list.sessions.map((session) => session.id));
  for (const [id, { row }] of rows) {
    if (live.has(id)) continue;
    row.remove();
    rows.delete(id);
  }
  list.sessions.forEach((session, at) => {
    const row = rowOf(session);
    if (body.rows[at] !== row) body.insertBefore(row, body.rows[at] ?? null);
  });
  const shown = list.sessions.length < list.matching ? `, the oldest ${count(list.sessions.length)} shown` : "";
  const found = list.matching === list.live ? "" : `${count(list.matching)} of `;
  setText(byId("count"), `${found}${count(list.live)} live${shown}`);
}

// Asking.

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10_000) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

/** Has something done. The gateway wants to see that it is this page which asks. */
async function order(method, path) {
  const answer = await fetch(path, {
    method,
    headers: { "X-Portcullis": "status-page" },
    signal: AbortSignal.timeout(70_000),
  });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error ?? `${path}: ${answer.status}`);
  return said;
}

function say(words, isBad) {
  setText(byId("message"), words);
  byId("message").className = isBad ? "bad" : "";
}

let isGone = false;

async function look() {
  try {
    const query = new URLSearchParams({ limit: ROWS });
    const find = byId("find").value.trim();
    if (find) query.set("find", find);
    const at = performance.now();
    const [status, list] = await Promise.all([get("api/status"), get(`api/sessions?${query}`)]);
    note(status, at);
    showState(status);
    showPlots(status);
    showLimits(status);
    showListeners(status.listeners);
    showBackends(status.backends);
    showEnds(status.ends);
    // Somebody has typed on meanwhile.
    if (find === byId("find").value.trim()) showSessions(list);
    if (isGone) say("The gateway answers again.");
    isGone = false;
  } catch (error) {
    isGone = true;
    setText(byId("state"), "no answer");
    byId("state").className = "state bad";
    say(`The gateway does not answer: ${error.message}`, true);
  }
}

let turn = 0;

/** Looks now, and again each second; a newer call takes over. */
async function keepLooking() {
  turn += 1;
  const mine = turn;
  while (mine === turn) {
    const start = performance.now();
    if (!document.hidden) await look();
    await new Promise((done) => setTimeout(done, Math.max(1000 - (performance.now() - start), 100)));
  }
}

// Orders, each after a question.

function ask(title, words, yes, withReason) {
  setText(byId("ask-title"), title);
  setText(byId("ask-words"), words);
  setText(byId("ask-yes"), yes);
  byId("ask-reason").hidden = !withReason;
  byId("reason").value = "";
  const dialog = byId("ask");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  });
}

async function carryOut(what) {
  try {
    say(await what());
  } catch (error) {
    say(error.message, true);
  }
  keepLooking();
}

async function askToKill(session) {
  const words = `The connection of ${session.peer} to ${session.backend ?? session.route} is closed with code 1008.`;
  if (!(await ask(`End session ${session.id}?`, words, "End it", true))) return;
  const reason = byId("reason").value.trim();
  const query = reason ? `?${new URLSearchParams({ reason })}` : "";
  await carryOut(async () => {
    await order("DELETE", `api/sessions/${session.id}${query}`);
    return `Session ${session.id} was told to end.`;
  });
}

byId("reload").addEventListener("click", async () => {
  const words = "The configuration is read again. Sessions go on; if something is wrong with it, nothing changes.";
  if (!(await ask("Reload the configuration?", words, "Reload", false))) return;
  await carryOut(async () => (await order("POST", "api/reload")).message);
});

byId("drain").addEventListener("click", async () => {
  const words = "Nobody is accepted any more, and every session is closed with code 1001. Only a new start ends this.";
  if (!(await ask("Send everybody away?", words, "Drain", false))) return;
  await carryOut(async () => (await order("POST", "api/drain")).message);
});

byId("find").addEventListener("input", keepLooking);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) keepLooking();
});
keepLooking();
