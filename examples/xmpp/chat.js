/**
 * The chat of one account: who is there, what is said, and that none of it comes twice or gets lost.
 *
 * Connections come and go; this stays. After each login the server's archive fills the gap (feed.js), and tells of each
 * message of ours whether it arrived before the connection broke. Only one that did not is sent again, with the same
 * id. It cannot arrive twice, because the old connection is over for the server by then (session.js); where that or the
 * archive is not certain, a person decides.
 *
 * It knows nothing of the page. Event `change`: something of it is different; `state`: the connection (see
 * ../lib/retry.js); `login`: the login was refused, `detail.words` says why.
 */

import jid from '@xmpp/jid';
import xml from '@xmpp/xml';

import { ChannelEvent } from '../lib/channel.js';
import { Retry } from '../lib/retry.js';
import { Archive } from './archive.js';
import { Conversation } from './conversation.js';
import { Feed } from './feed.js';
import { Room } from './room.js';
import { Sender } from './sender.js';
import { Session } from './session.js';
import { NS, readMessage } from './stanzas.js';

export class Chat extends EventTarget {
  /** @type {Map<string, Conversation>} by bare address */
  conversations = new Map();
  /** @type {Map<string, {address: string, name: string, devices: Map<string, string>}>} the roster */
  contacts = new Map();
  /** @type {Room} */
  room;
  away = false;

  #open;
  #account;
  #memory;
  #retry;
  #session;
  #feed;
  #settled = false;
  #archive;
  #sender;
  /** The messages of others that they know we have, and those they do not. */
  #receipted = new Set();
  #owed = [];

  /**
   * @param {object} options
   * @param {(liveness: object) => object} options.open opens a channel to the server
   * @param {{username: string, domain: string, resource: string, password?: string, key?: object}} options.account
   * @param {import('./memory.js').Memory} options.memory what outlives the page
   * @param {object} [options.retry] options of Retry
   */
  constructor({ open, account, memory, retry }) {
    super();
    this.#open = open;
    this.#account = account;
    this.#memory = memory;
    this.me = `${account.username}@${account.domain}`;
    this.#retry = new Retry(() => this.#begin(), retry);
    this.#retry.addEventListener('state', ({ detail }) => this.dispatchEvent(new ChannelEvent('state', { detail })));
    const deliver = (told, how) => this.#direct(told, how);
    this.#feed = new Feed(deliver, (words) => this.#directs.forEach((one) => one.gap(words)), memory.marks?.[this.me]);
    this.room = new Room(account.username, {
      mark: (address) => memory.marks?.[address],
      conversation: (address) => this.conversation(address, 'room'),
      transmit: (conversation) => this.#transmitAll(conversation),
      changed: () => this.#changed(),
    });
    this.#restore();
  }

  get state() {
    return this.#retry.state;
  }

  /** What may be kept to log in again. */
  get key() {
    return this.#account.key;
  }

  start() {
    this.#retry.start();
  }

  retryNow() {
    this.#retry.retryNow();
  }

  async signOut() {
    const session = this.#session;
    this.#session = undefined;
    this.#retry.dispose();
    await session?.close();
  }

  /** The conversation with this bare address; made if there is none yet. */
  conversation(address, kind = 'chat') {
    if (!this.conversations.has(address)) this.conversations.set(address, new Conversation(address, kind));
    return this.conversations.get(address);
  }

  /** How many messages of ours the server is not known to have. */
  get unsent() {
    return [...this.conversations.values()].reduce((sum, { outbox }) => sum + outbox.length, 0);
  }

  /** Says something: at once, or as soon as there is a connection. */
  write(conversation, text) {
    const from = conversation.kind === 'room' ? this.room.nick : this.#account.username;
    const message = conversation.compose({ id: crypto.randomUUID(), from, text, when: Date.now() });
    conversation.draft = '';
    if (this.#isReady(conversation)) this.#say(conversation, message);
    this.#changed();
  }

  /** Somebody has decided that this one is to be sent again. */
  again(conversation, message) {
    message.progress = 'waiting';
    if (this.#isReady(conversation)) this.#say(conversation, message);
    this.#changed();
  }

  /** Text that is not sent yet; it outlives the page. */
  drafted(conversation, text) {
    conversation.draft = text;
    this.#save();
  }

  seen(conversation) {
    if (conversation.unread === 0) return;
    conversation.unread = 0;
    this.#changed();
  }

  /** Fetches some of what was said before. */
  async older(conversation) {
    const room = conversation.kind === 'room';
    const archive = room ? this.room.archive : this.#archive;
    const before = conversation.messages.length;
    // A page of the archive may hold nothing but receipts.
    while (archive && conversation.hasOlder && conversation.messages.length === before) {
      const { kept, first, complete } = await archive.older(conversation.olderThan, room ? undefined : conversation.address);
      const reader = (told) => (room ? this.room.read(told) : readMessage(told, this.me));
      const read = kept.map(reader).filter(Boolean);
      conversation.takeOlder(read.filter(({ message }) => message).map(({ message }) => message), first);
      for (const { receipt, mine } of read) if (receipt && !mine) conversation.delivered(receipt);
      conversation.hasOlder = !complete;
    }
    this.#changed();
  }

  setAway(away) {
    this.away = away;
    if (this.state.state === 'open') this.#tellPresence();
    this.#changed();
  }

  /** The conversations that are not rooms. */
  get #directs() {
    return [...this.conversations.values()].filter(({ kind }) => kind === 'chat');
  }

  // --- connections --------------------------------------------------------------------------------------------

  #begin() {
    const { username, domain, resource, password, key } = this.#account;
    let session;
    let channel;
    try {
      channel = this.#open({ probe: () => session.probe(), quiet: 10_000, timeout: 8_000 });
    } catch (error) {
      // An address that is none, or one that the page's own policy forbids: another try would not change that.
      this.#retry.ended({ words: `No connection: ${error.message}`, retry: false });
      return;
    }
    session = new Session(channel, { domain, resource, credentials: { username, password, key } });
    this.#session = session;
    this.#sender = new Sender(session, () => this.#changed());
    this.#feed.hold();
    const ours = () => this.#session === session;
    session.onStanza('message', (stanza) => ours() && this.#message(stanza));
    session.onStanza('presence', (stanza) => ours() && this.#presence(stanza));
    session.onSet(NS.roster, 'query', (query, { attrs }) => {
      if (ours() && (!attrs.from || jid(attrs.from).bare().toString() === this.me)) this.#roster(query);
    });
    channel.addEventListener('silence', ({ detail }) => {
      if (ours()) this.#retry.say(`No answer for ${Math.round(detail.ms / 1000)} s. Is the network down?`);
    });
    channel.addEventListener('voice', () => ours() && this.#retry.say('Connected.'));
    session.ended.then((end) => ours() && this.#ended(end));
    session.open().then(
      () => ours() && this.#online(session),
      () => {}, // `ended` says it
    );
  }

  #ended({ words, retry, login }) {
    this.#session = undefined;
    this.#archive = undefined;
    this.#settled = false;
    this.#sender = undefined;
    this.#owed = [];
    for (const conversation of this.conversations.values()) conversation.interrupted();
    for (const contact of this.contacts.values()) contact.devices.clear();
    this.room.lost();
    this.#changed();
    this.#retry.ended({ words, retry });
    if (login) this.dispatchEvent(new ChannelEvent('login', { detail: { words } }));
  }

  async #online(session) {
    this.#account = { ...this.#account, key: session.key };
    this.#archive = new Archive(session, this.me, true);
    this.#retry.opened();
    try {
      session.ask('set', xml('enable', { xmlns: NS.carbons })).catch(() => {}); // a server may lack it
      const roster = await session.ask('get', xml('query', { xmlns: NS.roster }));
      this.contacts.clear();
      this.#roster(roster);
      this.#tellPresence();
      const direct = this.#catchUp(session);
      await Promise.all([direct, this.room.enter(session)]);
    } catch (error) {
      // A session that ended has said so itself; anything else is a fault that must not pass in silence.
      const words = `Connected, but something went wrong: ${error.condition ?? error.message}.`;
      if (this.#session === session) this.#retry.say(words);
    }
  }

  async #catchUp(session) {
    const whole = (await this.#feed.catchUp(this.#archive)) && session.alone;
    for (const { id, to } of this.#owed.splice(0)) this.#receipt(id, to);
    if (this.#session !== session) return;
    this.#settled = true;
    for (const conversation of this.#directs) {
      if (!whole) conversation.doubted();
      this.#transmitAll(conversation);
    }
    this.#changed();
  }

  #tellPresence() {
    const presence = () => xml('presence', {}, ...(this.away ? [xml('show', {}, 'away')] : []));
    this.#session.send(presence()).catch(() => {});
    this.room.tell(presence());
  }

  // --- what we say --------------------------------------------------------------------------------------------

  #isReady({ kind }) {
    return kind === 'room' ? this.room.settled : this.#settled;
  }

  #transmitAll(conversation) {
    for (const message of conversation.outbox) {
      if (message.progress === 'waiting' || message.progress === 'unsure') this.#say(conversation, message);
    }
    this.#changed();
  }

  #say(conversation, message) {
    this.#feedOf(conversation).pin();
    this.#sender.say(conversation, message);
  }

  #feedOf({ kind }) {
    return kind === 'room' ? this.room.feed : this.#feed;
  }

  #receipt(id, to) {
    if (this.#receipted.has(id)) return;
    this.#receipted.add(id);
    this.#sender?.receipt(id, to);
  }

  // --- what we hear -------------------------------------------------------------------------------------------

  #message(stanza) {
    if (this.#archive?.take(stanza) || this.room.archive?.take(stanza)) return;
    const from = stanza.attrs.from ? jid(stanza.attrs.from) : undefined;
    const sender = from?.bare().toString() ?? this.me;
    if (sender !== this.room.address) this.#heard(sender, stanza);
    else if (stanza.attrs.type === 'error') this.room.bounced(stanza);
    else this.room.heard(stanza);
  }

  #heard(sender, stanza) {
    const copy = stanza.getChild('sent', NS.carbons) ?? stanza.getChild('received', NS.carbons);
    if (copy && sender !== this.me) return; // only our own server may say what we said
    const inner = copy ? copy.getChild('forwarded', NS.forward)?.getChild('message') : stanza;
    if (!inner) return;
    const archiveId = inner.getChildren('stanza-id', NS.ids).find(({ attrs }) => attrs.by === this.me)?.attrs.id;
    this.#feed.heard({ archiveId, stanza: inner, when: Date.now() });
  }

  #direct(told, { live, fresh }) {
    const read = readMessage(told, this.me);
    if (!read || read.partner === this.room.address) return;
    const { partner, mine, message, receipt, wantsReceipt, sender, bounce } = read;
    if (bounce) this.conversations.get(partner)?.failed(bounce.id, bounce.words);
    if (receipt && mine) this.#receipted.add(receipt);
    else if (receipt) this.conversations.get(partner)?.delivered(receipt);
    if (message) {
      const conversation = this.conversation(partner);
      const isNew = conversation.take(message);
      if (isNew && fresh && !mine) conversation.unread += 1;
      if (wantsReceipt && live) this.#receipt(message.id, sender);
      else if (wantsReceipt) this.#owed.push({ id: message.id, to: sender });
    }
    this.#changed();
  }

  #presence(stanza) {
    const from = jid(stanza.attrs.from ?? this.me);
    const address = from.bare().toString();
    const { type } = stanza.attrs;
    if (address === this.room.address) {
      this.room.presence(from.resource, stanza);
      return;
    }
    const contact = this.contacts.get(address);
    if (!contact || (type && type !== 'unavailable')) return;
    if (type) contact.devices.delete(from.resource);
    else contact.devices.set(from.resource, stanza.getChildText('show') ?? 'here');
    this.#changed();
  }

  #roster(query) {
    for (const { attrs } of query.getChildren('item')) {
      if (attrs.subscription === 'remove') {
        this.contacts.delete(attrs.jid);
        continue;
      }
      const devices = this.contacts.get(attrs.jid)?.devices ?? new Map();
      this.contacts.set(attrs.jid, { address: attrs.jid, name: attrs.name || jid(attrs.jid).local || attrs.jid, devices });
      this.conversation(attrs.jid);
    }
    this.#changed();
  }

  // --- what outlives the page ---------------------------------------------------------------------------------

  #changed() {
    for (const kind of ['chat', 'room']) {
      const ours = [...this.conversations.values()].filter((one) => one.kind === kind).flatMap(({ outbox }) => outbox);
      if (!ours.some(({ progress }) => progress === 'sending' || progress === 'unsure')) this.#feedOf({ kind })?.unpin();
    }
    this.#save();
    this.dispatchEvent(new Event('change'));
  }

  #save() {
    const all = [...this.conversations.values()];
    const outbox = all.flatMap(({ address, kind, outbox: unsent }) =>
      unsent.map(({ id, from, text, when, progress }) => ({ address, kind, id, from, text, when, progress })),
    );
    const drafts = all.filter(({ draft }) => draft).map(({ address, kind, draft }) => ({ address, kind, draft }));
    const marks = { ...this.#memory.marks, [this.me]: this.#feed.from, ...this.room.marks };
    this.#memory.keep({ outbox, drafts, marks });
  }

  #restore() {
    const { outbox = [], drafts = [] } = this.#memory;
    for (const { address, kind, progress, ...message } of outbox) {
      // Whatever was under way when the page went is as unsure as after a lost connection.
      this.conversation(address, kind).compose({ ...message, progress: progress === 'sending' ? 'unsure' : progress });
    }
    for (const { address, kind, draft } of drafts) this.conversation(address, kind).draft = draft;
  }
}
