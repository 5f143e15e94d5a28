/**
 * One login: a connection from its first byte to its end. It knows the grammar of XMPP and nothing of a chat.
 *
 * Two things that hold here are what the chat relies on (see chat.js). We always ask for the same resource: a server that
 * gives it to a new connection has ended the old one (RFC 6120 §7.7.2.2), so nothing of the old one can arrive later. And
 * a server handles what we send in its order (RFC 6120 §10.1), so an answer to something proves that it has handled
 * everything before.
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

/** From the first byte to the end of the login, in milliseconds. */
const LOGIN_MS = 20_000;

const NOT_IN_CHARGE = 'This chat server is not in charge of that address.';

/** What a server says when it ends a stream (RFC 6120 §4.9.3), for people; and whether another try may help. */
const STREAM_ERRORS = {
  conflict: ['This chat goes on in another tab, which has taken its place.', false],
  'system-shutdown': ['The chat server is shutting down.', true],
  reset: ['The chat server wants a new login.', true],
  'connection-timeout': ['The chat server waited too long for this page.', true],
  'resource-constraint': ['The chat server is too busy.', true],
  'internal-server-error': ['The chat server has a fault of its own.', true],
  'remote-connection-failed': ['The chat server cannot reach what it needs.', true],
  'undefined-condition': ['The chat server ended the connection.', true],
  'host-unknown': [NOT_IN_CHARGE, false],
  'not-authorized': [NOT_IN_CHARGE, false], // for another domain than the gateway has asked for
  'policy-violation': ['The chat server ended the connection: against its rules.', false],
};

/** How a login may fail (RFC 6120 §6.5). */
const LOGIN_ERRORS = {
  'not-authorized': 'Wrong address or password.',
  'account-disabled': 'This account is disabled.',
  'credentials-expired': 'This password has expired.',
};

/**
 * @typedef {object} End
 * @property {string} words for the person in front of the page
 * @property {boolean} retry whether another try may help
 * @property {boolean} [login] the login was refused: ask for the password again
 */

export class Session {
  /** @type {Promise<End>} how it ends; kept when it has */
  ended;
  /** The server's name. */
  domain;
  /** The full address that the server has given us. */
  jid;
  /** Whether that is the one we asked for: then nothing of an older connection can still arrive. */
  alone = false;
  /** What may be kept to log in again without the password. */
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
    const remembering = function makeScram() {
      scram = new Scram();
      return scram;
    };
    saslFactory.use(MECHANISM, remembering);
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
    entity.on('disconnect', ({ reason }) => this.#over(endOf(reason, this.#closing)));
  }

  /** Logs in. Kept when the session can be used; rejected when it has ended before. */
  async open() {
    const tooLate = { words: 'The chat server did not finish the login in time.', retry: true };
    const late = setTimeout(() => this.#over(tooLate), LOGIN_MS);
    try {
      await Promise.race([this.#login(), this.ended.then(({ words }) => Promise.reject(new Error(words)))]);
    } catch (error) {
      this.#failed(error);
      throw error;
    } finally {
      clearTimeout(late);
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
    this.alone = jid.resource === this.#resource;
    this.jid = jid.toString();
  }

  /** Calls `handler` for each stanza with this name, in the order of their arrival. */
  onStanza(name, handler) {
    this.#middleware.use((context, next) => {
      if (context.name !== name) return next();
      if (!this.#end) handler(context.stanza);
      return Promise.resolve(); // what is returned would be sent as an answer
    });
  }

  /** Answers a request of type "set". */
  onSet(namespace, name, handler) {
    this.#callee.set(namespace, name, ({ stanza, element }) => handler(element, stanza) ?? {});
  }

  /** @returns {Promise<void>} kept when the browser has it; that says nothing about the server */
  send(stanza) {
    return this.#end ? Promise.reject(new Error('the session has ended')) : this.#stream.send(stanza);
  }

  /** Asks something, and gives the answer's child of the same name. */
  ask(type, element, to) {
    return this.#answered(this.#caller[type](element, to));
  }

  /** Sends a whole request, and gives the whole answer. */
  request(iq) {
    return this.#answered(this.#caller.request(iq));
  }

  #answered(answer) {
    return Promise.race([answer, this.ended.then(() => Promise.reject(new Error('the session has ended')))]);
  }

  /** Kept when the server has handled all that was sent before. */
  async handled() {
    try {
      await this.ask('get', xml('ping', { xmlns: NS_PING }), this.domain);
    } catch (error) {
      if (error.name !== 'StanzaError') throw error; // a refusal is an answer, too
    }
  }

  /** Bytes that the server must answer; undefined while there is nothing to ask. */
  probe() {
    if (!this.jid || this.#end) return undefined;
    this.#pings += 1;
    const ping = xml('iq', { type: 'get', to: this.domain, id: `alive-${this.#pings}` }, xml('ping', { xmlns: NS_PING }));
    return new TextEncoder().encode(ping.toString());
  }

  /** Says goodbye. */
  async close() {
    this.#closing = true;
    if (this.jid && !this.#end) await this.#stream.stop().catch(() => {});
    this.#over({ words: 'Signed out.', retry: false });
  }

  #failed(error) {
    const refused = error.name === 'SASLError' && error.condition !== 'temporary-auth-failure';
    if (refused || error instanceof PasswordNeeded) {
      const other = error.condition ? `the chat server refuses the login: ${error.condition}` : error.message;
      this.#over({ words: LOGIN_ERRORS[error.condition] ?? sentence(other), retry: false, login: true });
    } else if (error.name === 'StreamError') {
      const other = [`The chat server ended the connection: ${error.condition}.`, false];
      const [words, retry] = STREAM_ERRORS[error.condition] ?? other;
      this.#over({ words, retry, login: words === NOT_IN_CHARGE });
    } else if (error.name === 'StanzaError') {
      // An answer that nobody waits for any more, or a resource that is refused.
      // A server may rather keep an old connection than believe in its end before it has noticed it itself.
      const held = error.condition === 'conflict';
      const why = held ? 'it still holds the old connection' : error.condition;
      if (!this.jid) this.#over({ words: `The chat server refuses this login: ${why}.`, retry: held });
    } else {
      this.#over({ words: sentence(error.message || 'The chat server took too long.'), retry: true });
    }
  }

  #over(end) {
    if (this.#end) return;
    this.#end = end;
    this.#channel.close(1000);
    this.#finish(end);
  }
}

/** What `<success/>` says, of which xmpp.js takes no notice. */
function nextSuccess(entity) {
  return new Promise((resolve) => {
    entity.on('nonza', function listen(element) {
      if (!element.is('success', NS_SASL)) return;
      entity.removeListener('nonza', listen);
      resolve(element.text());
    });
  });
}

/** The end of a connection that neither side of the stream has given a reason for. */
function endOf(event, ours) {
  if (!event?.words) return { words: 'The connection was lost.', retry: true };
  // A server that goes away closes its connection in good order, and so does the gateway then; nobody has ended the chat.
  return { words: event.words, retry: event.retry || (event.code === 1000 && !ours) };
}

function sentence(text) {
  const whole = `${text[0].toUpperCase()}${text.slice(1)}`;
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
