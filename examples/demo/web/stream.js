// A byte stream that returns the next n bytes on request.
//
// RFB is a byte stream, so the boundaries of WebSocket messages are irrelevant: each message is pushed here, and the
// protocol takes as many bytes as it needs, whether that is half a message or twenty.

export class StreamClosed extends Error {}

export class ByteStream {
  #chunks = []; // Uint8Array, oldest first
  #start = 0; // bytes of the oldest chunk that are consumed
  #length = 0; // bytes that are not consumed yet
  #closed = false;
  #waiting = null; // { length, resolve, reject } of a pending take()

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

  // Ends the stream. Buffered bytes can still be taken.
  close() {
    this.#closed = true;
    this.#waiting?.reject(new StreamClosed("the connection has ended"));
    this.#waiting = null;
  }

  // Resolves with the next `length` bytes, in a buffer of their own, as soon as they have arrived.
  take(length) {
    if (this.#waiting) return Promise.reject(new Error("take() is pending already"));
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
