import assert from 'node:assert/strict';
import test from 'node:test';

import { until } from './until.js';

test('a wait returns what the look found', async () => {
  let looks = 0;
  assert.equal(await until('the third look', 5, () => ++looks === 3 && 'found'), 'found');
  assert.equal(looks, 3);
});

test('a wait that fails names the condition and what was seen last', async () => {
  let looks = 0;
  await assert.rejects(
    until('a blue window', 0.25, (saw) => saw(`look ${++looks}: a green one`)),
    /^Error: not within 0\.25 s: a blue window\. Seen last: look \d+: a green one$/,
  );
});

test('a look that throws is looked at again', async () => {
  let looks = 0;
  const look = () => {
    if (++looks < 3) throw new Error('not there');
    return true;
  };
  assert.equal(await until('a file', 5, look), true);
  await assert.rejects(
    until('a file', 0.2, () => Promise.reject(new Error('not there'))),
    /Seen last: not there/,
  );
});

test('a look that never returns does not outlast the deadline', async () => {
  const keepAlive = setInterval(() => {}, 1000);
  await assert.rejects(
    until('an answer', 0.2, () => new Promise(() => {})),
    /not within 0\.2 s: an answer/,
  );
  clearInterval(keepAlive);
});
