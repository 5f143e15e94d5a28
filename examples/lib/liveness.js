/**
 * Notices a connection that is there in name only.
 *
 * When the network vanishes without a word, a browser goes on believing in a WebSocket for minutes, for it has nothing
 * to send. The protocol's own Pings are out of a page's reach; so after a quiet time we send something that the other
 * side must answer, and wait for any message at all.
 *
 * @typedef {object} LivenessOptions
 * @property {() => (string | ArrayBuffer | ArrayBufferView | undefined)} probe what to send; nothing, if there is
 *   nothing to ask at the moment
 * @property {number} [quiet] how long no message may come before the other side is asked, in milliseconds
 * @property {number} [timeout] how long it may take to say something then, in milliseconds
 * @property {number} [slow] when the page is told, before that, in milliseconds; by default half of the timeout
 *
 * @typedef {object} LivenessCalls
 * @property {(data: any) => void} send
 * @property {(ms: number) => void} silent the answer is slow: for so long there was no message
 * @property {() => void} back a message, after all
 * @property {(ms: number) => void} dead the timeout is over
 */

import { realClock } from './clock.js';

/** A timer that rings so much later than it should means that the whole page stood still. */
const SLEPT_MS = 3_000;

export class Liveness {
  #options;
  #calls;
  #clock;
  #timer;
  #heard;
  #messages = 0;
  #silent = false;

  /**
   * @param {LivenessOptions} options
   * @param {LivenessCalls} calls
   * @param {import('./clock.js').Clock} [clock]
   */
  constructor({ probe, quiet = 10_000, timeout = 10_000, slow = timeout / 2 }, calls, clock = realClock) {
    this.#options = { probe, quiet, timeout, slow };
    this.#calls = calls;
    this.#clock = clock;
  }

  /** The connection is open. */
  start() {
    this.#heard = this.#clock.now();
    this.#listen();
  }

  /** A message has come. Cheap: it is called for each. */
  heard() {
    this.#heard = this.#clock.now();
    this.#messages += 1;
    if (!this.#silent) return;
    this.#silent = false;
    this.#calls.back();
  }

  stop() {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  get #quietFor() {
    return this.#clock.now() - this.#heard;
  }

  /** Waits until nothing has come for the quiet time. */
  #listen() {
    this.#wait(this.#options.quiet - this.#quietFor, () => {
      if (this.#quietFor < this.#options.quiet) return this.#listen();
      const question = this.#options.probe();
      if (question === undefined || question === null) {
        this.#heard = this.#clock.now(); // not the time for questions: begin the quiet time again
        return this.#listen();
      }
      const asked = this.#clock.now();
      const before = this.#messages; // counted, for a browser's clock may be too coarse to tell before from after
      this.#calls.send(question);
      this.#wait(this.#options.slow, () => this.#judge(asked, before));
    });
  }

  /** The time after which an answer is slow, and later the whole, has gone since the question. */
  #judge(asked, before) {
    if (this.#messages > before) return this.#listen();
    const left = asked + this.#options.timeout - this.#clock.now();
    if (left > 0) {
      this.#silent = true;
      this.#calls.silent(this.#quietFor);
      return this.#wait(left, () => this.#judge(asked, before));
    }
    this.stop();
    this.#calls.dead(this.#quietFor);
  }

  #wait(ms, then) {
    const due = this.#clock.now() + Math.max(0, ms);
    this.#timer = this.#clock.setTimeout(() => {
      // The machine has slept. What came in the meantime may be told after this timer, so ask once more.
      if (this.#clock.now() > due + SLEPT_MS) {
        this.#heard = Math.max(this.#heard, this.#clock.now() - this.#options.quiet);
        return this.#listen();
      }
      then();
    }, Math.max(0, ms));
  }
}
