import assert from 'node:assert/strict';
import test from 'node:test';

import { Backoff } from './backoff.js';

/** The first `count` delays when the random number is always `random`. */
function delays(count, random, options) {
  const backoff = new Backoff({ ...options, random: () => random });
  return Array.from({ length: count }, () => backoff.next());
}

test('the limit doubles up to the cap', () => {
  assert.deepEqual(delays(8, 0.5), [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
  assert.deepEqual(delays(4, 0.5, { base: 10, cap: 35 }), [5, 10, 18, 18]);
});

test('a delay is drawn from the whole range', () => {
  assert.deepEqual(delays(3, 0), [0, 0, 0]);
  assert.deepEqual(delays(3, 0.999_999), [500, 1000, 2000]);
  const backoff = new Backoff({ base: 1000, cap: 1000 });
  const drawn = Array.from({ length: 1000 }, () => backoff.next());
  assert.ok(drawn.every((delay) => delay >= 0 && delay <= 1000));
  const mean = drawn.reduce((sum, delay) => sum + delay) / drawn.length;
  assert.ok(mean > 400 && mean < 600, `a mean of ${mean}`);
});

test('thousands of failures do not overflow the delay', () => {
  const [last] = delays(2000, 0.5).slice(-1);
  assert.equal(last, 15_000);
});

test('a success resets the delay', () => {
  const backoff = new Backoff({ random: () => 0.5 });
  backoff.next();
  backoff.next();
  backoff.reset();
  assert.equal(backoff.next(), 250);
});

test('an invalid range is refused', () => {
  assert.throws(() => new Backoff({ base: 0 }), /invalid back-off range: 0 to 30000 ms/);
  assert.throws(() => new Backoff({ base: 10, cap: 5 }), RangeError);
  assert.throws(() => new Backoff({ base: NaN }), RangeError);
});
