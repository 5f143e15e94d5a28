/**
 * Detects a dead connection.
 *
 * When the network disappears, a browser keeps a WebSocket open for minutes if it has nothing to send, and a page cannot
 * send the protocol's own Pings. So after a quiet time a probe is sent that the peer must answer; any message counts as
 * the answer.
 *
 * @typedef {object} LivenessOptions
 * @property {() => (string | ArrayBuffer | ArrayBufferView | undefined)} probe returns the data to send, or
 *   nothing if no probe is possible at the moment
 * @property {number} [quiet] send a probe after this long without a message, in milliseconds
 * @property {number} [timeout] report the connection as dead if no message follows a probe for this long, in milliseconds
 * @property {number} [slow] report a slow answer this long after a probe, in milliseconds; by default half of the timeout
 *
 * @typedef {object} LivenessCallbacks
 * @property {(data: any) => void} send
 * @property {(ms: number) => void} stalled the answer is slow: no message for this long
 * @property {() => void} recovered a message has arrived after `stalled`
 * @property {(ms: number) => void} timedOut no answer within the timeout: no message for this long
 */

import { realClock } from './clock.js';

/** A timer that fires later than this means that the whole page was suspended. */
const SLEPT_MS = 3_000;

export class Liveness {
  #options;
  #callbacks;
  #clock;
  #timer;
  #lastReceived;
  #messages = 0;
  #stalled = false;

  /**
   * @param {LivenessOptions} options
   * @param {LivenessCallbacks} callbacks
   * @param {import('./clock.js').Clock} [clock]
   */
  constructor({ probe, quiet = 10_000, timeout = 10_000, slow = timeout / 2 }, callbacks, clock = realClock) {
    this.#options = { probe, quiet, timeout, slow };
    this.#callbacks = callbacks;
    this.#clock = clock;
  }

  /** Starts when the connection is open. */
  start() {
    this.#lastReceived = this.#clock.now();
    this.#waitForQuiet();
  }

  /** A message has arrived. Cheap, because it is called for each one. */
  received() {
    this.#lastReceived = this.#clock.now();
    this.#messages += 1;
    if (!this.#stalled) return;
    this.#stalled = false;
    this.#callbacks.recovered();
  }

  stop() {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  get #quietTime() {
    return this.#clock.now() - this.#lastReceived;
  }

  /** Waits until no message has arrived for the quiet time. */
  #waitForQuiet() {
    this.#wait(this.#options.quiet - this.#quietTime, () => {
      if (this.#quietTime < this.#options.quiet) return this.#waitForQuiet();
      const probe = this.#options.probe();
      if (probe === undefined || probe === null) {
        this.#lastReceived = this.#clock.now(); // no probe possible: restart the quiet time
        return this.#waitForQuiet();
      }
      const sentAt = this.#clock.now();
      const before = this.#messages; // a browser's clock may be too coarse to order the messages
      this.#callbacks.send(probe);
      this.#wait(this.#options.slow, () => this.#checkAnswer(sentAt, before));
    });
  }

  /** Called when an answer is slow, and again at the end of the timeout. */
  #checkAnswer(sentAt, before) {
    if (this.#messages > before) return this.#waitForQuiet();
    const left = sentAt + this.#options.timeout - this.#clock.now();
    if (left > 0) {
      this.#stalled = true;
      this.#callbacks.stalled(this.#quietTime);
      return this.#wait(left, () => this.#checkAnswer(sentAt, before));
    }
    this.stop();
    this.#callbacks.timedOut(this.#quietTime);
  }

  #wait(ms, then) {
    const due = this.#clock.now() + Math.max(0, ms);
    this.#timer = this.#clock.setTimeout(() => {
      // The machine was asleep. Messages may be delivered after this timer, so probe again.
      if (this.#clock.now() > due + SLEPT_MS) {
        this.#lastReceived = Math.max(this.#lastReceived, this.#clock.now() - this.#options.quiet);
        return this.#waitForQuiet();
      }
      then();
    }, Math.max(0, ms));
  }
}
