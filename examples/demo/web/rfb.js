// A minimal RFB 3.8 viewer (RFC 6143): security None, Raw encoding, true colour. Anything else is refused with an error
// message.

import { ByteStream, StreamClosed } from "./stream.js";

const MAX_SIDE = 8192; // pixels; a larger desktop is an error or an attack
const MAX_TEXT = 64 * 1024; // bytes of a name or a reason

export class ProtocolError extends Error {}

// One session, from the handshake to the close. `on` has callbacks:
//   step(name, detail)   a stage was reached: "socket", "version", "security", "init", "streaming"
//   size(width, height)  the canvas now has this size
//   update(rectangles)   a FramebufferUpdate was painted
//   end({ code, reason, clean, opened, error })  the session has ended; the last callback
export class Session {
  #socket;
  #stream = new ByteStream();
  #canvas;
  #on;
  #error = null;
  #ready = false;
  #paused = false;
  #requested = false;
  #full = true;
  #size = { width: 0, height: 0 };

  // Counters since the start: WebSocket payload bytes, messages, updates, rectangles.
  counts = { bytesIn: 0, bytesOut: 0, messagesIn: 0, messagesOut: 0, updates: 0, rectangles: 0 };

  constructor(url, canvas, on) {
    this.#canvas = canvas;
    this.#on = on;
    let opened = false;
    const socket = (this.#socket = new WebSocket(url, ["binary"]));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      opened = true;
      on.step("socket", { subprotocol: socket.protocol });
      this.#run().catch((error) => this.#fail(error));
    };
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") {
        this.#fail(new ProtocolError("the gateway sent text; RFB is binary"));
        return;
      }
      this.counts.messagesIn += 1;
      this.counts.bytesIn += data.byteLength;
      this.#stream.push(new Uint8Array(data));
    };
    socket.onclose = ({ code, reason, wasClean }) => {
      this.#ready = false;
      this.#stream.close();
      on.end({ code, reason, clean: wasClean, opened, error: this.#error });
    };
  }

  close() {
    this.#socket.close(1000, "the viewer was closed");
  }

  // The RFB client requests updates: without requests the server sends nothing, and the session idles.
  pause(paused) {
    this.#paused = paused;
    if (!paused) this.#requestUpdate();
  }

  pointer(buttons, x, y) {
    if (!this.#ready) return;
    const message = new DataView(new ArrayBuffer(6));
    message.setUint8(0, 5);
    message.setUint8(1, buttons);
    message.setUint16(2, clamp(x, this.#size.width));
    message.setUint16(4, clamp(y, this.#size.height));
    this.#send(message);
  }

  key(keysym, down) {
    if (!this.#ready) return;
    const message = new DataView(new ArrayBuffer(8));
    message.setUint8(0, 4);
    message.setUint8(1, down ? 1 : 0);
    message.setUint32(4, keysym);
    this.#send(message);
  }

  async #run() {
    await this.#version();
    await this.#security();
    await this.#initialise();
    this.#ready = true;
    this.#requestUpdate();
    for (;;) await this.#message();
  }

  async #version() {
    const line = ascii(await this.#stream.take(12));
    const [, major, minor] = line.match(/^RFB (\d{3})\.(\d{3})\n$/) ?? [];
    if (major === undefined) throw new ProtocolError(`not an RFB server; its first bytes are ${JSON.stringify(line)}`);
    if (Number(major) < 3 || (Number(major) === 3 && Number(minor) < 8)) {
      throw new ProtocolError(`the server has version ${line.trim()}; this viewer supports only 3.8`);
    }
    this.#send(new TextEncoder().encode("RFB 003.008\n"));
    this.#on.step("version", { server: line.trim(), viewer: "RFB 003.008" });
  }

  async #security() {
    const [count] = await this.#stream.take(1);
    if (count === 0) throw new ProtocolError(`the desktop refused: ${await this.#text()}`);
    const offered = [...(await this.#stream.take(count))];
    if (!offered.includes(1)) {
      throw new ProtocolError(`the server requires security type ${offered.join(" or ")}; this viewer supports only 1 (None)`);
    }
    this.#send(Uint8Array.of(1));
    const result = (await this.#stream.view(4)).getUint32(0);
    if (result !== 0) throw new ProtocolError(`the desktop refused: ${await this.#text()}`);
    this.#on.step("security", { offered });
  }

  async #initialise() {
    this.#send(Uint8Array.of(1)); // ClientInit: share the desktop with other viewers
    const init = await this.#stream.view(20);
    const [width, height] = [init.getUint16(0), init.getUint16(2)];
    if (width < 1 || height < 1 || width > MAX_SIDE || height > MAX_SIDE) {
      throw new ProtocolError(`invalid desktop size: ${width} × ${height} pixels`);
    }
    const format = { bits: init.getUint8(4), depth: init.getUint8(5) };
    const name = await this.#text();
    this.#size = { width, height };
    this.#on.size(width, height);
    this.#on.step("init", { width, height, name, ...format });
    // SetPixelFormat: the byte order of a canvas (red, green, blue, alpha), so that pixels need no conversion.
    this.#send(Uint8Array.of(0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 0, 8, 16, 0, 0, 0));
    this.#send(Uint8Array.of(2, 0, 0, 1, 0, 0, 0, 0)); // SetEncodings: Raw
  }

  async #message() {
    const [kind] = await this.#stream.take(1);
    switch (kind) {
      case 0:
        return this.#update();
      case 2: // Bell
        return undefined;
      case 3: // ServerCutText
        await this.#stream.take(3);
        await this.#text();
        return undefined;
      default:
        throw new ProtocolError(`the server sent RFB message type ${kind}, which was not requested`);
    }
  }

  async #update() {
    const context = this.#canvas.getContext("2d", { alpha: false });
    const rectangles = (await this.#stream.view(3)).getUint16(1);
    for (let index = 0; index < rectangles; index += 1) {
      const head = await this.#stream.view(12);
      const [x, y] = [head.getUint16(0), head.getUint16(2)];
      const [width, height] = [head.getUint16(4), head.getUint16(6)];
      const encoding = head.getInt32(8);
      if (encoding !== 0) throw new ProtocolError(`encoding ${encoding}, but only Raw (0) was requested`);
      if (x + width > this.#size.width || y + height > this.#size.height) {
        throw new ProtocolError(`a rectangle outside the desktop: ${width} × ${height} at ${x}, ${y}`);
      }
      if (width === 0 || height === 0) continue;
      const pixels = new Uint8ClampedArray((await this.#stream.take(width * height * 4)).buffer);
      for (let alpha = 3; alpha < pixels.length; alpha += 4) pixels[alpha] = 255;
      context.putImageData(new ImageData(pixels, width, height), x, y);
    }
    this.counts.updates += 1;
    this.counts.rectangles += rectangles;
    if (this.counts.updates === 1) this.#on.step("streaming", {});
    this.#on.update(rectangles);
    this.#requested = false;
    this.#requestUpdate();
  }

  // FramebufferUpdateRequest: the whole desktop the first time, then only changes.
  #requestUpdate() {
    if (!this.#ready || this.#paused || this.#requested) return;
    const message = new DataView(new ArrayBuffer(10));
    message.setUint8(0, 3);
    message.setUint8(1, this.#full ? 0 : 1);
    message.setUint16(6, this.#size.width);
    message.setUint16(8, this.#size.height);
    this.#full = false;
    this.#requested = true;
    this.#send(message);
  }

  async #text() {
    const length = (await this.#stream.view(4)).getUint32(0);
    if (length > MAX_TEXT) throw new ProtocolError(`a text of ${length} bytes is too long`);
    return new TextDecoder().decode(await this.#stream.take(length));
  }

  #send(message) {
    if (this.#socket.readyState !== WebSocket.OPEN) return;
    this.counts.messagesOut += 1;
    this.counts.bytesOut += message.byteLength;
    this.#socket.send(message);
  }

  #fail(error) {
    if (error instanceof StreamClosed || this.#error) return; // onclose reports the end
    this.#error = error;
    this.#ready = false;
    // Codes 4000 to 4999 are application-defined. A reason has at most 123 bytes.
    this.#socket.close(4000, error instanceof ProtocolError ? error.message.slice(0, 40) : "viewer error");
  }
}

function ascii(bytes) {
  return String.fromCharCode(...bytes);
}

function clamp(value, limit) {
  return Math.max(0, Math.min(limit - 1, Math.floor(value)));
}
