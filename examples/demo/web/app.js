// The page: one session at a time, the buttons, the panel.

import { Session } from "./rfb.js";
import { ESCAPE, listen } from "./input.js";
import { Panel } from "./panel.js";

const by = (id) => document.getElementById(id);
const screen = by("screen");
const panel = new Panel();
let session = null;
let paused = false;

// The gateway's route, on the address this page came from: same origin, whatever the port.
const address = new URL("/desktop", location.href);
address.protocol = address.protocol === "https:" ? "wss:" : "ws:";

function connect() {
  panel.begin();
  by("curtain").hidden = true;
  by("toggle").textContent = "Disconnect";
  showStatus("connecting", "Connecting");
  session = new Session(address.href, screen, {
    step(name, detail) {
      panel.step(name, detail);
      if (name === "streaming") updatePause();
    },
    size(width, height) {
      [screen.width, screen.height] = [width, height];
    },
    update() {},
    end(ending) {
      panel.count(session.counts);
      panel.rest();
      session = null;
      const { title, text } = panel.end(ending);
      showStatus("closed", ending.opened ? "Closed" : "Refused");
      by("curtain-title").textContent = title;
      by("curtain-text").textContent = text;
      by("curtain").hidden = false;
      by("toggle").textContent = "Reconnect";
      // Offer the reconnect button to the keyboard, unless the focus is elsewhere on the page.
      if (document.activeElement === screen) by("curtain-button").focus();
    },
  });
  updatePause();
}

// A hidden page pauses too.
function updatePause() {
  const idle = paused || document.hidden;
  session?.pause(idle);
  if (session && session.counts.updates > 0) showStatus(idle ? "paused" : "open", idle ? "Paused" : "Connected");
}

function showStatus(state, text) {
  by("status").dataset.state = state;
  by("status").textContent = text;
}

function toggle() {
  if (session) session.close();
  else connect();
}

by("toggle").addEventListener("click", toggle);
by("curtain-button").addEventListener("click", () => {
  connect();
  screen.focus();
});
by("pause").addEventListener("click", () => {
  paused = !paused;
  by("pause").textContent = paused ? "Resume" : "Pause";
  by("pause").setAttribute("aria-pressed", String(paused));
  updatePause();
});
by("wipe").addEventListener("click", () => {
  session?.key(ESCAPE, true);
  session?.key(ESCAPE, false);
});
by("keys").addEventListener("click", () => by("keyboard").focus());
document.addEventListener("visibilitychange", updatePause);

listen(screen, by("keyboard"), () => session);
setInterval(() => session && panel.count(session.counts), 1000);
connect();
