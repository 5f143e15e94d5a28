import assert from 'node:assert/strict';
import test from 'node:test';

import { Roster, SILENT_MS, Watch } from './presence.js';

/** Ticks every second from `from` to `to`. */
function pass(watch, from, to, connected) {
  for (let now = from; now <= to; now += 1000) watch.tick(now, connected);
}

test('who says nothing for a while is silent, until he is heard', () => {
  const watch = new Watch(0);
  pass(watch, 0, SILENT_MS, true);
  assert.equal(watch.state(SILENT_MS), 'here');
  pass(watch, SILENT_MS, SILENT_MS + 2000, true);
  assert.equal(watch.state(SILENT_MS + 2000), 'silent');
  watch.heard(SILENT_MS + 2000);
  assert.equal(watch.state(SILENT_MS + 2000), 'here');
});

test('time without a connection, or asleep, is not held against him', () => {
  const watch = new Watch(0);
  pass(watch, 0, 60_000, false);
  watch.tick(61_000, true);
  assert.equal(watch.state(61_000), 'here');
  pass(watch, 62_000, 66_000, true);
  assert.equal(watch.state(66_000), 'here');
  watch.tick(600_000, true);
  assert.equal(watch.state(600_000), 'here');
  pass(watch, 601_000, 608_000, true);
  assert.equal(watch.state(608_000), 'silent');
});

test('who closes the page is away at once, and may come back', () => {
  const watch = new Watch(0);
  watch.left();
  assert.equal(watch.state(1), 'closed');
  watch.heard(2);
  assert.equal(watch.state(3), 'here');
});

test('the lobby forgets who is gone, and nobody while it is deaf', () => {
  const roster = new Roster(0);
  roster.here({ id: '1', name: 'Bob' }, 0);
  roster.here({ id: '2', name: 'Ann' }, 0);
  assert.deepEqual(roster.players.map(({ name }) => name), ['Ann', 'Bob']);
  roster.gone('2');
  for (let now = 0; now <= 60_000; now += 1000) roster.tick(now, false);
  for (let now = 61_000; now <= 67_000; now += 1000) roster.tick(now, true);
  assert.equal(roster.players.length, 1);
  roster.tick(68_000, true);
  assert.equal(roster.players.length, 0);

  roster.here({ id: '3', name: 'Cid' }, 68_000);
  roster.tick(168_000, true);
  assert.equal(roster.get('3')?.name, 'Cid', 'the page was asleep');
  for (let now = 169_000; now <= 176_000; now += 1000) roster.tick(now, true);
  assert.equal(roster.get('3'), undefined);
});
