// The servers of the test's own: one for its pages, and one that counts what goes to the VNC server.

import fs from 'node:fs';
import https from 'node:https';
import net from 'node:net';
import path from 'node:path';

const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript' };

/** Serves the files of `root` by https on a free port of loopback. */
export async function servePages(root, { certificate, privateKey }) {
  const identity = { cert: fs.readFileSync(certificate), key: fs.readFileSync(privateKey) };
  const server = https.createServer(identity, (request, response) => {
    const name = decodeURIComponent(new URL(request.url, 'https://host').pathname).replace(/\/$/, '/index.html');
    const file = path.join(root, path.normalize(name));
    fs.readFile(file, (error, bytes) => {
      if (error) response.writeHead(404).end();
      else response.writeHead(200, { 'content-type': TYPES[path.extname(file)] ?? 'application/octet-stream' }).end(bytes);
    });
  });
  const port = await listen(server);
  return {
    port,
    stop() {
      server.close();
      server.closeAllConnections();
    },
  };
}

/** Passes connections on to `port` and counts them, and the bytes each way. */
export async function countingRelay(port) {
  const open = new Set();
  const relay = { connections: 0, bytesIn: 0, bytesOut: 0 };
  const server = net.createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    relay.connections++;
    const backend = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true });
    client.on('data', (bytes) => {
      relay.bytesIn += bytes.length;
    });
    backend.on('data', (bytes) => {
      relay.bytesOut += bytes.length;
    });
    client.pipe(backend).pipe(client);
    for (const [one, other] of [[client, backend], [backend, client]]) {
      open.add(one);
      one.on('error', () => other.destroy());
      one.on('close', () => open.delete(one));
    }
  });
  relay.port = await listen(server);
  relay.stop = () => {
    server.close();
    for (const socket of open) socket.destroy();
  };
  return relay;
}

function listen(server) {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => resolve(server.address().port));
  });
}
