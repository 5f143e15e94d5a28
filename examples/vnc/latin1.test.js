import assert from 'node:assert/strict';
import test from 'node:test';

import { beyondLatin1 } from './latin1.js';

test('what ISO 8859-1 does not have is named, once each', () => {
  assert.deepEqual(beyondLatin1('Größe: 5 ½ ÿ\n'), []);
  assert.deepEqual(beyondLatin1('5 € und 7 €, Ā, 👍'), ['€', 'Ā', '👍']);
  assert.deepEqual(beyondLatin1(''), []);
});
