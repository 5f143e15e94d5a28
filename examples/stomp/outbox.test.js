import assert from 'node:assert/strict';
import test from 'node:test';

import { Post } from './post.js';

/** A broker whose receipts come when told. */
class FakeLink {
  connected = true;
  taken = [];
  #open = [];

  deliver(to, body) {
    this.taken.push(`${to} ${body}`);
    return new Promise((resolve, reject) => this.#open.push({ resolve, reject }));
  }

  async receipts(how = 'resolve') {
    for (const letter of this.#open.splice(0)) letter[how](new Error('closed'));
    await new Promise(setImmediate);
  }
}

test('a message waits until the broker has said that it has it', async () => {
  const link = new FakeLink();
  const waiting = [];
  let saved = 0;
  const post = new Post(link, waiting, () => saved++);
  post.put('q', [{ n: 1 }, { n: 2 }]);
  assert.equal(post.waiting, 2);
  post.flush();
  post.flush();
  assert.deepEqual(link.taken, ['q {"n":1}', 'q {"n":2}']);
  assert.deepEqual([post.waiting, saved], [2, 0]);
  await link.receipts();
  assert.deepEqual([post.waiting, saved, waiting], [0, 2, []]);
});

test('after a lost connection all that is not known to be there is sent again, in order', async () => {
  const link = new FakeLink();
  const post = new Post(link, [], () => {});
  post.put('q', [{ n: 1 }, { n: 2 }]);
  post.flush();
  link.connected = false;
  await link.receipts('reject');
  post.put('q', [{ n: 3 }]);
  post.flush();
  assert.equal(link.taken.length, 2);
  link.connected = true;
  post.flush();
  assert.deepEqual(link.taken.slice(2), ['q {"n":1}', 'q {"n":2}', 'q {"n":3}']);
  await link.receipts();
  assert.equal(post.waiting, 0);
});

test('what waited when the page was closed is sent by the next one', async () => {
  const link = new FakeLink();
  const stored = JSON.stringify([{ to: 'q', body: '{"n":1}' }]);
  const post = new Post(link, JSON.parse(stored), () => {});
  post.flush();
  assert.deepEqual(link.taken, ['q {"n":1}']);
});
