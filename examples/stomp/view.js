// What the page shows of a session. It changes what differs and leaves the rest alone, so that neither the focus nor
// what somebody is typing is lost.

const $ = (id) => document.getElementById(id);

const VERBS = { rock: 'blunts', paper: 'wraps', scissors: 'cut' };
const SCREENS = ['door', 'lobby', 'room'];

/** Shows one of the three screens. Who uses the keyboard is taken to its heading. */
export function showScreen(name) {
  const before = SCREENS.find((screen) => !$(screen).hidden);
  if (before === name) return;
  for (const screen of SCREENS) $(screen).hidden = screen !== name;
  if (before) $(`${name}-title`).focus();
}

/** A sentence in a place for faults, or none. */
export function fault(id, words) {
  write(id, words ?? '');
  $(id).hidden = !words;
}

export function write(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

/** @param {import('./session.js').Session} session @param {(id: string) => void} join */
export function showLobby(session, join) {
  const open = session.others.filter((player) => player.open);
  list('games', open, (player) => {
    const button = element('button', 'Join', { className: 'button main small', type: 'button' });
    button.setAttribute('aria-label', `Join the game of ${player.name}`);
    button.addEventListener('click', () => join(player.id));
    return [element('span', `${player.name} waits for somebody to play with.`), button];
  });
  $('no-games').hidden = open.length > 0;
  const where = ({ game, open: waits }) => (waits ? 'waits in a game' : game ? 'plays' : 'in the lobby');
  const everybody = [{ id: 'me', name: `${session.me.name} (you)`, game: null }, ...session.others];
  list('players', everybody, (player) => [
    element('span', player.name),
    element('span', where(player), { className: 'soft' }),
  ]);
}

/** @param {import('./session.js').Session} session @param {boolean} connected */
export function showRoom(session, connected) {
  const { game } = session;
  const { other } = game.state;
  const name = other?.name ?? '…';
  write('room-title', other ? `Your game with ${name}` : 'Your game');
  write('other-name', name);
  write('score', `${game.score.mine} : ${game.score.theirs}`);
  const presence = presenceOf(session, connected, name);
  $('presence').dataset.other = presence.other;
  write('presence', presence.words);
  write('turn', turn(game, name));
  const playing = game.phase === 'choosing' || game.phase === 'chosen';
  if (!playing && $('moves').contains(document.activeElement)) $('leave').focus();
  $('moves').hidden = !playing;
  for (const button of $('moves').children) {
    // Not `disabled`: that would take the focus away from who has just pressed it.
    button.setAttribute('aria-disabled', String(game.phase !== 'choosing'));
    button.setAttribute('aria-pressed', String(game.phase === 'chosen' && game.chosen === button.dataset.move));
  }
  $('unsent').hidden = !session.unsent || connected;
  write('leave', game.phase === 'over' ? 'Back to the lobby' : 'Leave the game');
  $('no-rounds').hidden = game.decided.length > 0;
  list('rounds', game.decided, (round) => [
    icon(round.mine),
    element('span', 'against'),
    icon(round.theirs),
    element('span', `${capital(against(round))}: ${{ won: 'you win', lost: `${name} wins`, drawn: 'a draw' }[round.result]}.`),
  ], ({ result }) => ({ result }));
  list('talk', game.talk, ({ mine, text }) => [element('strong', mine ? 'You: ' : `${name}: `), document.createTextNode(text)]);
  for (const button of $('say').elements) button.disabled = !other;
  $('my-picture').parentElement.dataset.initial = initial(session.me.name);
  $('other-picture').parentElement.dataset.initial = initial(name);
  picture('my-picture', session.picture);
  picture('other-picture', session.otherPicture);
  $('other-picture').alt = `The picture of ${name}`;
}

function presenceOf({ game, otherIs }, connected, name) {
  if (!game.state.other || game.state.ended) return { other: 'alone', words: '' };
  if (game.state.gone) return { other: 'closed', words: `${name} has left.` };
  if (!connected) return { other: 'alone', words: `You are not connected. What you do is kept, and ${name} gets it later.` };
  if (game.phase === 'joining' && otherIs === 'silent') {
    return { other: 'silent', words: `${name} does not answer. You can wait, or leave.` };
  }
  switch (otherIs) {
    case 'silent':
      return { other: 'silent', words: `${name} has vanished: the browser or the network is gone. The game waits.` };
    case 'closed':
      return { other: 'closed', words: `${name} has closed the page, or is loading it again. The game waits.` };
    default:
      return { other: 'here', words: game.phase === 'joining' ? '' : `${name} is here.` };
  }
}

function turn(game, name) {
  const { mine, theirs } = game.score;
  switch (game.state.ended) {
    case 'left':
      return `${name} has left the game.`;
    case 'full':
      return `Somebody else was faster: ${name} plays with another.`;
    case 'cheated':
      return `${name} showed a move other than the sealed one. The game does not count.`;
    default:
  }
  switch (game.phase) {
    case 'waiting':
      return 'Waiting for somebody to join.';
    case 'joining':
      return `Asking ${name} to let you in …`;
    case 'over':
      return game.winner === 'me' ? `You win the game, ${mine} to ${theirs}!` : `${name} wins the game, ${theirs} to ${mine}.`;
    case 'chosen':
      return `Round ${game.round}: you took ${game.chosen}. Waiting for ${name}.`;
    default:
      return `Round ${game.round}: ${game.otherChose ? `${name} has chosen. And you?` : 'choose.'}`;
  }
}

function against({ mine, theirs, result }) {
  if (result === 'drawn') return `${mine} and ${theirs}`;
  const [winner, loser] = result === 'won' ? [mine, theirs] : [theirs, mine];
  return `${winner} ${VERBS[winner]} ${loser}`;
}

function initial(name) {
  return Array.from(name)[0].toUpperCase();
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

/** Makes the items of a list, those anew that are not what they were. */
function list(id, items, content, data = () => ({})) {
  const ul = $(id);
  const grown = items.length > ul.children.length;
  items.forEach((item, i) => {
    const key = JSON.stringify(item);
    if (ul.children[i]?.dataset.key === key) return;
    const li = element('li', '');
    Object.assign(li.dataset, { key }, data(item));
    li.append(...content(item));
    if (ul.children[i]) ul.children[i].replaceWith(li);
    else ul.append(li);
  });
  while (ul.children.length > items.length) ul.lastChild.remove();
  if (grown) ul.scrollTop = ul.scrollHeight;
}

function element(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, properties);
}

function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  use.setAttribute('href', `#${name}`);
  svg.setAttribute('aria-hidden', 'true');
  svg.append(use);
  return svg;
}

const shown = new Map();

/** @param {import('./session.js').Picture | null} what */
function picture(id, what) {
  if (shown.get(id)?.blob === what?.blob) return;
  const before = shown.get(id);
  if (before) URL.revokeObjectURL(before.url);
  if (what) {
    const url = URL.createObjectURL(what.blob);
    shown.set(id, { blob: what.blob, url });
    $(id).src = url;
  } else {
    shown.delete(id);
    $(id).removeAttribute('src');
  }
  $(id).hidden = !what;
}
