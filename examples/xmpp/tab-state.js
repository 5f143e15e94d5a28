/**
 * What outlives a reload of the page, and ends with its tab: who is logged in, what is not sent yet, and up to where the
 * archives are known. It holds no password; see scram.js for what stands in its place.
 */

const NAME = 'portcullis-chat';

export class Memory {
  #storage;
  #kept;

  /** @param {Storage} [storage] */
  constructor(storage = globalThis.sessionStorage) {
    this.#storage = storage;
    try {
      this.#kept = JSON.parse(storage.getItem(NAME)) ?? {};
    } catch {
      this.#kept = {};
    }
  }

  get account() {
    return this.#kept.account;
  }

  get outbox() {
    return this.#kept.outbox;
  }

  get drafts() {
    return this.#kept.drafts;
  }

  get marks() {
    return this.#kept.marks;
  }

  keep(changes) {
    Object.assign(this.#kept, changes);
    try {
      this.#storage.setItem(NAME, JSON.stringify(this.#kept));
    } catch {
      // Full or forbidden: then it does not outlive the page.
    }
  }

  forget() {
    this.#kept = {};
    this.#storage.removeItem(NAME);
  }
}
