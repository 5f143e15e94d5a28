/**
 * A reconnecting connection: one for a page, over one WebSocket after the other.
 *
 *     const socket = new Socket('wss://…/path');
 *     socket.addEventListener('message', ({ detail }) => received(detail));   // a Uint8Array
 *     socket.addEventListener('state', ({ detail }) => banner.show(detail));
 *     await socket.send(bytes);
 *
 * Data belongs to one connection. Nothing is queued for the next one: only the application knows which of its messages
 * arrived and which still make sense. So `send` fails while there is no connection.
 *
 * Events, each with a `detail`:
 *   open      connected; {protocol}
 *   message   received bytes, a Uint8Array; messages are pieces of a byte stream
 *   close     a connection has ended: {code, reason, wasClean, description, retry, delay}; delay in milliseconds until the
 *             next attempt, if there is one
 *   state     the state to show: {state: 'connecting' | 'open' | 'waiting' | 'closed', description, retryAt} (see retry.js)
 *
 * For a library with logic of its own there are `openChannel` (see channel.js) for a single connection and `Retry` (see
 * retry.js), which decides when to open the next.
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
   * }} [options] those of a channel; `backoff`, `stable` and `network` are Retry's; `retryOn` overrides whether to
   *   reconnect, if the application knows more than the close code tells: `({ retry, byServer }) => retry || byServer`
   *   also reconnects after the server has closed the connection (see close.js)
   */
  constructor(url, { backoff, stable, network, retryOn = ({ retry }) => retry, ...options } = {}) {
    super();
    this.#url = url;
    this.#options = options;
    this.#retry = new Retry(() => this.#connect(retryOn), { backoff, stable, network, clock: options.clock });
    this.#retry.addEventListener('state', ({ detail }) => this.#emit('state', detail));
    // Deferred, so that the caller can add its listeners first.
    queueMicrotask(() => this.#closed || this.#retry.start());
  }

  /** The current state (see retry.js). */
  get state() {
    return this.#retry.state;
  }

  /**
   * Sends on the current connection, as soon as no more than `highWater` bytes are buffered.
   *
   * @param {string | ArrayBuffer | ArrayBufferView} data
   * @returns {Promise<void>} rejected without a connection, or if it ended before the data was sent
   */
  async send(data) {
    if (this.state.state !== 'open') throw new Error('not connected: nothing was sent');
    await this.#channel.write(data);
  }

  /** Closes the connection, and does not reconnect until `retryNow`. */
  close(code = 1000, reason = '') {
    const channel = this.#channel;
    this.#closed = true;
    this.#retry.stop();
    channel?.close(code, reason);
  }

  /** Reconnects at once, also after a final close. */
  retryNow() {
    this.#closed = false;
    this.#retry.retryNow();
  }

  #connect(retryOn) {
    let channel;
    try {
      channel = openChannel(this.#url, this.#options);
    } catch (error) {
      // An invalid URL, which another attempt would not make valid.
      this.#retry.ended({ description: `Cannot connect: ${error.message}`, retry: false });
      return;
    }
    this.#channel = channel;
    const isCurrent = () => this.#channel === channel;
    channel.onopen = () => {
      if (!isCurrent()) return;
      this.#retry.opened();
      this.#emit('open', { protocol: channel.protocol });
    };
    channel.onmessage = ({ data }) => {
      if (isCurrent()) this.#emit('message', this.#bytes(data));
    };
    channel.addEventListener('stalled', ({ detail }) => {
      if (isCurrent()) this.#retry.describe(`No answer for ${Math.round(detail.ms / 1000)} s. Is the network down?`);
    });
    channel.addEventListener('recovered', () => {
      if (isCurrent()) this.#retry.describe('Connected.');
    });
    channel.onclose = ({ code, reason, wasClean, description, retry, byServer }) => {
      if (!isCurrent()) return;
      this.#channel = undefined;
      const reconnects = this.#retry.state.state !== 'closed' && retryOn({ code, reason, retry, byServer });
      const delay = this.#retry.ended({ description, retry: reconnects });
      this.#emit('close', { code, reason, wasClean, description, retry: reconnects, delay });
    };
  }

  #bytes(data) {
    return typeof data === 'string' ? this.#encoder.encode(data) : new Uint8Array(data);
  }

  #emit(type, detail) {
    this.dispatchEvent(new ChannelEvent(type, { detail }));
  }
}
