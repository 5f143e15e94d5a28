// A byte stream with "give me the next n bytes".
//
// WebSocket delivers messages, RFB is a stream: message boundaries carry no meaning. Push the messages here, and take
// as many bytes as the protocol needs, be it half a message or twenty.

export class StreamClosed extends Error {}

export class ByteStream {
  #chunks = []; // Uint8Array, oldest first
  #start = 0; // bytes of the oldest chunk that were taken already
  #length = 0; // bytes not taken yet
  #closed = false;
  #waiting = null; // { length, resolve, reject } of the one take() that had to wait

  push(bytes) {
    if (bytes.length === 0 || this.#closed) return;
    this.#chunks.push(bytes);
    this.#length += bytes.length;
    if (this.#waiting && this.#length >= this.#waiting.length) {
      const { length, resolve } = this.#waiting;
      this.#waiting = null;
      resolve(this.#cut(length));
    }
  }

  // No more bytes will arrive. Those received can still be taken.
  close() {
    this.#closed = true;
    this.#waiting?.reject(new StreamClosed("the connection has ended"));
    this.#waiting = null;
  }

  // The next `length` bytes, as soon as they have arrived, in a buffer of their own.
  take(length) {
    if (this.#waiting) return Promise.reject(new Error("two takes at once"));
    if (this.#length >= length) return Promise.resolve(this.#cut(length));
    if (this.#closed) return Promise.reject(new StreamClosed("the connection has ended"));
    return new Promise((resolve, reject) => {
      this.#waiting = { length, resolve, reject };
    });
  }

  async view(length) {
    return new DataView((await this.take(length)).buffer);
  }

  #cut(length) {
    const out = new Uint8Array(length);
    let filled = 0;
    while (filled < length) {
      const chunk = this.#chunks[0];
      const part = chunk.subarray(this.#start, this.#start + length - filled);
      out.set(part, filled);
      filled += part.length;
      this.#start += part.length;
      if (this.#start === chunk.length) {
        this.#chunks.shift();
        this.#start = 0;
      }
    }
    this.#length -= length;
    return out;
  }
}
