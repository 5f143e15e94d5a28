// The side panel: describes the steps of the session, and shows its counters.

const STEPS = [
  ["socket", "Connection"],
  ["version", "RFB version"],
  ["security", "Security"],
  ["init", "Desktop parameters"],
  ["streaming", "Screen updates"],
];

// Close codes (RFC 6455 §7.4.1).
const CODES = {
  1000: "Normal closure.",
  1001: "Going away: the gateway is shutting down.",
  1002: "Protocol error: the peer received invalid WebSocket frames.",
  1003: "Unsupported data.",
  1005: "Closed without a code.",
  1006: "Connection lost: there was no Close frame. The gateway was killed, or the network is down.",
  1007: "A text message was not valid UTF-8.",
  1008: "Policy violation: the gateway does not allow this session.",
  1009: "A message was too large.",
  1011: "The desktop behind the gateway failed or is unreachable.",
  4000: "This viewer ended the session.",
};

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const precise = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });
const by = (id) => document.getElementById(id);

export class Panel {
  #started = 0;
  #previous = null;
  #history = [];
  #chart = by("chart");

  constructor() {
    by("link-outer").textContent = location.protocol === "https:" ? "wss" : "ws";
    by("gateway-host").textContent = location.port ? `port ${location.port}` : "gateway";
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe(this.#chart);
  }

  start() {
    this.#started = performance.now();
    this.#previous = null;
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

  // Shows how the session ended. Returns a title and a sentence.
  end(result) {
    const waiting = by("steps").querySelector("[data-state=waiting]");
    if (waiting) this.#mark(waiting.dataset.step, "failed", "Not reached.");
    const description = describeEnd(result);
    by("end").replaceChildren(...description.lines.map((line) => {
      const span = document.createElement("span");
      span.textContent = line;
      return span;
    }));
    by("end").hidden = by("end-title").hidden = false;
    return description;
  }

  // Called once a second with the session's counters.
  count(counts) {
    const now = performance.now();
    if (this.#previous) {
      const seconds = Math.max((now - this.#previous.now) / 1000, 0.001);
      const rate = (name) => (counts[name] - this.#previous.counts[name]) / seconds;
      by("updates").textContent = number.format(rate("updates"));
      by("rate-in").textContent = number.format(rate("bytesIn") / 1024);
      by("rate-out").textContent = precise.format(rate("bytesOut") / 1024);
      this.#history.push(rate("bytesIn") / 1024);
      if (this.#history.length > 60) this.#history.shift();
    } else {
      for (const id of ["updates", "rate-in", "rate-out"]) by(id).textContent = "0";
    }
    this.#previous = { now, counts: { ...counts } };
    const [messages, updates, rectangles] = [counts.messagesIn, counts.updates, counts.rectangles].map(number.format);
    by("totals").textContent =
      `${messages} WebSocket messages carried ${updates} updates with ${rectangles} rectangles, ` +
      `${precise.format(counts.bytesIn / 1048576)} MiB in all. The gateway may split the stream into messages anywhere; ` +
      "this page reads them as one byte stream.";
    this.#draw();
  }

  // Without a session all rates are zero.
  stop() {
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
    ? "TLS handshake, then the WebSocket upgrade request."
    : "The WebSocket upgrade request.";
}

function describe(name, detail, elapsed) {
  switch (name) {
    case "socket": {
      const tls = location.protocol === "https:" ? "TLS handshake, HTTP upgrade" : "HTTP upgrade (no TLS here)";
      const protocol = detail.subprotocol ? `Subprotocol: “${detail.subprotocol}”.` : "No subprotocol.";
      return `${tls} and the gateway's connection to the desktop: ${elapsed} in total. ${protocol}`;
    }
    case "version":
      return `The desktop offered ${detail.server}, the page chose ${detail.viewer}: twelve bytes in each direction.`;
    case "security":
      return `Offered: type ${detail.offered.join(", ")}. Chosen: 1, “None”. The gateway provides the protection: TLS, Origin check, limits.`;
    case "init":
      return (
        `“${detail.name}”, ${detail.width} × ${detail.height} pixels of ${detail.bits} bits. ` +
        "The page requested the pixel format of a canvas."
      );
    default:
      return "Raw rectangles of the changed areas. The page requests each update after the previous one, so a slow client is never flooded.";
  }
}

function describeEnd({ code, reason, opened, error }) {
  if (error) {
    return { title: "The viewer ended the session", text: `${capital(error.message)}.`, lines: [`${capital(error.message)}.`] };
  }
  if (!opened) {
    const text =
      "The WebSocket did not open: the gateway is not running, or it refused the connection. " +
      "Browsers hide the cause from pages; the gateway's log shows it.";
    return { title: "Connection refused", text, lines: [text] };
  }
  const meaning = CODES[code] ?? "An application-defined code.";
  const lines = [`Close code ${code}. ${meaning}`];
  if (reason) lines.push(`Reason: “${reason}”.`);
  return { title: code === 1000 ? "Closed" : `Closed with code ${code}`, text: reason ? `${meaning} “${reason}”` : meaning, lines };
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
