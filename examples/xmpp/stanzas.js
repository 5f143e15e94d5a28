/** What stanzas say: their namespaces, and how a message is read. Pure. */

import jid from '@xmpp/jid';

export const NS = {
  roster: 'jabber:iq:roster',
  carbons: 'urn:xmpp:carbons:2',
  forward: 'urn:xmpp:forward:0',
  ids: 'urn:xmpp:sid:0',
  receipts: 'urn:xmpp:receipts',
  muc: 'http://jabber.org/protocol/muc',
  mucUser: 'http://jabber.org/protocol/muc#user',
  occupant: 'urn:xmpp:occupant-id:0',
  info: 'http://jabber.org/protocol/disco#info',
  items: 'http://jabber.org/protocol/disco#items',
};

const BOUNCES = {
  'service-unavailable': 'There is nobody with this address.',
  'item-not-found': 'There is nobody with this address.',
  'remote-server-not-found': 'The server of this address cannot be found.',
  'remote-server-timeout': 'The server of this address does not answer.',
  'not-acceptable': 'You are not in this room.',
  forbidden: 'You may not speak here.',
  'policy-violation': 'The server does not take this message.',
};

/**
 * Reads a message between two people.
 *
 * @param {import('./archive.js').Kept} told
 * @param {string} me our bare address
 * @returns what it is, or undefined if nothing of it is ours to show
 */
export function readMessage({ archiveId, stanza, when }, me) {
  const { id, type } = stanza.attrs;
  if (type === 'groupchat' || type === 'headline') return undefined;
  const sender = stanza.attrs.from ?? me;
  const from = bare(sender);
  if (type === 'error') return { partner: from, bounce: { id, words: bounceWords(stanza) } };
  const mine = from === me;
  const partner = mine ? bare(stanza.attrs.to ?? me) : from;
  const receipt = stanza.getChild('received', NS.receipts)?.attrs.id;
  const text = stanza.getChildText('body');
  const message = text ? { archiveId, id, from: nameOf(from), mine, text, when } : undefined;
  const wantsReceipt = Boolean(message && !mine && id && stanza.getChild('request', NS.receipts));
  return { partner, mine, sender, message, receipt, wantsReceipt };
}

/** Why a message came back, in words. */
export function bounceWords(stanza) {
  const error = stanza.getChild('error');
  const condition = error?.getChildElements().find(({ name }) => name !== 'text')?.name;
  return BOUNCES[condition] ?? error?.getChildText('text') ?? `It came back: ${condition ?? 'nobody said why'}.`;
}

function bare(address) {
  return jid(address).bare().toString();
}

function nameOf(address) {
  return jid(address).local || address;
}
