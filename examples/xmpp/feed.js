/**
 * Merges an archive and live messages into one sequence without gaps.
 *
 * After a login the archive is queried for the messages since the last known one; until it has answered, live messages are
 * held back. So the mark, the last known message, never skips a message, however often connections break.
 */

export class Feed {
  /** The archive's id of the last message of the sequence; '' if the archive was empty. */
  mark;

  #deliver;
  #gap;
  #hasCaughtUp = false;
  #held;
  #pinned;

  /**
   * @param {(entry: import('./archive.js').ArchivedMessage, how: {live: boolean, fresh: boolean}) => void} deliver gets one
   *   message; `live` if it does not come from `catchUp`, `fresh` if it was sent after the page was loaded
   * @param {(description: string) => void} gap called where messages may be missing
   * @param {string} [mark] the stored mark of an earlier page
   */
  constructor(deliver, gap, mark) {
    this.#deliver = deliver;
    this.#gap = gap;
    this.mark = mark;
  }

  /** The mark for the next query, after a lost connection or a reload. */
  get from() {
    return this.#pinned ? this.#pinned.mark : this.mark;
  }

  /**
   * Called before a message of ours is sent. The archive may store it before the next messages of others, and then it would
   * be before the mark. So until `unpin`, queries start here.
   */
  pin() {
    this.#pinned ??= { mark: this.mark };
  }

  /** Called when it is known of all our messages whether the archive has them. */
  unpin() {
    this.#pinned = undefined;
  }

  /** Called when a login starts: live messages are held back until `catchUp`. */
  hold() {
    this.#held = [];
  }

  /** Handles a live message. */
  receive(entry) {
    if (this.#held) this.#held.push(entry);
    else this.#pass(entry, true, true);
  }

  /**
   * Delivers the missed messages, and then the held ones.
   *
   * @param {import('./archive.js').Archive} archive
   * @returns {Promise<boolean>} whether nothing is missing. Rejected if the session ended meanwhile: then held messages
   *   are dropped, because the archive returns them the next time.
   */
  async catchUp(archive) {
    let complete;
    try {
      complete = this.#hasCaughtUp ? await this.#loadSince(archive) : await this.#loadLatest(archive);
    } catch (error) {
      if (error.name !== 'StanzaError') throw error;
      if (this.#hasCaughtUp) this.#gap('This server has no archive: messages sent meanwhile are missing here.');
      complete = false;
    }
    this.#hasCaughtUp = true;
    this.mark ??= '';
    const held = this.#held;
    this.#held = undefined;
    for (const entry of held ?? []) this.#pass(entry, false, true);
    return complete;
  }

  async #loadLatest(archive) {
    const { mark } = this;
    const { messages, reached } = await archive.latest(mark);
    const known = messages.findIndex(({ archiveId }) => archiveId === mark);
    messages.forEach((entry, i) => this.#pass(entry, false, known >= 0 && i > known));
    return reached;
  }

  async #loadSince(archive) {
    const missed = await archive.since(this.from);
    if (missed) {
      for (const entry of missed) this.#pass(entry, false, true);
      return true;
    }
    this.#gap('The archive does not reach back to the last message above: some may be missing here.');
    const { messages } = await archive.latest();
    for (const entry of messages) this.#pass(entry, false, true);
    return false;
  }

  #pass(entry, live, fresh) {
    this.#deliver(entry, { live, fresh });
    if (entry.archiveId) this.mark = entry.archiveId;
  }
}
