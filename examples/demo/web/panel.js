// The side panel: the steps of the session, its counts and its end.

const STEPS = [
  ["socket", "WebSocket"],
  ["version", "RFB version"],
  ["security", "Security"],
  ["init", "Desktop"],
  ["streaming", "Updates"],
];

// The meaning of close codes (RFC 6455 §7.4.1).
const CODES = {
  1000: "Finished: one side closed on purpose.",
  1001: "Going away: the gateway is shutting down.",
  1002: "Protocol error: the other side saw WebSocket frames it could not accept.",
  1003: "Wrong kind of data.",
  1005: "Closed without a code.",
  1006: "Cut off: the connection ended without a Close frame. The gateway was killed, or the network failed.",
  1007: "Text that was not valid UTF-8.",
  1008: "Policy: the gateway ended this session.",
  1009: "A message was too big.",
  1011: "The desktop behind the gateway failed or cannot be reached.",
  4000: "This viewer closed the session after an error.",
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

  // Shows how the session ended; returns a title and a sentence.
  end(ending) {
    const waiting = by("steps").querySelector("[data-state=waiting]");
    if (waiting) this.#mark(waiting.dataset.step, "failed", "It did not get this far.");
    const description = describeEnd(ending);
    by("end").replaceChildren(...description.lines.map((line) => {
      const span = document.createElement("span");
      span.textContent = line;
      return span;
    }));
    by("end").hidden = by("end-title").hidden = false;
    return description;
  }

  // Call once a second with the session's counts.
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
      `${precise.format(counts.bytesIn / 1048576)} MiB in total. Message boundaries carry no meaning; ` +
      "this page reads the messages as one byte stream.";
    this.#draw();
  }

  // No session: the rates are zero.
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
    ? "TLS handshake, then an HTTP upgrade request."
    : "An HTTP upgrade request.";
}

function describe(name, detail, elapsed) {
  switch (name) {
    case "socket": {
      const tls = location.protocol === "https:" ? "TLS handshake, HTTP upgrade" : "HTTP upgrade (no TLS here)";
      const protocol = detail.subprotocol ? `Subprotocol: “${detail.subprotocol}”.` : "No subprotocol.";
      return `${tls} and the gateway's connection to the desktop: ${elapsed} in total. ${protocol}`;
    }
    case "version":
      return `The desktop sent ${detail.server}, the page answered ${detail.viewer}: twelve bytes each way.`;
    case "security":
      return `Offered: type ${detail.offered.join(", ")}. Chosen: 1, “None”. The gateway has already checked limits and Origin, and encrypts with TLS.`;
    case "init":
      return (
        `“${detail.name}”, ${detail.width} × ${detail.height} pixels of ${detail.bits} bits. ` +
        "The page requested the byte order of a canvas: red, green, blue."
      );
    default:
      return "Raw rectangles of what changed. The page requests the next update after each one, so that a slow viewer is never flooded.";
  }
}

function describeEnd({ code, reason, opened, error }) {
  if (error) {
    return { title: "Viewer error", text: `${capital(error.message)}.`, lines: [`${capital(error.message)}.`] };
  }
  if (!opened) {
    const text =
      "The WebSocket did not open: the gateway is not running, or it refused the connection. " +
      "Browsers hide the cause from pages; the gateway's log has it.";
    return { title: "Connection refused", text, lines: [text] };
  }
  const meaning = CODES[code] ?? "An application's own code.";
  const lines = [`Close code ${code}. ${meaning}`];
  if (reason) lines.push(`Reason: “${reason}”.`);
  return { title: code === 1000 ? "Closed" : `Closed with code ${code}`, text: reason ? `${meaning} “${reason}”` : meaning, lines };
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
