import assert from 'node:assert/strict';
import test from 'node:test';

import { HandClock } from './hand-clock.js';
import { Liveness } from './liveness.js';

/** A liveness of 10 s quiet and 6 s patience, and all that it calls, with the time. */
function watched(probe = () => 'are you there?') {
  const clock = new HandClock();
  const calls = [];
  const record = (name) => (detail) => calls.push([clock.now(), name, ...(detail === undefined ? [] : [detail])]);
  const on = { send: record('send'), silent: record('silent'), back: record('back'), dead: record('dead') };
  const liveness = new Liveness({ probe, quiet: 10_000, timeout: 6_000 }, on, clock);
  liveness.start();
  return { clock, calls, liveness };
}

test('a connection on which messages come is asked nothing', async () => {
  const { clock, calls, liveness } = watched();
  for (let i = 0; i < 10; i++) {
    await clock.advance(9_999);
    liveness.heard();
  }
  assert.deepEqual(calls, []);
});

test('a quiet one is asked, and any message will do', async () => {
  const { clock, calls, liveness } = watched();
  await clock.advance(10_000);
  assert.deepEqual(calls, [[10_000, 'send', 'are you there?']]);
  liveness.heard(); // at the very moment of the question: a coarse clock must not matter
  await clock.advance(9_999);
  assert.equal(calls.length, 1);
  await clock.advance(1);
  assert.deepEqual(calls[1], [20_000, 'send', 'are you there?']);
});

test('silence is told after half of the time, and given up after the whole', async () => {
  const { clock, calls } = watched();
  await clock.advance(60_000);
  assert.deepEqual(calls, [
    [10_000, 'send', 'are you there?'],
    [13_000, 'silent', 13_000],
    [16_000, 'dead', 16_000],
  ]);
  assert.equal(clock.waiting, 0);
});

test('when silence is told can be chosen', async () => {
  const clock = new HandClock();
  const told = [];
  const on = { send() {}, back() {}, silent: (ms) => told.push(ms), dead: (ms) => told.push(ms) };
  new Liveness({ probe: () => '?', quiet: 4_000, slow: 2_000, timeout: 10_000 }, on, clock).start();
  await clock.advance(60_000);
  assert.deepEqual(told, [6_000, 14_000]);
});

test('a late answer is told, too', async () => {
  const { clock, calls, liveness } = watched();
  await clock.advance(15_000);
  liveness.heard();
  await clock.advance(9_999);
  assert.deepEqual(calls.slice(1), [[13_000, 'silent', 13_000], [15_000, 'back']]);
});

test('without a question nothing is asked, and nobody is given up', async () => {
  let question;
  const { clock, calls } = watched(() => question);
  await clock.advance(25_000);
  assert.deepEqual(calls, []);
  question = 'now';
  await clock.advance(5_000);
  assert.deepEqual(calls, [[30_000, 'send', 'now']]);
});

test('a machine that slept asks before it gives up', async () => {
  const { clock, calls, liveness } = watched();
  await clock.advance(10_000);
  await clock.sleep(3_600_000);
  assert.deepEqual(calls.map(([, name]) => name), ['send', 'send']);
  liveness.heard();
  await clock.advance(10_000);
  assert.deepEqual(calls.map(([, name]) => name), ['send', 'send', 'send']);
  await clock.advance(6_000);
  assert.deepEqual(calls.map(([, name]) => name).slice(3), ['silent', 'dead']);
});

test('nothing happens once it is stopped', async () => {
  const { clock, calls, liveness } = watched();
  await clock.advance(10_000);
  liveness.stop();
  await clock.advance(60_000);
  assert.equal(calls.length, 1);
});
