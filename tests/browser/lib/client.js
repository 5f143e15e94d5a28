// A minimal WebSocket client (RFC 6455) for load: it sends binary messages and counts the received bytes.

import { randomBytes } from 'node:crypto';
import net from 'node:net';

const [BINARY, CLOSE, PING, PONG] = [0x2, 0x8, 0x9, 0xa];

/** A client frame, masked with zeros: a valid mask that leaves the payload unchanged. */
function frame(opcode, payload) {
  const header = payload.length < 126 ? Buffer.alloc(6) : Buffer.alloc(8);
  header[0] = 0x80 | opcode;
  if (payload.length < 126) header[1] = 0x80 | payload.length;
  else {
    if (payload.length > 0xffff) throw new Error('longer messages are not supported');
    header[1] = 0x80 | 126;
    header.writeUInt16BE(payload.length, 2);
  }
  return Buffer.concat([header, payload]);
}

/** One connection. `end` is the close code and reason, {code, reason}; undefined while it is open. */
export class Client {
  /** Received payload bytes. */
  received = 0;
  end;
  #bytes = Buffer.alloc(0);
  #head = true;
  #left = 0; // remaining bytes of the current data frame
  #onPayload;

  constructor(port, target, onPayload) {
    this.#onPayload = onPayload;
    this.socket = net.connect({ port, host: '127.0.0.1', noDelay: true });
    const key = randomBytes(16).toString('base64');
    const upgrade = `Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}`;
    this.socket.write(`GET ${target} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\n${upgrade}\r\n\r\n`);
    this.socket.on('error', (error) => this.#ended({ code: 1006, reason: error.message }));
    this.socket.on('close', () => this.#ended({ code: 1006, reason: 'no Close frame' }));
    this.socket.on('data', (bytes) => this.#receive(bytes));
  }

  send(length) {
    if (!this.end) this.socket.write(frame(BINARY, Buffer.alloc(length)));
  }

  close() {
    if (!this.end) this.socket.end(frame(CLOSE, Buffer.from([0x03, 0xe8])));
  }

  #ended(how) {
    this.end ??= how;
  }

  #receive(bytes) {
    this.#bytes = Buffer.concat([this.#bytes, bytes]);
    if (this.#head) {
      const end = this.#bytes.indexOf('\r\n\r\n');
      if (end < 0) return;
      const head = this.#bytes.toString('latin1', 0, end);
      if (!head.startsWith('HTTP/1.1 101 ')) return this.#refused(head);
      this.#bytes = this.#bytes.subarray(end + 4);
      this.#head = false;
      this.#onPayload(this);
    }
    while (this.#parse());
  }

  #refused(head) {
    this.#ended({ code: 0, reason: head.split('\r\n')[0] });
    this.socket.destroy();
  }

  /** Processes one frame, or a part of its payload. Returns whether there may be more. */
  #parse() {
    if (this.#left > 0) {
      const taken = Math.min(this.#left, this.#bytes.length);
      this.#bytes = this.#bytes.subarray(taken);
      this.#left -= taken;
      this.received += taken;
      if (taken > 0) this.#onPayload(this);
      return taken > 0;
    }
    const size = [2, 4, 10][this.#bytes[1] < 126 ? 0 : this.#bytes[1] - 125];
    if (this.#bytes.length < 2 || this.#bytes.length < size) return false;
    const length = [this.#bytes[1], () => this.#bytes.readUInt16BE(2), () => Number(this.#bytes.readBigUInt64BE(2))];
    const payload = size === 2 ? length[0] : length[size === 4 ? 1 : 2]();
    const opcode = this.#bytes[0] & 0xf;
    if (opcode < CLOSE) {
      this.#left = payload;
      this.#bytes = this.#bytes.subarray(size);
      return true;
    }
    if (this.#bytes.length < size + payload) return false;
    const data = this.#bytes.subarray(size, size + payload);
    this.#bytes = this.#bytes.subarray(size + payload);
    if (opcode === PING) this.socket.write(frame(PONG, data));
    if (opcode === CLOSE) {
      this.#ended({ code: data.length < 2 ? 1005 : data.readUInt16BE(0), reason: data.toString('utf8', 2) });
      this.socket.end(frame(CLOSE, data.subarray(0, 2)));
    }
    return true;
  }
}
