import assert from 'node:assert/strict';
import test from 'node:test';

import { openChannel } from './channel.js';
import { FakeSocket } from './fake-socket.js';
import { ManualClock } from './manual-clock.js';

/** A channel that is being opened, its WebSocket, and its events. */
function createChannel(options) {
  const clock = new ManualClock();
  const channel = openChannel('wss://gateway.test/x', { WebSocket: FakeSocket, clock, ...options });
  const events = [];
  for (const type of ['open', 'message', 'error', 'close', 'stalled', 'recovered']) {
    channel.addEventListener(type, (event) => events.push(event));
  }
  return { channel, clock, events, socket: FakeSocket.last, types: () => events.map(({ type }) => type) };
}

test('it has the interface of a WebSocket, for listeners and for handlers', () => {
  const { channel, socket, types } = createChannel({ protocols: ['binary'] });
  assert.deepEqual(socket.protocols, ['binary']);
  const handled = [];
  for (const type of ['open', 'message', 'error', 'close']) channel[`on${type}`] = (event) => handled.push(event.type);
  // Libraries check own properties and those of the prototype.
  const names = [...Object.keys(channel), ...Object.getOwnPropertyNames(Object.getPrototypeOf(channel))];
  for (const name of ['send', 'close', 'binaryType', 'onerror', 'onmessage', 'onopen', 'protocol', 'readyState']) {
    assert.ok(names.includes(name), name);
  }
  assert.deepEqual([channel.CONNECTING, channel.OPEN, channel.CLOSING, channel.CLOSED], [0, 1, 2, 3]);
  assert.equal(channel.readyState, channel.CONNECTING);
  socket.protocol = 'binary';
  socket.open();
  assert.equal(channel.readyState, channel.OPEN);
  assert.equal(channel.protocol, 'binary');
  assert.equal(channel.binaryType, 'arraybuffer');
  socket.receive('hello');
  channel.send('hi');
  assert.deepEqual(socket.sent, ['hi']);
  socket.onerror({});
  socket.end(1000);
  assert.equal(channel.readyState, channel.CLOSED);
  assert.deepEqual(types(), ['open', 'message', 'error', 'close']);
  assert.deepEqual(handled, types());
});

test('its close event has a description', () => {
  const { events, socket } = createChannel();
  socket.open();
  socket.end(1011, 'the server behind the gateway refused the connection');
  const { code, reason, wasClean, opened, description, retry } = events.at(-1);
  assert.deepEqual([code, wasClean, opened, retry], [1011, true, true, true]);
  assert.equal(reason, 'the server behind the gateway refused the connection');
  assert.equal(description, 'Failed: the server behind the gateway refused the connection.');
});

test('a failed attempt to connect is distinguished from a lost connection', () => {
  const { events, socket } = createChannel();
  socket.end(1006);
  assert.equal(events.at(-1).opened, false);
  assert.match(events.at(-1).description, /^Could not connect: /);
});

test('opening times out', async () => {
  const { channel, clock, events, socket, types } = createChannel({ connectTimeout: 7_000 });
  await clock.advance(6_999);
  assert.deepEqual(types(), []);
  await clock.advance(1);
  assert.deepEqual(types(), ['close']);
  assert.equal(events[0].description, 'Connection lost: no answer for 7 s.');
  assert.equal(events[0].retry, true);
  assert.deepEqual(socket.closeArguments, []);
  assert.equal(channel.readyState, channel.CLOSED);
  // Later events of the browser's WebSocket are ignored.
  socket.open();
  socket.receive('late');
  socket.end(1006);
  assert.deepEqual(types(), ['close']);
  assert.equal(clock.pendingTimers, 0);
});

test('closing times out', async () => {
  const { channel, clock, events, socket } = createChannel({ closeTimeout: 2_000 });
  socket.open();
  channel.close(1000, 'bye');
  channel.close();
  assert.deepEqual(socket.closeArguments, [1000, 'bye']);
  assert.equal(channel.readyState, channel.CLOSING);
  await clock.advance(2_000);
  assert.equal(channel.readyState, channel.CLOSED);
  assert.deepEqual([events.at(-1).code, events.at(-1).reason], [1006, 'no answer to the Close frame']);
});

test('closing reports the code of the peer', async () => {
  const { channel, clock, events, socket, types } = createChannel();
  socket.open();
  channel.close(1000, 'bye');
  socket.end(1000, 'bye');
  await clock.advance(60_000);
  assert.deepEqual(types(), ['open', 'close']);
  assert.deepEqual([events[1].code, events[1].wasClean, events[1].retry], [1000, true, false]);
});

test('a dead network closes the channel, even if the browser has not noticed it', async () => {
  const liveness = { probe: () => 'ping', quiet: 5_000, timeout: 6_000 };
  const { clock, events, socket, types } = createChannel({ liveness });
  await clock.advance(8_000); // not probed before it is open
  socket.open();
  await clock.advance(5_000);
  assert.deepEqual(socket.sent, ['ping']);
  socket.receive('pong');
  await clock.advance(8_000);
  assert.deepEqual(types(), ['open', 'message', 'stalled']);
  assert.equal(events.at(-1).detail.ms, 8_000);
  socket.receive('late');
  await clock.advance(60_000);
  assert.deepEqual(types().slice(3), ['recovered', 'message', 'stalled', 'close']);
  assert.equal(events.at(-1).description, 'Connection lost: no answer for 11 s.');
});

test('writing waits while too much is buffered, and keeps the order', async () => {
  const { channel, clock, socket } = createChannel({ highWater: 100 });
  await assert.rejects(channel.write('early'), /^Error: not connected: nothing was sent$/);
  socket.open();
  await channel.write('a');
  socket.bufferedAmount = 101;
  const order = [];
  const writing = ['b', 'c', 'd'].map((text) => channel.write(text).then(() => order.push(text)));
  await clock.advance(1_000);
  assert.deepEqual(socket.sent, ['a']);
  socket.bufferedAmount = 100;
  await clock.advance(100);
  await Promise.all(writing);
  assert.deepEqual(socket.sent, ['a', 'b', 'c', 'd']);
  assert.deepEqual(order, ['b', 'c', 'd']);
  const now = channel.write('e');
  assert.deepEqual(socket.sent.slice(4), ['e'], 'at once again');
  await now;
});

test('writes that wait when the connection ends are rejected', async () => {
  const { channel, clock, socket } = createChannel({ highWater: 100 });
  socket.open();
  socket.bufferedAmount = 200;
  const writing = assert.rejects(channel.write('lost'), /the connection ended before this was sent/);
  socket.end(1006);
  await clock.advance(100);
  await writing;
  assert.deepEqual(socket.sent, []);
});
