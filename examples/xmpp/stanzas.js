/** Namespaces, and functions that read message stanzas. No state, no I/O. */

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
  'service-unavailable': 'This address does not exist.',
  'item-not-found': 'This address does not exist.',
  'remote-server-not-found': 'The server of this address cannot be found.',
  'remote-server-timeout': 'The server of this address does not answer.',
  'not-acceptable': 'You are not in this room.',
  forbidden: 'You are not allowed to write here.',
  'policy-violation': 'The server does not accept this message.',
};

/**
 * Reads a message stanza between two users.
 *
 * @param {import('./archive.js').ArchivedMessage} entry
 * @param {string} me our bare address
 * @returns its parts, or undefined if it is to be ignored
 */
export function readMessage({ archiveId, stanza, when }, me) {
  const { id, type } = stanza.attrs;
  if (type === 'groupchat' || type === 'headline') return undefined;
  const sender = stanza.attrs.from ?? me;
  const from = bare(sender);
  if (type === 'error') return { partner: from, bounce: { id, description: bounceReason(stanza) } };
  const mine = from === me;
  const partner = mine ? bare(stanza.attrs.to ?? me) : from;
  const receipt = stanza.getChild('received', NS.receipts)?.attrs.id;
  const text = stanza.getChildText('body');
  const message = text ? { archiveId, id, from: nameOf(from), mine, text, when } : undefined;
  const wantsReceipt = Boolean(message && !mine && id && stanza.getChild('request', NS.receipts));
  return { partner, mine, sender, message, receipt, wantsReceipt };
}

/** Why a message was returned, for the user. */
export function bounceReason(stanza) {
  const error = stanza.getChild('error');
  const condition = error?.getChildElements().find(({ name }) => name !== 'text')?.name;
  return BOUNCES[condition] ?? error?.getChildText('text') ?? `Delivery failed: ${condition ?? 'no reason given'}.`;
}

function bare(address) {
  return jid(address).bare().toString();
}

function nameOf(address) {
  return jid(address).local || address;
}
