/**
 * One WebSocket connection, with what a WebSocket alone does not give: an end in words, a limit for the time it takes to
 * open and to close, liveness, and backpressure. It has the interface of a browser's WebSocket, so that libraries which
 * bring their own logic (noVNC's `new RFB(target, channel)`, a `webSocketFactory`) take it for one.
 *
 * Events: `open`, `message`, `error` and `close` like a WebSocket's, where `close` also has `words` and `retry`
 * (see close.js); and two of liveness: `silence` (`detail.ms` without a message) and `voice`, when there is one again.
 */

import { realClock } from './clock.js';
import { describeClose } from './close.js';
import { Liveness } from './liveness.js';

const CONNECTING = 0;
const OPEN = 1;
const CLOSING = 2;
const CLOSED = 3;

/** How often to look whether the browser has sent what we gave it; it has no event for that. */
const LOOK_MS = 20;

/**
 * @typedef {object} ChannelOptions
 * @property {string | string[]} [protocols] the sub-protocols to offer
 * @property {number} [connectTimeout] how long opening may take, in milliseconds
 * @property {number} [closeTimeout] how long closing may take, in milliseconds
 * @property {import('./liveness.js').LivenessOptions} [liveness] without it, a silent network is found out by others
 * @property {number} [highWater] `write` waits while more bytes than these wait in the browser
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
  // As own properties, for that is where libraries look whether something is a WebSocket.
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
      const calls = {
        send: (data) => this.#socket.send(data),
        silent: (ms) => this.#tell(new ChannelEvent('silence', { detail: { ms } })),
        back: () => this.#tell(new ChannelEvent('voice')),
        dead: (ms) => this.#giveUp(`no answer for ${seconds(ms)} s`),
      };
      this.#liveness = new Liveness(liveness, calls, clock);
    }
    this.#socket = protocols === undefined ? new WebSocket(url) : new WebSocket(url, protocols);
    this.#socket.binaryType = 'arraybuffer';
    this.#socket.onopen = () => this.#onOpen();
    this.#socket.onmessage = ({ data }) => this.#onMessage(data);
    this.#socket.onerror = () => this.#tell(new ChannelEvent('error'));
    this.#socket.onclose = ({ code, reason, wasClean }) => this.#end({ code, reason, wasClean });
    this.#timer = clock.setTimeout(() => this.#giveUp(`no answer for ${seconds(connectTimeout)} s`), connectTimeout);
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

  /** As a WebSocket's: at once, however much waits already. */
  send(data) {
    this.#socket.send(data);
  }

  /**
   * Sends when no more than `highWater` bytes wait, in the order of the calls. Leave `data` as it is until then.
   *
   * @returns {Promise<void>} kept when the browser has it; rejected if the connection ended before, and then
   *   nothing of it was sent
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
        this.#clock.setTimeout(resolve, LOOK_MS);
      });
    }
    this.#socket.send(data);
  }

  close(code, reason) {
    if (this.#closed || this.#closing) return;
    if (code === undefined) this.#socket.close();
    else this.#socket.close(code, reason);
    this.#closing = true;
    this.#stopClocks();
    // Without a network nobody answers, and the browser would wait for a long time.
    this.#timer = this.#clock.setTimeout(() => this.#giveUp('no answer to the goodbye'), this.#closeTimeout);
  }

  #onOpen() {
    if (this.#closed || this.#closing) return;
    this.#stopClocks();
    this.#opened = true;
    this.#liveness?.start();
    this.#tell(new ChannelEvent('open'));
  }

  #onMessage(data) {
    if (this.#closed) return;
    this.#liveness?.heard();
    this.#tell(new ChannelEvent('message', { data }));
  }

  /** Ends it on our side; the browser may find out whenever it likes. */
  #giveUp(reason) {
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
    this.#stopClocks();
    const described = describeClose({ code, reason, opened: this.#opened });
    this.#tell(new ChannelEvent('close', { code, reason, wasClean, opened: this.#opened, ...described }));
  }

  #stopClocks() {
    this.#clock.clearTimeout(this.#timer);
    this.#liveness?.stop();
  }

  #tell(event) {
    this.dispatchEvent(event);
    this[`on${event.type}`]?.(event);
  }
}

for (const [name, value] of Object.entries({ CONNECTING, OPEN, CLOSING, CLOSED })) {
  for (const owner of [Channel, Channel.prototype]) Object.defineProperty(owner, name, { value });
}

/** An event with further properties; CloseEvent and CustomEvent are not everywhere. */
export class ChannelEvent extends Event {
  constructor(type, properties = {}) {
    super(type);
    Object.assign(this, properties);
  }
}

function seconds(ms) {
  return Math.round(ms / 1000);
}
