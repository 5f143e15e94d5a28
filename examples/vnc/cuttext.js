/**
 * The two encodings of clipboard text that VNC servers use.
 *
 * 'standard': the protocol's ISO 8859-1 (RFC 6143 §7.5.6), and an extension of newer servers for other characters; noVNC
 * implements both. 'utf-8': an X server with a cut buffer passes on its bytes unchanged, and current programs store UTF-8
 * there. noVNC maps each byte to a character, so it gets one character for each byte of UTF-8.
 *
 * @typedef {'standard' | 'utf-8'} Encoding
 */

/**
 * Encodes `text` for noVNC.
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
 * Decodes text from noVNC. Text that is not valid UTF-8 is taken as ISO 8859-1, which old programs use.
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
 * The characters of `text` that the desktop may show as question marks, once each: those outside ISO 8859-1, unless the
 * encoding is UTF-8.
 *
 * @param {string} text
 * @param {Encoding} encoding
 */
export function atRisk(text, encoding) {
  if (encoding === 'utf-8') return [];
  return [...new Set(text)].filter((character) => character.codePointAt(0) > 0xff);
}
