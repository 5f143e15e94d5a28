/** The view of the chat: the list of conversations, and the open one. It reads the chat and does not modify it. */

const PRESENCE = { here: 'here', chat: 'here', away: 'away', xa: 'away', dnd: 'away' };
const PRESENCE_TEXT = { here: 'here', away: 'away', gone: 'not here' };

const PROGRESS = {
  waiting: 'not sent yet',
  sending: 'sending…',
  unsure: 'not confirmed; sent again if it has not arrived',
  doubtful: 'may not have been sent',
  sent: 'sent',
  delivered: 'delivered',
  failed: 'not delivered',
};

const CLOCK = new Intl.DateTimeFormat([], { hour: '2-digit', minute: '2-digit' });
const DAY = new Intl.DateTimeFormat([], { day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' });

/** The list scrolls to new messages only if it is within this distance of its end. */
const NEAR_END_PX = 60;

export class View {
  #chat;
  #parts;
  #callbacks;
  #entries = new Map();
  #shown;
  #messages = new Map();

  /**
   * @param {import('./chat.js').Chat} chat
   * @param {Record<'conversations' | 'partner' | 'presence' | 'log' | 'messages' | 'older' | 'composer', HTMLElement>} parts
   * @param {{open: (conversation: object) => void, resend: (conversation: object, message: object) => void}} callbacks
   */
  constructor(chat, parts, callbacks) {
    this.#chat = chat;
    this.#parts = parts;
    this.#callbacks = callbacks;
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
    const entry = createElement('li');
    const button = createElement('button', 'entry');
    button.type = 'button';
    button.dataset.address = conversation.address;
    const [dot, unread] = [createElement('span', 'dot'), createElement('span', 'unread')];
    for (const picture of [dot, unread]) picture.setAttribute('aria-hidden', 'true'); // `about` has the same as text
    button.append(dot, createElement('span', 'name'), unread, createElement('span', 'about visually-hidden'), createElement('span', 'last'));
    button.addEventListener('click', () => this.#callbacks.open(conversation));
    entry.append(button);
    this.#entries.set(conversation.address, entry);
    return entry;
  }

  #fillEntry(button, conversation, isOpen) {
    const [dot, name, unread, about, last] = button.children;
    const presence = this.#presence(conversation);
    dot.dataset.presence = presence;
    setText(name, this.#name(conversation));
    unread.hidden = conversation.unread === 0;
    setText(unread, String(conversation.unread));
    const message = conversation.messages.findLast((one) => !one.gap);
    const there = conversation.kind === 'room' ? `${this.#chat.room.occupants.size} in the room` : PRESENCE_TEXT[presence];
    setText(about, `, ${there}, ${conversation.unread} unread. `);
    if (conversation.draft && !isOpen) setText(last, `Draft: ${conversation.draft}`);
    else setText(last, message ? `${message.mine ? 'You' : message.from}: ${message.text}` : there);
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
    setText(partner, this.#name(conversation));
    setText(presence, this.#about(conversation));
    composer.hidden = false;
    older.hidden = !conversation.hasOlder || conversation.messages.length === 0 || this.#chat.state.state !== 'open';
    conversation.messages.forEach((message, i) => {
      let item = this.#messages.get(message);
      if (!item) {
        item = message.gap ? createElement('li', 'gap') : this.#makeMessage(conversation, message);
        this.#messages.set(message, item);
      }
      if (message.gap) setText(item, message.text);
      else this.#fillMessage(item, message);
      if (messages.children[i] !== item) messages.insertBefore(item, messages.children[i] ?? null);
    });
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  #makeMessage(conversation, message) {
    const item = createElement('li', message.mine ? 'message mine' : 'message');
    const from = createElement('span', message.mine ? 'from visually-hidden' : 'from');
    from.textContent = message.mine ? 'You' : message.from;
    const text = createElement('div', 'text');
    text.textContent = message.text;
    const foot = createElement('div', 'foot');
    const resend = createElement('button', 'button small');
    resend.type = 'button';
    resend.textContent = 'Send again';
    resend.addEventListener('click', () => this.#callbacks.resend(conversation, message));
    foot.append(createElement('time'), createElement('span', 'progress'), resend);
    item.append(from, text, foot);
    return item;
  }

  #fillMessage(item, message) {
    const [time, progress, resend] = item.lastChild.children;
    item.dataset.id = message.id ?? '';
    item.dataset.progress = message.progress ?? '';
    const date = new Date(message.when);
    time.dateTime = date.toISOString();
    setText(time, (Date.now() - message.when < 43_200_000 ? CLOCK : DAY).format(date));
    setText(progress, message.failure ? `${PROGRESS[message.progress]}: ${message.failure}` : (PROGRESS[message.progress] ?? ''));
    resend.hidden = message.progress !== 'doubtful' && message.progress !== 'failed';
  }

  #name({ address, kind }) {
    if (kind === 'room') return `# ${address.split('@')[0]}`;
    return this.#chat.contacts.get(address)?.name ?? address;
  }

  #presence({ address, kind }) {
    if (kind === 'room') return this.#chat.room.caughtUp ? 'here' : 'gone';
    const devices = [...(this.#chat.contacts.get(address)?.devices.values() ?? [])].map((show) => PRESENCE[show] ?? 'here');
    if (devices.length === 0) return 'gone';
    return devices.includes('here') ? 'here' : 'away';
  }

  #about(conversation) {
    if (conversation.kind === 'chat') return `${conversation.address}, ${PRESENCE_TEXT[this.#presence(conversation)]}`;
    const { description, occupants } = this.#chat.room;
    return description || (occupants.size ? `In the room: ${[...occupants.keys()].sort().join(', ')}` : 'Not in the room');
  }
}

function createElement(tag, className = '') {
  const element = document.createElement(tag);
  element.className = className;
  return element;
}

/** Changes the text only if it differs, so that screen readers do not announce it again. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
