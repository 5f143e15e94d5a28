/**
 * Login without sending the password: SCRAM-SHA-1 (RFC 5802), including the proof that the server knows the account.
 *
 * The library implements the protocol. The thousands of rounds that derive a key from the password are computed by the
 * browser's PBKDF2. The key is valid for this server and this salt only; a page that logs in again automatically stores it
 * instead of the password.
 */

import Mechanism from 'sasl-scram-sha-1';

/**
 * @typedef {object} Key
 * @property {string} salt as sent by the server, in base64
 * @property {number} rounds
 * @property {number[]} bytes the salted password
 *
 * @typedef {object} Credentials
 * @property {string} username
 * @property {string} [password] required without a key, or if the server has changed the salt
 * @property {Key} [key]
 */

/** The password is required, but unknown. */
export class PasswordNeeded extends Error {
  name = 'PasswordNeeded';
}

export class Scram extends Mechanism {
  /** @type {Key | undefined} the key derived in this login */
  key;

  #challenge;

  challenge(text) {
    this.#challenge = Object.fromEntries(text.split(',').map((part) => [part[0], part.slice(2)]));
    return super.challenge(text);
  }

  /** @param {Credentials} credentials */
  async response(credentials) {
    if (!this.#challenge) return super.response(credentials);
    const { s: salt, i } = this.#challenge;
    const rounds = Number(i);
    const { key, password } = credentials;
    const same = key?.salt === salt && key.rounds === rounds;
    if (!same && !password) throw new PasswordNeeded('the server requires the password again');
    this.key = same ? key : { salt, rounds, bytes: await saltedPassword(password, salt, rounds) };
    // The library accepts a salted password if it comes with the requested salt.
    const prepared = { salt: bytesOf(salt), saltedPassword: Uint8Array.from(this.key.bytes) };
    return super.response({ ...credentials, ...prepared });
  }

  /** Whether the server's final message proves that it knows the account (RFC 5802 §3, ServerSignature). */
  isProof(text) {
    return text === `v=${btoa(String.fromCharCode(...this._serverSignature))}`;
  }
}

async function saltedPassword(password, salt, iterations) {
  const secret = new TextEncoder().encode(password.normalize('NFKC'));
  const material = await crypto.subtle.importKey('raw', secret, 'PBKDF2', false, ['deriveBits']);
  const how = { name: 'PBKDF2', hash: 'SHA-1', salt: bytesOf(salt), iterations };
  const bits = await crypto.subtle.deriveBits(how, material, 160);
  return [...new Uint8Array(bits)];
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
