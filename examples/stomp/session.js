// A player who is in: the lobby, his game if he has one, and what goes over which destination of the broker.
//
//   /topic/rps.lobby                   who is here, every other second; lost if nobody listens
//   /topic/rps.room.GAME               the two players of a game: signs of life, and pictures
//   /queue/rps.game.GAME.PLAYER        all that counts in a game, for one player; kept by the broker until that
//                                      player's page has acted on it and stored the result
//
// It refuses to know the page. It keeps this invariant: what is stored, a message's acknowledgement and the answers to it
// go in that order, so that wherever it stops, the message comes again and changes nothing the second time.

import { Game, cleanName, isId, parse, parseObject, secret } from './game.js';
import { Post } from './post.js';
import { BEAT_MS, Roster, Watch } from './presence.js';

const LOBBY = '/topic/rps.lobby';
const roomOf = (game) => `/topic/rps.room.${game}`;
const queueOf = (game, player) => `/queue/rps.game.${game}.${player}`;

/** The largest picture, in bytes, and what it may be; no kind that can contain a script. */
export const PICTURE_BYTES = 5 << 20;
export const PICTURE_TYPES = ['image/png', 'image/jpeg', 'image/webp', 'image/gif'];

/** A picture is asked for again, or sent again, after this time at the earliest. */
const PICTURE_AGAIN_MS = 10_000;

/**
 * Event `change`: something that can be seen has changed.
 *
 * @typedef {{me: {id: string, name: string}, game: object | null, waiting: object[]}} Stored
 * @typedef {{id: string, blob: Blob}} Picture
 */
export class Session extends EventTarget {
  /** @type {Game | null} */
  game = null;
  /** @type {Watch | null} the other player of the game */
  watch = null;
  /** @type {Picture | null} */
  picture = null;
  /** @type {Picture | null} the other player's */
  otherPicture = null;

  #link;
  #stored;
  #store;
  #now;
  #post;
  #listening = [];
  #lastBeat = -Infinity;
  #asked = -Infinity;
  #pictureSent = -Infinity;
  #wanted;
  #seen;
  #receiving = Promise.resolve();
  #timer;

  /**
   * @param {import('./link.js').Link} link
   * @param {Stored} stored is changed in place
   * @param {(stored: Stored) => void} store
   * @param {() => number} [now] milliseconds of a clock that never goes back
   */
  constructor(link, stored, store, now = () => performance.now()) {
    super();
    this.#link = link;
    this.#stored = stored;
    this.#store = store;
    this.#now = now;
    this.roster = new Roster(now());
    this.#post = new Post(link, stored.waiting, () => {
      this.#save();
      this.#changed();
    });
    if (stored.game) this.#enter(new Game(stored.game));
    link.subscribe(LOBBY, ({ body }) => this.#inLobby(body));
    link.addEventListener('connected', () => {
      this.#asked = -Infinity;
      this.#link.publish(LOBBY, JSON.stringify({ type: 'who', id: this.me.id }));
      this.#beat();
      this.#post.flush();
    });
    link.addEventListener('alive', () => this.#tick());
    this.#timer = setInterval(() => this.#tick(), 1000);
  }

  get me() {
    return this.#stored.me;
  }

  /** Whether the broker has not taken all that I did. */
  get unsent() {
    return this.#post.waiting > 0;
  }

  /** What is known of the other player. @returns {'here' | 'closed' | 'silent'} */
  get otherIs() {
    return this.watch?.state(this.#now()) ?? 'here';
  }

  /** The players of the lobby but me. */
  get others() {
    return this.roster.players.filter(({ id }) => id !== this.me.id);
  }

  open() {
    if (this.game) return;
    this.#enter(Game.open(secret(6), this.me));
    this.#beat();
    this.#save();
  }

  /** Asks the player `id`, who has opened a game, to be let in. */
  join(id) {
    const host = this.roster.get(id);
    if (this.game || !host?.open) return;
    this.#enter(Game.join(host.game, this.me, { id: host.id, name: host.name }));
    this.#send(host.id, [this.game.hello()]);
    this.#beat();
  }

  async choose(move) {
    const { game } = this;
    const letters = await game.choose(move);
    if (game === this.game) this.#send(game.state.other.id, letters);
  }

  say(text) {
    if (!this.game?.state.other || !text.trim()) return;
    this.#send(this.game.state.other.id, this.game.say(text.trim().slice(0, 500)));
  }

  leave() {
    const { other } = this.game.state;
    const letters = this.game.leave();
    for (const end of this.#listening.splice(0)) end();
    if (other) this.#send(other.id, letters);
    this.game = this.watch = this.otherPicture = null;
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

  /** The page goes away, perhaps for ever. There is no time for more than a word. */
  bye() {
    const word = JSON.stringify({ type: 'bye', id: this.me.id });
    if (this.game) this.#link.publish(roomOf(this.game.state.id), word);
    this.#link.publish(LOBBY, word);
  }

  /** Lets go of everything but what is stored. */
  end() {
    clearInterval(this.#timer);
  }

  #enter(game) {
    const { id } = game.state;
    this.game = game;
    this.#stored.game = game.state;
    this.watch = game.state.other ? new Watch(this.#now()) : null;
    this.#listening.push(
      this.#link.subscribe(roomOf(id), (message) => this.#inRoom(message)),
      this.#link.subscribe(queueOf(id, this.me.id), (letter) => this.#received(game, letter), { ack: 'client-individual' }),
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

  /** To the other player, by way of his queue. What it follows from is stored with it. */
  #send(to, letters) {
    this.#put(to, letters);
    this.#save();
    this.#post.flush();
    this.#changed();
  }

  #put(to, letters) {
    this.#post.put(
      queueOf(this.game.state.id, to),
      letters.map((letter) => ({ from: this.me.id, ...letter })),
    );
  }

  /** One letter after the other: the next one may need what this one changes. */
  #received(game, letter) {
    this.#receiving = this.#receiving.then(() => this.#act(game, letter)).catch((error) => console.error(error));
  }

  async #act(game, letter) {
    const known = parse(letter.body);
    const answers = known ? await game.receive(known.from, known.message) : [];
    if (game !== this.game) return; // left meanwhile; nobody will ask for the queue any more
    if (known) this.#put(known.from, answers);
    if (game.state.other && !this.watch) this.watch = new Watch(this.#now());
    if (known?.from === game.state.other?.id) this.watch.heard(this.#now());
    this.#save();
    letter.ack();
    this.#post.flush();
    this.#changed();
  }

  #inLobby(body) {
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

  #inRoom({ headers, body, binaryBody }) {
    const other = this.game?.state.other;
    if (headers.type === 'picture') {
      if (other && headers.from === other.id) this.#pictureArrived(headers, binaryBody);
      return;
    }
    const { type, id, picture, want } = parseObject(body) ?? {};
    if (!other || id !== other.id) return;
    if (type === 'bye') {
      this.watch.left();
    } else if (type === 'beat') {
      const back = this.otherIs !== 'here';
      this.watch.heard(this.#now());
      if (back) this.#asked = -Infinity;
      if (this.picture && want === this.picture.id) this.#sendPicture();
      this.#wanted = isId(picture) && picture !== this.otherPicture?.id ? picture : undefined;
      if (!isId(picture)) this.otherPicture = null;
      if (this.#wanted && this.#now() - this.#asked > PICTURE_AGAIN_MS) this.#beat();
    }
    this.#changed();
  }

  #pictureArrived({ picture: id, 'content-type': type }, bytes) {
    if (!isId(id) || !PICTURE_TYPES.includes(type) || bytes.length > PICTURE_BYTES) return;
    this.otherPicture = { id, blob: new Blob([bytes], { type }) };
    this.#wanted = undefined;
    this.watch.heard(this.#now());
    this.#changed();
  }

  async #sendPicture() {
    if (this.#now() - this.#pictureSent < PICTURE_AGAIN_MS) return;
    this.#pictureSent = this.#now();
    const { id, blob } = this.picture;
    const room = roomOf(this.game.state.id);
    const headers = { type: 'picture', from: this.me.id, picture: id, 'content-type': blob.type };
    this.#link.publish(room, new Uint8Array(await blob.arrayBuffer()), headers);
  }

  #tick() {
    const now = this.#now();
    this.watch?.tick(now, this.#link.connected);
    this.roster.tick(now, this.#link.connected);
    if (now - this.#lastBeat >= BEAT_MS) this.#beat();
    // Silence is a matter of time alone: it comes without an event.
    const seen = `${this.otherIs} ${this.others.map(({ id }) => id)}`;
    if (seen !== this.#seen) this.#changed();
    this.#seen = seen;
  }

  /** Tells everybody that I am here, and where. */
  #beat() {
    if (!this.#link.connected) return;
    this.#lastBeat = this.#now();
    const { id, name } = this.me;
    const game = this.game?.state.id ?? null;
    const open = this.game?.phase === 'waiting';
    this.#link.publish(LOBBY, JSON.stringify({ type: 'here', id, name, game, open }));
    if (!this.game) return;
    const beat = { type: 'beat', id, picture: this.picture?.id ?? null };
    if (this.#wanted && this.#now() - this.#asked > PICTURE_AGAIN_MS) {
      this.#asked = this.#now();
      beat.want = this.#wanted;
    }
    this.#link.publish(roomOf(game), JSON.stringify(beat));
  }
}
