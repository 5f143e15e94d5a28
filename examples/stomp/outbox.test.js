import assert from 'node:assert/strict';
import test from 'node:test';

import { Outbox } from './outbox.js';

/** A broker that sends receipts when the test says so. */
class FakeConnection {
  connected = true;
  delivered = [];
  #open = [];

  deliver(to, body) {
    this.delivered.push(`${to} ${body}`);
    return new Promise((resolve, reject) => this.#open.push({ resolve, reject }));
  }

  async receipts(how = 'resolve') {
    for (const message of this.#open.splice(0)) message[how](new Error('closed'));
    await new Promise(setImmediate);
  }
}

test('a message is pending until the receipt of the broker', async () => {
  const connection = new FakeConnection();
  const pending = [];
  let saved = 0;
  const outbox = new Outbox(connection, pending, () => saved++);
  outbox.put('q', [{ n: 1 }, { n: 2 }]);
  assert.equal(outbox.pending, 2);
  outbox.flush();
  outbox.flush();
  assert.deepEqual(connection.delivered, ['q {"n":1}', 'q {"n":2}']);
  assert.deepEqual([outbox.pending, saved], [2, 0]);
  await connection.receipts();
  assert.deepEqual([outbox.pending, saved, pending], [0, 2, []]);
});

test('after a lost connection all messages without a receipt are sent again, in order', async () => {
  const connection = new FakeConnection();
  const outbox = new Outbox(connection, [], () => {});
  outbox.put('q', [{ n: 1 }, { n: 2 }]);
  outbox.flush();
  connection.connected = false;
  await connection.receipts('reject');
  outbox.put('q', [{ n: 3 }]);
  outbox.flush();
  assert.equal(connection.delivered.length, 2);
  connection.connected = true;
  outbox.flush();
  assert.deepEqual(connection.delivered.slice(2), ['q {"n":1}', 'q {"n":2}', 'q {"n":3}']);
  await connection.receipts();
  assert.equal(outbox.pending, 0);
});

test('messages pending when the page was closed are sent by the next page', async () => {
  const connection = new FakeConnection();
  const stored = JSON.stringify([{ to: 'q', body: '{"n":1}' }]);
  const outbox = new Outbox(connection, JSON.parse(stored), () => {});
  outbox.flush();
  assert.deepEqual(connection.delivered, ['q {"n":1}']);
});
