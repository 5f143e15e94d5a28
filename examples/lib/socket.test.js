import assert from 'node:assert/strict';
import test from 'node:test';

import { Backoff } from './backoff.js';
import { FakeSocket } from './fake-socket.js';
import { ManualClock } from './manual-clock.js';
import { Socket } from './socket.js';

/** A socket that has started its first attempt, and its events. */
async function startSocket(options = {}, url = 'wss://gateway.test/x') {
  FakeSocket.instances.length = 0;
  const clock = new ManualClock();
  const network = new EventTarget();
  const backoff = new Backoff({ random: () => 0.5 });
  const socket = new Socket(url, { WebSocket: FakeSocket, clock, network, backoff, ...options });
  const events = [];
  for (const type of ['open', 'message', 'close', 'state']) {
    socket.addEventListener(type, ({ detail }) => events.push({ type, ...(type === 'message' ? { detail } : detail) }));
  }
  await clock.advance(0);
  const of = (type) => events.filter((event) => event.type === type);
  return { socket, clock, network, events, of };
}

test('text and binary messages arrive as bytes', async () => {
  const { of } = await startSocket();
  FakeSocket.last.open();
  FakeSocket.last.receive(new Uint8Array([1, 2, 255]).buffer);
  FakeSocket.last.receive('é');
  assert.deepEqual(of('message').map(({ detail }) => [...detail]), [[1, 2, 255], [0xc3, 0xa9]]);
  assert.ok(of('message').every(({ detail }) => detail instanceof Uint8Array));
});

test('it reconnects, and reports its state', async () => {
  const { socket, clock, of, events } = await startSocket();
  FakeSocket.last.protocol = 'binary';
  FakeSocket.last.open();
  assert.deepEqual(of('open'), [{ type: 'open', protocol: 'binary' }]);
  FakeSocket.last.end(1001, 'the gateway is stopping');
  const description = 'Interrupted: the gateway is stopping.';
  assert.deepEqual(of('close'), [
    { type: 'close', code: 1001, reason: 'the gateway is stopping', wasClean: true, description, retry: true, delay: 250 },
  ]);
  assert.deepEqual(of('state').at(-1), { type: 'state', state: 'waiting', description, retryAt: 250 });
  await clock.advance(250);
  assert.equal(FakeSocket.instances.length, 2);
  FakeSocket.last.open();
  assert.equal(socket.state.state, 'open');
  assert.deepEqual(events.map(({ type, state }) => state ?? type), [
    ...['connecting', 'open', 'open', 'waiting', 'close', 'connecting', 'open', 'open'],
  ]);
});

test('it does not reconnect after the gateway has ended the session by policy', async () => {
  const { socket, clock, of } = await startSocket();
  FakeSocket.last.open();
  FakeSocket.last.end(1008, 'killed by an operator');
  await clock.advance(3_600_000);
  assert.equal(FakeSocket.instances.length, 1);
  assert.deepEqual(of('state').at(-1), { type: 'state', state: 'closed', description: 'Ended by the gateway: killed by an operator.' });
  assert.equal(of('close')[0].delay, undefined);
  socket.retryNow();
  assert.equal(FakeSocket.instances.length, 2);
});

test('the application can override whether to reconnect', async () => {
  const { clock } = await startSocket({ retryOn: ({ retry, byServer }) => retry || byServer });
  FakeSocket.last.open();
  FakeSocket.last.end(1000, 'the server closed the connection');
  await clock.advance(250);
  assert.equal(FakeSocket.instances.length, 2);
  FakeSocket.last.open();
  FakeSocket.last.end(1000, 'idle for too long');
  await clock.advance(60_000);
  assert.equal(FakeSocket.instances.length, 2);
});

test('sending without a connection fails, and nothing is queued for the next one', async () => {
  const { socket, clock } = await startSocket();
  await assert.rejects(socket.send('too early'), /^Error: not connected: nothing was sent$/);
  FakeSocket.last.open();
  await socket.send('a');
  const [first] = FakeSocket.instances;
  first.bufferedAmount = 2 << 20;
  const waiting = assert.rejects(socket.send('b'), /the connection ended before this was sent/);
  first.end(1006);
  await assert.rejects(socket.send('c'), /not connected/);
  await clock.advance(1_000);
  await waiting;
  FakeSocket.last.open();
  await clock.advance(1_000);
  assert.deepEqual(FakeSocket.instances.map(({ sent }) => sent), [['a'], []]);
});

test('sending waits while more than the high-water mark is buffered', async () => {
  const { socket, clock } = await startSocket({ highWater: 1000 });
  FakeSocket.last.open();
  FakeSocket.last.bufferedAmount = 1001;
  const sending = socket.send('much');
  await clock.advance(500);
  assert.deepEqual(FakeSocket.last.sent, []);
  FakeSocket.last.bufferedAmount = 999;
  await clock.advance(100);
  await sending;
  assert.deepEqual(FakeSocket.last.sent, ['much']);
});

test('after close() it does not reconnect; data sent before goes out first', async () => {
  const { socket, clock, of } = await startSocket();
  FakeSocket.last.open();
  socket.send('last data');
  socket.close();
  assert.deepEqual(FakeSocket.last.sent, ['last data']);
  assert.deepEqual(FakeSocket.last.closeArguments, [1000, '']);
  FakeSocket.last.end(1000);
  await clock.advance(3_600_000);
  assert.equal(FakeSocket.instances.length, 1);
  assert.equal(of('close').length, 1);
  assert.equal(of('state').at(-1).state, 'closed');
});

test('closed before its first attempt, it never connects', async () => {
  FakeSocket.instances.length = 0;
  const clock = new ManualClock();
  new Socket('wss://gateway.test/x', { WebSocket: FakeSocket, clock }).close();
  await clock.advance(60_000);
  assert.equal(FakeSocket.instances.length, 0);
});

test('a silent network is reported, and the connection is closed in the end', async () => {
  const { clock, of } = await startSocket({ liveness: { probe: () => ' ', quiet: 4_000, timeout: 4_000 } });
  FakeSocket.last.open();
  await clock.advance(6_000);
  assert.equal(of('state').at(-1).description, 'No answer for 6 s. Is the network down?');
  assert.equal(of('state').at(-1).state, 'open');
  FakeSocket.last.receive('here');
  assert.equal(of('state').at(-1).description, 'Connected.');
  await clock.advance(8_000);
  assert.equal(of('close')[0].description, 'Connection lost: no answer for 8 s.');
  assert.equal(of('state').at(-1).state, 'waiting');
});

test('an online event starts an attempt at once', async () => {
  const { network } = await startSocket();
  FakeSocket.last.end(1006);
  network.dispatchEvent(new Event('online'));
  assert.equal(FakeSocket.instances.length, 2);
});

test('an invalid URL is not retried', async () => {
  const { clock, of } = await startSocket({}, 'gopher://gateway.test');
  await clock.advance(3_600_000);
  assert.equal(FakeSocket.instances.length, 0);
  assert.equal(of('state').at(-1).state, 'closed');
  assert.match(of('state').at(-1).description, /^Cannot connect: gopher:.* is not a WebSocket URL$/);
});
