/**
 * One WebSocket connection, plus what a WebSocket lacks: a readable description of why it closed, timeouts for opening and
 * closing, liveness checks, and backpressure. It has the interface of a browser's WebSocket, so that libraries with logic
 * of their own (noVNC's `new RFB(target, channel)`, a `webSocketFactory`) accept it as one.
 *
 * Events: `open`, `message`, `error` and `close` as a WebSocket has them, where `close` also has `description` and `retry`
 * (see close.js); and two of the liveness check: `stalled` (no message for `detail.ms`) and `recovered`, after the next
 * message.
 */

import { realClock } from './clock.js';
import { describeClose } from './close.js';
import { Liveness } from './liveness.js';

const CONNECTING = 0;
const OPEN = 1;
const CLOSING = 2;
const CLOSED = 3;

/** The interval at which bufferedAmount is polled; browsers have no event for it. */
const POLL_MS = 20;

/**
 * @typedef {object} ChannelOptions
 * @property {string | string[]} [protocols] the subprotocols to offer
 * @property {number} [connectTimeout] close the connection if opening takes this long, in milliseconds
 * @property {number} [closeTimeout] report the close if the peer has not answered for this long, in milliseconds
 * @property {import('./liveness.js').LivenessOptions} [liveness] without it, a dead network is not detected here
 * @property {number} [highWater] `write` waits while the browser buffers more bytes than this
 * @property {typeof WebSocket} [WebSocket]
 * @property {import('./clock.js').Clock} [clock]
 */

/**
 * Opens one connection.
 *
 * @param {string | URL} url
 * @param {ChannelOptions} [options]
 */
export function openChannel(url, options) {
  return new Channel(url, options);
}

class Channel extends EventTarget {
  // Own properties, because libraries check for them to recognise a WebSocket.
  onopen = null;
  onmessage = null;
  onerror = null;
  onclose = null;

  #socket;
  #clock;
  #highWater;
  #closeTimeout;
  #liveness;
  #timer;
  #opened = false;
  #closing = false;
  #closed = false;
  #writing = Promise.resolve();
  #writers = 0;

  constructor(
    url,
    {
      protocols,
      connectTimeout = 10_000,
      closeTimeout = 3_000,
      liveness,
      highWater = 1 << 20,
      WebSocket = globalThis.WebSocket,
      clock = realClock,
    } = {},
  ) {
    super();
    this.#clock = clock;
    this.#highWater = highWater;
    this.#closeTimeout = closeTimeout;
    if (liveness) {
      const callbacks = {
        send: (data) => this.#socket.send(data),
        stalled: (ms) => this.#emit(new ChannelEvent('stalled', { detail: { ms } })),
        recovered: () => this.#emit(new ChannelEvent('recovered')),
        timedOut: (ms) => this.#abort(`no answer for ${seconds(ms)} s`),
      };
      this.#liveness = new Liveness(liveness, callbacks, clock);
    }
    this.#socket = protocols === undefined ? new WebSocket(url) : new WebSocket(url, protocols);
    this.#socket.binaryType = 'arraybuffer';
    this.#socket.onopen = () => this.#onOpen();
    this.#socket.onmessage = ({ data }) => this.#onMessage(data);
    this.#socket.onerror = () => this.#emit(new ChannelEvent('error'));
    this.#socket.onclose = ({ code, reason, wasClean }) => this.#end({ code, reason, wasClean });
    this.#timer = clock.setTimeout(() => this.#abort(`no answer for ${seconds(connectTimeout)} s`), connectTimeout);
  }

  get url() {
    return this.#socket.url;
  }

  get protocol() {
    return this.#socket.protocol;
  }

  get extensions() {
    return this.#socket.extensions;
  }

  get binaryType() {
    return this.#socket.binaryType;
  }

  set binaryType(type) {
    this.#socket.binaryType = type;
  }

  get bufferedAmount() {
    return this.#socket.bufferedAmount;
  }

  get readyState() {
    if (this.#closed) return CLOSED;
    return this.#closing ? CLOSING : this.#socket.readyState;
  }

  /** As of a WebSocket: sends at once, however much is buffered. */
  send(data) {
    this.#socket.send(data);
  }

  /**
   * Sends as soon as no more than `highWater` bytes are buffered, in the order of the calls. Do not modify `data` until
   * then.
   *
   * @returns {Promise<void>} resolved when the browser has taken `data`; rejected if the connection ended before, and
   *   then nothing of it was sent
   */
  write(data) {
    if (this.readyState !== OPEN) return Promise.reject(new Error('not connected: nothing was sent'));
    if (this.#writers === 0 && this.bufferedAmount <= this.#highWater) {
      this.#socket.send(data);
      return Promise.resolve();
    }
    this.#writers += 1;
    const written = this.#writing.then(() => this.#writeWhenDrained(data));
    this.#writing = written.catch(() => {}).then(() => {
      this.#writers -= 1;
    });
    return written;
  }

  async #writeWhenDrained(data) {
    for (;;) {
      if (this.readyState !== OPEN) throw new Error('the connection ended before this was sent');
      if (this.bufferedAmount <= this.#highWater) break;
      await new Promise((resolve) => {
        this.#clock.setTimeout(resolve, POLL_MS);
      });
    }
    this.#socket.send(data);
  }

  close(code, reason) {
    if (this.#closed || this.#closing) return;
    if (code === undefined) this.#socket.close();
    else this.#socket.close(code, reason);
    this.#closing = true;
    this.#stopTimers();
    // Without a network no answer comes, and the browser would wait for minutes.
    this.#timer = this.#clock.setTimeout(() => this.#abort('no answer to the Close frame'), this.#closeTimeout);
  }

  #onOpen() {
    if (this.#closed || this.#closing) return;
    this.#stopTimers();
    this.#opened = true;
    this.#liveness?.start();
    this.#emit(new ChannelEvent('open'));
  }

  #onMessage(data) {
    if (this.#closed) return;
    this.#liveness?.received();
    this.#emit(new ChannelEvent('message', { data }));
  }

  /** Reports the connection as closed at once, whenever the browser notices. */
  #abort(reason) {
    if (this.#closed) return;
    if (!this.#closing) {
      this.#closing = true;
      this.#socket.close();
    }
    this.#end({ code: 1006, reason, wasClean: false });
  }

  #end({ code, reason, wasClean }) {
    if (this.#closed) return;
    this.#closed = true;
    this.#stopTimers();
    const described = describeClose({ code, reason, opened: this.#opened });
    this.#emit(new ChannelEvent('close', { code, reason, wasClean, opened: this.#opened, ...described }));
  }

  #stopTimers() {
    this.#clock.clearTimeout(this.#timer);
    this.#liveness?.stop();
  }

  #emit(event) {
    this.dispatchEvent(event);
    this[`on${event.type}`]?.(event);
  }
}

for (const [name, value] of Object.entries({ CONNECTING, OPEN, CLOSING, CLOSED })) {
  for (const owner of [Channel, Channel.prototype]) Object.defineProperty(owner, name, { value });
}

/** An event with additional properties. CloseEvent and CustomEvent do not exist in every runtime. */
export class ChannelEvent extends Event {
  constructor(type, properties = {}) {
    super(type);
    Object.assign(this, properties);
  }
}

function seconds(ms) {
  return Math.round(ms / 1000);
}
