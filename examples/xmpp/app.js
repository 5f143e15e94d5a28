// The page of the chat: the form to sign in, what is typed, and what is shown when.

import { openChannel } from '../lib/channel.js';
import { Banner } from '../lib/ui.js';

import { Chat } from './chat.js';
import { Memory } from './memory.js';
import { View } from './view.js';

const byId = (id) => document.getElementById(id);
const [door, login, fault, address, password, stay] = ['door', 'login', 'fault', 'address', 'password', 'stay'].map(byId);
const [tools, away, composer, text, older] = ['tools', 'away', 'composer', 'text', 'older'].map(byId);
const shown = ['conversations', 'partner', 'presence', 'log', 'messages', 'older', 'composer'];
const parts = Object.fromEntries(shown.map((id) => [id, byId(id)]));

/** With fewer messages than these, older ones are fetched unasked. */
const A_SCREENFUL = 20;

const memory = new Memory();
const banner = new Banner(byId('banner'), () => chat?.retryNow());

/** @type {Chat | undefined} */
let chat;
let view;
let open;

login.addEventListener('submit', (event) => {
  event.preventDefault();
  const [username, domain] = address.value.trim().toLowerCase().split('@');
  if (!username || !domain) {
    refuse('An address has the form name@server, such as alice@chat.example.');
    address.focus();
    return;
  }
  fault.hidden = true;
  const way = new FormData(login).get('way');
  if (memory.account?.username !== username || memory.account.domain !== domain) memory.forget();
  const resource = memory.account?.resource ?? `web-${crypto.randomUUID()}`;
  enter({ username, domain, way, resource, stay: stay.checked }, password.value);
});

/** Connects; the form stays until that has succeeded. */
function enter(account, secret) {
  chat?.signOut();
  open = undefined;
  const route = new URL(account.way, location.href);
  route.protocol = location.protocol === 'http:' ? 'ws:' : 'wss:';
  const mine = new Chat({
    open: (liveness) => openChannel(route, { liveness }),
    account: { ...account, password: secret },
    memory,
  });
  chat = mine;
  view = new View(mine, parts, { open: show, again: (conversation, message) => mine.again(conversation, message) });
  mine.addEventListener('state', ({ detail }) => {
    if (chat !== mine) return;
    banner.show(detail);
    if (detail.state === 'open') entered(account);
  });
  mine.addEventListener('login', ({ detail }) => chat === mine && refuse(detail.words));
  mine.addEventListener('change', () => chat === mine && changed());
  mine.start();
}

/** We are in. */
function entered(account) {
  // The key is as good as the password for this one account, and ends with the tab.
  memory.keep({ account: { ...account, key: account.stay ? chat.key : undefined } });
  password.value = '';
  if (byId('chat').hidden) {
    byId('me').textContent = chat.me;
    door.hidden = true;
    byId('chat').hidden = false;
    tools.hidden = false;
    byId('conversations').querySelector('button')?.focus();
  }
  view.render(open);
}

/** We are not let in. What was typed stays. */
function refuse(words) {
  fault.textContent = words;
  fault.hidden = false;
  door.hidden = false;
  byId('chat').hidden = true;
  tools.hidden = true;
  password.focus();
  password.select();
}

let asked = false;

/** Something of the chat is different; many changes at once are drawn once. */
function changed() {
  if (asked) return;
  asked = true;
  queueMicrotask(() => {
    asked = false;
    if (!chat) return;
    if (open && document.visibilityState === 'visible') chat.seen(open);
    view.render(open);
  });
}

function show(conversation) {
  if (open && open !== conversation) chat.drafted(open, text.value);
  open = conversation;
  text.value = conversation.draft;
  chat.seen(conversation);
  view.render(conversation);
  text.focus();
  if (conversation.messages.length < A_SCREENFUL) fetchOlder();
}

document.addEventListener('visibilitychange', () => chat && changed());

text.addEventListener('input', () => chat.drafted(open, text.value));

text.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  composer.requestSubmit();
});

composer.addEventListener('submit', (event) => {
  event.preventDefault();
  const said = text.value.trim();
  if (!said) return;
  text.value = '';
  chat.write(open, said);
  text.focus();
});

async function fetchOlder() {
  if (!open.hasOlder) return;
  older.disabled = true;
  await chat.older(open).catch(() => {}); // without a connection there is no answer, which the banner says
  older.disabled = false;
}

older.addEventListener('click', fetchOlder);

away.addEventListener('click', () => {
  chat.setAway(!chat.away);
  away.setAttribute('aria-pressed', String(chat.away));
});

byId('sign-out').addEventListener('click', async () => {
  const { unsent } = chat;
  const what = unsent === 1 ? 'One message is' : `${unsent} messages are`;
  if (unsent && !confirm(`${what} not sent yet, and will be lost. Sign out?`)) return;
  const leaving = chat;
  chat = undefined;
  await leaving.signOut();
  memory.forget();
  location.reload();
});

// What waits survives a reload, but not the end of the tab.
addEventListener('beforeunload', (event) => {
  if (chat?.unsent) event.preventDefault();
});

const kept = memory.account;
if (kept) {
  address.value = `${kept.username}@${kept.domain}`;
  stay.checked = kept.stay;
  login.elements.way.value = kept.way;
}
if (kept?.key) enter(kept);
