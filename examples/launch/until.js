// Waits for a condition, never for a fixed time. The error of a failed wait contains the last observation.

import { setTimeout as pause } from 'node:timers/promises';

const POLL_INTERVAL_MS = 100;

/**
 * Calls `check` repeatedly until it returns something truthy, and returns that.
 *
 * `check` gets a function `observed(text)`: the last text it was called with is part of the error. A check that throws, or
 * that never returns, counts as unsuccessful.
 *
 * @param {string} what the condition, for the error message: "the desktop is shown"
 * @param {number} seconds the deadline
 * @param {(observed: (text: string) => void) => unknown} check
 */
export async function until(what, seconds, check) {
  const deadline = Date.now() + seconds * 1000;
  let last = 'nothing yet';
  const observed = (text) => {
    last = text;
  };
  for (;;) {
    const left = deadline - Date.now();
    if (left <= 0) throw new Error(`not within ${seconds} s: ${what}. Last observed: ${last}`);
    const timeout = new AbortController();
    try {
      const answer = await Promise.race([check(observed), pause(left, undefined, { signal: timeout.signal })]);
      if (answer) return answer;
    } catch (error) {
      observed(String(error?.message ?? error));
    } finally {
      timeout.abort();
    }
    await pause(Math.max(0, Math.min(POLL_INTERVAL_MS, deadline - Date.now())));
  }
}
