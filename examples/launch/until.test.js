import assert from 'node:assert/strict';
import test from 'node:test';

import { until } from './until.js';

test('a wait returns the result of the check', async () => {
  let checks = 0;
  assert.equal(await until('the third check', 5, () => ++checks === 3 && 'found'), 'found');
  assert.equal(checks, 3);
});

test('a failed wait names the condition and the last observation', async () => {
  let checks = 0;
  await assert.rejects(
    until('a blue window', 0.25, (observed) => observed(`check ${++checks}: a green one`)),
    /^Error: not within 0\.25 s: a blue window\. Last observed: check \d+: a green one$/,
  );
});

test('a check that throws is repeated', async () => {
  let checks = 0;
  const check = () => {
    if (++checks < 3) throw new Error('not there');
    return true;
  };
  assert.equal(await until('a file', 5, check), true);
  await assert.rejects(
    until('a file', 0.2, () => Promise.reject(new Error('not there'))),
    /Last observed: not there/,
  );
});

test('a check that never returns does not outlast the deadline', async () => {
  const keepAlive = setInterval(() => {}, 1000);
  await assert.rejects(
    until('an answer', 0.2, () => new Promise(() => {})),
    /not within 0\.2 s: an answer/,
  );
  clearInterval(keepAlive);
});
