// Scenes that are one story: each goes on where the one before stopped, and after the first that fails the rest is skipped.

import test from 'node:test';

/**
 * A function like `test`, for the scenes of one story.
 *
 * @param {object} story
 * @param {() => Promise<void>} story.report tells, on stderr, what helps to understand a failure
 * @param {number} [story.timeout] how long one scene may take, in milliseconds
 */
export function story({ report, timeout = 60_000 }) {
  let failed;
  return (name, play) => {
    test(name, { timeout }, async (t) => {
      if (failed) return t.skip(`because this failed: ${failed}`);
      try {
        await play();
      } catch (error) {
        failed = name;
        await report();
        throw error;
      }
    });
  };
}
