// The reconnecting connection to the broker: @stomp/stompjs for the protocol, ../lib for the WebSocket and the back-off.
//
// It knows nothing of the game. Two invariants: subscriptions outlive connections, and the promise of `deliver` is resolved
// exactly when the broker has confirmed the message.

import { Client } from '@stomp/stompjs';
import { ChannelEvent, openChannel } from '../lib/channel.js';
import { Retry } from '../lib/retry.js';

/** The heart-beat interval of both sides. */
const HEART_BEAT_MS = 5000;

/** Close the connection if the broker has not accepted the login within this time. */
const LOGIN_MS = 15_000;

/** A broker that is starting may refuse a valid login this many times in a row, if it has accepted it before. */
const REFUSALS = 4;

/**
 * Events:
 *   state      what to show; `detail` is a State of ../lib/retry.js
 *   connected  the login has succeeded, and all subscriptions are active again
 *   alive      data from the broker has arrived; in a background page this is more reliable than timers
 *   refused    the broker has refused the login; `detail.description`
 */
export class BrokerConnection extends EventTarget {
  #client;
  #retry;
  #subscriptions = new Map();
  #receipts = new Map();
  #count = 0;
  #refusals = 0;
  #hasLoggedIn = false;
  #endReason;

  /**
   * @param {object} options
   * @param {string} options.url of the gateway's route
   * @param {string} options.login
   * @param {string} options.passcode
   * @param {Record<string, string>} [options.headers] additional headers of CONNECT
   */
  constructor({ url, login, passcode, headers = {} }) {
    super();
    this.#retry = new Retry(() => this.#client.activate());
    this.#retry.addEventListener('state', ({ detail }) => this.#emit('state', detail));
    this.#client = new Client({
      connectHeaders: { ...headers, login, passcode },
      webSocketFactory: () => this.#open(url),
      reconnectDelay: 0, // this.#retry decides
      connectionTimeout: LOGIN_MS,
      heartbeatIncoming: HEART_BEAT_MS,
      heartbeatOutgoing: HEART_BEAT_MS,
      heartbeatStrategy: 'worker', // browsers slow down timers of background pages
      onConnect: () => this.#onConnect(),
      onStompError: (frame) => this.#onError(frame),
      onHeartbeatLost: () => {
        this.#endReason = { description: 'The broker has been silent for too long. Is the network down?', retry: true };
      },
      onHeartbeatReceived: () => this.#emit('alive'),
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

  /** Disconnects from the broker. */
  async stop() {
    this.#retry.dispose();
    await this.#client.deactivate();
  }

  /**
   * Calls `receive` with each message to `destination`, across reconnects.
   *
   * @param {string} destination
   * @param {(message: import('@stomp/stompjs').IMessage) => void} receive
   * @param {Record<string, string>} [headers]
   * @returns {() => void} unsubscribes
   */
  subscribe(destination, receive, headers = {}) {
    const subscription = { destination, receive, headers, handle: undefined };
    const key = Symbol(destination);
    this.#subscriptions.set(key, subscription);
    if (this.connected) this.#subscribe(subscription);
    return () => {
      if (!this.#subscriptions.delete(key)) return;
      if (this.connected) subscription.handle?.unsubscribe();
    };
  }

  /**
   * Sends a transient message: it is lost if there is no connection.
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
   * Sends a persistent message.
   *
   * @returns {Promise<void>} resolved by the broker's receipt; rejected if the connection ended before, and then it is
   *   unknown whether the broker has the message
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
    this.#endReason = undefined;
    const channel = openChannel(url, { protocols: ['v12.stomp', 'v11.stomp'] });
    // Frames queue behind a large one; frames that are unsent when the connection ends are lost.
    channel.send = (data) => void channel.write(data).catch(() => {});
    return channel;
  }

  #subscribe(subscription) {
    const { destination, receive, headers } = subscription;
    subscription.handle = this.#client.subscribe(
      destination,
      (message) => {
        this.#emit('alive');
        receive(message);
      },
      headers,
    );
  }

  #onConnect() {
    this.#hasLoggedIn = true;
    this.#refusals = 0;
    for (const subscription of this.#subscriptions.values()) this.#subscribe(subscription);
    this.#retry.opened();
    this.#emit('connected');
  }

  #onError({ headers, body }) {
    // ActiveMQ puts the whole text into both, RabbitMQ only a keyword into the header. The first line is for people.
    const text = (body || headers.message || '').trim().split('\n')[0].slice(0, 200);
    if (this.connected) {
      this.#endReason = { description: `The broker reports an error: ${text}`, retry: true };
    } else {
      this.#refusals += 1;
      const description = `The broker refused the login: ${text}`;
      this.#endReason = { description, retry: this.#hasLoggedIn && this.#refusals <= REFUSALS, refused: true };
    }
    this.#client.forceDisconnect();
  }

  #onClose({ code, description, retry, opened }) {
    // Resets the library, so that it can be activated again.
    void this.#client.deactivate();
    const lost = [...this.#receipts.values()];
    this.#receipts.clear();
    for (const reject of lost) reject(new Error('the connection ended before the broker had the message'));
    let reason = this.#endReason;
    // 1000: the broker has closed the connection, as it does when it stops. 1005: the login timed out on this side.
    if (!reason && opened && code === 1005) reason = { description: 'The broker did not answer.', retry: true };
    reason ??= { description, retry: retry || code === 1000 };
    this.#retry.ended(reason);
    if (reason.refused && !reason.retry) this.#emit('refused', { description: reason.description });
  }

  #emit(type, detail) {
    this.dispatchEvent(new ChannelEvent(type, { detail }));
  }
}
