// A picture that cannot be made smaller: a PNG of chance, stored without compression.

import { randomBytes } from 'node:crypto';
import { deflateSync } from 'node:zlib';

/** @returns {{width: number, height: number, file: Buffer, rgba: Buffer}} the PNG, and its pixels as a canvas has them */
export function noise(width, height) {
  const random = randomBytes(width * height * 3);
  const rows = Buffer.alloc(height * (1 + width * 3));
  const rgba = Buffer.alloc(width * height * 4, 0xff);
  for (let y = 0; y < height; y++) {
    random.copy(rows, y * (1 + width * 3) + 1, y * width * 3, (y + 1) * width * 3);
  }
  for (let i = 0; i < width * height; i++) random.copy(rgba, i * 4, i * 3, i * 3 + 3);
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2, 0, 0, 0], 8); // 8 bits for each of red, green and blue
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  const file = Buffer.concat([signature, chunk('IHDR', header), chunk('IDAT', deflateSync(rows, { level: 0 })), chunk('IEND', Buffer.alloc(0))]);
  return { width, height, file, rgba };
}

function chunk(type, data) {
  const name = Buffer.from(type, 'latin1');
  const [length, check] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(data.length);
  check.writeUInt32BE(checksum(Buffer.concat([name, data])));
  return Buffer.concat([length, name, data, check]);
}

/** The CRC-32 of PNG (ISO 3309). */
function checksum(bytes) {
  let crc = ~0;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return ~crc >>> 0;
}

const TABLE = Int32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});
