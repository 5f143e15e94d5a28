import assert from 'node:assert/strict';
import test from 'node:test';

import { atRisk, fromCutText, toCutText } from './cuttext.js';

const TEXT = 'Größe: 5 €, Ā, 👍\n';
const BYTES = 'Gr\xc3\xb6\xc3\x9fe: 5 \xe2\x82\xac, \xc4\x80, \xf0\x9f\x91\x8d\n';

test('as UTF-8, each byte is a character for noVNC, in both directions', () => {
  assert.equal(toCutText(TEXT, 'utf-8'), BYTES);
  assert.equal(fromCutText(BYTES, 'utf-8'), TEXT);
  const long = TEXT.repeat(100_000);
  assert.equal(fromCutText(toCutText(long, 'utf-8'), 'utf-8'), long);
});

test('invalid UTF-8 is decoded as ISO 8859-1', () => {
  assert.equal(fromCutText('Gr\xf6\xdfe', 'utf-8'), 'Größe');
  assert.equal(fromCutText('\xef\xbb\xbfx', 'utf-8'), '\ufeffx', 'a byte order mark is kept');
});

test('with the standard encoding text is unchanged, and characters at risk are listed once each', () => {
  assert.equal(toCutText(TEXT, 'standard'), TEXT);
  assert.equal(fromCutText(BYTES, 'standard'), BYTES);
  assert.deepEqual(atRisk('5 € und 7 €, Ā, 👍, ÿ', 'standard'), ['€', 'Ā', '👍']);
  assert.deepEqual(atRisk('€', 'utf-8'), []);
  assert.deepEqual(atRisk('', 'standard'), []);
});
