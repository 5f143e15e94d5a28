/**
 * The chat of one account: contacts, conversations, and delivery of each message exactly once.
 *
 * It outlives connections. After each login the server's archive fills the gap (feed.js), and shows which of our messages
 * arrived before the connection broke. Only those that did not are sent again, with the same id. They cannot arrive twice,
 * because the server has closed the old connection by then (session.js). If that is uncertain, or if the archive cannot
 * tell, the user decides.
 *
 * It knows nothing of the page. Events: `change`: the view must be updated; `state`: the state of the connection (see
 * ../lib/retry.js); `login`: the login was refused, for the reason in `detail.description`.
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
  #tabState;
  #retry;
  #session;
  #feed;
  #caughtUp = false;
  #archive;
  #sender;
  /** The ids of others' messages whose receipts were sent, and the receipts still to send. */
  #sentReceipts = new Set();
  #owedReceipts = [];

  /**
   * @param {object} options
   * @param {(liveness: object) => object} options.open opens a channel to the server
   * @param {{username: string, domain: string, resource: string, password?: string, key?: object}} options.account
   * @param {import('./tab-state.js').TabState} options.tabState the state that survives a reload
   * @param {object} [options.retry] options of Retry
   */
  constructor({ open, account, tabState, retry }) {
    super();
    this.#open = open;
    this.#account = account;
    this.#tabState = tabState;
    this.me = `${account.username}@${account.domain}`;
    this.#retry = new Retry(() => this.#connect(), retry);
    this.#retry.addEventListener('state', ({ detail }) => this.dispatchEvent(new ChannelEvent('state', { detail })));
    const deliver = (entry, how) => this.#onDirectMessage(entry, how);
    this.#feed = new Feed(deliver, (description) => this.#directConversations.forEach((one) => one.gap(description)), tabState.marks?.[this.me]);
    this.room = new Room(account.username, {
      mark: (address) => tabState.marks?.[address],
      conversation: (address) => this.conversation(address, 'room'),
      transmit: (conversation) => this.#transmitAll(conversation),
      changed: () => this.#changed(),
    });
    this.#restore();
  }

  get state() {
    return this.#retry.state;
  }

  /** The key that can be stored to log in again. */
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

  /** The conversation with this bare address; created if there is none. */
  conversation(address, kind = 'chat') {
    if (!this.conversations.has(address)) this.conversations.set(address, new Conversation(address, kind));
    return this.conversations.get(address);
  }

  /** The number of our messages that the server has not confirmed. */
  get unsent() {
    return [...this.conversations.values()].reduce((sum, { outbox }) => sum + outbox.length, 0);
  }

  /** Sends a message: at once, or as soon as there is a connection. */
  write(conversation, text) {
    const from = conversation.kind === 'room' ? this.room.nick : this.#account.username;
    const message = conversation.compose({ id: crypto.randomUUID(), from, text, when: Date.now() });
    conversation.draft = '';
    if (this.#isReady(conversation)) this.#transmit(conversation, message);
    this.#changed();
  }

  /** Sends a message again, at the user's request. */
  resend(conversation, message) {
    message.progress = 'waiting';
    if (this.#isReady(conversation)) this.#transmit(conversation, message);
    this.#changed();
  }

  /** Stores text that is not sent yet. */
  setDraft(conversation, text) {
    conversation.draft = text;
    this.#save();
  }

  markRead(conversation) {
    if (conversation.unread === 0) return;
    conversation.unread = 0;
    this.#changed();
  }

  /** Loads older messages. */
  async older(conversation) {
    const room = conversation.kind === 'room';
    const archive = room ? this.room.archive : this.#archive;
    const before = conversation.messages.length;
    // A page of the archive may contain receipts only.
    while (archive && conversation.hasOlder && conversation.messages.length === before) {
      const { messages, first, complete } = await archive.older(conversation.olderThan, room ? undefined : conversation.address);
      const reader = (entry) => (room ? this.room.read(entry) : readMessage(entry, this.me));
      const read = messages.map(reader).filter(Boolean);
      conversation.addOlder(read.filter(({ message }) => message).map(({ message }) => message), first);
      for (const { receipt, mine } of read) if (receipt && !mine) conversation.delivered(receipt);
      conversation.hasOlder = !complete;
    }
    this.#changed();
  }

  setAway(away) {
    this.away = away;
    if (this.state.state === 'open') this.#sendPresence();
    this.#changed();
  }

  /** The conversations that are not rooms. */
  get #directConversations() {
    return [...this.conversations.values()].filter(({ kind }) => kind === 'chat');
  }

  // --- connections --------------------------------------------------------------------------------------------

  #connect() {
    const { username, domain, resource, password, key } = this.#account;
    let session;
    let channel;
    try {
      channel = this.#open({ probe: () => session.probe(), quiet: 10_000, timeout: 8_000 });
    } catch (error) {
      // An invalid URL, or one that the page's content security policy forbids: another attempt would fail, too.
      this.#retry.ended({ description: `Cannot connect: ${error.message}`, retry: false });
      return;
    }
    session = new Session(channel, { domain, resource, credentials: { username, password, key } });
    this.#session = session;
    this.#sender = new Sender(session, () => this.#changed());
    this.#feed.hold();
    const isCurrent = () => this.#session === session;
    session.onStanza('message', (stanza) => isCurrent() && this.#onMessage(stanza));
    session.onStanza('presence', (stanza) => isCurrent() && this.#onPresence(stanza));
    session.onSet(NS.roster, 'query', (query, { attrs }) => {
      if (isCurrent() && (!attrs.from || jid(attrs.from).bare().toString() === this.me)) this.#onRoster(query);
    });
    channel.addEventListener('stalled', ({ detail }) => {
      if (isCurrent()) this.#retry.describe(`No answer for ${Math.round(detail.ms / 1000)} s. Is the network down?`);
    });
    channel.addEventListener('recovered', () => isCurrent() && this.#retry.describe('Connected.'));
    session.ended.then((end) => isCurrent() && this.#ended(end));
    session.open().then(
      () => isCurrent() && this.#onLogin(session),
      () => {}, // handled by `ended`
    );
  }

  #ended({ description, retry, login }) {
    this.#session = undefined;
    this.#archive = undefined;
    this.#caughtUp = false;
    this.#sender = undefined;
    this.#owedReceipts = [];
    for (const conversation of this.conversations.values()) conversation.interrupted();
    for (const contact of this.contacts.values()) contact.devices.clear();
    this.room.disconnected();
    this.#changed();
    this.#retry.ended({ description, retry });
    if (login) this.dispatchEvent(new ChannelEvent('login', { detail: { description } }));
  }

  async #onLogin(session) {
    this.#account = { ...this.#account, key: session.key };
    this.#archive = new Archive(session, this.me, true);
    this.#retry.opened();
    try {
      session.ask('set', xml('enable', { xmlns: NS.carbons })).catch(() => {}); // optional
      const roster = await session.ask('get', xml('query', { xmlns: NS.roster }));
      this.contacts.clear();
      this.#onRoster(roster);
      this.#sendPresence();
      const direct = this.#catchUp(session);
      await Promise.all([direct, this.room.enter(session)]);
    } catch (error) {
      // The end of a session is handled elsewhere; any other error must be shown.
      const description = `Connected, but an error occurred: ${error.condition ?? error.message}.`;
      if (this.#session === session) this.#retry.describe(description);
    }
  }

  async #catchUp(session) {
    const complete = (await this.#feed.catchUp(this.#archive)) && session.exclusive;
    for (const { id, to } of this.#owedReceipts.splice(0)) this.#sendReceipt(id, to);
    if (this.#session !== session) return;
    this.#caughtUp = true;
    for (const conversation of this.#directConversations) {
      if (!complete) conversation.doubted();
      this.#transmitAll(conversation);
    }
    this.#changed();
  }

  #sendPresence() {
    const presence = () => xml('presence', {}, ...(this.away ? [xml('show', {}, 'away')] : []));
    this.#session.send(presence()).catch(() => {});
    this.room.sendPresence(presence());
  }

  // --- sending ------------------------------------------------------------------------------------------------

  #isReady({ kind }) {
    return kind === 'room' ? this.room.caughtUp : this.#caughtUp;
  }

  #transmitAll(conversation) {
    for (const message of conversation.outbox) {
      if (message.progress === 'waiting' || message.progress === 'unsure') this.#transmit(conversation, message);
    }
    this.#changed();
  }

  #transmit(conversation, message) {
    this.#feedOf(conversation).pin();
    this.#sender.send(conversation, message);
  }

  #feedOf({ kind }) {
    return kind === 'room' ? this.room.feed : this.#feed;
  }

  #sendReceipt(id, to) {
    if (this.#sentReceipts.has(id)) return;
    this.#sentReceipts.add(id);
    this.#sender?.sendReceipt(id, to);
  }

  // --- receiving ----------------------------------------------------------------------------------------------

  #onMessage(stanza) {
    if (this.#archive?.consume(stanza) || this.room.archive?.consume(stanza)) return;
    const from = stanza.attrs.from ? jid(stanza.attrs.from) : undefined;
    const sender = from?.bare().toString() ?? this.me;
    if (sender !== this.room.address) this.#onMessageFrom(sender, stanza);
    else if (stanza.attrs.type === 'error') this.room.bounced(stanza);
    else this.room.receive(stanza);
  }

  #onMessageFrom(sender, stanza) {
    const copy = stanza.getChild('sent', NS.carbons) ?? stanza.getChild('received', NS.carbons);
    if (copy && sender !== this.me) return; // only our own server may send carbon copies
    const inner = copy ? copy.getChild('forwarded', NS.forward)?.getChild('message') : stanza;
    if (!inner) return;
    const archiveId = inner.getChildren('stanza-id', NS.ids).find(({ attrs }) => attrs.by === this.me)?.attrs.id;
    this.#feed.receive({ archiveId, stanza: inner, when: Date.now() });
  }

  #onDirectMessage(entry, { live, fresh }) {
    const read = readMessage(entry, this.me);
    if (!read || read.partner === this.room.address) return;
    const { partner, mine, message, receipt, wantsReceipt, sender, bounce } = read;
    if (bounce) this.conversations.get(partner)?.failed(bounce.id, bounce.description);
    if (receipt && mine) this.#sentReceipts.add(receipt);
    else if (receipt) this.conversations.get(partner)?.delivered(receipt);
    if (message) {
      const conversation = this.conversation(partner);
      const isNew = conversation.add(message);
      if (isNew && fresh && !mine) conversation.unread += 1;
      if (wantsReceipt && live) this.#sendReceipt(message.id, sender);
      else if (wantsReceipt) this.#owedReceipts.push({ id: message.id, to: sender });
    }
    this.#changed();
  }

  #onPresence(stanza) {
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

  #onRoster(query) {
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

  // --- stored state -------------------------------------------------------------------------------------------

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
    const marks = { ...this.#tabState.marks, [this.me]: this.#feed.from, ...this.room.marks };
    this.#tabState.update({ outbox, drafts, marks });
  }

  #restore() {
    const { outbox = [], drafts = [] } = this.#tabState;
    for (const { address, kind, progress, ...message } of outbox) {
      // A message that was being sent when the page was closed is unsure, as after a lost connection.
      this.conversation(address, kind).compose({ ...message, progress: progress === 'sending' ? 'unsure' : progress });
    }
    for (const { address, kind, draft } of drafts) this.conversation(address, kind).draft = draft;
  }
}
