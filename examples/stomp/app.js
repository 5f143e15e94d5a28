// The page: from the login to a session, and from what somebody presses to what the session does.

import { Banner } from '../lib/ui.js';
import { cleanName, secret } from './game.js';
import * as keep from './keep.js';
import { Link } from './link.js';
import { PICTURE_BYTES, PICTURE_TYPES, Session } from './session.js';
import { fault, showLobby, showRoom, showScreen, write } from './view.js';

const $ = (id) => document.getElementById(id);

/** The broker's account for all players; it may use the game's destinations alone. */
const LOGIN = 'player';

const settings = await (await fetch('config.json')).json();
const url = new URL(settings.path, location.href);
url.protocol = url.protocol.replace('http', 'ws');

/** What is kept in this tab: {me, password, game, waiting}. */
let kept = keep.load();
/** @type {Link | undefined} */
let link;
/** @type {Session | undefined} */
let session;
let inside = false;
let ended = '';

const banner = new Banner($('connection'), () => link?.retryNow());
banner.show({ state: 'closed', words: `Not connected to ${settings.broker}.` }, { button: null });

if (kept?.password) {
  if (!(await keep.alone(kept.me.id))) kept = { me: { ...kept.me, id: secret(8) }, password: kept.password, game: null, waiting: [] };
  await enter(kept.password, true);
} else {
  $('name').value = kept?.me.name ?? '';
  showScreen('door');
}

/** Goes in with what is kept. `at once` after a reload: then nobody has to look at the door again. */
async function enter(password, atOnce) {
  leaveSession();
  inside = atOnce;
  ended = '';
  link = new Link({ url: url.href, login: LOGIN, passcode: password, headers: { host: '/' } });
  link.addEventListener('state', ({ detail }) => {
    banner.show({ ...detail, words: wordsFor(detail) });
    show();
  });
  link.addEventListener('connected', () => {
    ended = '';
    kept.password = password;
    keep.store(kept);
    inside = true;
    fault('door-fault');
    show();
  });
  link.addEventListener('refused', ({ detail }) => {
    leaveSession();
    kept.password = undefined;
    keep.store(kept);
    $('name').value = kept.me.name;
    banner.show({ state: 'closed', words: `Not connected to ${settings.broker}.` }, { button: null });
    showScreen('door');
    fault('door-fault', `${detail.words.replace(/[.!]?$/, '.')} Is the password right?`);
    $('password').focus();
    $('password').select();
  });
  session = new Session(link, kept, keep.store);
  session.addEventListener('change', show);
  session.picture = null;
  const { id } = kept.me;
  show();
  link.start();
  const picture = await keep.picture.load(id).catch(() => null);
  if (picture && session?.me.id === id) session.show(picture);
}

/** While it connects again, it still says why the last connection ended. */
function wordsFor({ state, words }) {
  if (state === 'open') return `Connected to ${settings.broker}.`;
  if (state === 'connecting') return `${ended} Connecting…`.trim();
  ended = words;
  return words;
}

function leaveSession() {
  session?.end();
  void link?.stop();
  session = link = undefined;
}

function show() {
  if (!session || !inside) return;
  if (session.game) {
    showScreen('room');
    showRoom(session, link.connected);
  } else {
    showScreen('lobby');
    showLobby(session, (id) => session.join(id));
  }
}

$('login').addEventListener('submit', async (event) => {
  event.preventDefault();
  fault('door-fault');
  const name = cleanName($('name').value);
  kept = { me: { id: kept?.me.id ?? secret(8), name }, game: kept?.game ?? null, waiting: kept?.waiting ?? [] };
  if (!(await keep.alone(kept.me.id))) kept.me.id = secret(8);
  await enter($('password').value, false);
});

$('open').addEventListener('click', () => session.open());
$('leave').addEventListener('click', () => session.leave());
$('moves').addEventListener('click', ({ target }) => {
  const button = target.closest('button');
  if (button) void session.choose(button.dataset.move);
});

$('say').addEventListener('submit', (event) => {
  event.preventDefault();
  session.say($('words').value);
  $('words').value = '';
});

$('out').addEventListener('click', () => {
  session.bye();
  leaveSession();
  kept = { me: kept.me, game: null, waiting: [] };
  keep.store(kept);
  $('name').value = kept.me.name;
  banner.show({ state: 'closed', words: `Not connected to ${settings.broker}.` }, { button: null });
  showScreen('door');
});

$('picture').addEventListener('change', async () => {
  const [file] = $('picture').files;
  if (!file) return;
  const good = PICTURE_TYPES.includes(file.type) && file.size <= PICTURE_BYTES;
  if (!good) {
    $('picture').value = '';
    write('picture-note', `${file.name} is too large, or no PNG, JPEG, WebP or GIF. Pictures may have up to 5 MB.`);
    return;
  }
  write('picture-note', `${file.name} is shown to the player you play with.`);
  const picture = file.slice(0, file.size, file.type);
  session.show(picture);
  await keep.picture.store(session.me.id, picture).catch(() => {}); // then it lasts until the page is loaded again
});

addEventListener('pagehide', () => session?.bye());
