import assert from 'node:assert/strict';
import test from 'node:test';

import { Stream } from './stream.js';

const bytesOf = (text) => new TextEncoder().encode(text);

/** A channel for tests, which records what is written to it. */
function fakeChannel() {
  return {
    written: '',
    closed: undefined,
    async write(bytes) {
      this.written += new TextDecoder().decode(bytes);
      if (this.written.includes('<stream:stream')) setImmediate(() => this.onmessage({ data: bytesOf(HEAD) }));
    },
    close(code) {
      this.closed = code;
      this.onclose({ wasClean: true, code });
    },
  };
}

const HEAD =
  "<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";

/** An open stream, its channel, and the texts of received messages. */
async function openStream() {
  const [stream, channel, received] = [new Stream({ domain: 'chat.example' }), fakeChannel(), []];
  stream.on('error', (error) => received.push(`error: ${error.message}`));
  stream.on('stanza', (stanza) => received.push(stanza.getChildText('body')));
  const connecting = stream.connect(channel);
  channel.onopen();
  await connecting;
  await stream.open({ domain: 'chat.example' });
  return { stream, channel, received };
}

test('it opens one stream for the connection', async () => {
  const { channel } = await openStream();
  assert.match(channel.written, /^<\?xml version=.1\.0.\?><stream:stream [^>]*[^/]>$/);
  for (const part of ['xmlns="jabber:client"', 'xmlns:stream="http://etherx.jabber.org/streams"', 'version="1.0"']) {
    assert.ok(channel.written.includes(part), `${part} in ${channel.written}`);
  }
});

test('stanzas are assembled from pieces of any size', async () => {
  const bytes = bytesOf('<message><body>é €😀 &amp; &lt;</body></message><message><body>two</body></message>');
  for (let size = 1; size <= bytes.length; size++) {
    const { channel, received } = await openStream();
    for (let at = 0; at < bytes.length; at += size) channel.onmessage({ data: bytes.slice(at, at + size).buffer });
    assert.deepEqual(received, ['é €😀 & <', 'two'], `in pieces of ${size}`);
  }
});

test('invalid UTF-8 closes the connection', async () => {
  const { channel, received } = await openStream();
  channel.onmessage({ data: Uint8Array.of(0x3c, 0xff) });
  assert.deepEqual(received, ['error: the server sent something that is not UTF-8']);
  assert.equal(channel.closed, 1000);
});

test('a write that the channel rejects is rejected', async () => {
  const { stream, channel } = await openStream();
  channel.write = () => Promise.reject(new Error('not connected: nothing was sent'));
  await assert.rejects(stream.write('<presence/>'), /nothing was sent/);
});
