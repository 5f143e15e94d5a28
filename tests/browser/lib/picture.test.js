import assert from 'node:assert/strict';
import test from 'node:test';

import { Picture, colour } from './picture.js';

const RED = [255, 0, 0, 255];
const BLUE = [0, 0, 255, 255];

function picture(width, height, ...pixels) {
  return new Picture(width, height, Buffer.from(pixels.flat()));
}

/** A dump of one TrueColor window with `masks` for red, green and blue; each line is padded by `padding` bytes. */
function xwd({ width, height, lsbFirst, colours = 0, padding = 0, masks = [0xff0000, 0xff00, 0xff], pixels }) {
  const name = Buffer.from('root\0');
  const header = Buffer.alloc(100);
  const lineBytes = width * 4 + padding;
  const fields = { 0: 100 + name.length, 1: 7, 2: 2, 3: 24, 4: width, 5: height, 7: lsbFirst ? 0 : 1, 11: 32 };
  Object.assign(fields, { 12: lineBytes, 14: masks[0], 15: masks[1], 16: masks[2], 19: colours });
  for (const [index, value] of Object.entries(fields)) header.writeUInt32BE(value, index * 4);
  const image = Buffer.alloc(lineBytes * height);
  pixels.forEach((pixel, i) => {
    const at = Math.floor(i / width) * lineBytes + (i % width) * 4;
    if (lsbFirst) image.writeUInt32LE(pixel, at);
    else image.writeUInt32BE(pixel, at);
  });
  return Buffer.concat([header, name, Buffer.alloc(colours * 12, 0xee), image]);
}

test('a dump is read in either byte order, past its name, its colour map and its padding', () => {
  for (const lsbFirst of [true, false]) {
    const dump = xwd({ width: 2, height: 2, lsbFirst, colours: 3, padding: 8, pixels: [0xff0000, 0x00ff00, 0x0000ff, 0x102030] });
    const read = Picture.fromXwd(dump);
    assert.deepEqual([read.at(0, 0), read.at(1, 0), read.at(0, 1), read.at(1, 1)], ['#ff0000', '#00ff00', '#0000ff', '#102030']);
  }
});

test('the masks of a dump define red, green and blue', () => {
  const read = Picture.fromXwd(xwd({ width: 1, height: 1, lsbFirst: true, masks: [0xff, 0xff00, 0xff0000], pixels: [0x302010] }));
  assert.equal(read.at(0, 0), '#102030');
});

test('a dump of another kind is refused', () => {
  const dump = xwd({ width: 1, height: 1, lsbFirst: true, pixels: [0] });
  dump.writeUInt32BE(8, 11 * 4);
  assert.throws(() => Picture.fromXwd(dump), /not a 32 bit ZPixmap dump: version 7, format 2, 8 bit/);
});

test('the share of a colour is counted with a tolerance', () => {
  const four = picture(2, 2, RED, [240, 20, 10, 255], BLUE, [200, 0, 0, 255]);
  assert.equal(four.share('#ff0000'), 0.5);
  assert.equal(four.share('#00ff00'), 0);
});

test('part returns the pixels of an area', () => {
  const six = picture(3, 2, BLUE, BLUE, BLUE, BLUE, RED, RED);
  assert.equal(six.part({ x: 1, y: 1, width: 2, height: 1 }).share('#ff0000'), 1);
  assert.equal(six.part({ x: 0, y: 0, width: 2, height: 2 }).share('#ff0000'), 0.25);
});

test('similarity is the share of equal pixels, and 0 for another size', () => {
  assert.equal(picture(2, 1, RED, BLUE).similarity(picture(2, 1, RED, RED)), 0.5);
  assert.equal(picture(2, 1, RED, BLUE).similarity(picture(1, 2, RED, BLUE)), 0);
});

test('an invalid colour or buffer is an error', () => {
  assert.deepEqual(colour('#0a0B0c'), [10, 11, 12]);
  assert.throws(() => colour('red'), /not a colour of the form #rrggbb: red/);
  assert.throws(() => new Picture(2, 2, Buffer.alloc(4)), /2x2 pixels need 16 bytes, not 4/);
});
