/**
 * What we say in one session, and the proof that the server has it. It decides nothing: which messages are to be sent, and
 * whether again, is the chat's business.
 */

import xml from '@xmpp/xml';

import { NS } from './stanzas.js';

export class Sender {
  #session;
  #changed;
  #unproven = new Set();
  #proving = false;

  /**
   * @param {import('./session.js').Session} session
   * @param {() => void} changed is called when more is known about a message
   */
  constructor(session, changed) {
    this.#session = session;
    this.#changed = changed;
  }

  /**
   * @param {import('./conversation.js').Conversation} conversation
   * @param {import('./conversation.js').Message} message
   */
  say(conversation, message) {
    const room = conversation.kind === 'room';
    conversation.sending(message);
    const stanza = xml(
      'message',
      { to: conversation.address, type: room ? 'groupchat' : 'chat', id: message.id },
      xml('body', {}, message.text),
      xml('origin-id', { xmlns: NS.ids, id: message.id }),
      ...(room ? [] : [xml('request', { xmlns: NS.receipts })]),
    );
    this.#send(stanza);
    // A room says it to everybody, to us as well. Of all else we know by the next answer.
    if (room) return;
    this.#unproven.add([conversation, message]);
    this.#prove();
  }

  /** Tells `to` that we have the message with this id (XEP-0184). */
  receipt(id, to) {
    this.#send(xml('message', { to }, xml('received', { xmlns: NS.receipts, id })));
  }

  #send(stanza) {
    this.#session.send(stanza).catch(() => {}); // whether it arrived is found out at the next login
  }

  /** Finds out that the server has what was sent: one question for as many messages as there are. */
  async #prove() {
    if (this.#proving) return;
    this.#proving = true;
    try {
      while (this.#unproven.size > 0) {
        const asked = [...this.#unproven];
        await this.#session.handled();
        for (const one of asked) {
          this.#unproven.delete(one);
          const [conversation, message] = one;
          conversation.sent(message);
        }
        this.#changed();
      }
    } catch {
      // The session has ended, or is about to: then they are unsure.
    } finally {
      this.#proving = false;
    }
  }
}
