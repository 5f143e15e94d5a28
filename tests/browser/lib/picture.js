// Images as plain pixels, and the comparisons that the tests need. No browser, no files.

/** The tolerance of a channel: noVNC's Tight encoding may send parts of the screen as JPEG. */
const TOLERANCE = 32;

/** A colour "#rrggbb" as [red, green, blue]. */
export function colour(text) {
  const found = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(text);
  if (!found) throw new Error(`not a colour of the form #rrggbb: ${text}`);
  return found.slice(1).map((channel) => parseInt(channel, 16));
}

/** An image of `width` by `height` pixels, four bytes (RGBA) each, row by row from the top left. */
export class Picture {
  constructor(width, height, rgba) {
    if (rgba.length !== width * height * 4) {
      throw new Error(`${width}x${height} pixels need ${width * height * 4} bytes, not ${rgba.length}`);
    }
    this.width = width;
    this.height = height;
    this.rgba = rgba;
  }

  /** Reads the picture in an X Window Dump of a TrueColor screen, as `xwd` writes it (XWDFile.h). */
  static fromXwd(dump) {
    const field = (index) => dump.readUInt32BE(index * 4);
    const [headerSize, version, format] = [field(0), field(1), field(2)];
    const [width, height, lsbFirst, bitsPerPixel] = [field(4), field(5), field(7) === 0, field(11)];
    const [bytesPerLine, masks, colours] = [field(12), [field(14), field(15), field(16)], field(19)];
    if (version !== 7 || format !== 2 || bitsPerPixel !== 32) {
      throw new Error(`not a 32 bit ZPixmap dump: version ${version}, format ${format}, ${bitsPerPixel} bit`);
    }
    const COLOUR_ENTRY = 12;
    const start = headerSize + colours * COLOUR_ENTRY;
    const shifts = masks.map((mask) => Math.log2(mask & -mask));
    const rgba = Buffer.alloc(width * height * 4, 255);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const from = start + y * bytesPerLine + x * 4;
        const pixel = lsbFirst ? dump.readUInt32LE(from) : dump.readUInt32BE(from);
        for (let i = 0; i < 3; i++) {
          rgba[(y * width + x) * 4 + i] = (pixel & masks[i]) >>> shifts[i];
        }
      }
    }
    return new Picture(width, height, rgba);
  }

  /** The colour at a point as "#rrggbb". */
  at(x, y) {
    const from = (y * this.width + x) * 4;
    return `#${Buffer.from(this.rgba.subarray(from, from + 3)).toString('hex')}`;
  }

  /** The part of the picture inside `area` ({x, y, width, height}). */
  part({ x, y, width, height }) {
    const rows = [];
    for (let row = y; row < y + height; row++) {
      const from = (row * this.width + x) * 4;
      rows.push(this.rgba.subarray(from, from + width * 4));
    }
    return new Picture(width, height, Buffer.concat(rows));
  }

  /** The share of pixels, 0 to 1, of about this colour. */
  share(text) {
    const wanted = colour(text);
    return this.#count((from) => wanted.every((value, i) => near(this.rgba[from + i], value)));
  }

  /** The share of pixels, 0 to 1, that are about the same in `other`; 0 for another size. */
  similarity(other) {
    if (other.width !== this.width || other.height !== this.height) return 0;
    return this.#count((from) => [0, 1, 2].every((i) => near(this.rgba[from + i], other.rgba[from + i])));
  }

  #count(holds) {
    let found = 0;
    for (let from = 0; from < this.rgba.length; from += 4) {
      if (holds(from)) found++;
    }
    return found / (this.width * this.height);
  }
}

function near(a, b) {
  return Math.abs(a - b) <= TOLERANCE;
}
