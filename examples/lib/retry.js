/**
 * When to try again. It knows nothing of WebSockets: it is told how a try went, and says when the next one is due.
 *
 *     const retry = new Retry(() => connect());          // connect() calls one of the following
 *     retry.opened();                                     // it works
 *     retry.ended({ words: 'Interrupted.', retry: true })  // it is over, or never came to be
 *
 * Event `state`: what it is like now, for the page to show. `detail` is a State, and so is the property `state`.
 *
 * @typedef {object} State
 * @property {'connecting' | 'open' | 'waiting' | 'closed'} state `waiting`: for the next try; `closed`: for good
 * @property {string} words for the person in front of the page
 * @property {number} [retryAt] in `waiting`: when the next try is due, as performance.now() counts
 */

import { Backoff } from './backoff.js';
import { ChannelEvent } from './channel.js';
import { realClock } from './clock.js';

export class Retry extends EventTarget {
  #begin;
  #backoff;
  #stable;
  #clock;
  #network;
  #timer;
  #openedAt;
  #state = { state: 'closed', words: 'Not connected.' };

  /**
   * @param {() => void} begin begins one try
   * @param {object} [options]
   * @param {Backoff} [options.backoff]
   * @param {number} [options.stable] a connection that has lived for so long, in milliseconds, was a good one. One that
   *   opens and ends at once, as when the server behind the gateway is down, must not begin the back-off anew.
   * @param {import('./clock.js').Clock} [options.clock]
   * @param {EventTarget & {navigator?: {onLine: boolean}}} [options.network] knows whether this computer has a network,
   *   and tells `online` when it is back: the page's window
   */
  constructor(begin, { backoff = new Backoff(), stable = 5_000, clock = realClock, network = globalThis.window } = {}) {
    super();
    this.#begin = begin;
    this.#backoff = backoff;
    this.#stable = stable;
    this.#clock = clock;
    this.#network = network;
    network?.addEventListener('online', this.#online);
  }

  get state() {
    return this.#state;
  }

  /** Tries, unless it is trying or connected already. */
  start() {
    if (this.#state.state === 'connecting' || this.#state.state === 'open') return;
    this.#try();
  }

  /** The try has succeeded. */
  opened(words = 'Connected.') {
    if (this.#state.state !== 'connecting') return;
    this.#openedAt = this.#clock.now();
    this.#become({ state: 'open', words });
  }

  /** More can be said about the connection, which stays as it is. */
  say(words) {
    if (words !== this.#state.words) this.#become({ ...this.#state, words });
  }

  /**
   * The connection is over, or did not come to be.
   *
   * @returns {number | undefined} in how many milliseconds the next try is due, if there is one
   */
  ended({ words, retry }) {
    if (this.#state.state !== 'connecting' && this.#state.state !== 'open') return undefined;
    const lived = this.#openedAt === undefined ? 0 : this.#clock.now() - this.#openedAt;
    this.#openedAt = undefined;
    if (!retry) {
      this.#become({ state: 'closed', words });
      return undefined;
    }
    if (lived >= this.#stable) this.#backoff.reset();
    const delay = this.#backoff.next();
    this.#timer = this.#clock.setTimeout(() => this.#try(), delay);
    const offline = this.#network?.navigator?.onLine === false;
    const told = offline ? 'This computer is offline.' : words;
    this.#become({ state: 'waiting', words: told, retryAt: this.#clock.now() + delay });
    return delay;
  }

  /** Does not wait any longer. Also after it has given up. */
  retryNow() {
    this.start();
  }

  /** No more tries. Whoever stops it ends the connection, too. */
  stop(words = 'Disconnected.') {
    this.#clock.clearTimeout(this.#timer);
    this.#openedAt = undefined;
    this.#backoff.reset();
    if (this.#state.state !== 'closed') this.#become({ state: 'closed', words });
  }

  /** Stops, and lets go of the window. */
  dispose() {
    this.stop();
    this.#network?.removeEventListener('online', this.#online);
  }

  #online = () => {
    if (this.#state.state === 'waiting') this.#try();
  };

  #try() {
    this.#clock.clearTimeout(this.#timer);
    this.#become({ state: 'connecting', words: 'Connecting…' });
    this.#begin();
  }

  #become(state) {
    this.#state = state;
    this.dispatchEvent(new ChannelEvent('state', { detail: state }));
  }
}
