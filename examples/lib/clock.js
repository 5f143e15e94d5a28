/**
 * The clock as an argument: everything here that waits takes one, so that its tests need not wait.
 *
 * @typedef {object} Clock
 * @property {() => number} now monotonic, in milliseconds
 * @property {(callback: () => void, ms: number) => unknown} setTimeout
 * @property {(timer: unknown) => void} clearTimeout
 */

/** @type {Clock} */
export const realClock = {
  now: () => performance.now(),
  setTimeout: (callback, ms) => setTimeout(callback, ms),
  clearTimeout: (timer) => clearTimeout(timer),
};
