import assert from 'node:assert/strict';
import test from 'node:test';

import { describeClose } from './close.js';

test('what the gateway says is shown', () => {
  const told = (code, reason) => describeClose({ code, reason }).words;
  assert.equal(told(1011, 'the server behind the gateway refused the connection'), 'Failed: the server behind the gateway refused the connection.');
  assert.equal(told(1001, 'the gateway is stopping'), 'Interrupted: the gateway is stopping.');
  assert.equal(told(1000, 'the server closed the connection'), 'Closed: the server closed the connection.');
  assert.equal(told(1008, 'killed by an operator.'), 'Ended by the gateway: killed by an operator.');
});

test('a code without a reason has words of its own', () => {
  for (const code of [1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 1015, 3000, 3003, 3008]) {
    const { words } = describeClose({ code, reason: ' ' });
    assert.match(words, /^[A-Z].*\.$/);
    assert.doesNotMatch(words, /\d/, 'no code, for there are words');
  }
  assert.match(describeClose({ code: 4711 }).words, /\(code 4711\)\.$/);
});

test('another try is made where it may help, and nowhere else', () => {
  const retried = [1001, 1006, 1011, 1012, 1013, 1014, 3008];
  const given = [1000, 1002, 1003, 1005, 1007, 1008, 1009, 1010, 1015, 3000, 3003, 4000, 4711];
  for (const code of retried) assert.equal(describeClose({ code }).retry, true, `${code}`);
  for (const code of given) assert.equal(describeClose({ code, reason: 'try again' }).retry, false, `${code}`);
});

test('a connection that never opened is another thing than one that was lost', () => {
  const never = describeClose({ code: 1006, reason: '', opened: false });
  assert.match(never.words, /^Could not connect: .*refuses this page.*console/s);
  assert.equal(never.retry, true);
  assert.equal(describeClose({ code: 1006, opened: true }).words, 'The connection was lost.');
  assert.equal(describeClose({ code: 1006, reason: 'no answer for 10 s' }).words, 'Connection lost: no answer for 10 s.');
});

test('an end by the server is told from one by the rules', () => {
  const byServer = (code, reason) => describeClose({ code, reason }).byServer;
  assert.equal(byServer(1000, 'the server closed the connection'), true);
  assert.equal(byServer(1000, 'idle for too long'), false);
  assert.equal(byServer(1000, 'the session reached its age limit'), false);
  assert.equal(byServer(1011, 'the server closed the connection'), false);
  assert.equal(describeClose({ code: 1006, opened: false }).byServer, false);
});
