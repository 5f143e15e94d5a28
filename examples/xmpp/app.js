// The page of the chat: the login form, input, and which parts are shown.

import { openChannel } from '../lib/channel.js';
import { Banner } from '../lib/ui.js';

import { Chat } from './chat.js';
import { TabState } from './tab-state.js';
import { View } from './view.js';

const byId = (id) => document.getElementById(id);
const [loginPage, loginForm, loginError, address, password, staySignedIn] = ['login-page', 'login', 'error', 'address', 'password', 'stay'].map(byId);
const [tools, away, composer, text, older] = ['tools', 'away', 'composer', 'text', 'older'].map(byId);
const shown = ['conversations', 'partner', 'presence', 'log', 'messages', 'older', 'composer'];
const parts = Object.fromEntries(shown.map((id) => [id, byId(id)]));

/** With fewer messages than this, older ones are loaded automatically. */
const MIN_MESSAGES = 20;

const tabState = new TabState();
const banner = new Banner(byId('banner'), () => chat?.retryNow());

/** @type {Chat | undefined} */
let chat;
let view;
let open;

loginForm.addEventListener('submit', (event) => {
  event.preventDefault();
  const [username, domain] = address.value.trim().toLowerCase().split('@');
  if (!username || !domain) {
    showLoginError('An address has the form name@server, such as alice@chat.example.');
    address.focus();
    return;
  }
  loginError.hidden = true;
  const transport = new FormData(loginForm).get('transport');
  if (tabState.account?.username !== username || tabState.account.domain !== domain) tabState.clear();
  const resource = tabState.account?.resource ?? `web-${crypto.randomUUID()}`;
  signIn({ username, domain, transport, resource, staySignedIn: staySignedIn.checked }, password.value);
});

/** Connects; the login form stays until the login has succeeded. */
function signIn(account, secret) {
  chat?.signOut();
  open = undefined;
  const route = new URL(account.transport, location.href);
  route.protocol = location.protocol === 'http:' ? 'ws:' : 'wss:';
  const current = new Chat({
    open: (liveness) => openChannel(route, { liveness }),
    account: { ...account, password: secret },
    tabState,
  });
  chat = current;
  view = new View(current, parts, { open: openConversation, resend: (conversation, message) => current.resend(conversation, message) });
  current.addEventListener('state', ({ detail }) => {
    if (chat !== current) return;
    banner.show(detail);
    if (detail.state === 'open') showChat(account);
  });
  current.addEventListener('login', ({ detail }) => chat === current && showLoginError(detail.description));
  current.addEventListener('change', () => chat === current && scheduleRender());
  current.start();
}

/** Shows the chat after a successful login. */
function showChat(account) {
  // The key grants access to this account as the password does; it is deleted with the tab.
  tabState.update({ account: { ...account, key: account.staySignedIn ? chat.key : undefined } });
  password.value = '';
  if (byId('chat').hidden) {
    byId('me').textContent = chat.me;
    loginPage.hidden = true;
    byId('chat').hidden = false;
    tools.hidden = false;
    byId('conversations').querySelector('button')?.focus();
  }
  view.render(open);
}

/** Shows the login form with an error. The fields keep their values. */
function showLoginError(message) {
  loginError.textContent = message;
  loginError.hidden = false;
  loginPage.hidden = false;
  byId('chat').hidden = true;
  tools.hidden = true;
  password.focus();
  password.select();
}

let renderScheduled = false;

/** Renders the chat after a change; several changes at once are rendered once. */
function scheduleRender() {
  if (renderScheduled) return;
  renderScheduled = true;
  queueMicrotask(() => {
    renderScheduled = false;
    if (!chat) return;
    if (open && document.visibilityState === 'visible') chat.markRead(open);
    view.render(open);
  });
}

function openConversation(conversation) {
  if (open && open !== conversation) chat.setDraft(open, text.value);
  open = conversation;
  text.value = conversation.draft;
  chat.markRead(conversation);
  view.render(conversation);
  text.focus();
  if (conversation.messages.length < MIN_MESSAGES) fetchOlder();
}

document.addEventListener('visibilitychange', () => chat && scheduleRender());

text.addEventListener('input', () => chat.setDraft(open, text.value));

text.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  composer.requestSubmit();
});

composer.addEventListener('submit', (event) => {
  event.preventDefault();
  const message = text.value.trim();
  if (!message) return;
  text.value = '';
  chat.write(open, message);
  text.focus();
});

async function fetchOlder() {
  if (!open.hasOlder) return;
  older.disabled = true;
  await chat.older(open).catch(() => {}); // fails without a connection, which the banner shows
  older.disabled = false;
}

older.addEventListener('click', fetchOlder);

away.addEventListener('click', () => {
  chat.setAway(!chat.away);
  away.setAttribute('aria-pressed', String(chat.away));
});

byId('sign-out').addEventListener('click', async () => {
  const { unsent } = chat;
  const subject = unsent === 1 ? 'One message is' : `${unsent} messages are`;
  if (unsent && !confirm(`${subject} not sent yet and will be lost. Sign out?`)) return;
  const leaving = chat;
  chat = undefined;
  await leaving.signOut();
  tabState.clear();
  location.reload();
});

// Unsent messages survive a reload, but not the end of the tab.
addEventListener('beforeunload', (event) => {
  if (chat?.unsent) event.preventDefault();
});

const storedAccount = tabState.account;
if (storedAccount) {
  address.value = `${storedAccount.username}@${storedAccount.domain}`;
  staySignedIn.checked = storedAccount.staySignedIn;
  loginForm.elements.transport.value = storedAccount.transport;
}
if (storedAccount?.key) signIn(storedAccount);
