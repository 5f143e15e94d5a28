/**
 * Login without showing the password: SCRAM-SHA-1 (RFC 5802), and a proof that the server knows the account, too.
 *
 * The library speaks the protocol. What takes time, the thousands of rounds that turn a password into a key, is left to
 * the browser's own PBKDF2. The key is good for this server and this salt alone; a page that wants to come back by
 * itself keeps it instead of the password.
 */

import Mechanism from 'sasl-scram-sha-1';

/**
 * @typedef {object} Key
 * @property {string} salt as the server wrote it, in base64
 * @property {number} rounds
 * @property {number[]} bytes the salted password
 *
 * @typedef {object} Credentials
 * @property {string} username
 * @property {string} [password] needed if there is no key, or the server has another salt by now
 * @property {Key} [key]
 */

/** The password is needed, and nobody has it. */
export class PasswordNeeded extends Error {
  name = 'PasswordNeeded';
}

export class Scram extends Mechanism {
  /** @type {Key | undefined} what the password became in this login */
  key;

  #asked;

  challenge(text) {
    this.#asked = Object.fromEntries(text.split(',').map((part) => [part[0], part.slice(2)]));
    return super.challenge(text);
  }

  /** @param {Credentials} credentials */
  async response(credentials) {
    if (!this.#asked) return super.response(credentials);
    const { s: salt, i } = this.#asked;
    const rounds = Number(i);
    const { key, password } = credentials;
    const same = key?.salt === salt && key.rounds === rounds;
    if (!same && !password) throw new PasswordNeeded('the server asks for the password anew');
    this.key = same ? key : { salt, rounds, bytes: await saltedPassword(password, salt, rounds) };
    // The library takes a salted password for what it is if it comes with the salt that was asked for.
    const prepared = { salt: bytesOf(salt), saltedPassword: Uint8Array.from(this.key.bytes) };
    return super.response({ ...credentials, ...prepared });
  }

  /** Whether the server's last word proves that it knows the account (RFC 5802 §3, ServerSignature). */
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
