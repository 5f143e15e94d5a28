/**
 * How long to wait before the next try: exponential, with full jitter.
 *
 * After a gateway has restarted, all its pages want to come back. Were each to wait for the same time, they would all
 * come at the same moment; a wait drawn from the whole range spreads them.
 */
export class Backoff {
  #base;
  #cap;
  #random;
  #tries = 0;

  /**
   * @param {object} [options]
   * @param {number} [options.base] the longest first wait, in milliseconds
   * @param {number} [options.cap] the longest wait of all, in milliseconds
   * @param {() => number} [options.random] a number from 0 up to, but not including, 1
   */
  constructor({ base = 500, cap = 30_000, random = Math.random } = {}) {
    if (!(base > 0 && cap >= base)) throw new RangeError(`no back-off from ${base} to ${cap} ms`);
    this.#base = base;
    this.#cap = cap;
    this.#random = random;
  }

  /** The next wait, in milliseconds: anything from 0 to a limit that doubles each time, up to the cap. */
  next() {
    const limit = Math.min(this.#cap, this.#base * 2 ** this.#tries);
    this.#tries += 1;
    return Math.round(this.#random() * limit);
  }

  /** Begins anew: the last try has succeeded. */
  reset() {
    this.#tries = 0;
  }
}
