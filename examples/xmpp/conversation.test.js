import assert from 'node:assert/strict';
import test from 'node:test';

import { Conversation } from './conversation.js';

function said(text, archiveId, more = {}) {
  return { id: `id of ${text}`, archiveId, from: 'bob', mine: false, text, when: 0, ...more };
}

const ours = (text, archiveId) => said(text, archiveId, { from: 'alice', mine: true });
const texts = ({ messages }) => messages.map(({ text, gap }) => (gap ? '—' : text)).join(' ');
const progress = ({ messages }) => messages.map((one) => one.progress ?? '').join(' ');

function write(conversation, text) {
  return conversation.compose({ id: `id of ${text}`, from: 'alice', text, when: 0 });
}

test('what is known is not taken again, whichever way it comes', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  assert.equal(conversation.take(said('one', '1')), true);
  assert.equal(conversation.take(said('one', '1')), false);
  assert.equal(conversation.take(said('no archive')), true);
  assert.equal(conversation.take(said('no archive')), false);
  // The same id by the same person, but another message in the archive: it was said twice.
  assert.equal(conversation.take(said('one', '2')), true);
  conversation.takeOlder([said('zero', '0'), said('one', '1')]);
  assert.equal(texts(conversation), 'zero one no archive one');
});

test('a message goes its way, and no way back', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  const message = write(conversation, 'hi');
  assert.equal(progress(conversation), 'waiting');
  conversation.sent(message); // it was not given to the network: nobody can know
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

test('after a lost connection the archive says what has arrived, and only the rest is left to send', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  for (const text of ['arrived', 'lost']) conversation.sending(write(conversation, text));
  write(conversation, 'never tried');
  conversation.interrupted();
  assert.equal(progress(conversation), 'unsure unsure waiting');
  assert.equal(conversation.take(said('meanwhile', '7')), true);
  assert.equal(conversation.take(ours('arrived', '8')), false);
  assert.equal(texts(conversation), 'meanwhile arrived lost never tried');
  assert.equal(progress(conversation), ' sent unsure waiting');
  assert.deepEqual(conversation.outbox.map(({ text }) => text), ['lost', 'never tried']);
});

test('without an archive that knows, nothing is sent again unasked', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  conversation.sending(write(conversation, 'perhaps'));
  write(conversation, 'surely not');
  conversation.interrupted();
  conversation.doubted();
  assert.equal(progress(conversation), 'doubtful waiting');
  assert.equal(conversation.outbox.length, 2, 'both are kept');
});

test('the order is that of the server, and what it does not have stands at the end', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  const [first, second] = ['first', 'second'].map((text) => write(conversation, text));
  for (const message of [first, second]) conversation.sending(message);
  conversation.take(said('earlier', '1'));
  conversation.sent(first);
  conversation.take(said('between', '2'));
  conversation.sent(second);
  conversation.take(said('later', '3'));
  assert.equal(texts(conversation), 'earlier first between second later');
});

test('a receipt is proof enough that the server has it', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  conversation.sending(write(conversation, 'hi'));
  write(conversation, 'next');
  conversation.take(said('hello', '1'));
  conversation.delivered('id of hi');
  conversation.delivered('id of nothing');
  assert.equal(texts(conversation), 'hello hi next');
  assert.equal(progress(conversation), ' delivered waiting');
});

test('what another device of ours sent is ours, and stands there once', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  assert.equal(conversation.take(ours('from the telephone')), true);
  assert.equal(conversation.take(ours('from the telephone', '1')), false);
  assert.equal(conversation.take(ours('from the telephone', '1')), false);
  assert.equal(progress(conversation), 'sent');
});

test('a stranger who takes our id for a message of theirs hides nothing', () => {
  const conversation = new Conversation('lobby@rooms.chat.example', 'room');
  const message = write(conversation, 'mine');
  conversation.sending(message);
  assert.equal(conversation.take(said('not yours', '1', { id: message.id })), true);
  assert.equal(message.progress, 'sending');
  assert.equal(texts(conversation), 'not yours mine');
});

test('what came back says why, and is not sent again unasked', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  const message = write(conversation, 'hi');
  conversation.sending(message);
  conversation.failed(message.id, 'There is nobody with this address.');
  assert.equal(conversation.messages[0].words, 'There is nobody with this address.');
  assert.deepEqual(conversation.outbox, []);
  assert.equal(conversation.take(ours('hi', '1')), false);
  assert.equal(progress(conversation), 'failed', 'that we have sent it is no news');
});

test('a gap is shown once, before what is not sent yet', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  conversation.take(said('before', '1'));
  write(conversation, 'waits');
  conversation.gap('some may be missing here');
  conversation.gap('some may be missing here');
  conversation.take(said('after', '9'));
  assert.equal(texts(conversation), 'before — after waits');
});

test('older messages are asked for from where the last page began', () => {
  const conversation = new Conversation('bob@chat.example', 'chat');
  assert.equal(conversation.olderThan, undefined);
  conversation.take(said('new', '9'));
  assert.equal(conversation.olderThan, '9');
  conversation.takeOlder([said('old', '5')], '4');
  assert.equal(conversation.olderThan, '4', 'a receipt, say');
  assert.equal(texts(conversation), 'old new');
});
