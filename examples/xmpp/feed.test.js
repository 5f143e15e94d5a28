import assert from 'node:assert/strict';
import test from 'node:test';

import { Feed } from './feed.js';

const message = (archiveId) => ({ archiveId });
const all = (text) => [...text].map(message);

/** A feed, and what it delivers (capitals: not fresh) with its gaps (a dash). */
function createFeed(mark) {
  let delivered = '';
  const deliver = ({ archiveId }, { fresh }) => {
    delivered += fresh ? archiveId : archiveId.toUpperCase();
  };
  const feed = new Feed(deliver, () => (delivered += '—'), mark);
  return { feed, delivered: () => delivered };
}

/** An archive with one message for each letter of `text`. */
function createArchive(text) {
  const queries = [];
  return {
    queries,
    async latest(mark) {
      queries.push(`latest ${mark}`);
      return { messages: all(text), complete: true, reached: !mark || text.includes(mark) };
    },
    async since(mark) {
      queries.push(`since ${mark}`);
      if (mark && !text.includes(mark)) return undefined;
      return all(text.slice(text.indexOf(mark) + 1));
    },
  };
}

const refusing = (error) => ({ latest: () => Promise.reject(error), since: () => Promise.reject(error) });
const noArchive = Object.assign(new Error('service-unavailable'), { name: 'StanzaError' });

test('a new page shows the archive, and counts none of it as new', async () => {
  const { feed, delivered } = createFeed();
  feed.hold();
  assert.equal(await feed.catchUp(createArchive('abc')), true);
  feed.receive(message('d'));
  assert.equal(delivered(), 'ABCd');
  assert.equal(feed.mark, 'd');
});

test('a reloaded page counts messages after its last known one as new', async () => {
  const { feed, delivered } = createFeed('b');
  feed.hold();
  assert.equal(await feed.catchUp(createArchive('abcd')), true);
  assert.equal(delivered(), 'ABcd');
});

test('live messages that arrive during a query follow its result', async () => {
  const { feed, delivered } = createFeed();
  feed.hold();
  feed.receive(message('d'));
  const catching = feed.catchUp(createArchive('abc'));
  feed.receive(message('e'));
  await catching;
  assert.equal(delivered(), 'ABCde');
});

test('after a lost connection the query starts at the last message', async () => {
  const { feed, delivered } = createFeed();
  feed.hold();
  await feed.catchUp(createArchive('ab'));
  feed.hold();
  const archive = createArchive('abcd');
  assert.equal(await feed.catchUp(archive), true);
  assert.deepEqual(archive.queries, ['since b']);
  assert.equal(delivered(), 'ABcd');
});

test('a connection that breaks during a query loses nothing', async () => {
  const { feed, delivered } = createFeed();
  feed.hold();
  await feed.catchUp(createArchive('ab'));
  feed.hold();
  feed.receive(message('d')); // c is still in the archive
  await assert.rejects(feed.catchUp(refusing(new Error('the session has ended'))));
  assert.equal(feed.mark, 'b', 'the mark has not skipped missing messages');
  feed.hold();
  await feed.catchUp(createArchive('abcde'));
  assert.equal(delivered(), 'ABcde');
});

test('while a message of ours is unconfirmed, queries start before it', async () => {
  const { feed, delivered } = createFeed();
  feed.hold();
  await feed.catchUp(createArchive(''));
  assert.equal(feed.from, '', 'an empty archive is queried from its start');
  feed.receive(message('a'));
  feed.pin(); // ours is b, and the connection breaks before the server confirms it
  feed.receive(message('c'));
  assert.deepEqual([feed.mark, feed.from], ['c', 'a']);
  feed.hold();
  const archive = createArchive('abcd');
  assert.equal(await feed.catchUp(archive), true);
  assert.deepEqual(archive.queries, ['since a']);
  assert.equal(delivered(), 'acbcd', 'the receiver knows c already');
  feed.unpin();
  assert.equal(feed.from, 'd');
});

test('an archive that does not reach back leaves a gap', async () => {
  const { feed, delivered } = createFeed();
  feed.hold();
  await feed.catchUp(createArchive('ab'));
  feed.hold();
  assert.equal(await feed.catchUp(createArchive('xyz')), false);
  assert.equal(delivered(), 'AB—xyz');
  assert.equal(feed.mark, 'z');
});

test('without an archive there is a gap after each lost connection', async () => {
  const { feed, delivered } = createFeed();
  feed.hold();
  assert.equal(await feed.catchUp(refusing(noArchive)), false);
  feed.receive(message('a'));
  feed.hold();
  feed.receive(message('b'));
  assert.equal(await feed.catchUp(refusing(noArchive)), false);
  assert.equal(delivered(), 'a—b');
});
