/**
 * Queries of a server's message archive (XEP-0313, Message Archive Management).
 */

import xml from '@xmpp/xml';

const NS_ARCHIVE = 'urn:xmpp:mam:2';
const NS_FORWARD = 'urn:xmpp:forward:0';
const NS_DELAY = 'urn:xmpp:delay';
const NS_FORM = 'jabber:x:data';
const NS_PAGES = 'http://jabber.org/protocol/rsm';

const PAGE = 100;
/** The limit of pages of one query. */
const MAX_PAGES = 40;

/**
 * @typedef {object} ArchivedMessage
 * @property {string} archiveId
 * @property {import('@xmpp/xml').Element} stanza the archived message
 * @property {number} when in milliseconds since 1970
 */

/** The archive of an account, or of a room. */
export class Archive {
  #session;
  #owner;
  #address;
  #queries = new Map();

  /**
   * @param {import('./session.js').Session} session
   * @param {string} owner the bare address of the account, or of the room
   * @param {boolean} own whether it is the account's
   */
  constructor(session, owner, own) {
    this.#session = session;
    this.#owner = owner;
    this.#address = own ? undefined : owner;
  }

  /** Consumes a stanza that is part of a response to a query. Returns whether it was one. */
  consume(stanza) {
    const result = stanza.getChild('result', NS_ARCHIVE);
    const pages = result && this.#queries.get(result.attrs.queryid);
    if (!pages || (stanza.attrs.from ?? this.#owner) !== this.#owner) return false;
    const forwarded = result.getChild('forwarded', NS_FORWARD);
    const message = forwarded?.getChild('message');
    const stamp = forwarded?.getChild('delay', NS_DELAY)?.attrs.stamp;
    if (message) pages.push({ archiveId: result.attrs.id, stanza: message, when: Date.parse(stamp) || Date.now() });
    return true;
  }

  /**
   * All messages after `mark`, oldest first; all messages of the archive if the mark is ''.
   *
   * @returns {Promise<ArchivedMessage[] | undefined>} undefined if the mark is no longer in the archive, or if there are too
   *   many
   */
  async since(mark) {
    const all = [];
    let after = mark || undefined;
    for (let i = 0; i < MAX_PAGES; i++) {
      let page;
      try {
        page = await this.#page({ after });
      } catch (error) {
        if (error.condition === 'item-not-found') return undefined;
        throw error;
      }
      all.push(...page.messages);
      if (page.complete) return all;
      after = page.last;
    }
    return undefined;
  }

  /**
   * The last messages, oldest first, back to `mark`; without a mark one page.
   *
   * @returns {Promise<{messages: ArchivedMessage[], complete: boolean, reached: boolean}>} `complete`: there are
   *   no older ones; `reached`: the mark is among them (for '': they are complete), or there was no mark
   */
  async latest(mark) {
    let messages = [];
    let before = '';
    for (let i = 0; i < MAX_PAGES; i++) {
      const page = await this.#page({ before });
      messages = [...page.messages, ...messages];
      const all = mark === '' && page.complete;
      const reached = all || mark === undefined || messages.some(({ archiveId }) => archiveId === mark);
      if (reached || page.complete) return { messages, complete: page.complete, reached };
      before = page.first;
    }
    return { messages, complete: false, reached: false };
  }

  /** A page of messages before `before`, oldest first, only those with `partner`. */
  async older(before, partner) {
    return this.#page({ before: before ?? '' }, partner);
  }

  async #page(range, partner) {
    const queryid = crypto.randomUUID();
    const messages = [];
    this.#queries.set(queryid, messages);
    const fields = [field('FORM_TYPE', NS_ARCHIVE, 'hidden'), ...(partner ? [field('with', partner)] : [])];
    const pages = xml('set', { xmlns: NS_PAGES }, xml('max', {}, String(PAGE)));
    for (const [name, value] of Object.entries(range)) if (value !== undefined) pages.append(xml(name, {}, value));
    const form = xml('x', { xmlns: NS_FORM, type: 'submit' }, ...fields);
    const query = xml('query', { xmlns: NS_ARCHIVE, queryid }, form, pages);
    const iq = xml('iq', { type: 'set', to: this.#address }, query);
    try {
      const end = (await this.#session.request(iq)).getChild('fin', NS_ARCHIVE);
      const set = end?.getChild('set', NS_PAGES);
      const [first, last] = [set?.getChildText('first'), set?.getChildText('last')];
      return { messages, first, last, complete: end?.attrs.complete === 'true' || messages.length === 0 };
    } finally {
      this.#queries.delete(queryid);
    }
  }
}

function field(name, value, type) {
  return xml('field', { var: name, type }, xml('value', {}, value));
}
