/** A WebSocket without a network, for tests: the test plays the other side. */
export class FakeSocket {
  /** All that were made, oldest first. */
  static made = [];

  static get last() {
    return FakeSocket.made.at(-1);
  }

  readyState = 0;
  protocol = '';
  bufferedAmount = 0;
  sent = [];
  closedWith;

  constructor(url, protocols) {
    if (!/^wss?:/.test(url)) throw new SyntaxError(`${url} is not the address of a WebSocket`);
    Object.assign(this, { url, protocols });
    FakeSocket.made.push(this);
  }

  send(data) {
    if (this.readyState === 0) throw new Error('still connecting');
    this.sent.push(data);
  }

  close(...args) {
    this.closedWith = args;
    this.readyState = 2;
  }

  /** The other side opens. */
  open() {
    this.readyState = 1;
    this.onopen({ type: 'open' });
  }

  /** The other side says something. */
  say(data) {
    this.onmessage({ type: 'message', data });
  }

  /** The connection ends. */
  end(code, reason = '', wasClean = code !== 1006) {
    this.readyState = 3;
    this.onclose({ type: 'close', code, reason, wasClean });
  }
}
