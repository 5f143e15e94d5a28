/**
 * Sends messages in one session, and finds out when the server has them. Which messages to send, and whether to send one
 * again, is decided by the chat.
 */

import xml from '@xmpp/xml';

import { NS } from './stanzas.js';

export class Sender {
  #session;
  #changed;
  #unconfirmed = new Set();
  #confirming = false;

  /**
   * @param {import('./session.js').Session} session
   * @param {() => void} changed called when the progress of a message has changed
   */
  constructor(session, changed) {
    this.#session = session;
    this.#changed = changed;
  }

  /**
   * @param {import('./conversation.js').Conversation} conversation
   * @param {import('./conversation.js').Message} message
   */
  send(conversation, message) {
    const room = conversation.kind === 'room';
    conversation.sending(message);
    const stanza = xml(
      'message',
      { to: conversation.address, type: room ? 'groupchat' : 'chat', id: message.id },
      xml('body', {}, message.text),
      xml('origin-id', { xmlns: NS.ids, id: message.id }),
      ...(room ? [] : [xml('request', { xmlns: NS.receipts })]),
    );
    this.#sendStanza(stanza);
    // A room sends the message to all occupants, including us. All others are confirmed by the next response.
    if (room) return;
    this.#unconfirmed.add([conversation, message]);
    this.#confirm();
  }

  /** Confirms to `to` the receipt of the message with this id (XEP-0184). */
  sendReceipt(id, to) {
    this.#sendStanza(xml('message', { to }, xml('received', { xmlns: NS.receipts, id })));
  }

  #sendStanza(stanza) {
    this.#session.send(stanza).catch(() => {}); // the next login finds out whether it arrived
  }

  /** Confirms that the server has all sent messages: one request for all of them. */
  async #confirm() {
    if (this.#confirming) return;
    this.#confirming = true;
    try {
      while (this.#unconfirmed.size > 0) {
        const batch = [...this.#unconfirmed];
        await this.#session.handled();
        for (const one of batch) {
          this.#unconfirmed.delete(one);
          const [conversation, message] = one;
          conversation.sent(message);
        }
        this.#changed();
      }
    } catch {
      // The session has ended: the messages become unsure.
    } finally {
      this.#confirming = false;
    }
  }
}
