import assert from 'node:assert/strict';
import test from 'node:test';

import { Backoff } from './backoff.js';

/** The waits of `count` tries when chance always says `chance`. */
function waits(count, chance, options) {
  const backoff = new Backoff({ ...options, random: () => chance });
  return Array.from({ length: count }, () => backoff.next());
}

test('the limit doubles up to the cap', () => {
  assert.deepEqual(waits(8, 0.5), [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
  assert.deepEqual(waits(4, 0.5, { base: 10, cap: 35 }), [5, 10, 18, 18]);
});

test('a wait is drawn from the whole range', () => {
  assert.deepEqual(waits(3, 0), [0, 0, 0]);
  assert.deepEqual(waits(3, 0.999_999), [500, 1000, 2000]);
  const backoff = new Backoff({ base: 1000, cap: 1000 });
  const drawn = Array.from({ length: 1000 }, () => backoff.next());
  assert.ok(drawn.every((wait) => wait >= 0 && wait <= 1000));
  const mean = drawn.reduce((sum, wait) => sum + wait) / drawn.length;
  assert.ok(mean > 400 && mean < 600, `a mean of ${mean}`);
});

test('a thousand failures are no overflow', () => {
  const [last] = waits(2000, 0.5).slice(-1);
  assert.equal(last, 15_000);
});

test('a success begins anew', () => {
  const backoff = new Backoff({ random: () => 0.5 });
  backoff.next();
  backoff.next();
  backoff.reset();
  assert.equal(backoff.next(), 250);
});

test('a range that is none is refused', () => {
  assert.throws(() => new Backoff({ base: 0 }), /no back-off from 0 to 30000 ms/);
  assert.throws(() => new Backoff({ base: 10, cap: 5 }), RangeError);
  assert.throws(() => new Backoff({ base: NaN }), RangeError);
});
