/** A WebSocket without a network, for tests: the test is the peer. */
export class FakeSocket {
  /** All instances, oldest first. */
  static instances = [];

  static get last() {
    return FakeSocket.instances.at(-1);
  }

  readyState = 0;
  protocol = '';
  bufferedAmount = 0;
  sent = [];
  closeArguments;

  constructor(url, protocols) {
    if (!/^wss?:/.test(url)) throw new SyntaxError(`${url} is not a WebSocket URL`);
    Object.assign(this, { url, protocols });
    FakeSocket.instances.push(this);
  }

  send(data) {
    if (this.readyState === 0) throw new Error('still connecting');
    this.sent.push(data);
  }

  close(...args) {
    this.closeArguments = args;
    this.readyState = 2;
  }

  /** The peer accepts the connection. */
  open() {
    this.readyState = 1;
    this.onopen({ type: 'open' });
  }

  /** The peer sends a message. */
  receive(data) {
    this.onmessage({ type: 'message', data });
  }

  /** The connection ends. */
  end(code, reason = '', wasClean = code !== 1006) {
    this.readyState = 3;
    this.onclose({ type: 'close', code, reason, wasClean });
  }
}
