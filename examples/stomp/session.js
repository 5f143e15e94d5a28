// A player who is logged in: the lobby, the player's game, and the destinations of the broker.
//
//   /topic/rps.lobby                   presence of all players, every two seconds; not stored
//   /topic/rps.room.GAME               the two players of a game: presence and pictures; not stored
//   /queue/rps.game.GAME.PLAYER        the messages of a game for one player; the broker keeps each until that player's
//                                      page has handled it and stored the result
//
// It knows nothing of the page. Invariant: for each message the result is stored first, then the message is acknowledged,
// then the answers are sent. Wherever that is interrupted, the message is delivered again, and the second time it changes
// nothing.

import { Game, cleanName, isId, parse, parseObject, secret } from './game.js';
import { Outbox } from './outbox.js';
import { BEAT_MS, Roster, PeerPresence } from './presence.js';

const LOBBY = '/topic/rps.lobby';
const roomOf = (game) => `/topic/rps.room.${game}`;
const queueOf = (game, player) => `/queue/rps.game.${game}.${player}`;

/** The limit of a picture in bytes, and the allowed types: none that can contain a script. */
export const PICTURE_BYTES = 5 << 20;
export const PICTURE_TYPES = ['image/png', 'image/jpeg', 'image/webp', 'image/gif'];

/** The shortest interval between two requests for a picture, and between two transmissions of one. */
const PICTURE_INTERVAL_MS = 10_000;

/**
 * Event `change`: something that the page shows has changed.
 *
 * @typedef {{me: {id: string, name: string}, game: object | null, pending: object[]}} Stored
 * @typedef {{id: string, blob: Blob}} Picture
 */
export class Session extends EventTarget {
  /** @type {Game | null} */
  game = null;
  /** @type {PeerPresence | null} the other player of the game */
  peer = null;
  /** @type {Picture | null} */
  picture = null;
  /** @type {Picture | null} the other player's */
  otherPicture = null;

  #connection;
  #stored;
  #store;
  #now;
  #outbox;
  #unsubscribers = [];
  #lastBeat = -Infinity;
  #pictureRequested = -Infinity;
  #pictureSent = -Infinity;
  #wantedPicture;
  #shownPresence;
  #receiving = Promise.resolve();
  #timer;

  /**
   * @param {import('./connection.js').BrokerConnection} connection
   * @param {Stored} stored modified in place
   * @param {(stored: Stored) => void} store
   * @param {() => number} [now] a monotonic clock, in milliseconds
   */
  constructor(connection, stored, store, now = () => performance.now()) {
    super();
    this.#connection = connection;
    this.#stored = stored;
    this.#store = store;
    this.#now = now;
    this.roster = new Roster(now());
    this.#outbox = new Outbox(connection, stored.pending, () => {
      this.#save();
      this.#changed();
    });
    if (stored.game) this.#enter(new Game(stored.game));
    connection.subscribe(LOBBY, ({ body }) => this.#onLobbyMessage(body));
    connection.addEventListener('connected', () => {
      this.#pictureRequested = -Infinity;
      this.#connection.publish(LOBBY, JSON.stringify({ type: 'who', id: this.me.id }));
      this.#beat();
      this.#outbox.flush();
    });
    connection.addEventListener('alive', () => this.#tick());
    this.#timer = setInterval(() => this.#tick(), 1000);
  }

  get me() {
    return this.#stored.me;
  }

  /** Whether a message has no receipt of the broker yet. */
  get unsent() {
    return this.#outbox.pending > 0;
  }

  /** The presence of the other player. @returns {'here' | 'closed' | 'silent'} */
  get otherIs() {
    return this.peer?.state(this.#now()) ?? 'here';
  }

  /** The other players in the lobby. */
  get others() {
    return this.roster.players.filter(({ id }) => id !== this.me.id);
  }

  open() {
    if (this.game) return;
    this.#enter(Game.open(secret(6), this.me));
    this.#beat();
    this.#save();
  }

  /** Asks the player `id`, who has opened a game, to join. */
  join(id) {
    const host = this.roster.get(id);
    if (this.game || !host?.open) return;
    this.#enter(Game.join(host.game, this.me, { id: host.id, name: host.name }));
    this.#send(host.id, [this.game.joinRequest()]);
    this.#beat();
  }

  async choose(move) {
    const { game } = this;
    const messages = await game.choose(move);
    if (game === this.game) this.#send(game.state.other.id, messages);
  }

  say(text) {
    if (!this.game?.state.other || !text.trim()) return;
    this.#send(this.game.state.other.id, this.game.say(text.trim().slice(0, 500)));
  }

  leave() {
    const { other } = this.game.state;
    const messages = this.game.leave();
    for (const unsubscribe of this.#unsubscribers.splice(0)) unsubscribe();
    if (other) this.#send(other.id, messages);
    this.game = this.peer = this.otherPicture = null;
    this.#beat();
    this.#save();
    this.#changed();
  }

  /** @param {Blob | null} blob */
  show(blob) {
    this.picture = blob && { id: secret(4), blob };
    this.#pictureSent = -Infinity;
    this.#beat();
    this.#changed();
  }

  /** Announces that the page is closed or reloaded. There is time for one transient message only. */
  announceLeaving() {
    const message = JSON.stringify({ type: 'bye', id: this.me.id });
    if (this.game) this.#connection.publish(roomOf(this.game.state.id), message);
    this.#connection.publish(LOBBY, message);
  }

  /** Stops the timer. The stored state stays. */
  end() {
    clearInterval(this.#timer);
  }

  #enter(game) {
    const { id } = game.state;
    this.game = game;
    this.#stored.game = game.state;
    this.peer = game.state.other ? new PeerPresence(this.#now()) : null;
    this.#unsubscribers.push(
      this.#connection.subscribe(roomOf(id), (message) => this.#onRoomMessage(message)),
      this.#connection.subscribe(queueOf(id, this.me.id), (message) => this.#enqueue(game, message), { ack: 'client-individual' }),
    );
    this.#changed();
  }

  #save() {
    this.#stored.game = this.game?.state ?? null;
    this.#store(this.#stored);
  }

  #changed() {
    this.dispatchEvent(new Event('change'));
  }

  /** Sends messages to a player's queue. They are stored together with the state that caused them. */
  #send(to, messages) {
    this.#put(to, messages);
    this.#save();
    this.#outbox.flush();
    this.#changed();
  }

  #put(to, messages) {
    this.#outbox.put(
      queueOf(this.game.state.id, to),
      messages.map((message) => ({ from: this.me.id, ...message })),
    );
  }

  /** Handles messages one after the other: each may depend on the one before. */
  #enqueue(game, message) {
    this.#receiving = this.#receiving.then(() => this.#handle(game, message)).catch((error) => console.error(error));
  }

  async #handle(game, message) {
    const parsed = parse(message.body);
    const answers = parsed ? await game.receive(parsed.from, parsed.message) : [];
    if (game !== this.game) return; // the player has left meanwhile, and nothing reads the queue any more
    if (parsed) this.#put(parsed.from, answers);
    if (game.state.other && !this.peer) this.peer = new PeerPresence(this.#now());
    if (parsed?.from === game.state.other?.id) this.peer.received(this.#now());
    this.#save();
    message.ack();
    this.#outbox.flush();
    this.#changed();
  }

  #onLobbyMessage(body) {
    const { type, id, name, game, open } = parseObject(body) ?? {};
    if (!isId(id) || id === this.me.id) return;
    if (type === 'who') this.#beat();
    if (type === 'bye') this.roster.gone(id);
    if (type === 'here') {
      const where = isId(game) ? game : null;
      this.roster.here({ id, name: cleanName(name), game: where, open: Boolean(where && open === true) }, this.#now());
    }
    this.#changed();
  }

  #onRoomMessage({ headers, body, binaryBody }) {
    const other = this.game?.state.other;
    if (headers.type === 'picture') {
      if (other && headers.from === other.id) this.#pictureArrived(headers, binaryBody);
      return;
    }
    const { type, id, picture, want } = parseObject(body) ?? {};
    if (!other || id !== other.id) return;
    if (type === 'bye') {
      this.peer.left();
    } else if (type === 'beat') {
      const isBack = this.otherIs !== 'here';
      this.peer.received(this.#now());
      if (isBack) this.#pictureRequested = -Infinity;
      if (this.picture && want === this.picture.id) this.#sendPicture();
      this.#wantedPicture = isId(picture) && picture !== this.otherPicture?.id ? picture : undefined;
      if (!isId(picture)) this.otherPicture = null;
      if (this.#wantedPicture && this.#now() - this.#pictureRequested > PICTURE_INTERVAL_MS) this.#beat();
    }
    this.#changed();
  }

  #pictureArrived({ picture: id, 'content-type': type }, bytes) {
    if (!isId(id) || !PICTURE_TYPES.includes(type) || bytes.length > PICTURE_BYTES) return;
    this.otherPicture = { id, blob: new Blob([bytes], { type }) };
    this.#wantedPicture = undefined;
    this.peer.received(this.#now());
    this.#changed();
  }

  async #sendPicture() {
    if (this.#now() - this.#pictureSent < PICTURE_INTERVAL_MS) return;
    this.#pictureSent = this.#now();
    const { id, blob } = this.picture;
    const room = roomOf(this.game.state.id);
    const headers = { type: 'picture', from: this.me.id, picture: id, 'content-type': blob.type };
    this.#connection.publish(room, new Uint8Array(await blob.arrayBuffer()), headers);
  }

  #tick() {
    const now = this.#now();
    this.peer?.tick(now, this.#connection.connected);
    this.roster.tick(now, this.#connection.connected);
    if (now - this.#lastBeat >= BEAT_MS) this.#beat();
    // A player becomes silent by time alone, without an event.
    const shown = `${this.otherIs} ${this.others.map(({ id }) => id)}`;
    if (shown !== this.#shownPresence) this.#changed();
    this.#shownPresence = shown;
  }

  /** Announces this player to the lobby and to the game. */
  #beat() {
    if (!this.#connection.connected) return;
    this.#lastBeat = this.#now();
    const { id, name } = this.me;
    const game = this.game?.state.id ?? null;
    const open = this.game?.phase === 'waiting';
    this.#connection.publish(LOBBY, JSON.stringify({ type: 'here', id, name, game, open }));
    if (!this.game) return;
    const beat = { type: 'beat', id, picture: this.picture?.id ?? null };
    if (this.#wantedPicture && this.#now() - this.#pictureRequested > PICTURE_INTERVAL_MS) {
      this.#pictureRequested = this.#now();
      beat.want = this.#wantedPicture;
    }
    this.#connection.publish(roomOf(game), JSON.stringify(beat));
  }
}
