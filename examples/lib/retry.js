/**
 * Decides when to reconnect. It knows nothing of WebSockets: its owner reports how each attempt went.
 *
 *     const retry = new Retry(() => connect());          // connect() calls one of the following
 *     retry.opened();                                     // connected
 *     retry.ended({ description: 'Interrupted.', retry: true })  // the connection was lost, or the attempt failed
 *
 * Event `state`: the state of the connection, for the page to show. `detail` is a State, and so is the property `state`.
 *
 * @typedef {object} State
 * @property {'connecting' | 'open' | 'waiting' | 'closed'} state `waiting`: for the next attempt; `closed`: no further attempt
 * @property {string} description for the user
 * @property {number} [retryAt] in `waiting`: the time of the next attempt, on the clock of performance.now()
 */

import { Backoff } from './backoff.js';
import { ChannelEvent } from './channel.js';
import { realClock } from './clock.js';

export class Retry extends EventTarget {
  #connect;
  #backoff;
  #stable;
  #clock;
  #network;
  #timer;
  #openedAt;
  #state = { state: 'closed', description: 'Not connected.' };

  /**
   * @param {() => void} connect starts one attempt
   * @param {object} [options]
   * @param {Backoff} [options.backoff]
   * @param {number} [options.stable] reset the back-off after a connection that was open for this long, in milliseconds.
   *   One that opens and closes at once, because the server behind the gateway is down, must not reset it.
   * @param {import('./clock.js').Clock} [options.clock]
   * @param {EventTarget & {navigator?: {onLine: boolean}}} [options.network] reports whether this computer has a
   *   network, with an `online` event: the page's window
   */
  constructor(connect, { backoff = new Backoff(), stable = 5_000, clock = realClock, network = globalThis.window } = {}) {
    super();
    this.#connect = connect;
    this.#backoff = backoff;
    this.#stable = stable;
    this.#clock = clock;
    this.#network = network;
    network?.addEventListener('online', this.#online);
  }

  get state() {
    return this.#state;
  }

  /** Starts an attempt, unless it is connecting or connected already. */
  start() {
    if (this.#state.state === 'connecting' || this.#state.state === 'open') return;
    this.#attempt();
  }

  /** The attempt has succeeded. */
  opened(description = 'Connected.') {
    if (this.#state.state !== 'connecting') return;
    this.#openedAt = this.#clock.now();
    this.#setState({ state: 'open', description });
  }

  /** Changes the description; the state stays the same. */
  describe(description) {
    if (description !== this.#state.description) this.#setState({ ...this.#state, description });
  }

  /**
   * The connection has ended, or the attempt has failed.
   *
   * @returns {number | undefined} the delay until the next attempt in milliseconds, if there is one
   */
  ended({ description, retry }) {
    if (this.#state.state !== 'connecting' && this.#state.state !== 'open') return undefined;
    const openFor = this.#openedAt === undefined ? 0 : this.#clock.now() - this.#openedAt;
    this.#openedAt = undefined;
    if (!retry) {
      this.#setState({ state: 'closed', description });
      return undefined;
    }
    if (openFor >= this.#stable) this.#backoff.reset();
    const delay = this.#backoff.next();
    this.#timer = this.#clock.setTimeout(() => this.#attempt(), delay);
    const offline = this.#network?.navigator?.onLine === false;
    const shown = offline ? 'This computer is offline.' : description;
    this.#setState({ state: 'waiting', description: shown, retryAt: this.#clock.now() + delay });
    return delay;
  }

  /** Starts an attempt without waiting, also after a final close. */
  retryNow() {
    this.start();
  }

  /** Makes no further attempt. The caller closes the connection itself. */
  stop(description = 'Disconnected.') {
    this.#clock.clearTimeout(this.#timer);
    this.#openedAt = undefined;
    this.#backoff.reset();
    if (this.#state.state !== 'closed') this.#setState({ state: 'closed', description });
  }

  /** Stops, and removes its listener from the window. */
  dispose() {
    this.stop();
    this.#network?.removeEventListener('online', this.#online);
  }

  #online = () => {
    if (this.#state.state === 'waiting') this.#attempt();
  };

  #attempt() {
    this.#clock.clearTimeout(this.#timer);
    this.#setState({ state: 'connecting', description: 'Connecting…' });
    this.#connect();
  }

  #setState(state) {
    this.#state = state;
    this.dispatchEvent(new ChannelEvent('state', { detail: state }));
  }
}
