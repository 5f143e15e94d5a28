// A large test image: a drawn face, as a PNG without compression.

import { deflateSync } from 'node:zlib';

/** @returns {{width: number, height: number, file: Buffer, rgba: Buffer}} the PNG file, and its pixels in a canvas' format */
export function testImage(width, height) {
  const rows = Buffer.alloc(height * (1 + width * 3));
  const rgba = Buffer.alloc(width * height * 4, 0xff);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      // Coordinates from -1 to 1, from the centre.
      const colour = paint((2 * x) / width - 1, (2 * y) / height - 1);
      rows.set(colour, y * (1 + width * 3) + 1 + x * 3);
      rgba.set(colour, (y * width + x) * 4);
    }
  }
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

function paint(x, y) {
  const [eye, mouth] = [Math.hypot(Math.abs(x) - 0.3, y + 0.15), Math.hypot(x, y - 0.1)];
  if (eye < 0.09 || (y > 0.15 && Math.abs(mouth - 0.42) < 0.05)) return [23, 33, 29];
  if (Math.hypot(x, y) < 0.8) return [246, 196 + Math.round(y * 30), 83];
  return [29, 110 + Math.round(y * 40), 120 + Math.round(x * 40)];
}
