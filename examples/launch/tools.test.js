import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test from 'node:test';

import { MissingDependency, findProgram, requireTools, findPortcullis } from './tools.js';

test('programs are found on the PATH and in the sbin directories', () => {
  assert.match(findProgram('sh'), /\/sh$/);
  assert.equal(findProgram('/bin/sh'), '/bin/sh');
  assert.equal(findProgram('no-such-program'), undefined);
  assert.equal(findProgram('/no/such/file'), undefined);
  requireTools([{ program: 'sh', package: 'dash' }]);
});

test('one error names all missing programs and one command', () => {
  const tools = [
    { program: 'sh', package: 'dash' },
    { program: 'no-such-server', package: 'server' },
    { program: '/no/such/font', package: 'fonts' },
    { program: 'no-such-tool', package: 'server' },
  ];
  assert.throws(() => requireTools(tools), (error) => {
    assert.ok(error instanceof MissingDependency);
    assert.match(error.message, /missing on this machine: no-such-server, \/no\/such\/font, no-such-tool\n/);
    assert.match(error.message, /\n {4}sudo apt-get install --no-install-recommends fonts server$/);
    return true;
  });
});

test('the gateway is the named one, the one built here, or the one on the PATH', (t) => {
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
  assert.throws(() => findPortcullis(root), /missing: the program portcullis.*\n {4}\(cd \/.* && cargo build --release\)$/s);
  const installed = program('bin/portcullis');
  assert.equal(findPortcullis(root), installed);
  const debug = program('target/debug/portcullis');
  assert.equal(findPortcullis(root), debug);
  const release = program('target/release/portcullis');
  assert.equal(findPortcullis(root), release);
  process.env.PORTCULLIS = installed;
  assert.equal(findPortcullis(root), installed);
  process.env.PORTCULLIS = path.join(root, 'none');
  assert.throws(() => findPortcullis(root), /PORTCULLIS names .*none, which is not an executable/);
});
