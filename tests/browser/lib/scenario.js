// Steps that depend on each other: each continues where the previous one stopped. After the first failure the rest is skipped.

import test from 'node:test';

/**
 * Returns a function like `test`, for the steps of one scenario.
 *
 * @param {object} options
 * @param {() => Promise<void>} options.report prints, on stderr, information that helps to understand a failure
 * @param {number} [options.timeout] the timeout of one step, in milliseconds
 */
export function scenario({ report, timeout = 60_000 }) {
  let failed;
  return (name, run) => {
    test(name, { timeout }, async (t) => {
      if (failed) return t.skip(`because this failed: ${failed}`);
      try {
        await run();
      } catch (error) {
        failed = name;
        await report();
        throw error;
      }
    });
  };
}
