/**
 * The messages with one contact or in one room: each once, in the server's order as far as it is known.
 *
 * It knows nothing of the network and the page. Invariants: a known message is not added again, whatever its source (live,
 * the archive, a carbon copy from another device); and each of our messages has a progress, so that none is sent twice and
 * none is lost.
 *
 *     waiting    not sent yet
 *     sending    passed to the connection
 *     unsure     the connection was lost before the server confirmed it: the archive will tell
 *     doubtful   the archive cannot tell; the user decides whether to send it again
 *     sent       the server has it
 *     delivered  the recipient's client has it
 *     failed     an error was returned
 *
 * @typedef {'waiting' | 'sending' | 'unsure' | 'doubtful' | 'sent' | 'delivered' | 'failed'} Progress
 *
 * @typedef {object} Message
 * @property {string} id chosen by the sender
 * @property {string} [archiveId] chosen by the server that archives it
 * @property {string} from the sender's name as shown
 * @property {boolean} mine
 * @property {string} text
 * @property {number} when in milliseconds since 1970
 * @property {Progress} [progress] only of our messages
 * @property {string} [failure] why it failed
 * @property {boolean} [gap] not a message, but a gap that `text` describes: messages may be missing here
 */

/** Messages that may not be in the archive yet: they are placed after all others, where they will be archived. */
const UNCONFIRMED = new Set(['waiting', 'sending', 'unsure', 'doubtful']);
/** The progress of a message never goes back to a lower rank. */
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

  /** The archive's id of the oldest known message. */
  get olderThan() {
    return this.#oldest ?? this.messages.find(({ archiveId }) => archiveId)?.archiveId;
  }

  /** Our messages that the server has not confirmed, in their order. */
  get outbox() {
    return this.messages.filter(({ mine, progress }) => mine && RANK[progress] === 0 && progress !== 'failed');
  }

  message(id) {
    return this.#mine.get(id);
  }

  /**
   * Adds a message from the server.
   *
   * @param {Message} message
   * @returns {boolean} whether it is new
   */
  add(message) {
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
   * Adds older messages, in their order.
   *
   * @param {Message[]} messages
   * @param {string} [oldest] the archive's id of the first entry of that page, which may not be a message
   */
  addOlder(messages, oldest) {
    this.#oldest = oldest ?? this.#oldest;
    const added = messages.filter((message) => {
      const known = this.#known(message);
      if (known && known !== true) this.#advance(known, 'sent');
      return !known;
    });
    this.messages.unshift(...added.map((message) => this.#remember(message)));
  }

  /** Marks a gap after the known messages. */
  gap(text) {
    const index = this.#unconfirmedIndex();
    if (this.messages[index - 1]?.gap) return;
    this.messages.splice(index, 0, { id: crypto.randomUUID(), gap: true, from: '', mine: false, text, when: Date.now() });
  }

  /** Adds a message of ours that is not sent yet. */
  compose({ id, from, text, when, progress = 'waiting' }) {
    const message = { id, from, mine: true, text, when, progress };
    this.#mine.set(id, message);
    this.messages.push(message);
    return message;
  }

  /** The message is passed to the connection. */
  sending(message) {
    message.progress = 'sending';
    message.failure = undefined;
  }

  /** The server has handled the message, after all that were added so far. */
  sent(message) {
    if (message.progress !== 'sending') return;
    message.progress = 'sent';
    this.#place(message);
  }

  /** The recipient's client has confirmed the message with this id. */
  delivered(id) {
    const message = this.#mine.get(id);
    if (!message || message.progress === 'delivered') return;
    if (message.progress === 'sending') {
      // So the server has it, and all messages that were sent before.
      const before = this.messages.slice(0, this.messages.indexOf(message));
      for (const one of before) this.sent(one);
    }
    const placed = message.progress === 'sent';
    message.progress = 'delivered';
    if (!placed) this.#place(message);
  }

  /** The server has returned an error for the message with this id. */
  failed(id, failure) {
    const message = this.#mine.get(id);
    if (message && message.progress !== 'delivered') Object.assign(message, { progress: 'failed', failure });
  }

  /** The connection is lost: it is unknown which of the last messages have arrived. */
  interrupted() {
    this.#replaceProgress('sending', 'unsure');
  }

  /** The archive cannot tell which messages have arrived. */
  doubted() {
    this.#replaceProgress('unsure', 'doubtful');
  }

  #replaceProgress(from, to) {
    for (const message of this.messages) if (message.progress === from) message.progress = to;
  }

  /** The known message if it is ours; true if it is a known one of somebody else. */
  #known({ archiveId, id, mine, from }) {
    const archived = archiveId && this.#archived.get(archiveId);
    if (archived) return archived.mine ? archived : true;
    if (mine) return this.#mine.get(id);
    return !archiveId && id !== undefined && this.#others.has(`${from} ${id}`);
  }

  #remember(entry) {
    const message = entry.mine ? { ...entry, progress: 'sent' } : entry;
    if (message.archiveId) this.#archived.set(message.archiveId, message);
    if (message.mine) this.#mine.set(message.id, message);
    else if (!message.archiveId && message.id !== undefined) this.#others.add(`${message.from} ${message.id}`);
    return message;
  }

  /** Places it after all messages that the server has confirmed. */
  #place(message) {
    const before = this.messages.indexOf(message);
    if (before >= 0) this.messages.splice(before, 1);
    this.messages.splice(this.#unconfirmedIndex(), 0, message);
  }

  #unconfirmedIndex() {
    let index = this.messages.length;
    while (index > 0 && UNCONFIRMED.has(this.messages[index - 1].progress)) index -= 1;
    return index;
  }

  #advance(message, progress) {
    if (message.progress !== 'failed' && RANK[progress] > RANK[message.progress]) message.progress = progress;
  }
}
