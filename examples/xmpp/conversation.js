/**
 * What has been said with one person or in one room: each message once, in the server's order as far as it has told it.
 *
 * It knows neither network nor page. What it keeps true: a message that is known is not added again, whichever way it
 * comes (live, from the archive, as a copy of what another device sent); and of each message of ours it is known how far
 * it has come, so that none is sent twice and none is forgotten.
 *
 *     waiting    not sent yet
 *     sending    given to the network
 *     unsure     the connection was lost before the server said that it had it: the archive will tell
 *     doubtful   the archive cannot tell; only a person can decide whether to send it again
 *     sent       the server has it
 *     delivered  the other side's program has it
 *     failed     it came back
 *
 * @typedef {'waiting' | 'sending' | 'unsure' | 'doubtful' | 'sent' | 'delivered' | 'failed'} Progress
 *
 * @typedef {object} Message
 * @property {string} id chosen by whoever sent it
 * @property {string} [archiveId] chosen by the server that keeps it
 * @property {string} from who said it, as it is shown
 * @property {boolean} mine
 * @property {string} text
 * @property {number} when in milliseconds since 1970
 * @property {Progress} [progress] of mine only
 * @property {string} [words] why it failed
 * @property {boolean} [gap] not a message: something may be missing here, and `text` says so
 */

/** Not known to be in the archive: these stand behind everything that is, for there they will come. */
const AHEAD = new Set(['waiting', 'sending', 'unsure', 'doubtful']);
/** From here a message goes no way back. */
const RANK = { waiting: 0, sending: 0, unsure: 0, doubtful: 0, failed: 0, sent: 1, delivered: 2 };

export class Conversation {
  /** @type {Message[]} in the order in which they are shown */
  messages = [];
  unread = 0;
  draft = '';
  /** Whether the archive may have more before the first of `messages`. */
  hasOlder = true;

  #oldest;
  #archived = new Map();
  #mine = new Map();
  #others = new Set();

  /**
   * @param {string} address
   * @param {'chat' | 'room'} kind
   */
  constructor(address, kind) {
    this.address = address;
    this.kind = kind;
  }

  /** The archive's id of the oldest that is known here. */
  get olderThan() {
    return this.#oldest ?? this.messages.find(({ archiveId }) => archiveId)?.archiveId;
  }

  /** Ours that the server is not known to have, in the order of their writing. */
  get outbox() {
    return this.messages.filter(({ mine, progress }) => mine && RANK[progress] === 0 && progress !== 'failed');
  }

  message(id) {
    return this.#mine.get(id);
  }

  /**
   * Takes what the server says was said.
   *
   * @param {Message} message
   * @returns {boolean} whether it is new
   */
  take(message) {
    const known = this.#known(message);
    if (!known) {
      this.#place(this.#remember(message));
      return true;
    }
    if (known === true || (known.archiveId && message.archiveId)) return false;
    known.archiveId = message.archiveId;
    if (known.archiveId) this.#archived.set(known.archiveId, known);
    this.#advance(known, 'sent');
    this.#place(known);
    return false;
  }

  /**
   * Takes older messages, in their order.
   *
   * @param {Message[]} messages
   * @param {string} [oldest] the archive's id of the first thing on that page, if it is not a message
   */
  takeOlder(messages, oldest) {
    this.#oldest = oldest ?? this.#oldest;
    const news = messages.filter((message) => {
      const known = this.#known(message);
      if (known && known !== true) this.#advance(known, 'sent');
      return !known;
    });
    this.messages.unshift(...news.map((message) => this.#remember(message)));
  }

  /** Something may be missing after what is known. */
  gap(text) {
    const ahead = this.#ahead();
    if (this.messages[ahead - 1]?.gap) return;
    this.messages.splice(ahead, 0, { id: crypto.randomUUID(), gap: true, from: '', mine: false, text, when: Date.now() });
  }

  /** We write a message. */
  compose({ id, from, text, when, progress = 'waiting' }) {
    const message = { id, from, mine: true, text, when, progress };
    this.#mine.set(id, message);
    this.messages.push(message);
    return message;
  }

  /** It is given to the network now. */
  sending(message) {
    message.progress = 'sending';
    message.words = undefined;
  }

  /** The server has handled it, after everything that has been taken so far. */
  sent(message) {
    if (message.progress !== 'sending') return;
    message.progress = 'sent';
    this.#place(message);
  }

  /** The other side's program has told that it has the message with this id. */
  delivered(id) {
    const message = this.#mine.get(id);
    if (!message || message.progress === 'delivered') return;
    if (message.progress === 'sending') {
      // So the server has it, and with it all that was given to the network before.
      const before = this.messages.slice(0, this.messages.indexOf(message));
      for (const one of before) this.sent(one);
    }
    const placed = message.progress === 'sent';
    message.progress = 'delivered';
    if (!placed) this.#place(message);
  }

  /** The message with this id came back. */
  failed(id, words) {
    const message = this.#mine.get(id);
    if (message && message.progress !== 'delivered') Object.assign(message, { progress: 'failed', words });
  }

  /** The connection is lost: nobody knows what of the last messages has arrived. */
  interrupted() {
    this.#turn('sending', 'unsure');
  }

  /** The archive cannot tell what has arrived. */
  doubted() {
    this.#turn('unsure', 'doubtful');
  }

  #turn(from, to) {
    for (const message of this.messages) if (message.progress === from) message.progress = to;
  }

  /** The message if it is one of ours; true if it is another's and was here before. */
  #known({ archiveId, id, mine, from }) {
    const archived = archiveId && this.#archived.get(archiveId);
    if (archived) return archived.mine ? archived : true;
    if (mine) return this.#mine.get(id);
    return !archiveId && id !== undefined && this.#others.has(`${from} ${id}`);
  }

  #remember(told) {
    const message = told.mine ? { ...told, progress: 'sent' } : told;
    if (message.archiveId) this.#archived.set(message.archiveId, message);
    if (message.mine) this.#mine.set(message.id, message);
    else if (!message.archiveId && message.id !== undefined) this.#others.add(`${message.from} ${message.id}`);
    return message;
  }

  /** Puts it behind everything that the server is known to have. */
  #place(message) {
    const before = this.messages.indexOf(message);
    if (before >= 0) this.messages.splice(before, 1);
    this.messages.splice(this.#ahead(), 0, message);
  }

  #ahead() {
    let index = this.messages.length;
    while (index > 0 && AHEAD.has(this.messages[index - 1].progress)) index -= 1;
    return index;
  }

  #advance(message, progress) {
    if (message.progress !== 'failed' && RANK[progress] > RANK[message.progress]) message.progress = progress;
  }
}
