/**
 * The state that survives a reload of the page and is deleted with its tab: the account, unsent messages, and the marks of
 * the archives. It contains no password, but a key in its place (see scram.js).
 */

const NAME = 'portcullis-chat';

export class TabState {
  #storage;
  #state;

  /** @param {Storage} [storage] */
  constructor(storage = globalThis.sessionStorage) {
    this.#storage = storage;
    try {
      this.#state = JSON.parse(storage.getItem(NAME)) ?? {};
    } catch {
      this.#state = {};
    }
  }

  get account() {
    return this.#state.account;
  }

  get outbox() {
    return this.#state.outbox;
  }

  get drafts() {
    return this.#state.drafts;
  }

  get marks() {
    return this.#state.marks;
  }

  update(changes) {
    Object.assign(this.#state, changes);
    try {
      this.#storage.setItem(NAME, JSON.stringify(this.#state));
    } catch {
      // The storage is full or disabled: the state does not survive a reload.
    }
  }

  clear() {
    this.#state = {};
    this.#storage.removeItem(NAME);
  }
}
