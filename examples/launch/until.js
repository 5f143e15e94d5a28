// Waiting: for a condition, never for a time. A wait that fails says what it saw last.

import { setTimeout as pause } from 'node:timers/promises';

const BETWEEN_LOOKS_MS = 100;

/**
 * Looks again and again until `look` returns something truthy, and returns that.
 *
 * `look` is given a function `saw(text)`: the last text it was told is part of the error. A look that throws, or
 * that never returns, counts as one that was not successful.
 *
 * @param {string} what the condition, as it stands in the error: "the desktop is shown"
 * @param {number} seconds the deadline
 * @param {(saw: (text: string) => void) => unknown} look
 */
export async function until(what, seconds, look) {
  const deadline = Date.now() + seconds * 1000;
  let seen = 'nothing yet';
  const saw = (text) => {
    seen = text;
  };
  for (;;) {
    const left = deadline - Date.now();
    if (left <= 0) throw new Error(`not within ${seconds} s: ${what}. Seen last: ${seen}`);
    const late = new AbortController();
    try {
      const answer = await Promise.race([look(saw), pause(left, undefined, { signal: late.signal })]);
      if (answer) return answer;
    } catch (error) {
      saw(String(error?.message ?? error));
    } finally {
      late.abort();
    }
    await pause(Math.max(0, Math.min(BETWEEN_LOOKS_MS, deadline - Date.now())));
  }
}
