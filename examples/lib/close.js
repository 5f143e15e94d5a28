/**
 * What the end of a WebSocket means, in words for the person in front of the page, and whether to try again.
 *
 * The gateway sends a reason with every Close frame (docs/reasons.md is its list); it is shown as it is, behind a word or
 * two of ours. Whether to try again is decided by the code alone: a code is stable, a text is for people.
 */

const MEANINGS = new Map([
  // code: lead for a reason, whole sentence without one, try again?
  [1000, ['Closed', 'The other side closed the connection.', false]],
  [1001, ['Interrupted', 'The gateway is going away, perhaps to restart.', true]],
  [1002, ['Broken', 'This page and the gateway do not understand each other.', false]],
  [1003, ['Refused', 'The gateway does not take this kind of message.', false]],
  [1005, ['Closed', 'The connection was closed.', false]],
  [1006, ['Connection lost', 'The connection was lost.', true]],
  [1007, ['Refused', 'The gateway got text that is none.', false]],
  [1008, ['Ended by the gateway', 'The gateway ended this session: its rules do not allow it any longer.', false]],
  [1009, ['Refused', 'A message was too large.', false]],
  [1010, ['Refused', 'This page and the gateway do not understand each other.', false]],
  [1011, ['Failed', 'Something failed at the gateway or behind it.', true]],
  [1012, ['Restarting', 'The service is restarting.', true]],
  [1013, ['Busy', 'The service is busy.', true]],
  [1014, ['Failed', 'The gateway got no proper answer from the server behind it.', true]],
  [1015, ['Not secure', 'No secure connection to the gateway.', false]],
  // Registered with IANA beside those of RFC 6455.
  [3000, ['Not let in', 'The service wants to know who you are.', false]],
  [3003, ['Not let in', 'The service does not let you in.', false]],
  [3008, ['Too slow', 'The service waited too long.', true]],
]);

const NEVER_OPENED =
  'Could not connect: the gateway is down, the network is, or the gateway refuses this page. ' +
  "Browsers do not tell pages which; this browser's console does.";

/** 1000 says three things: the server has closed, and that the session was idle or old. Only the words tell which. */
const SERVER_CLOSED = /^the server closed/;

/**
 * @param {object} end the `CloseEvent`, or what one would say
 * @param {number} end.code
 * @param {string} [end.reason] what the other side said
 * @param {boolean} [end.opened] whether the connection was ever open; 1006 means something else if it was not
 * @returns {{words: string, retry: boolean, byServer: boolean}} one or two sentences; whether another try may help; and
 *   whether it was the server behind the gateway that ended it in good order. There `retry` is false, for the server may
 *   have meant it; an application whose server has no other way to say that it restarts tries again.
 */
export function describeClose({ code, reason = '', opened = true }) {
  if (code === 1006 && !opened && !reason) return { words: NEVER_OPENED, retry: true, byServer: false };
  // 4000 to 4999 belong to the application: it meant what it said.
  const [lead, sentence, retry] = MEANINGS.get(code) ?? ['Closed', `The other side closed the connection (code ${code}).`, false];
  const said = reason.trim();
  const words = said ? `${lead}: ${said.replace(/[.!]$/, '')}.` : sentence;
  return { words, retry, byServer: code === 1000 && SERVER_CLOSED.test(said) };
}
