import assert from 'node:assert/strict';
import test from 'node:test';

import { Roster, SILENT_MS, PeerPresence } from './presence.js';

/** Ticks every second from `from` to `to`. */
function pass(peer, from, to, connected) {
  for (let now = from; now <= to; now += 1000) peer.tick(now, connected);
}

test('a player without messages is silent until the next one', () => {
  const peer = new PeerPresence(0);
  pass(peer, 0, SILENT_MS, true);
  assert.equal(peer.state(SILENT_MS), 'here');
  pass(peer, SILENT_MS, SILENT_MS + 2000, true);
  assert.equal(peer.state(SILENT_MS + 2000), 'silent');
  peer.received(SILENT_MS + 2000);
  assert.equal(peer.state(SILENT_MS + 2000), 'here');
});

test('time without a connection, or suspended, does not count as silence', () => {
  const peer = new PeerPresence(0);
  pass(peer, 0, 60_000, false);
  peer.tick(61_000, true);
  assert.equal(peer.state(61_000), 'here');
  pass(peer, 62_000, 66_000, true);
  assert.equal(peer.state(66_000), 'here');
  peer.tick(600_000, true);
  assert.equal(peer.state(600_000), 'here');
  pass(peer, 601_000, 608_000, true);
  assert.equal(peer.state(608_000), 'silent');
});

test('a player who closes the page is away at once, and may come back', () => {
  const peer = new PeerPresence(0);
  peer.left();
  assert.equal(peer.state(1), 'closed');
  peer.received(2);
  assert.equal(peer.state(3), 'here');
});

test('the lobby removes absent players, but not while it is disconnected', () => {
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
  assert.equal(roster.get('3')?.name, 'Cid', 'the page was suspended');
  for (let now = 169_000; now <= 176_000; now += 1000) roster.tick(now, true);
  assert.equal(roster.get('3'), undefined);
});
