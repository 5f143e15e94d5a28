/**
 * One room (XEP-0045, Multi-User Chat): who is in it, and what is said. It is found by asking the server where its rooms
 * are, entered anew at each login, and what was missed comes from the room's own archive.
 */

import jid from '@xmpp/jid';
import xml from '@xmpp/xml';

import { Archive } from './archive.js';
import { Feed } from './feed.js';
import { NS, bounceWords } from './stanzas.js';

const NAME = 'lobby';
const SELF = '110';
const REMOVED = {
  301: 'You are banned from this room.',
  307: 'You were removed from this room.',
  332: 'The rooms are being closed.',
};

export class Room {
  address;
  nick;
  /** @type {Map<string, string>} whether they are away, by the names they have here */
  occupants = new Map();
  /** Whether what was missed has come, and we may speak. */
  settled = false;
  /** Why we are not in it, in words. */
  words = '';
  archive;

  #name;
  #calls;
  #feeds = new Map();
  #session;
  #self;
  #entered;

  /**
   * @param {string} name what we want to be called
   * @param {object} calls
   * @param {(address: string) => string | undefined} calls.mark
   * @param {(address: string) => import('./conversation.js').Conversation} calls.conversation
   * @param {(conversation: object) => void} calls.transmit sends what waits
   * @param {() => void} calls.changed
   */
  constructor(name, calls) {
    this.#name = name;
    this.nick = name;
    this.#calls = calls;
  }

  /** The last message known of each room's archive. */
  get marks() {
    return Object.fromEntries([...this.#feeds].map(([address, { from }]) => [address, from]));
  }

  /** A login has succeeded. Kept when we are in the room and have heard what we missed; or when we cannot be. */
  async enter(session) {
    this.#session = session;
    this.address ??= await find(session);
    if (!this.address) {
      this.words = 'This server has no rooms.';
      return;
    }
    const { address } = this;
    const conversation = this.#calls.conversation(address);
    this.archive = new Archive(session, address, false);
    if (!this.#feeds.has(address)) {
      const deliver = (told, how) => this.#deliver(conversation, told, how);
      this.#feeds.set(address, new Feed(deliver, (words) => conversation.gap(words), this.#calls.mark(address)));
    }
    this.feed.hold();
    if (!(await this.#join())) return;
    const whole = (await this.feed.catchUp(this.archive)) && session.alone;
    if (this.#session !== session) return;
    this.settled = true;
    if (!whole) conversation.doubted();
    this.#calls.transmit(conversation);
  }

  /** The connection is lost. */
  lost() {
    this.#session = undefined;
    this.archive = undefined;
    this.settled = false;
    this.occupants.clear();
    this.#entered?.(false);
  }

  /** Tells the room of our presence. */
  tell(presence) {
    if (!this.settled) return;
    presence.attrs.to = `${this.address}/${this.nick}`;
    this.#session.send(presence).catch(() => {});
  }

  heard(stanza) {
    const archiveId = stanza.getChildren('stanza-id', NS.ids).find(({ attrs }) => attrs.by === this.address)?.attrs.id;
    this.feed?.heard({ archiveId, stanza, when: Date.now() });
  }

  /** Something we said came back. */
  bounced(stanza) {
    this.#calls.conversation(this.address).failed(stanza.attrs.id, bounceWords(stanza));
    this.#calls.changed();
  }

  /** Reads what was said in the room: {message}, or undefined if nothing was. */
  read({ archiveId, stanza, when }) {
    const nick = stanza.attrs.from ? jid(stanza.attrs.from).resource : '';
    const text = stanza.getChildText('body');
    if (stanza.attrs.type !== 'groupchat' || !nick || !text) return undefined;
    // The room vouches for this id; a name may have been another's before.
    const occupant = stanza.getChild('occupant-id', NS.occupant)?.attrs.id;
    const mine = occupant && this.#self ? occupant === this.#self : nick === this.nick;
    return { mine, message: { archiveId, id: stanza.attrs.id, from: nick, mine, text, when } };
  }

  presence(nick, stanza) {
    const { type } = stanza.attrs;
    const user = stanza.getChild('x', NS.mucUser);
    const codes = user?.getChildren('status').map(({ attrs }) => attrs.code) ?? [];
    if (type === 'error') this.#refused(stanza);
    else if (type === 'unavailable') this.#gone(nick, codes);
    else {
      this.occupants.set(nick, stanza.getChildText('show') ?? 'here');
      if (codes.includes(SELF)) {
        this.nick = nick; // the room may have chosen another
        this.#self = stanza.getChild('occupant-id', NS.occupant)?.attrs.id;
        this.#entered?.(true);
      }
    }
    this.#calls.changed();
  }

  /** What is said in the room, as far as we have entered one. */
  get feed() {
    return this.#feeds.get(this.address);
  }

  #deliver(conversation, told, { fresh }) {
    const read = this.read(told);
    if (!read) return;
    const isNew = conversation.take(read.message);
    if (isNew && fresh && !read.mine) conversation.unread += 1;
    this.#calls.changed();
  }

  #join() {
    this.words = '';
    const entered = new Promise((resolve) => {
      this.#entered = resolve;
    });
    // No history by the room itself: the archive knows better what we have.
    const x = xml('x', { xmlns: NS.muc }, xml('history', { maxstanzas: '0' }));
    this.#session.send(xml('presence', { to: `${this.address}/${this.nick}` }, x)).catch(() => {});
    return entered;
  }

  #refused(stanza) {
    const condition = stanza.getChild('error')?.getChildElements()[0]?.name;
    if (condition === 'conflict') {
      // Somebody else has this name.
      this.nick = `${this.#name}-${Math.random().toString(36).slice(2, 5)}`;
      const entered = this.#entered;
      this.#join().then(entered);
      return;
    }
    this.words = `The room does not let you in: ${condition ?? 'it does not say why'}.`;
    this.#entered?.(false);
  }

  #gone(nick, codes) {
    this.occupants.delete(nick);
    if (!codes.includes(SELF)) return;
    this.settled = false;
    this.words = codes.map((code) => REMOVED[code]).find(Boolean) ?? 'You have left this room.';
    this.#entered?.(false);
  }
}

/** The address of our room on this server: it is asked which of its services holds rooms (XEP-0030). */
async function find(session) {
  const { domain } = session;
  const items = await session.ask('get', xml('query', { xmlns: NS.items }), domain);
  for (const { attrs } of items.getChildren('item')) {
    const info = await session.ask('get', xml('query', { xmlns: NS.info }), attrs.jid).catch((error) => {
      if (error.name !== 'StanzaError') throw error;
    });
    const identities = info?.getChildren('identity').map((one) => `${one.attrs.category}/${one.attrs.type}`) ?? [];
    if (identities.includes('conference/text')) return `${NAME}@${attrs.jid}`;
  }
  return undefined;
}
