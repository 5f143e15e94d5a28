/**
 * One XMPP session: a connection from its first byte to its end. It knows XMPP, but nothing of a chat.
 *
 * The chat relies on two guarantees (see chat.js). The session always requests the same resource: a server that assigns it
 * to a new connection has closed the old one (RFC 6120 §7.7.2.2), so nothing of the old one can arrive later. And a server
 * processes stanzas in their order (RFC 6120 §10.1), so a response proves that it has processed everything before.
 */

import iqCallee from '@xmpp/iq/callee.js';
import iqCaller from '@xmpp/iq/caller.js';
import middlewareOf from '@xmpp/middleware';
import resourceBinding from '@xmpp/resource-binding';
import sasl from '@xmpp/sasl';
import streamFeatures from '@xmpp/stream-features';
import xml from '@xmpp/xml';
import SaslFactory from 'saslmechanisms';

import { PasswordNeeded, Scram } from './scram.js';
import { Stream } from './stream.js';

const NS_SASL = 'urn:ietf:params:xml:ns:xmpp-sasl';
const NS_PING = 'urn:xmpp:ping';
const MECHANISM = 'SCRAM-SHA-1';

/** Close the connection if the login takes longer than this, in milliseconds. */
const LOGIN_MS = 20_000;

const NOT_IN_CHARGE = 'This chat server is not responsible for that address.';

/** Stream errors (RFC 6120 §4.9.3): a description for the user, and whether to reconnect. */
const STREAM_ERRORS = {
  conflict: ['This session was replaced by another tab.', false],
  'system-shutdown': ['The chat server is shutting down.', true],
  reset: ['The chat server requires a new login.', true],
  'connection-timeout': ['The chat server timed out.', true],
  'resource-constraint': ['The chat server is too busy.', true],
  'internal-server-error': ['The chat server had an internal error.', true],
  'remote-connection-failed': ['The chat server cannot reach a remote service.', true],
  'undefined-condition': ['The chat server ended the connection.', true],
  'host-unknown': [NOT_IN_CHARGE, false],
  'not-authorized': [NOT_IN_CHARGE, false], // the domain differs from the gateway's xmpp_domain
  'policy-violation': ['The chat server ended the connection because of its policy.', false],
};

/** Login errors (RFC 6120 §6.5). */
const LOGIN_ERRORS = {
  'not-authorized': 'Wrong address or password.',
  'account-disabled': 'This account is disabled.',
  'credentials-expired': 'This password has expired.',
};

/**
 * @typedef {object} End
 * @property {string} description for the user
 * @property {boolean} retry whether reconnecting may help
 * @property {boolean} [login] the login was refused, so the password is needed again
 */

export class Session {
  /** @type {Promise<End>} resolved when the session has ended */
  ended;
  /** The server's name. */
  domain;
  /** The full address that the server has assigned. */
  jid;
  /** Whether that is the requested one: then nothing of an older connection can still arrive. */
  exclusive = false;
  /** The key to store for a login without the password. */
  key;

  #finish;
  #end;
  #closing = false;
  #stream;
  #middleware;
  #caller;
  #callee;
  #channel;
  #resource;
  #pings = 0;

  /**
   * @param {object} channel a channel that is being opened (see ../lib/channel.js)
   * @param {object} account
   * @param {string} account.domain
   * @param {string} account.resource
   * @param {import('./scram.js').Credentials} account.credentials
   */
  constructor(channel, { domain, resource, credentials }) {
    this.#channel = channel;
    this.domain = domain;
    this.ended = new Promise((resolve) => {
      this.#finish = resolve;
    });
    const entity = new Stream({ domain, service: channel, timeout: LOGIN_MS });
    this.#stream = entity;
    this.#middleware = middlewareOf({ entity });
    const features = streamFeatures({ middleware: this.#middleware });
    this.#caller = iqCaller({ middleware: this.#middleware, entity });
    this.#callee = iqCallee({ middleware: this.#middleware, entity });
    this.#callee.get(NS_PING, 'ping', () => ({}));
    const saslFactory = new SaslFactory();
    let scram;
    const makeScram = function createScram() {
      scram = new Scram();
      return scram;
    };
    saslFactory.use(MECHANISM, makeScram);
    sasl({ streamFeatures: features, saslFactory }, async (authenticate) => {
      const proof = nextSuccess(entity);
      await authenticate(credentials, MECHANISM);
      const proven = scram.isProof(atob(await proof));
      if (!proven) throw new Error('the chat server could not prove that it knows this account');
      this.key = scram.key;
    });
    resourceBinding({ iqCaller: this.#caller, streamFeatures: features }, resource);
    this.#resource = resource;

    entity.on('error', (error) => this.#failed(error));
    entity.on('close', () => this.#closing || channel.close(1000));
    entity.on('disconnect', ({ reason }) => this.#terminate(endOf(reason, this.#closing)));
  }

  /** Logs in. Resolved when the session can be used; rejected if it ends before. */
  async open() {
    const timedOut = { description: 'The chat server did not complete the login in time.', retry: true };
    const timer = setTimeout(() => this.#terminate(timedOut), LOGIN_MS);
    try {
      await Promise.race([this.#login(), this.ended.then(({ description }) => Promise.reject(new Error(description)))]);
    } catch (error) {
      this.#failed(error);
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  async #login() {
    const stream = this.#stream;
    const { domain, service } = stream.options;
    const online = new Promise((resolve) => {
      stream.on('online', resolve);
    });
    await stream.connect(service);
    await stream.open({ domain });
    const jid = await online;
    this.exclusive = jid.resource === this.#resource;
    this.jid = jid.toString();
  }

  /** Calls `handler` for each stanza with this name, in the order of their arrival. */
  onStanza(name, handler) {
    this.#middleware.use((context, next) => {
      if (context.name !== name) return next();
      if (!this.#end) handler(context.stanza);
      return Promise.resolve(); // a returned value would be sent as a response
    });
  }

  /** Handles requests of type "set". */
  onSet(namespace, name, handler) {
    this.#callee.set(namespace, name, ({ stanza, element }) => handler(element, stanza) ?? {});
  }

  /** @returns {Promise<void>} resolved when the browser has taken it; the server may not have it yet */
  send(stanza) {
    return this.#end ? Promise.reject(new Error('the session has ended')) : this.#stream.send(stanza);
  }

  /** Sends a request, and returns the response's child of the same name. */
  ask(type, element, to) {
    return this.#untilEnd(this.#caller[type](element, to));
  }

  /** Sends a complete request stanza, and returns the complete response. */
  request(iq) {
    return this.#untilEnd(this.#caller.request(iq));
  }

  #untilEnd(answer) {
    return Promise.race([answer, this.ended.then(() => Promise.reject(new Error('the session has ended')))]);
  }

  /** Resolved when the server has processed all that was sent before. */
  async handled() {
    try {
      await this.ask('get', xml('ping', { xmlns: NS_PING }), this.domain);
    } catch (error) {
      if (error.name !== 'StanzaError') throw error; // an error is a response, too
    }
  }

  /** A request that the server must answer, as bytes; undefined before the login and after the end. */
  probe() {
    if (!this.jid || this.#end) return undefined;
    this.#pings += 1;
    const ping = xml('iq', { type: 'get', to: this.domain, id: `alive-${this.#pings}` }, xml('ping', { xmlns: NS_PING }));
    return new TextEncoder().encode(ping.toString());
  }

  /** Closes the stream and the connection. */
  async close() {
    this.#closing = true;
    if (this.jid && !this.#end) await this.#stream.stop().catch(() => {});
    this.#terminate({ description: 'Signed out.', retry: false });
  }

  #failed(error) {
    const refused = error.name === 'SASLError' && error.condition !== 'temporary-auth-failure';
    if (refused || error instanceof PasswordNeeded) {
      const other = error.condition ? `the chat server refused the login: ${error.condition}` : error.message;
      this.#terminate({ description: LOGIN_ERRORS[error.condition] ?? sentence(other), retry: false, login: true });
    } else if (error.name === 'StreamError') {
      const other = [`The chat server ended the connection: ${error.condition}.`, false];
      const [description, retry] = STREAM_ERRORS[error.condition] ?? other;
      this.#terminate({ description, retry, login: description === NOT_IN_CHARGE });
    } else if (error.name === 'StanzaError') {
      // A late response, or a refused resource: some servers keep an old connection until they notice its end.
      const held = error.condition === 'conflict';
      const reason = held ? 'the old connection is still open' : error.condition;
      if (!this.jid) this.#terminate({ description: `The chat server refused this login: ${reason}.`, retry: held });
    } else {
      this.#terminate({ description: sentence(error.message || 'The chat server did not answer in time.'), retry: true });
    }
  }

  #terminate(end) {
    if (this.#end) return;
    this.#end = end;
    this.#channel.close(1000);
    this.#finish(end);
  }
}

/** The content of `<success/>`, which xmpp.js ignores. */
function nextSuccess(entity) {
  return new Promise((resolve) => {
    entity.on('nonza', function listen(element) {
      if (!element.is('success', NS_SASL)) return;
      entity.removeListener('nonza', listen);
      resolve(element.text());
    });
  });
}

/** Describes the end of a connection without a stream error. */
function endOf(event, ours) {
  if (!event?.description) return { description: 'The connection was lost.', retry: true };
  // A server that stops closes its connection cleanly, and then so does the gateway; the user did not end the chat.
  return { description: event.description, retry: event.retry || (event.code === 1000 && !ours) };
}

function sentence(text) {
  const whole = `${text[0].toUpperCase()}${text.slice(1)}`;
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
