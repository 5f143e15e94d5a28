import assert from 'node:assert/strict';
import test from 'node:test';

import { replaceValues } from './gateway.js';

const TEXT = `
# "a:1" is where clients connect.
address = "a:1"
list = ["b", "a:1"]
`;

test('values are replaced everywhere except in comments', () => {
  const replaced = replaceValues(TEXT, { 'a:1': '127.0.0.1:0', b: '/a "strange" path' });
  assert.equal(replaced, `
# "a:1" is where clients connect.
address = "127.0.0.1:0"
list = ["/a \\"strange\\" path", "127.0.0.1:0"]
`);
});

test('replacing an unknown value is an error', () => {
  assert.throws(() => replaceValues(TEXT, { a: 'c' }), /^Error: the configuration has no value "a"$/);
});
