/**
 * A connection that comes back: one for a page, over as many WebSockets as it takes.
 *
 *     const socket = new Socket('wss://…/path');
 *     socket.addEventListener('message', ({ detail }) => received(detail));   // a Uint8Array
 *     socket.addEventListener('state', ({ detail }) => banner.show(detail));
 *     await socket.send(bytes);
 *
 * What is sent belongs to one connection. Nothing is kept back for the next one: only the application knows which of
 * its messages arrived, and which still make sense. So `send` fails while there is no connection.
 *
 * Events, each with a `detail`:
 *   open      there is a connection; {protocol}
 *   message   bytes that have arrived, a Uint8Array; messages are pieces of a stream
 *   close     a connection has ended: {code, reason, wasClean, words, retry, delay}; delay in milliseconds until the next
 *             try, if there is one
 *   state     what to show: {state: 'connecting' | 'open' | 'waiting' | 'closed', words, retryAt} (see retry.js)
 *
 * For a library with a logic of its own there is `openChannel` (see channel.js) for a single connection, and `Retry` (see
 * retry.js) to know when to open the next.
 */

import { ChannelEvent, openChannel } from './channel.js';
import { Retry } from './retry.js';

export { openChannel } from './channel.js';
export { Retry } from './retry.js';

export class Socket extends EventTarget {
  #url;
  #options;
  #retry;
  #channel;
  #closed = false;
  #encoder = new TextEncoder();

  /**
   * @param {string | URL} url
   * @param {import('./channel.js').ChannelOptions & {
   *   backoff?: import('./backoff.js').Backoff,
   *   stable?: number,
   *   network?: EventTarget,
   *   retryOn?: (end: {code: number, reason: string, retry: boolean, byServer: boolean}) => boolean,
   * }} [options] those of a channel; `backoff`, `stable` and `network` are Retry's; `retryOn` has the last word on
   *   whether to try again, where the application knows more than the code says; `({ retry, byServer }) => retry || byServer`, for
   *   one, comes back when the server has closed (see close.js)
   */
  constructor(url, { backoff, stable, network, retryOn = ({ retry }) => retry, ...options } = {}) {
    super();
    this.#url = url;
    this.#options = options;
    this.#retry = new Retry(() => this.#connect(retryOn), { backoff, stable, network, clock: options.clock });
    this.#retry.addEventListener('state', ({ detail }) => this.#tell('state', detail));
    // Later, so that whoever made it can listen first.
    queueMicrotask(() => this.#closed || this.#retry.start());
  }

  /** What it is like now (see retry.js). */
  get state() {
    return this.#retry.state;
  }

  /**
   * Sends on the present connection, as soon as no more than `highWater` bytes wait.
   *
   * @param {string | ArrayBuffer | ArrayBufferView} data
   * @returns {Promise<void>} rejected if there is no connection, or if it ended before
   */
  async send(data) {
    if (this.state.state !== 'open') throw new Error('not connected: nothing was sent');
    await this.#channel.write(data);
  }

  /** Ends the connection, and does not come back until `retryNow`. */
  close(code = 1000, reason = '') {
    const channel = this.#channel;
    this.#closed = true;
    this.#retry.stop();
    channel?.close(code, reason);
  }

  /** Tries at once, also after it has given up. */
  retryNow() {
    this.#closed = false;
    this.#retry.retryNow();
  }

  #connect(retryOn) {
    let channel;
    try {
      channel = openChannel(this.#url, this.#options);
    } catch (error) {
      // An address that is none; another try would not make it one.
      this.#retry.ended({ words: `No connection: ${error.message}`, retry: false });
      return;
    }
    this.#channel = channel;
    const ours = () => this.#channel === channel;
    channel.onopen = () => {
      if (!ours()) return;
      this.#retry.opened();
      this.#tell('open', { protocol: channel.protocol });
    };
    channel.onmessage = ({ data }) => {
      if (ours()) this.#tell('message', this.#bytes(data));
    };
    channel.addEventListener('silence', ({ detail }) => {
      if (ours()) this.#retry.say(`No answer for ${Math.round(detail.ms / 1000)} s. Is the network down?`);
    });
    channel.addEventListener('voice', () => {
      if (ours()) this.#retry.say('Connected.');
    });
    channel.onclose = ({ code, reason, wasClean, words, retry, byServer }) => {
      if (!ours()) return;
      this.#channel = undefined;
      const again = this.#retry.state.state !== 'closed' && retryOn({ code, reason, retry, byServer });
      const delay = this.#retry.ended({ words, retry: again });
      this.#tell('close', { code, reason, wasClean, words, retry: again, delay });
    };
  }

  #bytes(data) {
    return typeof data === 'string' ? this.#encoder.encode(data) : new Uint8Array(data);
  }

  #tell(type, detail) {
    this.dispatchEvent(new ChannelEvent(type, { detail }));
  }
}
