// The status page: polls /api/status and /api/sessions each second. Everything from the gateway is set as text, never as
// markup. A classic script, because browsers request modules with an Origin header, which the gateway refuses.
"use strict";

const SECONDS = 120;
const ROWS = 200;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

// Formatting.

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
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, length]) => seconds >= length);
  if (first < 0) return "0 s";
  const parts = [];
  for (const [unit, length] of units.slice(first, first + 2)) {
    const whole = Math.floor(seconds / length);
    if (whole > 0) parts.push(`${whole} ${unit}`);
    seconds -= whole * length;
  }
  return parts.join(" ");
}

// Elements.

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Plots the last two minutes, the newest value at the right edge. `lines`: [{name, values, current}]. */
function plot(figure, lines) {
  const top = Math.max(...lines.flatMap((line) => line.values), 1e-9) * 1.05;
  const svg = figure.querySelector("svg");
  svg.setAttribute("viewBox", `0 0 ${SECONDS} 60`);
  svg.setAttribute("preserveAspectRatio", "none");
  const baseline = document.createElementNS(SVG, "line");
  for (const [name, value] of [["x1", 0], ["x2", SECONDS], ["y1", 59.5], ["y2", 59.5], ["class", "baseline"]]) {
    baseline.setAttribute(name, value);
  }
  const polylines = lines.map((line, index) => {
    const polyline = document.createElementNS(SVG, "polyline");
    const start = SECONDS - line.values.length + 1;
    const points = line.values.map((value, at) => `${start + at},${(59 - (value / top) * 57).toFixed(2)}`);
    polyline.setAttribute("points", points.join(" "));
    polyline.setAttribute("class", `c${index}`);
    return polyline;
  });
  svg.replaceChildren(baseline, ...polylines);
  const caption = figure.querySelector("figcaption").textContent;
  const summary = lines.map((line) => `${line.name} ${line.current}`).join(", ");
  svg.setAttribute("aria-label", `${caption}: ${summary || "none"}`);
  const items = lines.map((line, index) => {
    const item = element("li", line.name, `c${index}`);
    item.append(element("b", line.current));
    return item;
  });
  figure.querySelector("ul").replaceChildren(...(items.length ? items : [element("li", "none", "plain")]));
}

// Samples, one per second.

const samples = [];
const series = (value) => samples.map(value);
const newest = (value) => (samples.length ? value(samples.at(-1)) : 0);
let before = null;

/** Adds a sample: the gauges and the rates since the previous status. */
function record(status, at) {
  // An extra poll, after a command or while typing: too short for a rate.
  if (before && at - before.at < 500) return;
  const reasons = new Map(status.ends.map((entry) => [entry.reason, entry]));
  if (before && status.started === before.status.started) {
    const seconds = Math.max((at - before.at) / 1000, 0.001);
    const rate = (now, then) => Math.max(now - then, 0) / seconds;
    const refused = new Map();
    for (const [reason, entry] of reasons) {
      if (entry.at !== "refused" && entry.at !== "dial") continue;
      refused.set(reason, rate(entry.count, before.reasons.get(reason)?.count ?? 0));
    }
    samples.push({
      in: rate(status.bytes_in, before.status.bytes_in),
      out: rate(status.bytes_out, before.status.bytes_out),
      sessions: status.sessions.in_use,
      handshakes: status.handshakes.in_use,
      opened: rate(status.sessions_opened, before.status.sessions_opened),
      refused,
    });
    if (samples.length > SECONDS) samples.shift();
  } else {
    samples.length = 0;
  }
  before = { status, at, reasons };
}

function showPlots(status) {
  plot(byId("throughput"), [
    { name: "from clients", values: series((sample) => sample.in), current: speed(newest((sample) => sample.in)) },
    { name: "to clients", values: series((sample) => sample.out), current: speed(newest((sample) => sample.out)) },
  ]);
  plot(byId("open-sessions"), [
    { name: "open", values: series((sample) => sample.sessions), current: count(status.sessions.in_use) },
  ]);
  plot(byId("handshakes"), [
    { name: "in progress", values: series((sample) => sample.handshakes), current: count(status.handshakes.in_use) },
    { name: "new sessions", values: series((sample) => sample.opened), current: perSecond(newest((sample) => sample.opened)) },
  ]);
  const sums = new Map();
  for (const sample of samples) {
    for (const [reason, rate] of sample.refused) sums.set(reason, (sums.get(reason) ?? 0) + rate);
  }
  const reasons = [...sums].filter(([, sum]) => sum > 0).sort((a, b) => b[1] - a[1]).slice(0, 4);
  plot(byId("refusals"), reasons.map(([reason]) => ({
    name: reason,
    values: series((sample) => sample.refused.get(reason) ?? 0),
    current: perSecond(newest((sample) => sample.refused.get(reason) ?? 0)),
  })));
}

// Everything that has no history.

function showState(status) {
  const state = status.draining ? "draining" : status.ready ? "ready" : "not ready";
  setText(byId("state"), state);
  byId("state").className = `state ${status.ready ? "good" : "bad"}`;
  document.title = `${status.sessions.in_use} sessions, ${state} – Portcullis`;
  const age = duration((Date.parse(status.now) - Date.parse(status.started)) / 1000);
  const loaded = new Date(status.loaded).toLocaleString();
  const memory = status.process.resident_bytes === null ? "" : `, ${bytes(status.process.resident_bytes)} of memory`;
  const failed = status.reloads.failed ? `, failed reloads: ${status.reloads.failed}` : "";
  setText(byId("facts"), `version ${status.version}, running for ${age}, configuration loaded ${loaded}${failed}${memory}`);
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
  for (const [name, used, limit] of limits) {
    let row = meters.get(name);
    if (!row) {
      row = { meter: element("meter"), text: element("dd") };
      row.meter.setAttribute("aria-label", name);
      const bar = element("dd");
      bar.append(row.meter);
      byId("limits").append(element("dt", name), bar, row.text);
      meters.set(name, row);
    }
    Object.assign(row.meter, { max: limit, low: limit * 0.7, high: limit * 0.9, optimum: 0, value: used });
    const share = limit > 0 ? (100 * used) / limit : 100;
    setText(row.text, `${count(used)} of ${count(limit)}, ${share.toFixed(share < 10 ? 1 : 0)} %`);
  }
}

function showListeners(listeners) {
  const rows = listeners.map((listener) => {
    const row = element("tr");
    row.append(element("td", listener.address));
    const left = listener.expires_in_seconds;
    let [text, className] = ["none: plain ws://", ""];
    if (left !== null && left <= 0) {
      [text, className] = ["expired", "bad"];
    } else if (left !== null) {
      const day = (listener.certificate_expiry ?? "").slice(0, 10);
      [text, className] = [`expires in ${duration(left)}${day && `, on ${day}`}`, left < 14 * 86400 ? "bad" : "good"];
    } else if (listener.tls) {
      text = "unknown expiry";
    }
    row.append(element("td", text, className));
    return row;
  });
  const none = element("tr");
  none.append(element("td", "none: no new connections"), element("td", "–"));
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

function showReasons(reasons) {
  byId("reasons").replaceChildren(...reasons.map((entry) => {
    const item = element("li", `${entry.reason} `);
    item.append(element("b", count(entry.count)));
    return item;
  }));
  if (!reasons.length) byId("reasons").append(element("li", "none"));
}

// Sessions: a row and its button are kept while the session is open, so that a refresh neither moves the focus nor swaps
// the button under the pointer.

const rows = new Map();

function rowOf(session) {
  let entry = rows.get(session.id);
  if (!entry) {
    const row = element("tr");
    const numbers = new Set([0, 4, 5, 6, 7, 8, 9, 10]);
    const cells = Array.from({ length: 11 }, (_, at) => element("td", "", numbers.has(at) ? "number" : ""));
    const button = element("button", "Close …", "danger");
    button.type = "button";
    button.setAttribute("aria-label", `Close session ${session.id} …`);
    button.addEventListener("click", () => confirmKill(session));
    const last = element("td");
    last.append(button);
    row.append(...cells, last);
    row.dataset.session = session.id;
    entry = { row, cells };
    rows.set(session.id, entry);
  }
  [
    String(session.id), session.peer, session.route, session.backend ?? "–",
    duration(session.age_seconds), bytes(session.bytes_in), bytes(session.bytes_out),
    speed(session.rate_in), speed(session.rate_out),
    session.round_trip_ms === null ? "–" : `${session.round_trip_ms.toFixed(1)} ms`,
    session.buffered ? bytes(session.buffered) : "–",
  ].forEach((text, at) => setText(entry.cells[at], text));
  return entry.row;
}

function showSessions(list) {
  const body = byId("sessions").tBodies[0];
  const open = new Set(list.sessions.map((session) => session.id));
  for (const [id, { row }] of rows) {
    if (open.has(id)) continue;
    row.remove();
    rows.delete(id);
  }
  list.sessions.forEach((session, at) => {
    const row = rowOf(session);
    if (body.rows[at] !== row) body.insertBefore(row, body.rows[at] ?? null);
  });
  const cut = list.sessions.length < list.matching ? `, showing the oldest ${count(list.sessions.length)}` : "";
  const matching = list.matching === list.live ? "" : `${count(list.matching)} of `;
  setText(byId("count"), `${matching}${count(list.live)} open${cut}`);
}

// Requests.

async function get(path) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10_000) });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

/** Sends a command, with the header field by which the gateway recognises this page. */
async function command(method, path) {
  const response = await fetch(path, {
    method,
    headers: { "X-Portcullis": "status-page" },
    signal: AbortSignal.timeout(70_000),
  });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error ?? `${path}: ${response.status}`);
  return body;
}

function showMessage(text, isError) {
  setText(byId("message"), text);
  byId("message").className = isError ? "bad" : "";
}

let isUnreachable = false;

async function refresh() {
  try {
    const query = new URLSearchParams({ limit: ROWS });
    const find = byId("find").value.trim();
    if (find) query.set("find", find);
    const at = performance.now();
    const [status, list] = await Promise.all([get("api/status"), get(`api/sessions?${query}`)]);
    record(status, at);
    showState(status);
    showPlots(status);
    showLimits(status);
    showListeners(status.listeners);
    showBackends(status.backends);
    showReasons(status.ends);
    // Not if the filter has changed meanwhile.
    if (find === byId("find").value.trim()) showSessions(list);
    if (isUnreachable) showMessage("The gateway responds again.");
    isUnreachable = false;
  } catch (error) {
    isUnreachable = true;
    setText(byId("state"), "unreachable");
    byId("state").className = "state bad";
    showMessage(`The gateway does not respond: ${error.message}`, true);
  }
}

let latest = 0;

/** Refreshes now and then each second; a newer call replaces this loop. */
async function poll() {
  latest += 1;
  const own = latest;
  while (own === latest) {
    const start = performance.now();
    if (!document.hidden) await refresh();
    await new Promise((resolve) => setTimeout(resolve, Math.max(1000 - (performance.now() - start), 100)));
  }
}

// Commands, each after a confirmation.

function confirmAction(title, text, yes, withReason) {
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  setText(byId("confirm-yes"), yes);
  byId("confirm-reason").hidden = !withReason;
  byId("reason").value = "";
  const dialog = byId("confirm");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

async function run(action) {
  try {
    showMessage(await action());
  } catch (error) {
    showMessage(error.message, true);
  }
  poll();
}

async function confirmKill(session) {
  const text = `Closes the connection from ${session.peer} to ${session.backend ?? session.route} with code 1008.`;
  if (!(await confirmAction(`Close session ${session.id}?`, text, "Close", true))) return;
  const reason = byId("reason").value.trim();
  const query = reason ? `?${new URLSearchParams({ reason })}` : "";
  await run(async () => {
    await command("DELETE", `api/sessions/${session.id}${query}`);
    return `Session ${session.id} is being closed.`;
  });
}

byId("reload").addEventListener("click", async () => {
  const text = "Reloads the configuration. Open sessions continue; if it is invalid, nothing changes.";
  if (!(await confirmAction("Reload the configuration?", text, "Reload", false))) return;
  await run(async () => (await command("POST", "api/reload")).message);
});

byId("drain").addEventListener("click", async () => {
  const text = "Stops accepting connections and closes every session with code 1001. Only a restart undoes this.";
  if (!(await confirmAction("Drain the gateway?", text, "Drain", false))) return;
  await run(async () => (await command("POST", "api/drain")).message);
});

byId("find").addEventListener("input", poll);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) poll();
});
poll();
