import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test from 'node:test';

import { Missing, find, need, portcullis } from './tools.js';

test('what is there is found, also where servers are', () => {
  assert.match(find('sh'), /\/sh$/);
  assert.equal(find('/bin/sh'), '/bin/sh');
  assert.equal(find('no-such-program'), undefined);
  assert.equal(find('/no/such/file'), undefined);
  need([{ program: 'sh', package: 'dash' }]);
});

test('all that is missing is named at once, with one command', () => {
  const tools = [
    { program: 'sh', package: 'dash' },
    { program: 'no-such-server', package: 'server' },
    { program: '/no/such/font', package: 'fonts' },
    { program: 'no-such-tool', package: 'server' },
  ];
  assert.throws(() => need(tools), (error) => {
    assert.ok(error instanceof Missing);
    assert.match(error.message, /missing on this machine: no-such-server, \/no\/such\/font, no-such-tool\n/);
    assert.match(error.message, /\n {4}sudo apt-get install --no-install-recommends fonts server$/);
    return true;
  });
});

test('the gateway is the one that is named, or the one that was built here', (t) => {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), 'tools-'));
  const environment = { ...process.env };
  t.after(() => {
    process.env = environment;
    fs.rmSync(root, { recursive: true });
  });
  const program = (name) => {
    const file = path.join(root, name);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, '#!/bin/sh\n', { mode: 0o755 });
    return file;
  };
  delete process.env.PORTCULLIS;
  process.env.PATH = path.join(root, 'bin');
  assert.throws(() => portcullis(root), /missing: the program portcullis.*\n {4}\(cd \/.* && cargo build --release\)$/s);
  const installed = program('bin/portcullis');
  assert.equal(portcullis(root), installed);
  const debug = program('target/debug/portcullis');
  assert.equal(portcullis(root), debug);
  const release = program('target/release/portcullis');
  assert.equal(portcullis(root), release);
  process.env.PORTCULLIS = installed;
  assert.equal(portcullis(root), installed);
  process.env.PORTCULLIS = path.join(root, 'none');
  assert.throws(() => portcullis(root), /PORTCULLIS names .*none, which is no program/);
});
