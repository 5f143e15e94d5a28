// The outbox of persistent messages: each is kept, across connections and reloads of the page, until the broker has
// confirmed it with a receipt.
//
// It knows nothing of their content. Invariant: messages to one destination are sent in the order of `put`. A message whose
// receipt was lost with the connection is sent again, so receivers must recognise duplicates by their content.

export class Outbox {
  #connection;
  #pending;
  #save;
  #sent = new Set();

  /**
   * @param {{connected: boolean, deliver(to: string, body: string): Promise<void>}} connection
   * @param {{to: string, body: string}[]} pending messages without a receipt; modified in place
   * @param {() => void} save stores `pending`
   */
  constructor(connection, pending, save) {
    this.#connection = connection;
    this.#pending = pending;
    this.#save = save;
  }

  /** The number of messages without a receipt. */
  get pending() {
    return this.#pending.length;
  }

  /** Adds messages; `flush` sends them. The caller stores them together with the state that caused them. */
  put(to, messages) {
    for (const message of messages) this.#pending.push({ to, body: JSON.stringify(message) });
  }

  /** Sends the messages that were not sent on this connection. */
  flush() {
    if (!this.#connection.connected) return;
    for (const message of this.#pending) {
      if (this.#sent.has(message)) continue;
      this.#sent.add(message);
      this.#connection.deliver(message.to, message.body).then(
        () => {
          this.#sent.delete(message);
          this.#pending.splice(this.#pending.indexOf(message), 1);
          this.#save();
        },
        // Sent again on the next connection, in the original order.
        () => this.#sent.delete(message),
      );
    }
  }
}
