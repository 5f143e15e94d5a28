// The rules of the game: which move wins, the state of each round, the messages to the other player.
//
// It knows nothing of connections, storage and the page. Invariant: whatever messages arrive, however often and in whatever
// order, each player has one move in each round, the one that was committed first.
//
// A commit-and-reveal scheme keeps a player from waiting for the other's move: each first sends a commitment (a hash of the
// move and a secret), and reveals the move only when both commitments have arrived.

/** @typedef {'rock' | 'paper' | 'scissors'} Move */

/** @type {Move[]} each is beaten by the next */
export const MOVES = ['rock', 'paper', 'scissors'];

/** The number of rounds to win. */
export const ROUNDS_TO_WIN = 2;

/** The limit of rounds and of chat messages in a game. */
const MAX_COUNT = 500;

/** The result of `mine` against `theirs`. @returns {'won' | 'lost' | 'drawn'} */
export function compare(mine, theirs) {
  const ahead = (MOVES.indexOf(mine) - MOVES.indexOf(theirs) + MOVES.length) % MOVES.length;
  return ['drawn', 'won', 'lost'][ahead];
}

/**
 * The commitment to a move: a SHA-256 in hex. It covers the game, the round and the player, so that it cannot be replayed
 * elsewhere.
 */
export async function commitmentOf({ game, round, player, move, secret }) {
  const text = JSON.stringify([game, round, player, move, secret]);
  const hash = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(text));
  return hex(new Uint8Array(hash));
}

/** `bytes` random bytes in hex. */
export function secret(bytes = 16) {
  return hex(crypto.getRandomValues(new Uint8Array(bytes)));
}

function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/**
 * One game from the view of one player. `state` is plain data, to be stored as JSON; `new Game(state)` restores the game.
 *
 * @typedef {{id: string, name: string}} Player
 */
export class Game {
  /** The game of the player who opens it. @param {Player} me */
  static open(id, me) {
    return new Game({ id, me, other: null, host: true, welcome: false, ended: null, rounds: [], chat: [], receivedChat: [] });
  }

  /** The game of the player who asks `host` to join. @param {Player} me @param {Player} host */
  static join(id, me, host) {
    return new Game({ id, me, other: host, host: false, welcome: false, ended: null, rounds: [], chat: [], receivedChat: [] });
  }

  constructor(state) {
    this.state = state;
  }

  /** The request to join. */
  joinRequest() {
    return { type: 'join', name: this.state.me.name };
  }

  /** @returns {'waiting' | 'joining' | 'choosing' | 'chosen' | 'over'} */
  get phase() {
    const { ended, host, other, welcome } = this.state;
    if (ended) return 'over';
    if (host ? !other : !welcome) return host ? 'waiting' : 'joining';
    if (this.winner) return 'over';
    return this.#round(this.round).mine ? 'chosen' : 'choosing';
  }

  /** The decided rounds: {round, mine, theirs, result}. */
  get decided() {
    return this.state.rounds
      .map(({ mine, theirs }, i) => ({ round: i + 1, mine: mine?.move, theirs: theirs?.move }))
      .filter(({ mine, theirs }) => mine && theirs)
      .map((round) => ({ ...round, result: compare(round.mine, round.theirs) }));
  }

  /** The number of the current round, from 1. */
  get round() {
    return this.decided.length + 1;
  }

  /** This player's move in the current round, if there is one. @returns {Move | undefined} */
  get chosen() {
    return this.#round(this.round).mine?.move;
  }

  /** Whether the other player has chosen in the current round. */
  get otherChose() {
    return Boolean(this.#round(this.round).theirs?.commitment);
  }

  /** Rounds won. @returns {{mine: number, theirs: number}} */
  get score() {
    const won = (result) => this.decided.filter((round) => round.result === result).length;
    return { mine: won('won'), theirs: won('lost') };
  }

  /** @returns {'me' | 'other' | null} */
  get winner() {
    const { mine, theirs } = this.score;
    if (mine >= ROUNDS_TO_WIN) return 'me';
    return theirs >= ROUNDS_TO_WIN ? 'other' : null;
  }

  /** All chat messages: {mine, n, text}. Those of each player are in their order. */
  get chat() {
    return this.state.chat;
  }

  /**
   * Chooses a move. A second choice in a round is ignored.
   * @param {Move} move
   * @returns {Promise<object[]>} the messages to the other player
   */
  async choose(move) {
    if (!MOVES.includes(move) || this.phase !== 'choosing') return [];
    const round = this.round;
    const nonce = secret();
    const commitment = await this.#commit(this.state.me.id, round, move, nonce);
    const here = this.#round(round, true);
    if (here.mine) return [];
    here.mine = { move, secret: nonce };
    const send = [{ type: 'commit', round, commitment }];
    if (here.theirs?.commitment) send.push(this.#reveal(round));
    return send;
  }

  /** Writes a chat message. @returns {object[]} the messages to the other player */
  say(text) {
    const n = this.state.chat.filter(({ mine }) => mine).length + 1;
    this.state.chat.push({ mine: true, n, text });
    return [{ type: 'say', n, text }];
  }

  /** Leaves the game. @returns {object[]} the messages to the other player */
  leave() {
    const notify = this.state.other && !['left', 'full'].includes(this.state.ended);
    this.state.ended ??= 'mine';
    return notify ? [{ type: 'leave' }] : [];
  }

  /**
   * Handles a message from `from`, as `parse` returns it. Repeated and late messages change nothing.
   * @returns {Promise<object[]>} the messages to its sender
   */
  async receive(from, message) {
    const { state } = this;
    if (message.type === 'join') return this.#receiveJoin(from, message);
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
        if (!state.receivedChat.includes(message.n)) {
          state.receivedChat.push(message.n);
          state.chat.push({ mine: false, n: message.n, text: message.text });
        }
        return [];
      case 'commit':
        return this.#receiveCommit(message);
      case 'reveal':
        return this.#receiveReveal(message);
      default:
        return [];
    }
  }

  #receiveJoin(from, { name }) {
    const { state } = this;
    if (!state.host) return [];
    if (!state.other && !state.ended) state.other = { id: from, name };
    return [{ type: state.other?.id === from && !state.ended ? 'welcome' : 'full' }];
  }

  async #receiveCommit({ round, commitment }) {
    if (round > this.round + 1) return [];
    const here = this.#round(round, true);
    here.theirs ??= {};
    if (here.theirs.commitment) return [];
    here.theirs.commitment = commitment;
    if (here.theirs.early) await this.#verify(round, here.theirs.early);
    return here.mine ? [this.#reveal(round)] : [];
  }

  async #receiveReveal({ round, move, secret: nonce }) {
    if (round > this.round + 1) return [];
    const here = this.#round(round, true);
    here.theirs ??= {};
    if (here.theirs.move) return [];
    if (here.theirs.commitment) await this.#verify(round, { move, secret: nonce });
    else here.theirs.early ??= { move, secret: nonce };
    return [];
  }

  async #verify(round, { move, secret: nonce }) {
    const { theirs } = this.#round(round);
    if (theirs.commitment === (await this.#commit(this.state.other.id, round, move, nonce))) theirs.move = move;
    else this.state.ended ??= 'cheated';
  }

  #reveal(round) {
    const { move, secret: nonce } = this.#round(round).mine;
    return { type: 'reveal', round, move, secret: nonce };
  }

  #commit(player, round, move, nonce) {
    return commitmentOf({ game: this.state.id, round, player, move, secret: nonce });
  }

  #round(number, make = false) {
    if (make) while (this.state.rounds.length < number) this.state.rounds.push({});
    return this.state.rounds[number - 1] ?? {};
  }
}

/**
 * Validates an untrusted message: returns only checked fields, or undefined if the message is invalid.
 *
 * @param {string} text
 * @returns {{from: string, message: object} | undefined}
 */
export function parse(text) {
  const object = parseObject(text);
  const message = object && isId(object.from) && validate(object);
  return message ? { from: object.from, message } : undefined;
}

/** Parses a JSON object; undefined if `text` is not one. */
export function parseObject(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === 'object' && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}

/** Whether this is a valid id of a player, a game or a picture. */
export function isId(id) {
  return typeof id === 'string' && /^[0-9a-z]{1,32}$/.test(id);
}

function validate({ type, name, round, commitment, move, secret: nonce, n, text }) {
  const number = (value) => Number.isInteger(value) && value >= 1 && value <= MAX_COUNT;
  const isHex = (value, pattern) => typeof value === 'string' && pattern.test(value);
  switch (type) {
    case 'join':
      return { type, name: cleanName(name) };
    case 'welcome':
    case 'full':
    case 'leave':
      return { type };
    case 'say':
      return number(n) && typeof text === 'string' && { type, n, text: text.slice(0, 1000) };
    case 'commit':
      return number(round) && isHex(commitment, /^[0-9a-f]{64}$/) && { type, round, commitment };
    case 'reveal':
      return (
        number(round) && MOVES.includes(move) && isHex(nonce, /^[0-9a-f]{2,64}$/) && { type, round, move, secret: nonce }
      );
    default:
      return undefined;
  }
}

/** Sanitises a name for display: one line, at most 30 characters, not empty. */
export function cleanName(name) {
  const line = String(name ?? '').replace(/[\p{C}\p{Zl}\p{Zp}\s]+/gu, ' ').trim();
  return Array.from(line).slice(0, 30).join('') || 'unnamed';
}
