/**
 * Asking a server's archive (XEP-0313, Message Archive Management): what was said while nobody listened here, and before.
 */

import xml from '@xmpp/xml';

const NS_ARCHIVE = 'urn:xmpp:mam:2';
const NS_FORWARD = 'urn:xmpp:forward:0';
const NS_DELAY = 'urn:xmpp:delay';
const NS_FORM = 'jabber:x:data';
const NS_PAGES = 'http://jabber.org/protocol/rsm';

const PAGE = 100;
/** Nobody reads further back than this after having been away. */
const MOST_PAGES = 40;

/**
 * @typedef {object} Kept
 * @property {string} archiveId
 * @property {import('@xmpp/xml').Element} stanza the message itself
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

  /** Takes a stanza, if it is part of an answer to one of the questions below. */
  take(stanza) {
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
   * Everything after `mark`, oldest first; everything at all if the mark is ''.
   *
   * @returns {Promise<Kept[] | undefined>} undefined if the archive does not know the mark any more, or if there is too
   *   much
   */
  async since(mark) {
    const all = [];
    let after = mark || undefined;
    for (let i = 0; i < MOST_PAGES; i++) {
      let page;
      try {
        page = await this.#page({ after });
      } catch (error) {
        if (error.condition === 'item-not-found') return undefined;
        throw error;
      }
      all.push(...page.kept);
      if (page.complete) return all;
      after = page.last;
    }
    return undefined;
  }

  /**
   * The last messages, oldest first, back to the one that `mark` names, or a page without it.
   *
   * @returns {Promise<{kept: Kept[], complete: boolean, reached: boolean}>} whether there is nothing before, and whether
   *   the mark is among them (for '': whether they are all there are), or there was none to look for
   */
  async latest(mark) {
    let kept = [];
    let before = '';
    for (let i = 0; i < MOST_PAGES; i++) {
      const page = await this.#page({ before });
      kept = [...page.kept, ...kept];
      const all = mark === '' && page.complete;
      const reached = all || mark === undefined || kept.some(({ archiveId }) => archiveId === mark);
      if (reached || page.complete) return { kept, complete: page.complete, reached };
      before = page.first;
    }
    return { kept, complete: false, reached: false };
  }

  /** A page before the message `before`, oldest first, of what was said with `partner` only. */
  async older(before, partner) {
    return this.#page({ before: before ?? '' }, partner);
  }

  async #page(range, partner) {
    const queryid = crypto.randomUUID();
    const kept = [];
    this.#queries.set(queryid, kept);
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
      return { kept, first, last, complete: end?.attrs.complete === 'true' || kept.length === 0 };
    } finally {
      this.#queries.delete(queryid);
    }
  }
}

function field(name, value, type) {
  return xml('field', { var: name, type }, xml('value', {}, value));
}
