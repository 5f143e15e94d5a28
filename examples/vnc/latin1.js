/**
 * The characters of `text` that a VNC server of the old kind cannot take: its clipboard is ISO 8859-1 (RFC 6143 §7.5.6),
 * and noVNC sends a question mark for each of them. Each is named once, in the order of the text.
 */
export function beyondLatin1(text) {
  return [...new Set(text)].filter((character) => character.codePointAt(0) > 0xff);
}
