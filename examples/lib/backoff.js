/**
 * The delays between reconnection attempts: exponential back-off with full jitter.
 *
 * After a restart of the gateway, all its pages reconnect. With a fixed delay they would all connect at the same moment;
 * a delay drawn from the whole range spreads them.
 */
export class Backoff {
  #base;
  #cap;
  #random;
  #attempts = 0;

  /**
   * @param {object} [options]
   * @param {number} [options.base] the upper limit of the first delay, in milliseconds
   * @param {number} [options.cap] the upper limit of every delay, in milliseconds
   * @param {() => number} [options.random] a number from 0 up to, but not including, 1
   */
  constructor({ base = 500, cap = 30_000, random = Math.random } = {}) {
    if (!(base > 0 && cap >= base)) throw new RangeError(`invalid back-off range: ${base} to ${cap} ms`);
    this.#base = base;
    this.#cap = cap;
    this.#random = random;
  }

  /** The next delay, in milliseconds: random, from 0 to a limit that doubles each time, up to the cap. */
  next() {
    const limit = Math.min(this.#cap, this.#base * 2 ** this.#attempts);
    this.#attempts += 1;
    return Math.round(this.#random() * limit);
  }

  /** Starts again with the first delay, after a successful attempt. */
  reset() {
    this.#attempts = 0;
  }
}
