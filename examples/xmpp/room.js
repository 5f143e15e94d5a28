/**
 * One room (XEP-0045, Multi-User Chat): its occupants and messages. It is discovered by asking the server for its rooms and
 * joined at each login; missed messages come from the room's own archive.
 */

import jid from '@xmpp/jid';
import xml from '@xmpp/xml';

import { Archive } from './archive.js';
import { Feed } from './feed.js';
import { NS, bounceReason } from './stanzas.js';

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
  /** @type {Map<string, string>} their presence, by nickname */
  occupants = new Map();
  /** Whether missed messages have been loaded, and messages can be sent. */
  caughtUp = false;
  /** Why the room is not joined. */
  description = '';
  archive;

  #name;
  #callbacks;
  #feeds = new Map();
  #session;
  #occupantId;
  #resolveJoin;

  /**
   * @param {string} name the preferred nickname
   * @param {object} callbacks
   * @param {(address: string) => string | undefined} callbacks.mark
   * @param {(address: string) => import('./conversation.js').Conversation} callbacks.conversation
   * @param {(conversation: object) => void} callbacks.transmit sends pending messages
   * @param {() => void} callbacks.changed
   */
  constructor(name, callbacks) {
    this.#name = name;
    this.nick = name;
    this.#callbacks = callbacks;
  }

  /** The last known message of each room's archive. */
  get marks() {
    return Object.fromEntries([...this.#feeds].map(([address, { from }]) => [address, from]));
  }

  /** Joins the room after a login. Resolved when missed messages are loaded, or when the room cannot be joined. */
  async enter(session) {
    this.#session = session;
    this.address ??= await discover(session);
    if (!this.address) {
      this.description = 'This server has no rooms.';
      return;
    }
    const { address } = this;
    const conversation = this.#callbacks.conversation(address);
    this.archive = new Archive(session, address, false);
    if (!this.#feeds.has(address)) {
      const deliver = (entry, how) => this.#deliver(conversation, entry, how);
      this.#feeds.set(address, new Feed(deliver, (description) => conversation.gap(description), this.#callbacks.mark(address)));
    }
    this.feed.hold();
    if (!(await this.#join())) return;
    const complete = (await this.feed.catchUp(this.archive)) && session.exclusive;
    if (this.#session !== session) return;
    this.caughtUp = true;
    if (!complete) conversation.doubted();
    this.#callbacks.transmit(conversation);
  }

  disconnected() {
    this.#session = undefined;
    this.archive = undefined;
    this.caughtUp = false;
    this.occupants.clear();
    this.#resolveJoin?.(false);
  }

  sendPresence(presence) {
    if (!this.caughtUp) return;
    presence.attrs.to = `${this.address}/${this.nick}`;
    this.#session.send(presence).catch(() => {});
  }

  receive(stanza) {
    const archiveId = stanza.getChildren('stanza-id', NS.ids).find(({ attrs }) => attrs.by === this.address)?.attrs.id;
    this.feed?.receive({ archiveId, stanza, when: Date.now() });
  }

  /** The room has returned an error for a message of ours. */
  bounced(stanza) {
    this.#callbacks.conversation(this.address).failed(stanza.attrs.id, bounceReason(stanza));
    this.#callbacks.changed();
  }

  /** Reads a stanza of the room: {message}, or undefined if it contains none. */
  read({ archiveId, stanza, when }) {
    const nick = stanza.attrs.from ? jid(stanza.attrs.from).resource : '';
    const text = stanza.getChildText('body');
    if (stanza.attrs.type !== 'groupchat' || !nick || !text) return undefined;
    // The room guarantees this id; a nickname may have been somebody else's before.
    const occupant = stanza.getChild('occupant-id', NS.occupant)?.attrs.id;
    const mine = occupant && this.#occupantId ? occupant === this.#occupantId : nick === this.nick;
    return { mine, message: { archiveId, id: stanza.attrs.id, from: nick, mine, text, when } };
  }

  presence(nick, stanza) {
    const { type } = stanza.attrs;
    const user = stanza.getChild('x', NS.mucUser);
    const codes = user?.getChildren('status').map(({ attrs }) => attrs.code) ?? [];
    if (type === 'error') this.#onJoinError(stanza);
    else if (type === 'unavailable') this.#onLeave(nick, codes);
    else {
      this.occupants.set(nick, stanza.getChildText('show') ?? 'here');
      if (codes.includes(SELF)) {
        this.nick = nick; // the room may have chosen another
        this.#occupantId = stanza.getChild('occupant-id', NS.occupant)?.attrs.id;
        this.#resolveJoin?.(true);
      }
    }
    this.#callbacks.changed();
  }

  /** The feed of the room, if one was joined. */
  get feed() {
    return this.#feeds.get(this.address);
  }

  #deliver(conversation, entry, { fresh }) {
    const read = this.read(entry);
    if (!read) return;
    const isNew = conversation.add(read.message);
    if (isNew && fresh && !read.mine) conversation.unread += 1;
    this.#callbacks.changed();
  }

  #join() {
    this.description = '';
    const joined = new Promise((resolve) => {
      this.#resolveJoin = resolve;
    });
    // No history from the room itself, because the archive is queried.
    const x = xml('x', { xmlns: NS.muc }, xml('history', { maxstanzas: '0' }));
    this.#session.send(xml('presence', { to: `${this.address}/${this.nick}` }, x)).catch(() => {});
    return joined;
  }

  #onJoinError(stanza) {
    const condition = stanza.getChild('error')?.getChildElements()[0]?.name;
    if (condition === 'conflict') {
      // The nickname is taken.
      this.nick = `${this.#name}-${Math.random().toString(36).slice(2, 5)}`;
      const resolve = this.#resolveJoin;
      this.#join().then(resolve);
      return;
    }
    this.description = `The room refused to let you join: ${condition ?? 'no reason given'}.`;
    this.#resolveJoin?.(false);
  }

  #onLeave(nick, codes) {
    this.occupants.delete(nick);
    if (!codes.includes(SELF)) return;
    this.caughtUp = false;
    this.description = codes.map((code) => REMOVED[code]).find(Boolean) ?? 'You have left this room.';
    this.#resolveJoin?.(false);
  }
}

/** The address of our room on this server, by service discovery (XEP-0030). */
async function discover(session) {
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
