import assert from 'node:assert/strict';
import test from 'node:test';

import { Backoff } from './backoff.js';
import { FakeSocket } from './fake-socket.js';
import { HandClock } from './hand-clock.js';
import { Socket } from './socket.js';

/** A socket that has begun its first try, and its events. */
async function begun(options = {}, url = 'wss://gateway.test/x') {
  FakeSocket.made.length = 0;
  const clock = new HandClock();
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

test('messages arrive as bytes, whatever they were sent as', async () => {
  const { of } = await begun();
  FakeSocket.last.open();
  FakeSocket.last.say(new Uint8Array([1, 2, 255]).buffer);
  FakeSocket.last.say('é');
  assert.deepEqual(of('message').map(({ detail }) => [...detail]), [[1, 2, 255], [0xc3, 0xa9]]);
  assert.ok(of('message').every(({ detail }) => detail instanceof Uint8Array));
});

test('it comes back, and says what it is like', async () => {
  const { socket, clock, of, events } = await begun();
  FakeSocket.last.protocol = 'binary';
  FakeSocket.last.open();
  assert.deepEqual(of('open'), [{ type: 'open', protocol: 'binary' }]);
  FakeSocket.last.end(1001, 'the gateway is stopping');
  const words = 'Interrupted: the gateway is stopping.';
  assert.deepEqual(of('close'), [
    { type: 'close', code: 1001, reason: 'the gateway is stopping', wasClean: true, words, retry: true, delay: 250 },
  ]);
  assert.deepEqual(of('state').at(-1), { type: 'state', state: 'waiting', words, retryAt: 250 });
  await clock.advance(250);
  assert.equal(FakeSocket.made.length, 2);
  FakeSocket.last.open();
  assert.equal(socket.state.state, 'open');
  assert.deepEqual(events.map(({ type, state }) => state ?? type), [
    ...['connecting', 'open', 'open', 'waiting', 'close', 'connecting', 'open', 'open'],
  ]);
});

test('it does not come back where the gateway does not want it', async () => {
  const { socket, clock, of } = await begun();
  FakeSocket.last.open();
  FakeSocket.last.end(1008, 'killed by an operator');
  await clock.advance(3_600_000);
  assert.equal(FakeSocket.made.length, 1);
  assert.deepEqual(of('state').at(-1), { type: 'state', state: 'closed', words: 'Ended by the gateway: killed by an operator.' });
  assert.equal(of('close')[0].delay, undefined);
  socket.retryNow();
  assert.equal(FakeSocket.made.length, 2);
});

test('the application has the last word on coming back', async () => {
  const { clock } = await begun({ retryOn: ({ retry, byServer }) => retry || byServer });
  FakeSocket.last.open();
  FakeSocket.last.end(1000, 'the server closed the connection');
  await clock.advance(250);
  assert.equal(FakeSocket.made.length, 2);
  FakeSocket.last.open();
  FakeSocket.last.end(1000, 'idle for too long');
  await clock.advance(60_000);
  assert.equal(FakeSocket.made.length, 2);
});

test('what is sent without a connection is refused, and nothing is kept for the next one', async () => {
  const { socket, clock } = await begun();
  await assert.rejects(socket.send('too early'), /^Error: not connected: nothing was sent$/);
  FakeSocket.last.open();
  await socket.send('a');
  const [first] = FakeSocket.made;
  first.bufferedAmount = 2 << 20;
  const waiting = assert.rejects(socket.send('b'), /the connection ended before this was sent/);
  first.end(1006);
  await assert.rejects(socket.send('c'), /not connected/);
  await clock.advance(1_000);
  await waiting;
  FakeSocket.last.open();
  await clock.advance(1_000);
  assert.deepEqual(FakeSocket.made.map(({ sent }) => sent), [['a'], []]);
});

test('it waits while more than the high water mark is underway', async () => {
  const { socket, clock } = await begun({ highWater: 1000 });
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

test('closed by the page, it is over; what was sent before goes first', async () => {
  const { socket, clock, of } = await begun();
  FakeSocket.last.open();
  socket.send('last words');
  socket.close();
  assert.deepEqual(FakeSocket.last.sent, ['last words']);
  assert.deepEqual(FakeSocket.last.closedWith, [1000, '']);
  FakeSocket.last.end(1000);
  await clock.advance(3_600_000);
  assert.equal(FakeSocket.made.length, 1);
  assert.equal(of('close').length, 1);
  assert.equal(of('state').at(-1).state, 'closed');
});

test('closed before it began, it never begins', async () => {
  FakeSocket.made.length = 0;
  const clock = new HandClock();
  new Socket('wss://gateway.test/x', { WebSocket: FakeSocket, clock }).close();
  await clock.advance(60_000);
  assert.equal(FakeSocket.made.length, 0);
});

test('a silent network is told, and given up in the end', async () => {
  const { clock, of } = await begun({ liveness: { probe: () => ' ', quiet: 4_000, timeout: 4_000 } });
  FakeSocket.last.open();
  await clock.advance(6_000);
  assert.equal(of('state').at(-1).words, 'No answer for 6 s. Is the network down?');
  assert.equal(of('state').at(-1).state, 'open');
  FakeSocket.last.say('here');
  assert.equal(of('state').at(-1).words, 'Connected.');
  await clock.advance(8_000);
  assert.equal(of('close')[0].words, 'Connection lost: no answer for 8 s.');
  assert.equal(of('state').at(-1).state, 'waiting');
});

test('back online, it does not wait', async () => {
  const { network } = await begun();
  FakeSocket.last.end(1006);
  network.dispatchEvent(new Event('online'));
  assert.equal(FakeSocket.made.length, 2);
});

test('an address that is none is not tried again', async () => {
  const { clock, of } = await begun({}, 'gopher://gateway.test');
  await clock.advance(3_600_000);
  assert.equal(FakeSocket.made.length, 0);
  assert.equal(of('state').at(-1).state, 'closed');
  assert.match(of('state').at(-1).words, /^No connection: gopher:.* is not the address of a WebSocket$/);
});
