import assert from 'node:assert/strict';
import { webcrypto } from 'node:crypto';
import test from 'node:test';

import { Conversation } from './conversation.js';

// Browsers have it as a global, and Node does from version 20 on.
globalThis.crypto ??= webcrypto;

function messageOf(text, archiveId, more = {}) {
  return { id: `id of ${text}`, archiveId, from: 'bob', mine: false, text, when: 0, ...more };
}

const ours = (text, archiveId) => messageOf(text, archiveId, { from: 'alice', mine: true });
const texts = ({ messages }) => messages.map(({ text, gap }) => (gap ? '—' : text)).join(' ');
const progress = ({ messages }) => messages.map((one) => one.progress ?? '').join(' ');

function write(conversation, text) {
  return conversation.compose({ id: `id of ${text}`, from: 'alice', text, when: 0 });
}

test('a known message is not added again, whatever its source', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  assert.equal(conversation.add(messageOf('one', '1')), true);
  assert.equal(conversation.add(messageOf('one', '1')), false);
  assert.equal(conversation.add(messageOf('no archive')), true);
  assert.equal(conversation.add(messageOf('no archive')), false);
  // The same id by the same sender, but another archive id: it was sent twice.
  assert.equal(conversation.add(messageOf('one', '2')), true);
  conversation.addOlder([messageOf('zero', '0'), messageOf('one', '1')]);
  assert.equal(texts(conversation), 'zero one no archive one');
});

test('the progress of a message never goes back', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  const message = write(conversation, 'hi');
  assert.equal(progress(conversation), 'waiting');
  conversation.sent(message); // ignored, because it was not passed to the connection
  assert.equal(progress(conversation), 'waiting');
  conversation.sending(message);
  conversation.sent(message);
  assert.equal(progress(conversation), 'sent');
  conversation.delivered('id of hi');
  conversation.sent(message);
  conversation.interrupted();
  conversation.failed('id of hi', 'too late to fail');
  assert.equal(progress(conversation), 'delivered');
  assert.deepEqual(conversation.outbox, []);
});

test('after a lost connection the archive shows which messages arrived, and only the rest is sent', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  for (const text of ['arrived', 'lost']) conversation.sending(write(conversation, text));
  write(conversation, 'never tried');
  conversation.interrupted();
  assert.equal(progress(conversation), 'unsure unsure waiting');
  assert.equal(conversation.add(messageOf('meanwhile', '7')), true);
  assert.equal(conversation.add(ours('arrived', '8')), false);
  assert.equal(texts(conversation), 'meanwhile arrived lost never tried');
  assert.equal(progress(conversation), ' sent unsure waiting');
  assert.deepEqual(conversation.outbox.map(({ text }) => text), ['lost', 'never tried']);
});

test('without the archive, nothing is sent again automatically', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  conversation.sending(write(conversation, 'perhaps'));
  write(conversation, 'surely not');
  conversation.interrupted();
  conversation.doubted();
  assert.equal(progress(conversation), 'doubtful waiting');
  assert.equal(conversation.outbox.length, 2, 'both are kept');
});

test('messages are in the order of the server, and unconfirmed ones at the end', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  const [first, second] = ['first', 'second'].map((text) => write(conversation, text));
  for (const message of [first, second]) conversation.sending(message);
  conversation.add(messageOf('earlier', '1'));
  conversation.sent(first);
  conversation.add(messageOf('between', '2'));
  conversation.sent(second);
  conversation.add(messageOf('later', '3'));
  assert.equal(texts(conversation), 'earlier first between second later');
});

test('a receipt proves that the server has the message', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  conversation.sending(write(conversation, 'hi'));
  write(conversation, 'next');
  conversation.add(messageOf('hello', '1'));
  conversation.delivered('id of hi');
  conversation.delivered('id of nothing');
  assert.equal(texts(conversation), 'hello hi next');
  assert.equal(progress(conversation), ' delivered waiting');
});

test('a receipt proves that the server has all messages sent before, too', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  for (const text of ['one', 'two', 'three']) conversation.sending(write(conversation, text));
  conversation.delivered('id of two');
  assert.equal(texts(conversation), 'one two three');
  assert.equal(progress(conversation), 'sent delivered sending');
});

test('a message from another device of ours is ours, and is shown once', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  assert.equal(conversation.add(ours('from the telephone')), true);
  assert.equal(conversation.add(ours('from the telephone', '1')), false);
  assert.equal(conversation.add(ours('from the telephone', '1')), false);
  assert.equal(progress(conversation), 'sent');
});

test('a message of somebody else with an id of ours does not hide ours', () => {
  const conversation = new Conversation('lobby@rooms.chat.example', 'room');
  const message = write(conversation, 'mine');
  conversation.sending(message);
  assert.equal(conversation.add(messageOf('not yours', '1', { id: message.id })), true);
  assert.equal(message.progress, 'sending');
  assert.equal(texts(conversation), 'not yours mine');
});

test('a failed message has its reason, and is not sent again automatically', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  const message = write(conversation, 'hi');
  conversation.sending(message);
  conversation.failed(message.id, 'This address does not exist.');
  assert.equal(conversation.messages[0].failure, 'This address does not exist.');
  assert.deepEqual(conversation.outbox, []);
  assert.equal(conversation.add(ours('hi', '1')), false);
  assert.equal(progress(conversation), 'failed', 'a copy of our own message does not change the failure');
});

test('a gap is shown once, before unsent messages', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  conversation.add(messageOf('before', '1'));
  write(conversation, 'waits');
  conversation.gap('some may be missing here');
  conversation.gap('some may be missing here');
  conversation.add(messageOf('after', '9'));
  assert.equal(texts(conversation), 'before — after waits');
});

test('older messages are loaded from the start of the last page', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  assert.equal(conversation.olderThan, undefined);
  conversation.add(messageOf('new', '9'));
  assert.equal(conversation.olderThan, '9');
  conversation.addOlder([messageOf('old', '5')], '4');
  assert.equal(conversation.olderThan, '4', 'the first entry may be a receipt');
  assert.equal(texts(conversation), 'old new');
});
