// Messages that must not be lost: each is kept, across connections and reloads of the page, until the broker has
// said that it has it.
//
// It refuses to know what they say. It keeps this invariant: messages to one destination are handed to the broker in
// the order they were posted in. One whose receipt was lost with the connection is sent again, so whoever receives must
// know it by its content.

export class Post {
  #link;
  #waiting;
  #save;
  #sent = new Set();

  /**
   * @param {{connected: boolean, deliver(to: string, body: string): Promise<void>}} link
   * @param {{to: string, body: string}[]} waiting what was not taken yet; it is changed in place
   * @param {() => void} save stores `waiting`
   */
  constructor(link, waiting, save) {
    this.#link = link;
    this.#waiting = waiting;
    this.#save = save;
  }

  /** How many messages the broker has not taken yet. */
  get waiting() {
    return this.#waiting.length;
  }

  /** Adds messages; `flush` sends them. The caller stores them together with what they follow from. */
  put(to, messages) {
    for (const message of messages) this.#waiting.push({ to, body: JSON.stringify(message) });
  }

  /** Sends what was not sent on this connection. */
  flush() {
    if (!this.#link.connected) return;
    for (const letter of this.#waiting) {
      if (this.#sent.has(letter)) continue;
      this.#sent.add(letter);
      this.#link.deliver(letter.to, letter.body).then(
        () => {
          this.#sent.delete(letter);
          this.#waiting.splice(this.#waiting.indexOf(letter), 1);
          this.#save();
        },
        // Once more on the next connection, behind all that was posted before it.
        () => this.#sent.delete(letter),
      );
    }
  }
}
