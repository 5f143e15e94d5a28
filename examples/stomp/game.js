// The game, and nothing else: who beats whom, what is known of each round, what is to be told to the other player.
//
// It refuses to know connections, storage and the page. It keeps this invariant: whatever messages arrive, however
// often and in whatever order, each player has one move in each round, and it is the one that was sealed first.
//
// Neither player can wait for the other's move: a move is first sent sealed (as a hash that also covers a secret),
// and is shown only after both seals are there.

/** @typedef {'rock' | 'paper' | 'scissors'} Move */

/** @type {Move[]} In this order each is beaten by the next. */
export const MOVES = ['rock', 'paper', 'scissors'];

/** So many won rounds win the game. */
export const NEEDED = 2;

/** No game has more rounds, and nobody says more in one. */
const MOST = 500;

/** What `mine` is against `theirs`. @returns {'won' | 'lost' | 'drawn'} */
export function compare(mine, theirs) {
  const ahead = (MOVES.indexOf(mine) - MOVES.indexOf(theirs) + MOVES.length) % MOVES.length;
  return ['drawn', 'won', 'lost'][ahead];
}

/**
 * The seal of a move: a SHA-256 in hex. It names the game, the round and the player, so that a seal that somebody
 * saw is of no use elsewhere.
 */
export async function seal({ game, round, player, move, secret }) {
  const text = JSON.stringify([game, round, player, move, secret]);
  const hash = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(text));
  return hex(new Uint8Array(hash));
}

/** A word that nobody can guess: `bytes` random bytes in hex. */
export function secret(bytes = 16) {
  return hex(crypto.getRandomValues(new Uint8Array(bytes)));
}

function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * One game as one player sees it. `state` is plain data, to be stored as JSON; `new Game(state)` goes on from there.
 *
 * @typedef {{id: string, name: string}} Player
 */
export class Game {
  /** The game of the player who opens it and waits for another. @param {Player} me */
  static open(id, me) {
    return new Game({ id, me, other: null, host: true, welcome: false, ended: null, rounds: [], said: [], heard: [] });
  }

  /** The game of the player who asks `host` to let him in. @param {Player} me @param {Player} host */
  static join(id, me, host) {
    return new Game({ id, me, other: host, host: false, welcome: false, ended: null, rounds: [], said: [], heard: [] });
  }

  constructor(state) {
    this.state = state;
  }

  /** What a guest says first. */
  hello() {
    return { type: 'join', name: this.state.me.name };
  }

  /**
   * Where the game stands.
   * @returns {'waiting' | 'joining' | 'choosing' | 'chosen' | 'over'}
   */
  get phase() {
    const { ended, host, other, welcome } = this.state;
    if (ended) return 'over';
    if (host ? !other : !welcome) return host ? 'waiting' : 'joining';
    if (this.winner) return 'over';
    return this.#round(this.round).mine ? 'chosen' : 'choosing';
  }

  /** Rounds that are decided: {round, mine, theirs, result}. */
  get decided() {
    return this.state.rounds
      .map(({ mine, theirs }, i) => ({ round: i + 1, mine: mine?.move, theirs: theirs?.move }))
      .filter(({ mine, theirs }) => mine && theirs)
      .map((round) => ({ ...round, result: compare(round.mine, round.theirs) }));
  }

  /** The number of the round that is being played, from 1. */
  get round() {
    return this.decided.length + 1;
  }

  /** The move I have chosen in this round, if I have. @returns {Move | undefined} */
  get chosen() {
    return this.#round(this.round).mine?.move;
  }

  /** Whether the other has chosen in this round. */
  get otherChose() {
    return Boolean(this.#round(this.round).theirs?.seal);
  }

  /** Rounds won. @returns {{mine: number, theirs: number}} */
  get score() {
    const won = (result) => this.decided.filter((round) => round.result === result).length;
    return { mine: won('won'), theirs: won('lost') };
  }

  /** @returns {'me' | 'other' | null} */
  get winner() {
    const { mine, theirs } = this.score;
    if (mine >= NEEDED) return 'me';
    return theirs >= NEEDED ? 'other' : null;
  }

  /** All that was said, in each speaker's order: {mine, n, text}. */
  get talk() {
    return this.state.said;
  }

  /**
   * I choose. A second choice in a round changes nothing.
   * @param {Move} move
   * @returns {Promise<object[]>} what to send to the other
   */
  async choose(move) {
    if (!MOVES.includes(move) || this.phase !== 'choosing') return [];
    const round = this.round;
    const word = secret();
    const sealed = await this.#seal(this.state.me.id, round, move, word);
    const here = this.#round(round, true);
    if (here.mine) return [];
    here.mine = { move, secret: word };
    const send = [{ type: 'sealed', round, seal: sealed }];
    if (here.theirs?.seal) send.push(this.#shown(round));
    return send;
  }

  /** I say something. @returns {object[]} what to send */
  say(text) {
    const n = this.state.said.filter(({ mine }) => mine).length + 1;
    this.state.said.push({ mine: true, n, text });
    return [{ type: 'say', n, text }];
  }

  /** I go. @returns {object[]} what to send */
  leave() {
    const tell = this.state.other && !['left', 'full'].includes(this.state.ended);
    this.state.ended ??= 'mine';
    return tell ? [{ type: 'leave' }] : [];
  }

  /**
   * A message from `from`, as `parse` returns it. Repeated and late ones change nothing.
   * @returns {Promise<object[]>} what to send to its sender
   */
  async receive(from, message) {
    const { state } = this;
    if (message.type === 'join') return this.#joined(from, message);
    if (from !== state.other?.id) return [];
    switch (message.type) {
      case 'welcome':
        state.welcome = true;
        return [];
      case 'full':
        if (!state.welcome) state.ended ??= 'full';
        return [];
      case 'leave':
        if (!this.winner) state.ended ??= 'left';
        else state.gone = true;
        return [];
      case 'say':
        if (!state.heard.includes(message.n)) {
          state.heard.push(message.n);
          state.said.push({ mine: false, n: message.n, text: message.text });
        }
        return [];
      case 'sealed':
        return this.#sealed(message);
      case 'shown':
        return this.#showed(message);
      default:
        return [];
    }
  }

  #joined(from, { name }) {
    const { state } = this;
    if (!state.host) return [];
    if (!state.other && !state.ended) state.other = { id: from, name };
    return [{ type: state.other?.id === from && !state.ended ? 'welcome' : 'full' }];
  }

  async #sealed({ round, seal: sealed }) {
    if (round > this.round + 1) return [];
    const here = this.#round(round, true);
    here.theirs ??= {};
    if (here.theirs.seal) return [];
    here.theirs.seal = sealed;
    if (here.theirs.early) await this.#open(round, here.theirs.early);
    return here.mine ? [this.#shown(round)] : [];
  }

  async #showed({ round, move, secret: word }) {
    if (round > this.round + 1) return [];
    const here = this.#round(round, true);
    here.theirs ??= {};
    if (here.theirs.move) return [];
    if (here.theirs.seal) await this.#open(round, { move, secret: word });
    else here.theirs.early ??= { move, secret: word };
    return [];
  }

  async #open(round, { move, secret: word }) {
    const { theirs } = this.#round(round);
    if (theirs.seal === (await this.#seal(this.state.other.id, round, move, word))) theirs.move = move;
    else this.state.ended ??= 'cheated';
  }

  #shown(round) {
    const { move, secret: word } = this.#round(round).mine;
    return { type: 'shown', round, move, secret: word };
  }

  #seal(player, round, move, word) {
    return seal({ game: this.state.id, round, player, move, secret: word });
  }

  #round(number, make = false) {
    if (make) while (this.state.rounds.length < number) this.state.rounds.push({});
    return this.state.rounds[number - 1] ?? {};
  }
}

/**
 * A stranger's message, with nothing in it that was not looked at; undefined if it is none of ours.
 *
 * @param {string} text
 * @returns {{from: string, message: object} | undefined}
 */
export function parse(text) {
  const letter = parseObject(text);
  const message = letter && isId(letter.from) && known(letter);
  return message ? { from: letter.from, message } : undefined;
}

/** The object that a text is in JSON, if it is one. */
export function parseObject(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === 'object' && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}

/** Whether this can be the id of a player, a game or a picture. */
export function isId(id) {
  return typeof id === 'string' && /^[0-9a-z]{1,32}$/.test(id);
}

function known({ type, name, round, seal: sealed, move, secret: word, n, text }) {
  const number = (value) => Number.isInteger(value) && value >= 1 && value <= MOST;
  const hexWord = (value, pattern) => typeof value === 'string' && pattern.test(value);
  switch (type) {
    case 'join':
      return { type, name: cleanName(name) };
    case 'welcome':
    case 'full':
    case 'leave':
      return { type };
    case 'say':
      return number(n) && typeof text === 'string' && { type, n, text: text.slice(0, 1000) };
    case 'sealed':
      return number(round) && hexWord(sealed, /^[0-9a-f]{64}$/) && { type, round, seal: sealed };
    case 'shown':
      return (
        number(round) && MOVES.includes(move) && hexWord(word, /^[0-9a-f]{2,64}$/) && { type, round, move, secret: word }
      );
    default:
      return undefined;
  }
}

/** A name as it may be shown: one line, 30 characters, never empty. */
export function cleanName(name) {
  const line = String(name ?? '').replace(/[\p{C}\p{Zl}\p{Zp}\s]+/gu, ' ').trim();
  return Array.from(line).slice(0, 30).join('') || 'somebody';
}
