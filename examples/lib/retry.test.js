import assert from 'node:assert/strict';
import test from 'node:test';

import { Backoff } from './backoff.js';
import { HandClock } from './hand-clock.js';
import { Retry } from './retry.js';

const LOST = { words: 'The connection was lost.', retry: true };

/** A retry whose waits are half of the limit, how many tries it made, and its states. */
function retrying(options) {
  const clock = new HandClock();
  const network = new EventTarget();
  const states = [];
  const made = { tries: 0 };
  const backoff = new Backoff({ random: () => 0.5 });
  const retry = new Retry(() => (made.tries += 1), { clock, network, backoff, ...options });
  retry.addEventListener('state', ({ detail }) => states.push(detail));
  return { retry, clock, network, states, made };
}

test('it tries, waits longer each time, and says so', async () => {
  const { retry, clock, states, made } = retrying();
  assert.equal(retry.state.state, 'closed');
  retry.start();
  assert.equal(made.tries, 1);
  assert.equal(retry.ended(LOST), 250);
  assert.deepEqual(states.at(-1), { state: 'waiting', words: LOST.words, retryAt: 250 });
  await clock.advance(249);
  assert.equal(made.tries, 1);
  await clock.advance(1);
  assert.equal(made.tries, 2);
  assert.equal(retry.ended(LOST), 500);
  await clock.advance(500);
  retry.opened();
  assert.deepEqual(states.map(({ state }) => state), ['connecting', 'waiting', 'connecting', 'waiting', 'connecting', 'open']);
});

test('only a connection that has lived for a while begins the back-off anew', async () => {
  const { retry, clock } = retrying();
  retry.start();
  const lives = async (ms) => {
    retry.opened();
    await clock.advance(ms);
    const delay = retry.ended(LOST);
    await clock.advance(delay);
    return delay;
  };
  assert.equal(await lives(0), 250);
  assert.equal(await lives(4_999), 500);
  assert.equal(await lives(10), 1000);
  assert.equal(await lives(5_000), 250);
});

test('an end for good is one, until somebody asks again', async () => {
  const { retry, clock, states, made } = retrying();
  retry.start();
  retry.opened();
  assert.equal(retry.ended({ words: 'Ended by the gateway: killed.', retry: false }), undefined);
  assert.deepEqual(states.at(-1), { state: 'closed', words: 'Ended by the gateway: killed.' });
  await clock.advance(3_600_000);
  assert.equal(made.tries, 1);
  retry.retryNow();
  assert.equal(made.tries, 2);
});

test('it goes on at once when asked, or when the network is back', async () => {
  const { retry, clock, network, made } = retrying();
  retry.start();
  retry.ended(LOST);
  retry.retryNow();
  assert.equal(made.tries, 2);
  retry.retryNow();
  network.dispatchEvent(new Event('online'));
  assert.equal(made.tries, 2, 'it is trying already');
  retry.ended(LOST);
  network.dispatchEvent(new Event('online'));
  assert.equal(made.tries, 3);
  await clock.advance(60_000);
  assert.equal(made.tries, 3, 'the old waits are over');
});

test('without a network, that is what is said', () => {
  const { retry, network, states } = retrying();
  network.navigator = { onLine: false };
  retry.start();
  retry.ended(LOST);
  assert.equal(states.at(-1).words, 'This computer is offline.');
  network.navigator.onLine = true;
  network.dispatchEvent(new Event('online'));
  retry.ended(LOST);
  assert.equal(states.at(-1).words, LOST.words);
});

test('once stopped it stays so', async () => {
  const { retry, clock, network, states, made } = retrying();
  retry.start();
  retry.ended(LOST);
  retry.stop('Disconnected.');
  network.dispatchEvent(new Event('online'));
  await clock.advance(60_000);
  assert.equal(made.tries, 1);
  assert.deepEqual(states.at(-1), { state: 'closed', words: 'Disconnected.' });
  assert.equal(retry.ended(LOST), undefined, 'what comes late changes nothing');
  assert.equal(states.at(-1).state, 'closed');
});

test('words can change while the state stays', () => {
  const { retry, states } = retrying();
  retry.start();
  retry.opened('Connected to desk.');
  retry.say('No answer for 5 s.');
  retry.say('No answer for 5 s.');
  assert.deepEqual(states.slice(1), [
    { state: 'open', words: 'Connected to desk.' },
    { state: 'open', words: 'No answer for 5 s.' },
  ]);
});
