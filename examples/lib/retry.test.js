import assert from 'node:assert/strict';
import test from 'node:test';

import { Backoff } from './backoff.js';
import { ManualClock } from './manual-clock.js';
import { Retry } from './retry.js';

const LOST = { description: 'The connection was lost.', retry: true };

/** A retry whose delays are half of the limit, the number of its attempts, and its states. */
function retrying(options) {
  const clock = new ManualClock();
  const network = new EventTarget();
  const states = [];
  const made = { attempts: 0 };
  const backoff = new Backoff({ random: () => 0.5 });
  const retry = new Retry(() => (made.attempts += 1), { clock, network, backoff, ...options });
  retry.addEventListener('state', ({ detail }) => states.push(detail));
  return { retry, clock, network, states, made };
}

test('each failure doubles the delay, and every state is reported', async () => {
  const { retry, clock, states, made } = retrying();
  assert.equal(retry.state.state, 'closed');
  retry.start();
  assert.equal(made.attempts, 1);
  assert.equal(retry.ended(LOST), 250);
  assert.deepEqual(states.at(-1), { state: 'waiting', description: LOST.description, retryAt: 250 });
  await clock.advance(249);
  assert.equal(made.attempts, 1);
  await clock.advance(1);
  assert.equal(made.attempts, 2);
  assert.equal(retry.ended(LOST), 500);
  await clock.advance(500);
  retry.opened();
  assert.deepEqual(states.map(({ state }) => state), ['connecting', 'waiting', 'connecting', 'waiting', 'connecting', 'open']);
});

test('only a connection that was open for a while resets the back-off', async () => {
  const { retry, clock } = retrying();
  retry.start();
  const openFor = async (ms) => {
    retry.opened();
    await clock.advance(ms);
    const delay = retry.ended(LOST);
    await clock.advance(delay);
    return delay;
  };
  assert.equal(await openFor(0), 250);
  assert.equal(await openFor(4_999), 500);
  assert.equal(await openFor(10), 1000);
  assert.equal(await openFor(5_000), 250);
});

test('after a final close there is no attempt until the user asks for one', async () => {
  const { retry, clock, states, made } = retrying();
  retry.start();
  retry.opened();
  assert.equal(retry.ended({ description: 'Ended by the gateway: killed.', retry: false }), undefined);
  assert.deepEqual(states.at(-1), { state: 'closed', description: 'Ended by the gateway: killed.' });
  await clock.advance(3_600_000);
  assert.equal(made.attempts, 1);
  retry.retryNow();
  assert.equal(made.attempts, 2);
});

test('the user, or a network that is back, starts an attempt at once', async () => {
  const { retry, clock, network, made } = retrying();
  retry.start();
  retry.ended(LOST);
  retry.retryNow();
  assert.equal(made.attempts, 2);
  retry.retryNow();
  network.dispatchEvent(new Event('online'));
  assert.equal(made.attempts, 2, 'an attempt is under way already');
  retry.ended(LOST);
  network.dispatchEvent(new Event('online'));
  assert.equal(made.attempts, 3);
  await clock.advance(60_000);
  assert.equal(made.attempts, 3, 'the earlier delays are cancelled');
});

test('without a network the description says so', () => {
  const { retry, network, states } = retrying();
  network.navigator = { onLine: false };
  retry.start();
  retry.ended(LOST);
  assert.equal(states.at(-1).description, 'This computer is offline.');
  network.navigator.onLine = true;
  network.dispatchEvent(new Event('online'));
  retry.ended(LOST);
  assert.equal(states.at(-1).description, LOST.description);
});

test('after stop() there is no further attempt', async () => {
  const { retry, clock, network, states, made } = retrying();
  retry.start();
  retry.ended(LOST);
  retry.stop('Disconnected.');
  network.dispatchEvent(new Event('online'));
  await clock.advance(60_000);
  assert.equal(made.attempts, 1);
  assert.deepEqual(states.at(-1), { state: 'closed', description: 'Disconnected.' });
  assert.equal(retry.ended(LOST), undefined, 'a late end changes nothing');
  assert.equal(states.at(-1).state, 'closed');
});

test('the description can change without the state', () => {
  const { retry, states } = retrying();
  retry.start();
  retry.opened('Connected to desk.');
  retry.describe('No answer for 5 s.');
  retry.describe('No answer for 5 s.');
  assert.deepEqual(states.slice(1), [
    { state: 'open', description: 'Connected to desk.' },
    { state: 'open', description: 'No answer for 5 s.' },
  ]);
});
