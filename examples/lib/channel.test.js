import assert from 'node:assert/strict';
import test from 'node:test';

import { openChannel } from './channel.js';
import { FakeSocket } from './fake-socket.js';
import { HandClock } from './hand-clock.js';

/** A channel that is being opened, its WebSocket and the names and details of its events. */
function channelOf(options) {
  const clock = new HandClock();
  const channel = openChannel('wss://gateway.test/x', { WebSocket: FakeSocket, clock, ...options });
  const events = [];
  for (const type of ['open', 'message', 'error', 'close', 'silence', 'voice']) {
    channel.addEventListener(type, (event) => events.push(event));
  }
  return { channel, clock, events, socket: FakeSocket.last, types: () => events.map(({ type }) => type) };
}

test('it looks like a WebSocket, to listeners and to handlers', () => {
  const { channel, socket, types } = channelOf({ protocols: ['binary'] });
  assert.deepEqual(socket.protocols, ['binary']);
  const handled = [];
  for (const type of ['open', 'message', 'error', 'close']) channel[`on${type}`] = (event) => handled.push(event.type);
  // Where libraries look: own properties, and those of the prototype.
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
  socket.say('hello');
  channel.send('hi');
  assert.deepEqual(socket.sent, ['hi']);
  socket.onerror({});
  socket.end(1000);
  assert.equal(channel.readyState, channel.CLOSED);
  assert.deepEqual(types(), ['open', 'message', 'error', 'close']);
  assert.deepEqual(handled, types());
});

test('its end has words', () => {
  const { events, socket } = channelOf();
  socket.open();
  socket.end(1011, 'the server behind the gateway refused the connection');
  const { code, reason, wasClean, opened, words, retry } = events.at(-1);
  assert.deepEqual([code, wasClean, opened, retry], [1011, true, true, true]);
  assert.equal(reason, 'the server behind the gateway refused the connection');
  assert.equal(words, 'Failed: the server behind the gateway refused the connection.');
});

test('a connection that never was is told from one that was lost', () => {
  const { events, socket } = channelOf();
  socket.end(1006);
  assert.equal(events.at(-1).opened, false);
  assert.match(events.at(-1).words, /^Could not connect: /);
});

test('opening has a limit', async () => {
  const { channel, clock, events, socket, types } = channelOf({ connectTimeout: 7_000 });
  await clock.advance(6_999);
  assert.deepEqual(types(), []);
  await clock.advance(1);
  assert.deepEqual(types(), ['close']);
  assert.equal(events[0].words, 'Connection lost: no answer for 7 s.');
  assert.equal(events[0].retry, true);
  assert.deepEqual(socket.closedWith, []);
  assert.equal(channel.readyState, channel.CLOSED);
  // Whatever the browser finds out later is told nobody.
  socket.open();
  socket.say('late');
  socket.end(1006);
  assert.deepEqual(types(), ['close']);
  assert.equal(clock.waiting, 0);
});

test('closing has a limit', async () => {
  const { channel, clock, events, socket } = channelOf({ closeTimeout: 2_000 });
  socket.open();
  channel.close(1000, 'bye');
  channel.close();
  assert.deepEqual(socket.closedWith, [1000, 'bye']);
  assert.equal(channel.readyState, channel.CLOSING);
  await clock.advance(2_000);
  assert.equal(channel.readyState, channel.CLOSED);
  assert.deepEqual([events.at(-1).code, events.at(-1).reason], [1006, 'no answer to the goodbye']);
});

test('closing answers what the other side answers', async () => {
  const { channel, clock, events, socket, types } = channelOf();
  socket.open();
  channel.close(1000, 'bye');
  socket.end(1000, 'bye');
  await clock.advance(60_000);
  assert.deepEqual(types(), ['open', 'close']);
  assert.deepEqual([events[1].code, events[1].wasClean, events[1].retry], [1000, true, false]);
});

test('a network that is gone ends the connection here, whatever the browser believes', async () => {
  const liveness = { probe: () => 'ping', quiet: 5_000, timeout: 6_000 };
  const { clock, events, socket, types } = channelOf({ liveness });
  await clock.advance(8_000); // not asked before it is open
  socket.open();
  await clock.advance(5_000);
  assert.deepEqual(socket.sent, ['ping']);
  socket.say('pong');
  await clock.advance(8_000);
  assert.deepEqual(types(), ['open', 'message', 'silence']);
  assert.equal(events.at(-1).detail.ms, 8_000);
  socket.say('late');
  await clock.advance(60_000);
  assert.deepEqual(types().slice(3), ['voice', 'message', 'silence', 'close']);
  assert.equal(events.at(-1).words, 'Connection lost: no answer for 11 s.');
});

test('writing waits while much is underway, and keeps the order', async () => {
  const { channel, clock, socket } = channelOf({ highWater: 100 });
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

test('what waits to be written when the connection ends is given back', async () => {
  const { channel, clock, socket } = channelOf({ highWater: 100 });
  socket.open();
  socket.bufferedAmount = 200;
  const writing = assert.rejects(channel.write('lost'), /the connection ended before this was sent/);
  socket.end(1006);
  await clock.advance(100);
  await writing;
  assert.deepEqual(socket.sent, []);
});
