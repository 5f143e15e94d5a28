// The page: the login, the session, and the actions of the user.

import { Banner } from '../lib/ui.js';
import { cleanName, secret } from './game.js';
import * as tabState from './tab-state.js';
import { BrokerConnection } from './connection.js';
import { PICTURE_BYTES, PICTURE_TYPES, Session } from './session.js';
import { showError, showLobby, showRoom, showScreen, write } from './view.js';

const $ = (id) => document.getElementById(id);

/** The broker's account for all players; it may only use the destinations of the game. */
const LOGIN = 'player';

const settings = await (await fetch('config.json')).json();
const url = new URL(settings.path, location.href);
url.protocol = url.protocol.replace('http', 'ws');

/** The state of this tab: {me, password, game, pending}. */
let state = tabState.load();
/** @type {BrokerConnection | undefined} */
let connection;
/** @type {Session | undefined} */
let session;
let loggedIn = false;
let endReason = '';

const banner = new Banner($('connection'), () => connection?.retryNow());
banner.show({ state: 'closed', description: `Not connected to ${settings.broker}.` }, { button: null });

if (state?.password) {
  if (!(await tabState.lockPlayer(state.me.id))) state = { me: { ...state.me, id: secret(8) }, password: state.password, game: null, pending: [] };
  await startSession(state.password, true);
} else {
  $('name').value = state?.me.name ?? '';
  showScreen('login');
}

/** Starts a session with the stored state. `resumed` after a reload: then the login screen is not shown. */
async function startSession(password, resumed) {
  endSession();
  loggedIn = resumed;
  endReason = '';
  connection = new BrokerConnection({ url: url.href, login: LOGIN, passcode: password, headers: { host: '/' } });
  connection.addEventListener('state', ({ detail }) => {
    banner.show({ ...detail, description: describe(detail) });
    show();
  });
  connection.addEventListener('connected', () => {
    endReason = '';
    state.password = password;
    tabState.store(state);
    loggedIn = true;
    showError('login-error');
    show();
  });
  connection.addEventListener('refused', ({ detail }) => {
    endSession();
    state.password = undefined;
    tabState.store(state);
    $('name').value = state.me.name;
    banner.show({ state: 'closed', description: `Not connected to ${settings.broker}.` }, { button: null });
    showScreen('login');
    showError('login-error', `${detail.description.replace(/[.!]?$/, '.')} Is the password right?`);
    $('password').focus();
    $('password').select();
  });
  session = new Session(connection, state, tabState.store);
  session.addEventListener('change', show);
  session.picture = null;
  const { id } = state.me;
  show();
  connection.start();
  const picture = await tabState.picture.load(id).catch(() => null);
  if (picture && session?.me.id === id) session.show(picture);
}

/** The description for the banner. While reconnecting it still contains why the last connection ended. */
function describe({ state, description }) {
  if (state === 'open') return `Connected to ${settings.broker}.`;
  if (state === 'connecting') return `${endReason} Connecting…`.trim();
  endReason = description;
  return description;
}

function endSession() {
  session?.end();
  void connection?.stop();
  session = connection = undefined;
}

function show() {
  if (!session || !loggedIn) return;
  if (session.game) {
    showScreen('room');
    showRoom(session, connection.connected);
  } else {
    showScreen('lobby');
    showLobby(session, (id) => session.join(id));
  }
}

$('login-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  showError('login-error');
  const name = cleanName($('name').value);
  state = { me: { id: state?.me.id ?? secret(8), name }, game: state?.game ?? null, pending: state?.pending ?? [] };
  if (!(await tabState.lockPlayer(state.me.id))) state.me.id = secret(8);
  await startSession($('password').value, false);
});

$('open').addEventListener('click', () => session.open());
$('leave').addEventListener('click', () => session.leave());
$('moves').addEventListener('click', ({ target }) => {
  const button = target.closest('button');
  if (button) void session.choose(button.dataset.move);
});

$('chat-form').addEventListener('submit', (event) => {
  event.preventDefault();
  session.say($('chat-text').value);
  $('chat-text').value = '';
});

$('log-out').addEventListener('click', () => {
  session.announceLeaving();
  endSession();
  state = { me: state.me, game: null, pending: [] };
  tabState.store(state);
  $('name').value = state.me.name;
  banner.show({ state: 'closed', description: `Not connected to ${settings.broker}.` }, { button: null });
  showScreen('login');
});

$('picture').addEventListener('change', async () => {
  const [file] = $('picture').files;
  if (!file) return;
  const good = PICTURE_TYPES.includes(file.type) && file.size <= PICTURE_BYTES;
  if (!good) {
    $('picture').value = '';
    write('picture-note', `${file.name} is larger than 5 MB, or not a PNG, JPEG, WebP or GIF file.`);
    return;
  }
  write('picture-note', `${file.name} is shown to your opponent.`);
  const picture = file.slice(0, file.size, file.type);
  session.show(picture);
  await tabState.picture.store(session.me.id, picture).catch(() => {}); // not stored: the picture is lost on a reload
});

addEventListener('pagehide', () => session?.announceLeaving());
