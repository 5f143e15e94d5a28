import assert from 'node:assert/strict';
import { webcrypto } from 'node:crypto';
import test from 'node:test';

import { MOVES } from './game.js';
import { SILENT_MS } from './presence.js';
import { Session } from './session.js';

// Browsers have it as a global, and Node does from version 20 on.
globalThis.crypto ??= webcrypto;

/** A broker in this process: topics store nothing, queues keep unacknowledged messages. */
class Broker {
  #subscribers = new Map();
  #queues = new Map();

  subscribers(destination) {
    if (!this.#subscribers.has(destination)) this.#subscribers.set(destination, new Set());
    return this.#subscribers.get(destination);
  }

  queue(destination) {
    if (!this.#queues.has(destination)) this.#queues.set(destination, []);
    return this.#queues.get(destination);
  }

  send(destination, body, headers) {
    if (destination.startsWith('/topic/')) {
      for (const receive of this.subscribers(destination)) receive({ body, binaryBody: body, headers });
      return;
    }
    this.queue(destination).push({ body, headers, held: false });
    this.pump(destination);
  }

  pump(destination) {
    const [receive] = this.subscribers(destination);
    if (!receive) return;
    for (const message of this.queue(destination)) {
      if (message.held) continue;
      message.held = receive;
      const ack = () => {
        const queue = this.queue(destination);
        if (message.held === receive) queue.splice(queue.indexOf(message), 1);
      };
      receive({ ...message, ack });
    }
  }

  /** A subscriber is gone; its unacknowledged messages go to the next one. */
  unsubscribe(destination, receive) {
    this.subscribers(destination).delete(receive);
    if (!destination.startsWith('/queue/')) return;
    for (const message of this.queue(destination)) if (message.held === receive) message.held = false;
    this.pump(destination);
  }
}

class FakeConnection extends EventTarget {
  connected = false;
  #broker;
  #loses;
  #subscriptions = new Map();
  #active = new Map();

  /** @param {() => boolean} loses whether the connection is lost while a message is sent */
  constructor(broker, loses = () => false) {
    super();
    this.#broker = broker;
    this.#loses = loses;
  }

  connect() {
    if (this.connected) return;
    this.connected = true;
    for (const key of this.#subscriptions.keys()) this.#activate(key);
    this.dispatchEvent(new Event('connected'));
  }

  drop() {
    this.connected = false;
    for (const [, { destination, receive }] of this.#active) this.#broker.unsubscribe(destination, receive);
    this.#active.clear();
  }

  subscribe(destination, callback) {
    const key = Symbol(destination);
    this.#subscriptions.set(key, { destination, callback });
    if (this.connected) this.#activate(key);
    return () => {
      this.#subscriptions.delete(key);
      const active = this.#active.get(key);
      this.#active.delete(key);
      if (active) this.#broker.unsubscribe(destination, active.receive);
    };
  }

  #activate(key) {
    const { destination, callback } = this.#subscriptions.get(key);
    const receive = (message) => {
      const ack = () => this.#active.get(key)?.receive === receive && !this.#loses() && message.ack();
      queueMicrotask(() => this.connected && callback({ ...message, ack }));
    };
    this.#active.set(key, { destination, receive });
    this.#broker.subscribers(destination).add(receive);
    if (destination.startsWith('/queue/')) this.#broker.pump(destination);
  }

  publish(destination, body, headers = {}) {
    if (this.connected) this.#broker.send(destination, body, headers);
  }

  async deliver(destination, body) {
    if (!this.connected) throw new Error('not connected');
    if (this.#loses()) {
      this.drop();
      throw new Error('connection lost before the message was sent');
    }
    this.#broker.send(destination, body, {});
    if (this.#loses()) {
      this.drop();
      throw new Error('connection lost before the receipt');
    }
  }
}

function random(seed) {
  let state = seed;
  return (below) => {
    state = (state * 48271) % 2147483647;
    return state % below;
  };
}

/** A player whose page can be reloaded at any time. */
class TestPlayer {
  constructor(broker, name, clock, loses) {
    this.broker = broker;
    this.clock = clock;
    this.loses = loses;
    this.stored = JSON.stringify({ me: { id: name.toLowerCase(), name }, game: null, pending: [] });
    this.load();
  }

  load() {
    this.session?.end();
    this.connection?.drop();
    this.connection = new FakeConnection(this.broker, this.loses);
    this.session = new Session(this.connection, JSON.parse(this.stored), (value) => {
      this.stored = JSON.stringify(value);
    }, () => this.clock.now);
    this.connection.connect();
  }

  tick() {
    this.connection.dispatchEvent(new Event('alive'));
  }
}

/** Settles all pending promises and timers. */
async function settle() {
  await new Promise((resolve) => {
    setTimeout(resolve, 0);
  });
  await new Promise(setImmediate);
}

async function startGame(t, loses) {
  const broker = new Broker();
  const clock = { now: 0 };
  const players = [new TestPlayer(broker, 'Ann', clock, loses), new TestPlayer(broker, 'Ben', clock, loses)];
  t.after(() => players.forEach(({ session }) => session.end()));
  const [ann, ben] = players;
  await settle();
  ann.session.open();
  await settle();
  ben.session.join('ann');
  return { ann, ben, clock };
}

async function eventually(what, players, condition) {
  for (let i = 0; i < 200; i++) {
    await settle();
    if (condition()) return;
    for (const { connection } of players) connection.connect();
  }
  assert.fail(`${what}: ${players.map(({ stored }) => stored).join('\n')}`);
}

test('despite lost messages and reloads, each round counts once and both players see the same result', async (t) => {
  for (let seed = 1; seed <= 40; seed++) {
    const randomBelow = random(seed * 7919);
    const { ann, ben } = await startGame(t, () => randomBelow(6) === 0);
    const players = [ann, ben];
    await eventually('both have joined', players, () => players.every(({ session }) => session.game?.phase === 'choosing'));
    const played = [];
    for (let round = 1; round <= 6 && ann.session.game.phase !== 'over'; round++) {
      const moves = [MOVES[randomBelow(3)], MOVES[randomBelow(3)]];
      played.push({ round, mine: moves[0], theirs: moves[1] });
      for (const [i, player] of players.entries()) {
        if (randomBelow(3) === 0) player.connection.drop();
        void player.session.choose(moves[i]);
        if (randomBelow(2)) player.session.say(`${round}`);
        if (randomBelow(3) === 0) await settle();
        // A choice counts when it is stored; before that a player would see that it is missing, and choose again.
        await eventually('chosen', [player], () => JSON.parse(player.stored).game.rounds[round - 1]?.mine);
        if (randomBelow(3) === 0) player.load();
      }
      await eventually(`round ${round} of game ${seed} is decided`, players, () =>
        players.every(({ session }) => session.game.decided.length === round),
      );
    }
    const seen = ann.session.game.decided.map(({ round, mine, theirs }) => ({ round, mine, theirs }));
    assert.deepEqual(seen, played);
    await eventually('all chat messages have arrived', players, () =>
      players.every(({ session }) => !session.unsent) && ann.session.game.chat.length === ben.session.game.chat.length,
    );
    for (const mine of [true, false]) {
      const sent = ann.session.game.chat.filter((line) => line.mine === mine).map(({ text }) => text);
      const received = ben.session.game.chat.filter((line) => line.mine !== mine).map(({ text }) => text);
      assert.deepEqual(sent.sort(), received.sort());
    }
    players.forEach(({ session }) => session.end());
  }
});

test('the loss of a player is noticed, and so is the return', async (t) => {
  const { ann, ben, clock } = await startGame(t);
  await settle();
  let notified = 0;
  ann.session.addEventListener('change', () => notified++);
  const pass = async (ms, who) => {
    for (const end = clock.now + ms; clock.now < end; ) {
      clock.now += 1000;
      who.forEach((player) => player.tick());
      await settle();
    }
  };
  await pass(30_000, [ann, ben]);
  assert.equal(ann.session.otherIs, 'here');
  ben.connection.drop();
  await pass(SILENT_MS, [ann]);
  notified = 0;
  await pass(3000, [ann]);
  assert.equal(ann.session.otherIs, 'silent');
  assert.ok(notified > 0, 'the page was notified');
  assert.deepEqual(ann.session.others, []);
  ben.load();
  await settle();
  assert.equal(ann.session.otherIs, 'here');
  ben.session.announceLeaving();
  await settle();
  assert.deepEqual([ann.session.otherIs, ann.session.others], ['closed', []]);
});

test('a picture is shown to the other player, also after a reload', async (t) => {
  const { ann, ben, clock } = await startGame(t);
  ann.session.show(new Blob([new Uint8Array([1, 2, 3])], { type: 'image/png' }));
  const arrived = async () => {
    for (let i = 0; i < 40; i++) {
      clock.now += 1000;
      ann.tick();
      ben.tick();
      await settle();
      const picture = ben.session.otherPicture;
      if (picture) return [...new Uint8Array(await picture.blob.arrayBuffer())];
    }
    return undefined;
  };
  assert.deepEqual(await arrived(), [1, 2, 3]);
  ben.load();
  assert.deepEqual(await arrived(), [1, 2, 3]);
  ann.session.show(new Blob(['<svg/>'], { type: 'image/svg+xml' }));
  ben.session.otherPicture = null;
  assert.equal(await arrived(), undefined);
});

test('a third player who asks to join is refused because the game is full', async (t) => {
  const { ann, clock } = await startGame(t);
  const cid = new TestPlayer(ann.broker, 'Cid', clock);
  t.after(() => cid.session.end());
  cid.session.roster.here({ id: 'ann', name: 'Ann', game: ann.session.game.state.id, open: true }, 0);
  cid.session.join('ann');
  await eventually('refused', [cid], () => cid.session.game.phase === 'over');
  assert.equal(cid.session.game.state.ended, 'full');
  cid.session.leave();
  assert.equal(cid.session.game, null);
  assert.equal(ann.session.game.state.other.id, 'ben');
});

test('invalid messages are acknowledged and ignored', async (t) => {
  const { ann, ben } = await startGame(t);
  await settle();
  const queue = `/queue/rps.game.${ann.session.game.state.id}.ann`;
  for (const body of ['', 'null', '{"from":"ben","type":"commit","round":-1}', '{"from":"zed","type":"leave"}']) ben.broker.send(queue, body, {});
  await eventually('the queue is empty', [ann, ben], () => ben.broker.queue(queue).length === 0);
  assert.equal(ann.session.game.phase, 'choosing');
});
