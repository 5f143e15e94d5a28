/**
 * An XML stream over a WebSocket through Portcullis, which xmpp.js uses like a TCP connection.
 *
 * xmpp.js contains the parser and the stream protocol (RFC 6120 §4). It has transports for TCP, which browsers lack, and for
 * XMPP over WebSocket (RFC 7395), which puts each stanza into one message and needs server support. Here messages are
 * pieces of a byte stream, split at any byte, even within a character.
 */

import Connection from '@xmpp/connection';
import { EventEmitter } from '@xmpp/events';
import { Parser } from '@xmpp/xml';

const NS_CLIENT = 'jabber:client';
const NS_STREAM = 'http://etherx.jabber.org/streams';

/** A channel (see ../lib/channel.js) with the part of the interface of a Node.js socket that xmpp.js uses. */
class ByteSocket extends EventEmitter {
  #channel;
  #encoder = new TextEncoder();
  #decoder = new TextDecoder('utf-8', { fatal: true });

  connect(channel) {
    this.#channel = channel;
    channel.onopen = () => this.emit('connect');
    channel.onmessage = ({ data }) => this.#received(data);
    channel.onclose = (event) => this.emit('close', !event.wasClean, event);
  }

  write(text, done) {
    this.#channel.write(this.#encoder.encode(text)).then(() => done?.(), done);
  }

  end() {
    this.#channel.close(1000);
  }

  #received(data) {
    let text;
    try {
      text = this.#decoder.decode(data, { stream: true });
    } catch {
      this.emit('error', new Error('the server sent something that is not UTF-8'));
      this.end();
      return;
    }
    if (text) this.emit('data', text);
  }
}

/** A stream to a server of `options.domain`. Its `connect` expects a channel that is being opened. */
export class Stream extends Connection {
  NS = NS_CLIENT;
  Socket = ByteSocket;
  Parser = Parser;

  socketParameters(channel) {
    return channel;
  }

  headerElement() {
    const element = super.headerElement();
    element.name = 'stream:stream';
    element.attrs.xmlns = NS_CLIENT;
    element.attrs['xmlns:stream'] = NS_STREAM;
    return element;
  }

  /** Only the start tag: the element stays open as long as the stream. */
  header(element) {
    return `<?xml version='1.0'?>${element.toString().slice(0, -2)}>`;
  }

  footer() {
    return '</stream:stream>';
  }
}
