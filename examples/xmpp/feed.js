/**
 * One archive and what is heard live beside it, as a single row of messages in which none is missing.
 *
 * After a login the archive is asked for what came since the last message known; until it has answered, live messages
 * wait. So the mark, the last message known, never moves over one that was not seen, however often connections end.
 */

export class Feed {
  /** The archive's id of the last message before which none is missing; '' if the archive was empty. */
  mark;

  #deliver;
  #gap;
  #begun = false;
  #held;
  #pinned;

  /**
   * @param {(told: import('./archive.js').Kept, how: {live: boolean, fresh: boolean}) => void} deliver takes one
   *   message; `live` if it is not one of those that `catchUp` brings, `fresh` if it was said after the page was there
   * @param {(words: string) => void} gap something may be missing here
   * @param {string} [mark] from an earlier page
   */
  constructor(deliver, gap, mark) {
    this.#deliver = deliver;
    this.#gap = gap;
    this.mark = mark;
  }

  /** From where on the archive is to be asked after a lost connection, or by the next page. */
  get from() {
    return this.#pinned ? this.#pinned.mark : this.mark;
  }

  /**
   * Something of ours is given to the network. The archive may get it before what others say next, and then it would stand
   * before the mark: so until `unpin`, the archive is asked from here on.
   */
  pin() {
    this.#pinned ??= { mark: this.mark };
  }

  /** It is known of all that is ours whether the archive has it. */
  unpin() {
    this.#pinned = undefined;
  }

  /** A login has begun: from now on live messages wait for `catchUp`. */
  hold() {
    this.#held = [];
  }

  /** A live message. */
  heard(told) {
    if (this.#held) this.#held.push(told);
    else this.#take(told, true, true);
  }

  /**
   * Brings what was missed, and then what waited.
   *
   * @param {import('./archive.js').Archive} archive
   * @returns {Promise<boolean>} whether nothing is missing. Rejected if the session ended meanwhile: then what waited is
   *   forgotten, for the archive will tell it the next time.
   */
  async catchUp(archive) {
    let whole;
    try {
      whole = this.#begun ? await this.#since(archive) : await this.#begin(archive);
    } catch (error) {
      if (error.name !== 'StanzaError') throw error;
      if (this.#begun) this.#gap('This server keeps no archive: what was said meanwhile is missing here.');
      whole = false;
    }
    this.#begun = true;
    this.mark ??= '';
    const held = this.#held;
    this.#held = undefined;
    for (const told of held ?? []) this.#take(told, false, true);
    return whole;
  }

  async #begin(archive) {
    const { mark } = this;
    const { kept, reached } = await archive.latest(mark);
    const known = kept.findIndex(({ archiveId }) => archiveId === mark);
    kept.forEach((told, i) => this.#take(told, false, known >= 0 && i > known));
    return reached;
  }

  async #since(archive) {
    const missed = await archive.since(this.from);
    if (missed) {
      for (const told of missed) this.#take(told, false, true);
      return true;
    }
    this.#gap('The archive does not reach back to the last message above: some may be missing here.');
    const { kept } = await archive.latest();
    for (const told of kept) this.#take(told, false, true);
    return false;
  }

  #take(told, live, fresh) {
    this.#deliver(told, { live, fresh });
    if (told.archiveId) this.mark = told.archiveId;
  }
}
