// The page around the desktop: its buttons, the password, the clipboard.

import { Banner } from '../lib/ui.js';

import { atRisk, fromCutText, toCutText } from './cuttext.js';
import { Desk } from './desk.js';

const byId = (id) => document.getElementById(id);
const [login, password, fault] = ['login', 'password', 'login-fault'].map(byId);
const [panel, text, note, share] = ['clipboard', 'clipboard-text', 'clipboard-note', 'clipboard-share'].map(byId);
const [screen, ghost, keys] = ['screen', 'ghost', 'keys'].map(byId);

const setting = (name) => document.querySelector(`meta[name="${name}"]`).content;
const encoding = setting('clipboard');
const route = new URL(setting('gateway'), location.href);
route.protocol = route.protocol.replace('http', 'ws');

const desk = new Desk(screen, route);
const banner = new Banner(byId('banner'), () => desk.connect());

// The connection.

desk.addEventListener('state', ({ detail }) => {
  // With the password asked for, its form is what connects.
  banner.show(detail, login.hidden ? {} : { button: detail.state === 'waiting' ? 'Try now' : null });
  enable(detail.state);
});

/** Whether there is something to end, and somebody to send to. */
function enable(state) {
  byId('disconnect').disabled = state === 'closed';
  for (const control of [keys, byId('clipboard-send')]) control.disabled = state !== 'open' || desk.viewOnly;
}

desk.addEventListener('connected', ({ detail }) => {
  const hadFocus = document.activeElement === document.body || login.contains(document.activeElement);
  login.hidden = true;
  ghost.hidden = true;
  const canvas = screen.querySelector('canvas');
  canvas.tabIndex = 0;
  canvas.setAttribute('role', 'application');
  canvas.setAttribute('aria-label', `Desktop ${detail.name}`);
  canvas.setAttribute('aria-describedby', 'leave-hint');
  canvas.addEventListener('focus', copyOurs);
  if (hadFocus) desk.focus();
});

// What was on the screen stays there, in grey: nobody shall take it for the desktop.
desk.addEventListener('leaving', ({ detail: { canvas } }) => {
  ghost.width = canvas.width;
  ghost.height = canvas.height;
  ghost.getContext('2d').drawImage(canvas, 0, 0);
  ghost.hidden = false;
});

byId('disconnect').addEventListener('click', () => {
  login.hidden = true;
  desk.disconnect();
});

// The password. What was typed stays in the field, whatever happens to the connection.

desk.addEventListener('ask', ({ detail }) => {
  fault.hidden = !detail.fault;
  fault.textContent = detail.fault ? `${detail.fault} Please try again.` : '';
  if (login.hidden) {
    login.hidden = false;
    password.focus();
  } else if (detail.fault) {
    password.focus();
  }
  if (detail.fault) password.select();
});

login.addEventListener('submit', (event) => {
  event.preventDefault();
  fault.hidden = true;
  desk.usePassword(password.value);
});

byId('reveal').addEventListener('change', ({ target }) => {
  password.type = target.checked ? 'text' : 'password';
});

// How the desktop is shown, and what is sent to it.

function toggle(id, change) {
  const button = byId(id);
  button.addEventListener('click', () => {
    const pressed = button.getAttribute('aria-pressed') !== 'true';
    button.setAttribute('aria-pressed', String(pressed));
    change(pressed);
  });
}

toggle('fit', (pressed) => {
  desk.fit = pressed;
});
toggle('view-only', (pressed) => {
  desk.viewOnly = pressed;
  enable(desk.state.state);
});

/** X keysyms (RFC 6143 §7.5.4) and the physical keys. */
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
  desk.press(COMBINATIONS[keys.value] ?? []);
  keys.value = '';
  desk.focus();
});

byId('full-screen').hidden = !document.fullscreenEnabled;
byId('full-screen').addEventListener('click', async () => {
  await byId('stage').requestFullscreen();
  // Where browsers can, they leave even Alt+Tab and Escape to the desktop; holding Escape ends it.
  await navigator.keyboard?.lock?.().catch(() => {});
  desk.focus();
});

// A way out for those who use no mouse: the desktop takes every key but this.
screen.addEventListener(
  'keydown',
  (event) => {
    if (!(event.ctrlKey && event.altKey && event.shiftKey)) return;
    event.stopPropagation();
    window.dispatchEvent(new Event('blur')); // noVNC lets go of the keys that are down on the desktop
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

let lastShared; // what both clipboards had last

desk.addEventListener('clipboard', async ({ detail }) => {
  const copied = fromCutText(detail.text, encoding);
  text.value = copied;
  lastShared = copied;
  note.textContent = 'Copied on the desktop.';
  if (!share.checked) return;
  try {
    await navigator.clipboard.writeText(copied);
    note.textContent = 'Copied on the desktop, and to this computer.';
  } catch {
    note.textContent = 'Copied on the desktop. The browser did not allow to copy it to this computer: take it from here.';
  }
});

function sendText(words) {
  lastShared = text.value;
  if (!desk.copyTo(toCutText(text.value, encoding))) {
    note.textContent = 'Not sent: there is no desktop that takes it.';
    return;
  }
  const risky = atRisk(text.value, encoding).slice(0, 5).join(' ');
  note.textContent = risky ? `${words} An older VNC server has no ${risky}: it gets question marks instead.` : words;
}

byId('clipboard-send').addEventListener('click', () => sendText('Sent: paste it on the desktop.'));

/** What this computer's clipboard has, if the browser lets us see it. */
async function copyOurs() {
  if (!share.checked) return;
  try {
    const ours = await navigator.clipboard.readText();
    if (ours === '' || ours === lastShared) return;
    text.value = ours;
    sendText("Sent this computer's clipboard: paste it on the desktop.");
  } catch {
    share.checked = false;
    note.textContent = "The browser does not let this page see this computer's clipboard. Paste it here instead.";
  }
}

share.addEventListener('change', copyOurs);

window.addEventListener('pagehide', () => desk.disconnect());
window.addEventListener('pageshow', ({ persisted }) => persisted && desk.connect());

desk.connect();
