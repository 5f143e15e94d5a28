// The connection to the broker: @stomp/stompjs for the protocol, ../lib for the WebSocket and for when to try again.
//
// It refuses to know the game. It keeps two invariants: subscriptions outlive connections, and a message that is to be
// delivered has been taken by the broker exactly when its promise is kept.

import { Client } from '@stomp/stompjs';
import { ChannelEvent, openChannel } from '../lib/channel.js';
import { Retry } from '../lib/retry.js';

/** Each side says something at least this often. */
const HEART_BEAT_MS = 5000;

/** A broker that has accepted a connection must let us in within this time. */
const LOGIN_MS = 15_000;

/** A broker that let us in before may refuse us so often in a row while it starts, before it is taken at its word. */
const REFUSALS = 4;

/**
 * Events:
 *   state      what to show; `detail` is a State of ../lib/retry.js
 *   connected  the broker has let us in, and all subscriptions are made again
 *   alive      the broker has been heard; a page in the background can rely on it more than on its timers
 *   refused    the broker does not let us in; `detail.words`
 */
export class Link extends EventTarget {
  #client;
  #retry;
  #subscriptions = new Map();
  #receipts = new Map();
  #count = 0;
  #refusals = 0;
  #wasIn = false;
  #why;

  /**
   * @param {object} options
   * @param {string} options.url of the gateway's route
   * @param {string} options.login
   * @param {string} options.passcode
   * @param {Record<string, string>} [options.headers] further ones for CONNECT
   */
  constructor({ url, login, passcode, headers = {} }) {
    super();
    this.#retry = new Retry(() => this.#client.activate());
    this.#retry.addEventListener('state', ({ detail }) => this.#tell('state', detail));
    this.#client = new Client({
      connectHeaders: { ...headers, login, passcode },
      webSocketFactory: () => this.#open(url),
      reconnectDelay: 0, // that is for this.#retry to decide
      connectionTimeout: LOGIN_MS,
      heartbeatIncoming: HEART_BEAT_MS,
      heartbeatOutgoing: HEART_BEAT_MS,
      heartbeatStrategy: 'worker', // timers of a page in the background are slow
      onConnect: () => this.#onConnect(),
      onStompError: (frame) => this.#onError(frame),
      onHeartbeatLost: () => {
        this.#why = { words: 'The broker has been silent for too long. Is the network down?', retry: true };
      },
      onHeartbeatReceived: () => this.#tell('alive'),
      onWebSocketClose: (end) => this.#onClose(end),
    });
  }

  get connected() {
    return this.#client.connected;
  }

  start() {
    this.#retry.start();
  }

  retryNow() {
    this.#retry.retryNow();
  }

  /** Says goodbye to the broker. */
  async stop() {
    this.#retry.dispose();
    await this.#client.deactivate();
  }

  /**
   * Whenever there is a connection, `receive` gets what is sent to `destination`.
   *
   * @param {string} destination
   * @param {(message: import('@stomp/stompjs').IMessage) => void} receive
   * @param {Record<string, string>} [headers]
   * @returns {() => void} ends it
   */
  subscribe(destination, receive, headers = {}) {
    const subscription = { destination, receive, headers, now: undefined };
    const key = Symbol(destination);
    this.#subscriptions.set(key, subscription);
    if (this.connected) this.#subscribe(subscription);
    return () => {
      if (!this.#subscriptions.delete(key)) return;
      if (this.connected) subscription.now?.unsubscribe();
    };
  }

  /**
   * Sends a message that is worth nothing later: it is lost if there is no connection.
   *
   * @param {string} destination
   * @param {string | Uint8Array} body
   * @param {Record<string, string>} [headers]
   */
  publish(destination, body, headers = {}) {
    if (!this.connected) return;
    const content = typeof body === 'string' ? { body } : { binaryBody: body };
    this.#client.publish({ destination, ...content, headers });
  }

  /**
   * Sends a message that outlives the broker.
   *
   * @returns {Promise<void>} kept when the broker has it in safety; rejected when the connection ended before it said
   *   so, and then nobody knows
   */
  deliver(destination, body) {
    if (!this.connected) return Promise.reject(new Error('not connected'));
    const receipt = `receipt-${++this.#count}`;
    return new Promise((resolve, reject) => {
      this.#receipts.set(receipt, reject);
      this.#client.watchForReceipt(receipt, () => {
        this.#receipts.delete(receipt);
        resolve();
      });
      this.publish(destination, body, { persistent: 'true', receipt });
    });
  }

  #open(url) {
    this.#why = undefined;
    const channel = openChannel(url, { protocols: ['v12.stomp', 'v11.stomp'] });
    // Frames wait for their turn behind a large one; what was not sent at the end is lost with the connection.
    channel.send = (data) => void channel.write(data).catch(() => {});
    return channel;
  }

  #subscribe(subscription) {
    const { destination, receive, headers } = subscription;
    subscription.now = this.#client.subscribe(
      destination,
      (message) => {
        this.#tell('alive');
        receive(message);
      },
      headers,
    );
  }

  #onConnect() {
    this.#wasIn = true;
    this.#refusals = 0;
    for (const subscription of this.#subscriptions.values()) this.#subscribe(subscription);
    this.#retry.opened();
    this.#tell('connected');
  }

  #onError({ headers, body }) {
    // ActiveMQ puts all of it into both, RabbitMQ a keyword into the header. The first line is for people.
    const said = (body || headers.message || '').trim().split('\n')[0].slice(0, 200);
    if (this.connected) {
      this.#why = { words: `The broker complains: ${said}`, retry: true };
    } else {
      this.#refusals += 1;
      const words = `The broker does not let you in: ${said}`;
      this.#why = { words, retry: this.#wasIn && this.#refusals <= REFUSALS, refused: true };
    }
    this.#client.forceDisconnect();
  }

  #onClose({ code, words, retry, opened }) {
    // From here on the library is as new, so that it can be activated again.
    void this.#client.deactivate();
    const lost = [...this.#receipts.values()];
    this.#receipts.clear();
    for (const reject of lost) reject(new Error('the connection ended before the broker had the message'));
    let why = this.#why;
    // 1000: the broker has closed, as one that is stopped does. 1005: this side did, for it was not let in in time.
    if (!why && opened && code === 1005) why = { words: 'The broker did not answer.', retry: true };
    why ??= { words, retry: retry || code === 1000 };
    this.#retry.ended(why);
    if (why.refused && !why.retry) this.#tell('refused', { words: why.words });
  }

  #tell(type, detail) {
    this.dispatchEvent(new ChannelEvent(type, { detail }));
  }
}
