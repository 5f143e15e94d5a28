import assert from 'node:assert/strict';
import test from 'node:test';

import { ManualClock } from './manual-clock.js';
import { Liveness } from './liveness.js';

/** A liveness check with 10 s of quiet and a timeout of 6 s, and its callbacks with their times. */
function startLiveness(probe = () => 'are you there?') {
  const clock = new ManualClock();
  const calls = [];
  const record = (name) => (detail) => calls.push([clock.now(), name, ...(detail === undefined ? [] : [detail])]);
  const on = { send: record('send'), stalled: record('stalled'), recovered: record('recovered'), timedOut: record('timedOut') };
  const liveness = new Liveness({ probe, quiet: 10_000, timeout: 6_000 }, on, clock);
  liveness.start();
  return { clock, calls, liveness };
}

test('a busy connection is not probed', async () => {
  const { clock, calls, liveness } = startLiveness();
  for (let i = 0; i < 10; i++) {
    await clock.advance(9_999);
    liveness.received();
  }
  assert.deepEqual(calls, []);
});

test('a quiet connection is probed, and any message counts as the answer', async () => {
  const { clock, calls, liveness } = startLiveness();
  await clock.advance(10_000);
  assert.deepEqual(calls, [[10_000, 'send', 'are you there?']]);
  liveness.received(); // at the very moment of the probe: a coarse clock must not matter
  await clock.advance(9_999);
  assert.equal(calls.length, 1);
  await clock.advance(1);
  assert.deepEqual(calls[1], [20_000, 'send', 'are you there?']);
});

test('a slow answer is reported after half of the timeout, a dead connection after all of it', async () => {
  const { clock, calls } = startLiveness();
  await clock.advance(60_000);
  assert.deepEqual(calls, [
    [10_000, 'send', 'are you there?'],
    [13_000, 'stalled', 13_000],
    [16_000, 'timedOut', 16_000],
  ]);
  assert.equal(clock.pendingTimers, 0);
});

test('the time until a slow answer is reported can be set', async () => {
  const clock = new ManualClock();
  const reported = [];
  const on = { send() {}, recovered() {}, stalled: (ms) => reported.push(ms), timedOut: (ms) => reported.push(ms) };
  new Liveness({ probe: () => '?', quiet: 4_000, slow: 2_000, timeout: 10_000 }, on, clock).start();
  await clock.advance(60_000);
  assert.deepEqual(reported, [6_000, 14_000]);
});

test('a late answer is reported as recovery', async () => {
  const { clock, calls, liveness } = startLiveness();
  await clock.advance(15_000);
  liveness.received();
  await clock.advance(9_999);
  assert.deepEqual(calls.slice(1), [[13_000, 'stalled', 13_000], [15_000, 'recovered']]);
});

test('without a probe nothing is sent, and the connection is not reported as dead', async () => {
  let probe;
  const { clock, calls } = startLiveness(() => probe);
  await clock.advance(25_000);
  assert.deepEqual(calls, []);
  probe = 'now';
  await clock.advance(5_000);
  assert.deepEqual(calls, [[30_000, 'send', 'now']]);
});

test('after the machine was asleep the connection is probed again first', async () => {
  const { clock, calls, liveness } = startLiveness();
  await clock.advance(10_000);
  await clock.sleep(3_600_000);
  assert.deepEqual(calls.map(([, name]) => name), ['send', 'send']);
  liveness.received();
  await clock.advance(10_000);
  assert.deepEqual(calls.map(([, name]) => name), ['send', 'send', 'send']);
  await clock.advance(6_000);
  assert.deepEqual(calls.map(([, name]) => name).slice(3), ['stalled', 'timedOut']);
});

test('after stop() there are no callbacks', async () => {
  const { clock, calls, liveness } = startLiveness();
  await clock.advance(10_000);
  liveness.stop();
  await clock.advance(60_000);
  assert.equal(calls.length, 1);
});
