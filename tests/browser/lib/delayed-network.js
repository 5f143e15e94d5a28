// A network that delivers the data of a broken connection late: after the client has closed it.

import net from 'node:net';

/**
 * Forwards connections to `port`. The bytes of open connections can be held back in each direction, and their clients can
 * be reset while the server's side stays open and receives the held bytes later.
 */
export async function startDelayedNetwork(port) {
  const pairs = new Set();
  const server = net.createServer({ noDelay: true }, (client) => {
    const backend = net.connect({ port, host: '127.0.0.1', noDelay: true });
    const pair = { client, backend, up: undefined, down: undefined };
    pairs.add(pair);
    client.on('data', (bytes) => (pair.up ? pair.up.push(bytes) : backend.write(bytes)));
    backend.on('data', (bytes) => (pair.down ? pair.down.push(bytes) : client.write(bytes)));
    const end = () => {
      if (pair.up) return; // keep the server's side open
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
    /** Holds back the bytes of open connections, `up` to the server or `down` from it. */
    hold(direction) {
      for (const pair of pairs) pair[direction] ??= [];
    },
    /** The number of held bytes to the server. */
    get held() {
      return [...pairs].flatMap(({ up }) => up ?? []).reduce((sum, { length }) => sum + length, 0);
    },
    /** The number of connections that are open on the server's side. */
    get open() {
      return pairs.size;
    },
    /** Resets the clients of open connections. */
    cut() {
      for (const { client } of pairs) client.resetAndDestroy();
    },
    /** Delivers the held bytes to the server; connections without a client are closed afterwards. */
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
