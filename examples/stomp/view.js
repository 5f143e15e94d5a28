// The view of a session. It updates only what has changed, so that neither the focus nor text being typed is lost.

const $ = (id) => document.getElementById(id);

const VERBS = { rock: 'blunts', paper: 'wraps', scissors: 'cut' };
const SCREENS = ['login', 'lobby', 'room'];

/** Shows one of the three screens, and moves the focus to its heading. */
export function showScreen(name) {
  const before = SCREENS.find((screen) => !$(screen).hidden);
  if (before === name) return;
  for (const screen of SCREENS) $(screen).hidden = screen !== name;
  if (before) $(`${name}-title`).focus();
}

/** Shows an error message in the element `id`, or hides it. */
export function showError(id, message) {
  write(id, message ?? '');
  $(id).hidden = !message;
}

export function write(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

/** @param {import('./session.js').Session} session @param {(id: string) => void} join */
export function showLobby(session, join) {
  const open = session.others.filter((player) => player.open);
  list('games', open, (player) => {
    const button = element('button', 'Join', { className: 'button primary small', type: 'button' });
    button.setAttribute('aria-label', `Join the game of ${player.name}`);
    button.addEventListener('click', () => join(player.id));
    return [element('span', `${player.name} is waiting for an opponent.`), button];
  });
  $('no-games').hidden = open.length > 0;
  const where = ({ game, open: waits }) => (waits ? 'waiting for an opponent' : game ? 'playing' : 'in the lobby');
  const players = [{ id: 'me', name: `${session.me.name} (you)`, game: null }, ...session.others];
  list('players', players, (player) => [
    element('span', player.name),
    element('span', where(player), { className: 'muted' }),
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
  write('presence', presence.text);
  write('turn', turn(game, name));
  const playing = game.phase === 'choosing' || game.phase === 'chosen';
  if (!playing && $('moves').contains(document.activeElement)) $('leave').focus();
  $('moves').hidden = !playing;
  for (const button of $('moves').children) {
    // Not `disabled`, because that would remove the focus from the pressed button.
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
  list('chat', game.chat, ({ mine, text }) => [element('strong', mine ? 'You: ' : `${name}: `), document.createTextNode(text)]);
  for (const button of $('chat-form').elements) button.disabled = !other;
  $('my-picture').parentElement.dataset.initial = initial(session.me.name);
  $('other-picture').parentElement.dataset.initial = initial(name);
  picture('my-picture', session.picture);
  picture('other-picture', session.otherPicture);
  $('other-picture').alt = `The picture of ${name}`;
}

function presenceOf({ game, otherIs }, connected, name) {
  if (!game.state.other || game.state.ended) return { other: 'alone', text: '' };
  if (game.state.gone) return { other: 'closed', text: `${name} has left.` };
  if (!connected) return { other: 'alone', text: `You are not connected. Your moves are sent to ${name} later.` };
  if (game.phase === 'joining' && otherIs === 'silent') {
    return { other: 'silent', text: `${name} does not answer. You can wait, or leave.` };
  }
  switch (otherIs) {
    case 'silent':
      return { other: 'silent', text: `${name} is unreachable: the browser or the network is down. The game is paused.` };
    case 'closed':
      return { other: 'closed', text: `${name} has closed or is reloading the page. The game is paused.` };
    default:
      return { other: 'here', text: game.phase === 'joining' ? '' : `${name} is here.` };
  }
}

function turn(game, name) {
  const { mine, theirs } = game.score;
  switch (game.state.ended) {
    case 'left':
      return `${name} has left the game.`;
    case 'full':
      return `The game is full: ${name} is playing with somebody else.`;
    case 'cheated':
      return `${name} revealed a move other than the committed one. The game does not count.`;
    default:
  }
  switch (game.phase) {
    case 'waiting':
      return 'Waiting for an opponent to join.';
    case 'joining':
      return `Asking ${name} to join …`;
    case 'over':
      return game.winner === 'me' ? `You win the game, ${mine} to ${theirs}!` : `${name} wins the game, ${theirs} to ${mine}.`;
    case 'chosen':
      return `Round ${game.round}: you chose ${game.chosen}. Waiting for ${name}.`;
    default:
      return `Round ${game.round}: ${game.otherChose ? `${name} has chosen. Your turn.` : 'choose.'}`;
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

/** Renders the items of a list, replacing only those that have changed. */
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
