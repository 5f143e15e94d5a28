import assert from 'node:assert/strict';
import test from 'node:test';

import { MOVES } from './game.js';
import { SILENT_MS } from './presence.js';
import { Session } from './session.js';

/** A broker in this process: topics forget, queues keep what was not acknowledged. */
class Broker {
  #listeners = new Map();
  #queues = new Map();

  links(destination) {
    if (!this.#listeners.has(destination)) this.#listeners.set(destination, new Set());
    return this.#listeners.get(destination);
  }

  queue(destination) {
    if (!this.#queues.has(destination)) this.#queues.set(destination, []);
    return this.#queues.get(destination);
  }

  send(destination, body, headers) {
    if (destination.startsWith('/topic/')) {
      for (const receive of this.links(destination)) receive({ body, binaryBody: body, headers });
      return;
    }
    this.queue(destination).push({ body, headers, held: false });
    this.pump(destination);
  }

  pump(destination) {
    const [receive] = this.links(destination);
    if (!receive) return;
    for (const letter of this.queue(destination)) {
      if (letter.held) continue;
      letter.held = receive;
      const ack = () => {
        const queue = this.queue(destination);
        if (letter.held === receive) queue.splice(queue.indexOf(letter), 1);
      };
      receive({ ...letter, ack });
    }
  }

  /** A listener is gone; what it had not acknowledged is for the next one. */
  unlisten(destination, receive) {
    this.links(destination).delete(receive);
    if (!destination.startsWith('/queue/')) return;
    for (const letter of this.queue(destination)) if (letter.held === receive) letter.held = false;
    this.pump(destination);
  }
}

class FakeLink extends EventTarget {
  connected = false;
  #broker;
  #chance;
  #wanted = new Map();
  #live = new Map();

  /** @param {() => boolean} chance whether a message that is sent meets the end of the connection */
  constructor(broker, chance = () => false) {
    super();
    this.#broker = broker;
    this.#chance = chance;
  }

  connect() {
    if (this.connected) return;
    this.connected = true;
    for (const key of this.#wanted.keys()) this.#listen(key);
    this.dispatchEvent(new Event('connected'));
  }

  drop() {
    this.connected = false;
    for (const [, { destination, receive }] of this.#live) this.#broker.unlisten(destination, receive);
    this.#live.clear();
  }

  subscribe(destination, callback) {
    const key = Symbol(destination);
    this.#wanted.set(key, { destination, callback });
    if (this.connected) this.#listen(key);
    return () => {
      this.#wanted.delete(key);
      const live = this.#live.get(key);
      this.#live.delete(key);
      if (live) this.#broker.unlisten(destination, live.receive);
    };
  }

  #listen(key) {
    const { destination, callback } = this.#wanted.get(key);
    const receive = (message) => {
      const ack = () => this.#live.get(key)?.receive === receive && !this.#chance() && message.ack();
      queueMicrotask(() => this.connected && callback({ ...message, ack }));
    };
    this.#live.set(key, { destination, receive });
    this.#broker.links(destination).add(receive);
    if (destination.startsWith('/queue/')) this.#broker.pump(destination);
  }

  publish(destination, body, headers = {}) {
    if (this.connected) this.#broker.send(destination, body, headers);
  }

  async deliver(destination, body) {
    if (!this.connected) throw new Error('not connected');
    if (this.#chance()) {
      this.drop();
      throw new Error('lost before the broker had it');
    }
    this.#broker.send(destination, body, {});
    if (this.#chance()) {
      this.drop();
      throw new Error('the receipt was lost');
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

/** A player whose page can be loaded again at any time. */
class Person {
  constructor(broker, name, clock, chance) {
    this.broker = broker;
    this.clock = clock;
    this.chance = chance;
    this.stored = JSON.stringify({ me: { id: name.toLowerCase(), name }, game: null, waiting: [] });
    this.load();
  }

  load() {
    this.session?.end();
    this.link?.drop();
    this.link = new FakeLink(this.broker, this.chance);
    this.session = new Session(this.link, JSON.parse(this.stored), (value) => {
      this.stored = JSON.stringify(value);
    }, () => this.clock.now);
    this.link.connect();
  }

  tick() {
    this.link.dispatchEvent(new Event('alive'));
  }
}

/** Lets everything that can happen happen. */
async function settle() {
  await new Promise((resolve) => {
    setTimeout(resolve, 0);
  });
  await new Promise(setImmediate);
}

async function meet(t, chance) {
  const broker = new Broker();
  const clock = { now: 0 };
  const people = [new Person(broker, 'Ann', clock, chance), new Person(broker, 'Ben', clock, chance)];
  t.after(() => people.forEach(({ session }) => session.end()));
  const [ann, ben] = people;
  await settle();
  ann.session.open();
  await settle();
  ben.session.join('ann');
  return { ann, ben, clock };
}

async function eventually(what, people, condition) {
  for (let i = 0; i < 200; i++) {
    await settle();
    if (condition()) return;
    for (const { link } of people) link.connect();
  }
  assert.fail(`${what}: ${people.map(({ stored }) => stored).join('\n')}`);
}

test('whatever is lost, and whenever a page is loaded again, each round is counted once and alike', async (t) => {
  for (let seed = 1; seed <= 40; seed++) {
    const dice = random(seed * 7919);
    const { ann, ben } = await meet(t, () => dice(6) === 0);
    const people = [ann, ben];
    await eventually('both are in', people, () => people.every(({ session }) => session.game?.phase === 'choosing'));
    const played = [];
    for (let round = 1; round <= 6 && ann.session.game.phase !== 'over'; round++) {
      const moves = [MOVES[dice(3)], MOVES[dice(3)]];
      played.push({ round, mine: moves[0], theirs: moves[1] });
      for (const [i, person] of people.entries()) {
        if (dice(3) === 0) person.link.drop();
        void person.session.choose(moves[i]);
        if (dice(2)) person.session.say(`${round}`);
        if (dice(3) === 0) await settle();
        // Before the choice is stored it is not made; the person would see that, and choose again.
        await eventually('chosen', [person], () => JSON.parse(person.stored).game.rounds[round - 1]?.mine);
        if (dice(3) === 0) person.load();
      }
      await eventually(`round ${round} of game ${seed} is decided`, people, () =>
        people.every(({ session }) => session.game.decided.length === round),
      );
    }
    const seen = ann.session.game.decided.map(({ round, mine, theirs }) => ({ round, mine, theirs }));
    assert.deepEqual(seen, played);
    await eventually('all that was said has arrived', people, () =>
      people.every(({ session }) => !session.unsent) && ann.session.game.talk.length === ben.session.game.talk.length,
    );
    for (const mine of [true, false]) {
      const said = ann.session.game.talk.filter((line) => line.mine === mine).map(({ text }) => text);
      const heard = ben.session.game.talk.filter((line) => line.mine !== mine).map(({ text }) => text);
      assert.deepEqual(said.sort(), heard.sort());
    }
    people.forEach(({ session }) => session.end());
  }
});

test('a player who vanishes is noticed, and when he is back, too', async (t) => {
  const { ann, ben, clock } = await meet(t);
  await settle();
  let told = 0;
  ann.session.addEventListener('change', () => told++);
  const pass = async (ms, who) => {
    for (const end = clock.now + ms; clock.now < end; ) {
      clock.now += 1000;
      who.forEach((person) => person.tick());
      await settle();
    }
  };
  await pass(30_000, [ann, ben]);
  assert.equal(ann.session.otherIs, 'here');
  ben.link.drop();
  await pass(SILENT_MS, [ann]);
  told = 0;
  await pass(3000, [ann]);
  assert.equal(ann.session.otherIs, 'silent');
  assert.ok(told > 0, 'the page was told');
  assert.deepEqual(ann.session.others, []);
  ben.load();
  await settle();
  assert.equal(ann.session.otherIs, 'here');
  ben.session.bye();
  await settle();
  assert.deepEqual([ann.session.otherIs, ann.session.others], ['closed', []]);
});

test('a picture is shown to the other player, and again to a page that has forgotten it', async (t) => {
  const { ann, ben, clock } = await meet(t);
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

test('a third who asks to join is told that the game is full', async (t) => {
  const { ann, clock } = await meet(t);
  const cid = new Person(ann.broker, 'Cid', clock);
  t.after(() => cid.session.end());
  cid.session.roster.here({ id: 'ann', name: 'Ann', game: ann.session.game.state.id, open: true }, 0);
  cid.session.join('ann');
  await eventually('told', [cid], () => cid.session.game.phase === 'over');
  assert.equal(cid.session.game.state.ended, 'full');
  cid.session.leave();
  assert.equal(cid.session.game, null);
  assert.equal(ann.session.game.state.other.id, 'ben');
});

test('letters that nobody understands are acknowledged, and do no harm', async (t) => {
  const { ann, ben } = await meet(t);
  await settle();
  const queue = `/queue/rps.game.${ann.session.game.state.id}.ann`;
  for (const body of ['', 'null', '{"from":"ben","type":"sealed","round":-1}', '{"from":"zed","type":"leave"}']) ben.broker.send(queue, body, {});
  await eventually('all are gone', [ann, ben], () => ben.broker.queue(queue).length === 0);
  assert.equal(ann.session.game.phase, 'choosing');
});
