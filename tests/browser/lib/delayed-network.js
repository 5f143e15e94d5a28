// A network in which what a broken connection had under way arrives late: after the client has given it up.

import net from 'node:net';

/**
 * Passes connections on to `port`. Bytes of the connections that are open can be held back, each way for itself, and
 * their clients cut off, while the side of the server notices nothing and gets the bytes in the end.
 */
export async function startLateNetwork(port) {
  const pairs = new Set();
  const server = net.createServer({ noDelay: true }, (client) => {
    const backend = net.connect({ port, host: '127.0.0.1', noDelay: true });
    const pair = { client, backend, up: undefined, down: undefined };
    pairs.add(pair);
    client.on('data', (bytes) => (pair.up ? pair.up.push(bytes) : backend.write(bytes)));
    backend.on('data', (bytes) => (pair.down ? pair.down.push(bytes) : client.write(bytes)));
    const end = () => {
      if (pair.up) return; // the server shall not know
      pairs.delete(pair);
      client.destroy();
      backend.destroy();
    };
    client.on('error', () => {}).on('close', end);
    backend.on('error', () => {}).on('close', () => {
      pair.up = undefined;
      end();
    });
  });
  await new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  return {
    port: server.address().port,
    /** Holds back what open connections say, `up` to the server or `down` from it. */
    hold(way) {
      for (const pair of pairs) pair[way] ??= [];
    },
    /** How many bytes are held back on the way up. */
    get held() {
      return [...pairs].flatMap(({ up }) => up ?? []).reduce((sum, { length }) => sum + length, 0);
    },
    /** How many connections the server's side still believes in. */
    get open() {
      return pairs.size;
    },
    /** The clients of open connections are cut off. */
    cut() {
      for (const { client } of pairs) client.resetAndDestroy();
    },
    /** What was held back on the way up arrives now; connections without a client end after it. */
    release() {
      for (const pair of pairs) {
        if (!pair.up) continue;
        pair.backend.write(Buffer.concat(pair.up));
        pair.up = undefined;
        if (pair.client.destroyed) pair.backend.end();
      }
    },
    stop() {
      server.close();
      for (const { client, backend } of pairs) [client, backend].forEach((socket) => socket.destroy());
    },
  };
}
