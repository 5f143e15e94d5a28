// The side panel: says in words what the session tells, and counts.

const STEPS = [
  ["socket", "The gate opens"],
  ["version", "RFB version"],
  ["security", "Security"],
  ["init", "The desktop introduces itself"],
  ["streaming", "The picture flows"],
];

// RFC 6455 §7.4.1 in plain words.
const CODES = {
  1000: "Finished: one side closed on purpose.",
  1001: "Going away: the gateway is shutting down.",
  1002: "Protocol error: the other side saw WebSocket frames it could not accept.",
  1003: "Wrong kind of data.",
  1005: "Closed without a code.",
  1006: "Cut off: the connection vanished without a goodbye. The gateway was stopped hard, or the network is gone.",
  1007: "Text that was not valid UTF-8.",
  1008: "Policy: the gateway does not want this session.",
  1009: "A message was too big.",
  1011: "The desktop behind the gateway failed or cannot be reached.",
  4000: "This viewer gave up.",
};

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const precise = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });
const by = (id) => document.getElementById(id);

export class Panel {
  #started = 0;
  #before = null;
  #history = [];
  #chart = by("chart");

  constructor() {
    by("link-outer").textContent = location.protocol === "https:" ? "wss" : "ws";
    by("gate-host").textContent = location.port ? `port ${location.port}` : "gateway";
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe(this.#chart);
  }

  begin() {
    this.#started = performance.now();
    this.#before = null;
    this.#history = [];
    by("end").hidden = by("end-title").hidden = true;
    by("steps").replaceChildren(
      ...STEPS.map(([name, title]) => {
        const item = document.createElement("li");
        item.dataset.step = name;
        const heading = document.createElement("b");
        heading.textContent = title;
        const time = document.createElement("time");
        const text = document.createElement("p");
        item.append(heading, time, text);
        return item;
      }),
    );
    this.#mark("socket", "waiting", describeWait());
    this.count({ bytesIn: 0, bytesOut: 0, messagesIn: 0, messagesOut: 0, updates: 0, rectangles: 0 });
  }

  step(name, detail) {
    const elapsed = `${number.format(performance.now() - this.#started)} ms`;
    this.#mark(name, "done", describe(name, detail, elapsed));
    const item = this.#item(name);
    item.querySelector("time").textContent = elapsed;
    const next = item.nextElementSibling;
    if (next) this.#mark(next.dataset.step, "waiting", "…");
  }

  // Says how it ended, and answers with the same in two parts: a title and a sentence.
  end(ending) {
    const waiting = by("steps").querySelector("[data-state=waiting]");
    if (waiting) this.#mark(waiting.dataset.step, "failed", "It did not get this far.");
    const told = describeEnd(ending);
    by("end").replaceChildren(...told.lines.map((line) => {
      const span = document.createElement("span");
      span.textContent = line;
      return span;
    }));
    by("end").hidden = by("end-title").hidden = false;
    return told;
  }

  // To be called once a second with the session's counts.
  count(counts) {
    const now = performance.now();
    if (this.#before) {
      const seconds = Math.max((now - this.#before.now) / 1000, 0.001);
      const rate = (name) => (counts[name] - this.#before.counts[name]) / seconds;
      by("updates").textContent = number.format(rate("updates"));
      by("rate-in").textContent = number.format(rate("bytesIn") / 1024);
      by("rate-out").textContent = precise.format(rate("bytesOut") / 1024);
      this.#history.push(rate("bytesIn") / 1024);
      if (this.#history.length > 60) this.#history.shift();
    } else {
      for (const id of ["updates", "rate-in", "rate-out"]) by(id).textContent = "0";
    }
    this.#before = { now, counts: { ...counts } };
    const [messages, updates, rectangles] = [counts.messagesIn, counts.updates, counts.rectangles].map(number.format);
    by("totals").textContent =
      `${messages} WebSocket messages carried ${updates} updates with ${rectangles} rectangles, ` +
      `${precise.format(counts.bytesIn / 1048576)} MiB in all. The gateway cuts messages wherever bytes happen to arrive; ` +
      "this page reads them as one stream, so it does not matter where.";
    this.#draw();
  }

  // No session: rates are zero, the history moves on.
  rest() {
    for (const id of ["updates", "rate-in", "rate-out"]) by(id).textContent = "0";
  }

  #item(name) {
    return by("steps").querySelector(`[data-step=${name}]`);
  }

  #mark(name, state, text) {
    const item = this.#item(name);
    item.dataset.state = state;
    item.querySelector("p").textContent = text;
  }

  #draw() {
    const canvas = this.#chart;
    const box = canvas.getBoundingClientRect();
    const scale = devicePixelRatio || 1;
    const [width, height] = [Math.round(box.width * scale), Math.round(box.height * scale)];
    if (width === 0 || height === 0) return;
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    const top = Math.max(64, ...this.#history) * 1.15;
    const step = width / 59;
    const points = this.#history.map((value, index) => [
      width - (this.#history.length - 1 - index) * step,
      height - 1 - (value / top) * (height - 2),
    ]);
    if (points.length < 2) return;
    context.beginPath();
    points.forEach(([x, y]) => context.lineTo(x, y));
    context.strokeStyle = style.color;
    context.lineWidth = 1.75 * scale;
    context.lineJoin = "round";
    context.stroke();
    context.lineTo(width, height);
    context.lineTo(points[0][0], height);
    context.globalAlpha = 0.18;
    context.fillStyle = style.color;
    context.fill();
    context.globalAlpha = 1;
  }
}

function describeWait() {
  return location.protocol === "https:"
    ? "TLS handshake, then an HTTP request that asks to become a WebSocket."
    : "An HTTP request that asks to become a WebSocket.";
}

function describe(name, detail, elapsed) {
  switch (name) {
    case "socket": {
      const tls = location.protocol === "https:" ? "TLS handshake, HTTP upgrade" : "HTTP upgrade (no TLS here)";
      const protocol = detail.subprotocol ? `Sub-protocol agreed: “${detail.subprotocol}”.` : "No sub-protocol.";
      return `${tls} and the gateway's own call to the desktop: ${elapsed} together. ${protocol}`;
    }
    case "version":
      return `The desktop greeted with ${detail.server}, the page answered ${detail.viewer}: twelve bytes each way.`;
    case "security":
      return `Offered: type ${detail.offered.join(", ")}. Chosen: 1, “None”. The guarding was done at the gate: TLS, Origin, limits.`;
    case "init":
      return (
        `“${detail.name}”, ${detail.width} × ${detail.height} pixels of ${detail.bits} bits. ` +
        "The page asked for red, green, blue in the order a canvas keeps them."
      );
    default:
      return "Raw rectangles of what changed. The page asks again after each update, so a slow reader is never flooded.";
  }
}

function describeEnd({ code, reason, opened, error }) {
  if (error) {
    return { title: "The viewer gave up", text: `${capital(error.message)}.`, lines: [`${capital(error.message)}.`] };
  }
  if (!opened) {
    const text =
      "The WebSocket did not open: the gateway is not running, or it said no. " +
      "Browsers do not show pages why; the gateway's log does.";
    return { title: "The gate stayed shut", text, lines: [text] };
  }
  const words = CODES[code] ?? "A code of the application's own.";
  const lines = [`Close code ${code}. ${words}`];
  if (reason) lines.push(`The reason given: “${reason}”.`);
  return { title: code === 1000 ? "Closed" : `Closed with code ${code}`, text: reason ? `${words} “${reason}”` : words, lines };
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
