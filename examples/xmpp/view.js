/** How a chat looks: the list of conversations, and the one that is open. It asks the chat and changes nothing of it. */

const PRESENCE = { here: 'here', chat: 'here', away: 'away', xa: 'away', dnd: 'away' };
const PRESENCE_WORDS = { here: 'here', away: 'away', gone: 'not here' };

const PROGRESS = {
  waiting: 'not sent yet',
  sending: 'sending…',
  unsure: 'not delivered yet; will be sent when it is sure that it was not',
  doubtful: 'perhaps not sent',
  sent: 'sent',
  delivered: 'delivered',
  failed: 'not delivered',
};

const CLOCK = new Intl.DateTimeFormat([], { hour: '2-digit', minute: '2-digit' });
const DAY = new Intl.DateTimeFormat([], { day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' });

/** Somebody who has scrolled back to read is left there. */
const NEAR_END_PX = 60;

export class View {
  #chat;
  #parts;
  #calls;
  #entries = new Map();
  #shown;
  #messages = new Map();

  /**
   * @param {import('./chat.js').Chat} chat
   * @param {Record<'conversations' | 'partner' | 'presence' | 'log' | 'messages' | 'older' | 'composer', HTMLElement>} parts
   * @param {{open: (conversation: object) => void, again: (conversation: object, message: object) => void}} calls
   */
  constructor(chat, parts, calls) {
    this.#chat = chat;
    this.#parts = parts;
    this.#calls = calls;
    parts.conversations.replaceChildren();
    parts.messages.replaceChildren();
  }

  /** @param {import('./conversation.js').Conversation} [open] the conversation that is shown */
  render(open) {
    this.#renderList(open);
    if (open) this.#renderConversation(open);
    const unread = [...this.#chat.conversations.values()].reduce((sum, one) => sum + one.unread, 0);
    document.title = unread ? `(${unread}) Chat` : 'Chat';
  }

  #renderList(open) {
    const rooms = (one) => (one.kind === 'room' ? 0 : 1);
    const all = [...this.#chat.conversations.values()];
    all.sort((a, b) => rooms(a) - rooms(b) || this.#name(a).localeCompare(this.#name(b)));
    all.forEach((conversation, i) => {
      const entry = this.#entries.get(conversation.address) ?? this.#makeEntry(conversation);
      this.#fillEntry(entry.firstChild, conversation, conversation === open);
      const { conversations } = this.#parts;
      if (conversations.children[i] !== entry) conversations.insertBefore(entry, conversations.children[i] ?? null);
    });
  }

  #makeEntry(conversation) {
    const entry = part('li');
    const button = part('button', 'entry');
    button.type = 'button';
    button.dataset.address = conversation.address;
    const [dot, unread] = [part('span', 'dot'), part('span', 'unread')];
    for (const picture of [dot, unread]) picture.setAttribute('aria-hidden', 'true'); // `about` says it in words
    button.append(dot, part('span', 'name'), unread, part('span', 'about unseen'), part('span', 'last'));
    button.addEventListener('click', () => this.#calls.open(conversation));
    entry.append(button);
    this.#entries.set(conversation.address, entry);
    return entry;
  }

  #fillEntry(button, conversation, isOpen) {
    const [dot, name, unread, about, last] = button.children;
    const presence = this.#presence(conversation);
    dot.dataset.presence = presence;
    say(name, this.#name(conversation));
    unread.hidden = conversation.unread === 0;
    say(unread, String(conversation.unread));
    const message = conversation.messages.findLast((one) => !one.gap);
    const there = conversation.kind === 'room' ? `${this.#chat.room.occupants.size} in the room` : PRESENCE_WORDS[presence];
    say(about, `, ${there}, ${conversation.unread} unread. `);
    if (conversation.draft && !isOpen) say(last, `Draft: ${conversation.draft}`);
    else say(last, message ? `${message.mine ? 'You' : message.from}: ${message.text}` : there);
    button.setAttribute('aria-current', String(isOpen));
  }

  #renderConversation(conversation) {
    const { partner, presence, log, messages, older, composer } = this.#parts;
    const switched = this.#shown !== conversation;
    if (switched) {
      this.#shown = conversation;
      this.#messages.clear();
      messages.replaceChildren();
    }
    const atEnd = switched || log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
    say(partner, this.#name(conversation));
    say(presence, this.#about(conversation));
    composer.hidden = false;
    older.hidden = !conversation.hasOlder || conversation.messages.length === 0 || this.#chat.state.state !== 'open';
    conversation.messages.forEach((message, i) => {
      let item = this.#messages.get(message);
      if (!item) {
        item = message.gap ? part('li', 'gap') : this.#makeMessage(conversation, message);
        this.#messages.set(message, item);
      }
      if (message.gap) say(item, message.text);
      else this.#fillMessage(item, message);
      if (messages.children[i] !== item) messages.insertBefore(item, messages.children[i] ?? null);
    });
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  #makeMessage(conversation, message) {
    const item = part('li', message.mine ? 'message mine' : 'message');
    const from = part('span', message.mine ? 'from unseen' : 'from');
    from.textContent = message.mine ? 'You' : message.from;
    const text = part('div', 'text');
    text.textContent = message.text;
    const foot = part('div', 'foot');
    const again = part('button', 'button small');
    again.type = 'button';
    again.textContent = 'Send again';
    again.addEventListener('click', () => this.#calls.again(conversation, message));
    foot.append(part('time'), part('span', 'progress'), again);
    item.append(from, text, foot);
    return item;
  }

  #fillMessage(item, message) {
    const [time, progress, again] = item.lastChild.children;
    item.dataset.id = message.id ?? '';
    item.dataset.progress = message.progress ?? '';
    const date = new Date(message.when);
    time.dateTime = date.toISOString();
    say(time, (Date.now() - message.when < 43_200_000 ? CLOCK : DAY).format(date));
    say(progress, message.words ? `${PROGRESS[message.progress]}: ${message.words}` : (PROGRESS[message.progress] ?? ''));
    again.hidden = message.progress !== 'doubtful' && message.progress !== 'failed';
  }

  #name({ address, kind }) {
    if (kind === 'room') return `# ${address.split('@')[0]}`;
    return this.#chat.contacts.get(address)?.name ?? address;
  }

  #presence({ address, kind }) {
    if (kind === 'room') return this.#chat.room.settled ? 'here' : 'gone';
    const devices = [...(this.#chat.contacts.get(address)?.devices.values() ?? [])].map((show) => PRESENCE[show] ?? 'here');
    if (devices.length === 0) return 'gone';
    return devices.includes('here') ? 'here' : 'away';
  }

  #about(conversation) {
    if (conversation.kind === 'chat') return `${conversation.address}, ${PRESENCE_WORDS[this.#presence(conversation)]}`;
    const { words, occupants } = this.#chat.room;
    return words || (occupants.size ? `In the room: ${[...occupants.keys()].sort().join(', ')}` : 'Not in the room');
  }
}

function part(tag, className = '') {
  const element = document.createElement(tag);
  element.className = className;
  return element;
}

/** Changes the text only if it is another, so that nothing is read aloud twice. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
