import assert from 'node:assert/strict';
import test from 'node:test';

import { describeClose } from './close.js';

test('the reason of the gateway is shown', () => {
  const describe = (code, reason) => describeClose({ code, reason }).description;
  assert.equal(describe(1011, 'the server behind the gateway refused the connection'), 'Failed: the server behind the gateway refused the connection.');
  assert.equal(describe(1001, 'the gateway is stopping'), 'Interrupted: the gateway is stopping.');
  assert.equal(describe(1000, 'the server closed the connection'), 'Closed: the server closed the connection.');
  assert.equal(describe(1008, 'killed by an operator.'), 'Ended by the gateway: killed by an operator.');
});

test('a code without a reason has a description of its own', () => {
  for (const code of [1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 1015, 3000, 3003, 3008]) {
    const { description } = describeClose({ code, reason: ' ' });
    assert.match(description, /^[A-Z].*\.$/);
    assert.doesNotMatch(description, /\d/, 'no code, because there is a description');
  }
  assert.match(describeClose({ code: 4711 }).description, /\(code 4711\)\.$/);
});

test('only codes after which reconnecting may help are retried', () => {
  const retried = [1001, 1006, 1011, 1012, 1013, 1014, 3008];
  const final = [1000, 1002, 1003, 1005, 1007, 1008, 1009, 1010, 1015, 3000, 3003, 4000, 4711];
  for (const code of retried) assert.equal(describeClose({ code }).retry, true, `${code}`);
  for (const code of final) assert.equal(describeClose({ code, reason: 'try again' }).retry, false, `${code}`);
});

test('a failed attempt to connect is distinguished from a lost connection', () => {
  const never = describeClose({ code: 1006, reason: '', opened: false });
  assert.match(never.description, /^Could not connect: .*refuses this page.*console/s);
  assert.equal(never.retry, true);
  assert.equal(describeClose({ code: 1006, opened: true }).description, 'The connection was lost.');
  assert.equal(describeClose({ code: 1006, reason: 'no answer for 10 s' }).description, 'Connection lost: no answer for 10 s.');
});

test('a close by the server is distinguished from one by policy', () => {
  const byServer = (code, reason) => describeClose({ code, reason }).byServer;
  assert.equal(byServer(1000, 'the server closed the connection'), true);
  assert.equal(byServer(1000, 'idle for too long'), false);
  assert.equal(byServer(1000, 'the session reached its age limit'), false);
  assert.equal(byServer(1011, 'the server closed the connection'), false);
  assert.equal(describeClose({ code: 1006, opened: false }).byServer, false);
});
