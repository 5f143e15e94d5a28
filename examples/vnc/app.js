// The page around the desktop: buttons, password, clipboard.

import { Banner } from '../lib/ui.js';

import { atRisk, fromCutText, toCutText } from './cuttext.js';
import { RemoteDesktop } from './desktop.js';

const byId = (id) => document.getElementById(id);
const [login, password, loginError] = ['login', 'password', 'login-error'].map(byId);
const [panel, text, note, share] = ['clipboard', 'clipboard-text', 'clipboard-note', 'clipboard-share'].map(byId);
const [screen, lastFrame, keys] = ['screen', 'last-frame', 'keys'].map(byId);

const setting = (name) => document.querySelector(`meta[name="${name}"]`).content;
const encoding = setting('clipboard');
const route = new URL(setting('gateway'), location.href);
route.protocol = route.protocol.replace('http', 'ws');

const desktop = new RemoteDesktop(screen, route);
const banner = new Banner(byId('banner'), () => desktop.connect());

// The connection.

desktop.addEventListener('state', ({ detail }) => {
  // While the password form is shown, its button connects.
  banner.show(detail, login.hidden ? {} : { button: detail.state === 'waiting' ? 'Try now' : null });
  enableControls(detail.state);
});

/** Enables the controls that need a connection. */
function enableControls(state) {
  byId('disconnect').disabled = state === 'closed';
  for (const control of [keys, byId('clipboard-send')]) control.disabled = state !== 'open' || desktop.viewOnly;
}

desktop.addEventListener('connected', ({ detail }) => {
  const hadFocus = document.activeElement === document.body || login.contains(document.activeElement);
  login.hidden = true;
  lastFrame.hidden = true;
  const canvas = screen.querySelector('canvas');
  canvas.tabIndex = 0;
  canvas.setAttribute('role', 'application');
  canvas.setAttribute('aria-label', `Desktop ${detail.name}`);
  canvas.setAttribute('aria-describedby', 'leave-hint');
  canvas.addEventListener('focus', sendLocalClipboard);
  if (hadFocus) desktop.focus();
});

// The last frame stays visible in grey, so that it is not mistaken for the desktop.
desktop.addEventListener('leaving', ({ detail: { canvas } }) => {
  lastFrame.width = canvas.width;
  lastFrame.height = canvas.height;
  lastFrame.getContext('2d').drawImage(canvas, 0, 0);
  lastFrame.hidden = false;
});

byId('disconnect').addEventListener('click', () => {
  login.hidden = true;
  desktop.disconnect();
});

// The password. The field keeps its value when the connection is lost.

desktop.addEventListener('ask', ({ detail }) => {
  loginError.hidden = !detail.error;
  loginError.textContent = detail.error ? `${detail.error} Please try again.` : '';
  if (login.hidden) {
    login.hidden = false;
    password.focus();
  } else if (detail.error) {
    password.focus();
  }
  if (detail.error) password.select();
});

login.addEventListener('submit', (event) => {
  event.preventDefault();
  loginError.hidden = true;
  desktop.usePassword(password.value);
});

byId('reveal').addEventListener('change', ({ target }) => {
  password.type = target.checked ? 'text' : 'password';
});

// Display and input.

function toggle(id, change) {
  const button = byId(id);
  button.addEventListener('click', () => {
    const pressed = button.getAttribute('aria-pressed') !== 'true';
    button.setAttribute('aria-pressed', String(pressed));
    change(pressed);
  });
}

toggle('fit', (pressed) => {
  desktop.fit = pressed;
});
toggle('view-only', (pressed) => {
  desktop.viewOnly = pressed;
  enableControls(desktop.state.state);
});

/** X keysyms (RFC 6143 §7.5.4) and physical keys. */
const CONTROL = [0xffe3, 'ControlLeft'];
const ALT = [0xffe9, 'AltLeft'];
const COMBINATIONS = {
  'ctrl-alt-del': [CONTROL, ALT, [0xffff, 'Delete']],
  'alt-tab': [ALT, [0xff09, 'Tab']],
  'alt-f4': [ALT, [0xffc1, 'F4']],
  super: [[0xffeb, 'MetaLeft']],
  escape: [[0xff1b, 'Escape']],
};

keys.addEventListener('change', () => {
  desktop.press(COMBINATIONS[keys.value] ?? []);
  keys.value = '';
  desktop.focus();
});

byId('full-screen').hidden = !document.fullscreenEnabled;
byId('full-screen').addEventListener('click', async () => {
  await byId('stage').requestFullscreen();
  // If supported, even Alt+Tab and Escape go to the desktop; holding Escape ends full screen.
  await navigator.keyboard?.lock?.().catch(() => {});
  desktop.focus();
});

// The desktop gets every other key, so this combination moves the focus to the page without a mouse.
screen.addEventListener(
  'keydown',
  (event) => {
    if (!(event.ctrlKey && event.altKey && event.shiftKey)) return;
    event.stopPropagation();
    window.dispatchEvent(new Event('blur')); // makes noVNC release all keys on the desktop
    byId('fit').focus();
  },
  { capture: true },
);

// The clipboard.

byId('clipboard-button').addEventListener('click', ({ currentTarget }) => {
  panel.hidden = !panel.hidden;
  currentTarget.setAttribute('aria-expanded', String(!panel.hidden));
  if (!panel.hidden) text.focus();
});

let lastShared; // the last text that was sent to the desktop or copied there

desktop.addEventListener('clipboard', async ({ detail }) => {
  const copied = fromCutText(detail.text, encoding);
  text.value = copied;
  lastShared = copied;
  note.textContent = 'Copied on the desktop.';
  if (!share.checked) return;
  try {
    await navigator.clipboard.writeText(copied);
    note.textContent = 'Copied on the desktop and to this computer.';
  } catch {
    note.textContent = 'Copied on the desktop. The browser did not allow copying it to this computer: copy it from here.';
  }
});

function sendText(message) {
  lastShared = text.value;
  if (!desktop.sendClipboard(toCutText(text.value, encoding))) {
    note.textContent = 'Not sent: not connected, or view-only.';
    return;
  }
  const risky = atRisk(text.value, encoding).slice(0, 5).join(' ');
  note.textContent = risky ? `${message} An older VNC server replaces ${risky} by question marks.` : message;
}

byId('clipboard-send').addEventListener('click', () => sendText('Sent: paste it on the desktop.'));

/** Sends this computer's clipboard to the desktop, if the browser allows reading it. */
async function sendLocalClipboard() {
  if (!share.checked) return;
  try {
    const local = await navigator.clipboard.readText();
    if (local === '' || local === lastShared) return;
    text.value = local;
    sendText("Sent this computer's clipboard: paste it on the desktop.");
  } catch {
    share.checked = false;
    note.textContent = "The browser does not allow reading this computer's clipboard. Paste its text here instead.";
  }
}

share.addEventListener('change', sendLocalClipboard);

window.addEventListener('pagehide', () => desktop.disconnect());
window.addEventListener('pageshow', ({ persisted }) => persisted && desktop.connect());

desktop.connect();
