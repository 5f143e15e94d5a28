// Servers of the tests: a web server for pages of another origin, and a network that can fail.

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import https from 'node:https';
import net from 'node:net';
import path from 'node:path';
import { Transform } from 'node:stream';

const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml' };

/**
 * Serves the files of `root` by https on a free port of loopback.
 *
 * @param {string} root
 * @param {{certificate: string, privateKey: string}} identity
 * @param {object} [options]
 * @param {(name: string, text: string, query: URLSearchParams) => string} [options.change] changes the content of a file
 * @param {(request: http.IncomingMessage, response: http.ServerResponse) => boolean} [options.answer] answers a request
 *   that is not for a file; whether it does
 * @param {{code: number, reason: string}} [options.close] closes every WebSocket at once with this code and reason
 */
export async function servePages(root, { certificate, privateKey }, { answer, change, close } = {}) {
  const identity = { cert: fs.readFileSync(certificate), key: fs.readFileSync(privateKey) };
  const server = https.createServer(identity, (request, response) => {
    if (answer?.(request, response)) return;
    const { pathname, searchParams } = new URL(request.url, 'https://host');
    const name = decodeURIComponent(pathname).replace(/\/$/, '/index.html');
    const file = path.join(root, path.normalize(name));
    fs.readFile(file, (error, bytes) => {
      if (error) return response.writeHead(404).end();
      const type = TYPES[path.extname(file)] ?? 'application/octet-stream';
      response.writeHead(200, { 'content-type': type }).end(change ? change(name, bytes.toString(), searchParams) : bytes);
    });
  });
  const pages = { upgrades: 0 };
  server.on('upgrade', (request, socket) => {
    pages.upgrades += 1;
    socket.on('error', () => {});
    if (!close) return socket.destroy();
    // RFC 6455 §4.2.2 and §5.5.1: the response, and one Close frame.
    const key = request.headers['sec-websocket-key'];
    const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
    const head = ['HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket', 'Connection: Upgrade', `Sec-WebSocket-Accept: ${accept}`];
    const [protocol] = request.headers['sec-websocket-protocol']?.split(',') ?? [];
    if (protocol) head.push(`Sec-WebSocket-Protocol: ${protocol}`); // Chromium requires one of the protocols it offered
    socket.write(`${head.join('\r\n')}\r\n\r\n`);
    const reason = Buffer.from(close.reason);
    socket.write(Buffer.concat([Buffer.from([0x88, reason.length + 2, close.code >> 8, close.code & 0xff]), reason]));
    socket.once('data', () => socket.end());
  });
  pages.port = await listen(server);
  pages.stop = () => {
    server.close();
    server.closeAllConnections();
  };
  return pages;
}

/** A network: forwards connections to `port`, counts them and the bytes of each direction, and can be made to fail. */
export async function startNetwork(port) {
  const open = new Set();
  let passable = Promise.resolve();
  let resume;
  const network = { connections: 0, bytesIn: 0, bytesOut: 0 };
  const forward = (count) =>
    new Transform({
      transform(bytes, _encoding, done) {
        network[count] += bytes.length;
        passable.then(() => done(null, bytes));
      },
      flush(done) {
        passable.then(() => done());
      },
    });
  const server = net.createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    network.connections++;
    const backend = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true });
    client.pipe(forward('bytesIn')).pipe(backend);
    backend.pipe(forward('bytesOut')).pipe(client);
    for (const [one, other] of [[client, backend], [backend, client]]) {
      open.add(one);
      one.on('error', () => other.destroy());
      one.on('close', () => open.delete(one));
    }
  });
  network.port = await listen(server);
  /** Stops all data without closing a connection. */
  network.stall = () => {
    passable = new Promise((resolve) => {
      resume = resolve;
    });
  };
  /** Delivers the data that was stopped. */
  network.resume = () => {
    passable = Promise.resolve();
    resume();
  };
  /** Resets all connections, and refuses new ones. */
  network.cut = () => {
    server.close();
    for (const socket of open) socket.resetAndDestroy();
  };
  network.restore = () => listen(server, network.port);
  network.stop = () => {
    server.close();
    for (const socket of open) socket.destroy();
  };
  return network;
}

function listen(server, port = 0) {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, '127.0.0.1', () => resolve(server.address().port));
  });
}
