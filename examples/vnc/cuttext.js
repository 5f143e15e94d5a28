/**
 * The clipboard in the two ways that VNC servers understand it.
 *
 * By the protocol its text is ISO 8859-1 (RFC 6143 §7.5.6), and newer servers have an extension for the rest; noVNC does
 * both: 'standard'. An X server with a cut buffer passes on whatever bytes are in there, though, and today's programs put
 * UTF-8 there: 'utf-8'. Then noVNC, which sees a character in every byte, is given one character for every byte.
 *
 * @typedef {'standard' | 'utf-8'} Encoding
 */

/**
 * What noVNC is to send, so that the desktop gets `text`.
 *
 * @param {string} text
 * @param {Encoding} encoding
 */
export function toCutText(text, encoding) {
  if (encoding === 'standard') return text;
  let bytes = '';
  for (const byte of new TextEncoder().encode(text)) bytes += String.fromCharCode(byte);
  return bytes;
}

/**
 * What the desktop meant with what noVNC got. Text that is no UTF-8 is taken for ISO 8859-1: old programs are about, too.
 *
 * @param {string} text
 * @param {Encoding} encoding
 */
export function fromCutText(text, encoding) {
  if (encoding === 'standard') return text;
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return text;
  }
}

/**
 * The characters of `text` that the desktop may get as question marks, once each: those beyond ISO 8859-1, unless it is
 * known to take UTF-8.
 *
 * @param {string} text
 * @param {Encoding} encoding
 */
export function atRisk(text, encoding) {
  if (encoding === 'utf-8') return [];
  return [...new Set(text)].filter((character) => character.codePointAt(0) > 0xff);
}
