/**
 * Why a WebSocket was closed, as a description for the user, and whether to reconnect.
 *
 * The gateway sends a reason with every Close frame (docs/reasons.md lists them). The description is this reason after a
 * short prefix. Whether to reconnect depends on the close code alone: codes are stable, texts are for people.
 */

const MEANINGS = new Map([
  // code: prefix for a reason, sentence without a reason, reconnect?
  [1000, ['Closed', 'The other side closed the connection.', false]],
  [1001, ['Interrupted', 'The gateway is going away, perhaps to restart.', true]],
  [1002, ['Broken', 'This page and the gateway do not understand each other.', false]],
  [1003, ['Refused', 'The gateway does not accept this kind of message.', false]],
  [1005, ['Closed', 'The connection was closed.', false]],
  [1006, ['Connection lost', 'The connection was lost.', true]],
  [1007, ['Refused', 'The gateway received invalid text.', false]],
  [1008, ['Ended by the gateway', 'The gateway ended this session because of its policy.', false]],
  [1009, ['Refused', 'A message was too large.', false]],
  [1010, ['Refused', 'This page and the gateway do not understand each other.', false]],
  [1011, ['Failed', 'Something failed at the gateway or behind it.', true]],
  [1012, ['Restarting', 'The service is restarting.', true]],
  [1013, ['Busy', 'The service is busy.', true]],
  [1014, ['Failed', 'The gateway received no valid response from the server behind it.', true]],
  [1015, ['Not secure', 'No secure connection to the gateway.', false]],
  // Registered with IANA beside those of RFC 6455.
  [3000, ['Unauthorized', 'The service requires you to sign in.', false]],
  [3003, ['Forbidden', 'The service does not allow you to connect.', false]],
  [3008, ['Timeout', 'The service timed out.', true]],
]);

const NEVER_OPENED =
  'Could not connect: the gateway is down, the network is down, or the gateway refuses this page. ' +
  "Browsers hide the cause from pages; this browser's console shows it.";

/** Code 1000 has three causes: the server closed, or the session was idle or too old. Only the reason tells which. */
const SERVER_CLOSED = /^the server closed/;

/**
 * @param {object} end a `CloseEvent`, or an object with its fields
 * @param {number} end.code
 * @param {string} [end.reason] the reason in the Close frame
 * @param {boolean} [end.opened] whether the connection was ever open: 1006 without it means a failed attempt
 * @returns {{description: string, retry: boolean, byServer: boolean}} one or two sentences; whether reconnecting may
 *   help; and whether the server behind the gateway closed the connection cleanly. Then `retry` is false, because the
 *   server may have intended it; an application whose server has no other way to announce a restart reconnects anyway.
 */
export function describeClose({ code, reason = '', opened = true }) {
  if (code === 1006 && !opened && !reason) return { description: NEVER_OPENED, retry: true, byServer: false };
  // Codes 4000 to 4999 are the application's own: it ended the connection on purpose.
  const [prefix, sentence, retry] = MEANINGS.get(code) ?? ['Closed', `The other side closed the connection (code ${code}).`, false];
  const text = reason.trim();
  const description = text ? `${prefix}: ${text.replace(/[.!]$/, '')}.` : sentence;
  return { description, retry, byServer: code === 1000 && SERVER_CLOSED.test(text) };
}
