import assert from 'node:assert/strict';
import fs from 'node:fs';
import test from 'node:test';

import { TOOLS } from './vnc.js';

/** The packages in tests/install: the last words of the lines of its tables. */
function installed() {
  const script = fs.readFileSync(new URL('../../tests/install', import.meta.url), 'utf8');
  const tables = [...script.matchAll(/<<'END'\n(.*?)\nEND\n/gs)].flatMap(([, table]) => table.split('\n'));
  return new Set(tables.map((line) => line.trim().split(/\s+/).at(-1)));
}

test('tests/install installs what the examples need', async () => {
  const known = installed();
  const here = new URL('.', import.meta.url);
  const modules = fs.readdirSync(here).filter((name) => name.endsWith('.js') && !name.endsWith('.test.js'));
  const lists = await Promise.all(modules.map(async (name) => Object.entries(await import(new URL(name, here)))));
  const tools = lists.flat().filter(([name]) => name.endsWith('TOOLS')).flatMap(([, list]) => list);
  assert.ok(tools.includes(TOOLS[0]), 'the lists are found');
  // These are part of every Debian.
  const missing = tools.filter((tool) => !known.has(tool.package) && !['bash', 'util-linux'].includes(tool.package));
  assert.deepEqual(missing, []);
});
