// Ties the page together: one session at a time, the buttons, the panel.

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
  say("connecting", "Connecting");
  session = new Session(address.href, screen, {
    step(name, detail) {
      panel.step(name, detail);
      if (name === "streaming") settle();
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
      say("closed", ending.opened ? "Closed" : "Refused");
      by("curtain-title").textContent = title;
      by("curtain-text").textContent = text;
      by("curtain").hidden = false;
      by("toggle").textContent = "Reconnect";
      // Nobody should have to look for the way back, unless they are busy elsewhere on the page.
      if (document.activeElement === screen) by("curtain-button").focus();
    },
  });
  settle();
}

// Pausing also happens by itself while nobody can see the page.
function settle() {
  const resting = paused || document.hidden;
  session?.pause(resting);
  if (session && session.counts.updates > 0) say(resting ? "paused" : "open", resting ? "Paused" : "Connected");
}

function say(state, words) {
  by("status").dataset.state = state;
  by("status").textContent = words;
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
  settle();
});
by("wipe").addEventListener("click", () => {
  session?.key(ESCAPE, true);
  session?.key(ESCAPE, false);
});
by("keys").addEventListener("click", () => by("keyboard").focus());
document.addEventListener("visibilitychange", settle);

listen(screen, by("keyboard"), () => session);
setInterval(() => session && panel.count(session.counts), 1000);
connect();
