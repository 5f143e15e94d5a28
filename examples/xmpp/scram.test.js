import assert from 'node:assert/strict';
import { webcrypto } from 'node:crypto';
import test from 'node:test';

import { PasswordNeeded, Scram } from './scram.js';

// Browsers have it as a global, and Node does from version 20 on.
globalThis.crypto ??= webcrypto;

// The example of RFC 5802 §5.
const NONCE = 'fyko+d2lbbFgONRv9qkxdawL';
const SERVER_FIRST = 'r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096';
const CLIENT_FINAL = 'c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=';
const PROOF = 'v=rmF9pqV8S7suAoZWja4dJRkFsKQ=';

async function login(credentials, challenge = SERVER_FIRST) {
  const scram = new Scram({ genNonce: () => NONCE });
  assert.equal(await scram.response({ username: 'user', ...credentials }), `n,,n=user,r=${NONCE}`);
  scram.challenge(challenge);
  return { scram, answer: await scram.response({ username: 'user', ...credentials }) };
}

test('the example of the RFC, and no other proof is accepted', async () => {
  const { scram, answer } = await login({ password: 'pencil' });
  assert.equal(answer, CLIENT_FINAL);
  assert.equal(scram.isProof(PROOF), true);
  assert.equal(scram.isProof(PROOF.replace('r', 's')), false);
  assert.equal(scram.isProof(''), false);
});

test('the key replaces the password, and does not contain it', async () => {
  const { scram } = await login({ password: 'pencil' });
  const key = JSON.parse(JSON.stringify(scram.key));
  assert.deepEqual([key.salt, key.rounds, key.bytes.length], ['QSXCR+Q6sek8bf92', 4096, 20]);
  assert.equal((await login({ key })).answer, CLIENT_FINAL);
});

test('for another salt or another number of rounds the password is required', async () => {
  const { key } = (await login({ password: 'pencil' })).scram;
  for (const [from, to] of [['QSXCR+Q6sek8bf92', 'QSXCR+Q6sek8bf93'], ['i=4096', 'i=4097']]) {
    const challenge = SERVER_FIRST.replace(from, to);
    await assert.rejects(login({ key }, challenge), PasswordNeeded);
    const { scram } = await login({ key, password: 'pencil' }, challenge);
    assert.notDeepEqual(scram.key, key);
  }
});
