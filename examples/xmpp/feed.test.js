import assert from 'node:assert/strict';
import test from 'node:test';

import { Feed } from './feed.js';

const told = (archiveId) => ({ archiveId });
const all = (text) => [...text].map(told);

/** A feed, all that it delivers (capitals: not fresh) and the gaps (a dash). */
function feedOf(mark) {
  let seen = '';
  const deliver = ({ archiveId }, { fresh }) => {
    seen += fresh ? archiveId : archiveId.toUpperCase();
  };
  const feed = new Feed(deliver, () => (seen += '—'), mark);
  return { feed, seen: () => seen };
}

/** An archive that has `text`, one letter for each message. */
function archiveOf(text) {
  const asked = [];
  return {
    asked,
    async latest(mark) {
      asked.push(`latest ${mark}`);
      return { kept: all(text), complete: true, reached: !mark || text.includes(mark) };
    },
    async since(mark) {
      asked.push(`since ${mark}`);
      if (mark && !text.includes(mark)) return undefined;
      return all(text.slice(text.indexOf(mark) + 1));
    },
  };
}

const refusing = (error) => ({ latest: () => Promise.reject(error), since: () => Promise.reject(error) });
const noArchive = Object.assign(new Error('service-unavailable'), { name: 'StanzaError' });

test('a new page shows what the archive has, and counts nothing of it as new', async () => {
  const { feed, seen } = feedOf();
  feed.hold();
  assert.equal(await feed.catchUp(archiveOf('abc')), true);
  feed.heard(told('d'));
  assert.equal(seen(), 'ABCd');
  assert.equal(feed.mark, 'd');
});

test('a page that was reloaded counts as new what came after the last message it knew', async () => {
  const { feed, seen } = feedOf('b');
  feed.hold();
  assert.equal(await feed.catchUp(archiveOf('abcd')), true);
  assert.equal(seen(), 'ABcd');
});

test('what is heard while the archive answers comes after it', async () => {
  const { feed, seen } = feedOf();
  feed.hold();
  feed.heard(told('d'));
  const catching = feed.catchUp(archiveOf('abc'));
  feed.heard(told('e'));
  await catching;
  assert.equal(seen(), 'ABCde');
});

test('after a lost connection it asks from the last message on', async () => {
  const { feed, seen } = feedOf();
  feed.hold();
  await feed.catchUp(archiveOf('ab'));
  feed.hold();
  const archive = archiveOf('abcd');
  assert.equal(await feed.catchUp(archive), true);
  assert.deepEqual(archive.asked, ['since b']);
  assert.equal(seen(), 'ABcd');
});

test('a connection that breaks while the archive answers loses nothing', async () => {
  const { feed, seen } = feedOf();
  feed.hold();
  await feed.catchUp(archiveOf('ab'));
  feed.hold();
  feed.heard(told('d')); // c is still in the archive
  await assert.rejects(feed.catchUp(refusing(new Error('the session has ended'))));
  assert.equal(feed.mark, 'b', 'the mark has not gone over what is missing');
  feed.hold();
  await feed.catchUp(archiveOf('abcde'));
  assert.equal(seen(), 'ABcde');
});

test('as long as something of ours is under way, it asks from before it', async () => {
  const { feed, seen } = feedOf();
  feed.hold();
  await feed.catchUp(archiveOf(''));
  assert.equal(feed.from, '', 'an archive that was empty is asked for everything');
  feed.heard(told('a'));
  feed.pin(); // ours is b, and the connection breaks before anybody says that it arrived
  feed.heard(told('c'));
  assert.deepEqual([feed.mark, feed.from], ['c', 'a']);
  feed.hold();
  const archive = archiveOf('abcd');
  assert.equal(await feed.catchUp(archive), true);
  assert.deepEqual(archive.asked, ['since a']);
  assert.equal(seen(), 'acbcd', 'whoever takes them knows c already');
  feed.unpin();
  assert.equal(feed.from, 'd');
});

test('an archive that does not reach back shows a gap, and nothing is certain', async () => {
  const { feed, seen } = feedOf();
  feed.hold();
  await feed.catchUp(archiveOf('ab'));
  feed.hold();
  assert.equal(await feed.catchUp(archiveOf('xyz')), false);
  assert.equal(seen(), 'AB—xyz');
  assert.equal(feed.mark, 'z');
});

test('a server without an archive shows a gap after each lost connection', async () => {
  const { feed, seen } = feedOf();
  feed.hold();
  assert.equal(await feed.catchUp(refusing(noArchive)), false);
  feed.heard(told('a'));
  feed.hold();
  feed.heard(told('b'));
  assert.equal(await feed.catchUp(refusing(noArchive)), false);
  assert.equal(seen(), 'a—b');
});
