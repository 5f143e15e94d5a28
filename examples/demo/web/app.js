// The page: one session at a time, the buttons, the panel.

import { Session } from "./rfb.js";
import { ESCAPE, listen } from "./input.js";
import { Panel } from "./panel.js";

const by = (id) => document.getElementById(id);
const screen = by("screen");
const panel = new Panel();
let session = null;
let paused = false;

// The gateway's route, on the page's own origin.
const address = new URL("/desktop", location.href);
address.protocol = address.protocol === "https:" ? "wss:" : "ws:";

function connect() {
  panel.start();
  by("overlay").hidden = true;
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
    end(result) {
      panel.count(session.counts);
      panel.stop();
      session = null;
      const { title, text } = panel.end(result);
      showStatus("closed", result.opened ? "Closed" : "Refused");
      by("overlay-title").textContent = title;
      by("overlay-text").textContent = text;
      by("overlay").hidden = false;
      by("toggle").textContent = "Reconnect";
      // Focus the button, unless the user is using another part of the page.
      if (document.activeElement === screen) by("overlay-button").focus();
    },
  });
  updatePause();
}

// Pauses on request, and while the page is hidden.
function updatePause() {
  const pausing = paused || document.hidden;
  session?.pause(pausing);
  if (session && session.counts.updates > 0) showStatus(pausing ? "paused" : "open", pausing ? "Paused" : "Connected");
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
by("overlay-button").addEventListener("click", () => {
  connect();
  screen.focus();
});
by("pause").addEventListener("click", () => {
  paused = !paused;
  by("pause").textContent = paused ? "Resume" : "Pause";
  by("pause").setAttribute("aria-pressed", String(paused));
  updatePause();
});
by("clear").addEventListener("click", () => {
  session?.key(ESCAPE, true);
  session?.key(ESCAPE, false);
});
by("keys").addEventListener("click", () => by("keyboard").focus());
document.addEventListener("visibilitychange", updatePause);

listen(screen, by("keyboard"), () => session);
setInterval(() => session && panel.count(session.counts), 1000);
connect();
