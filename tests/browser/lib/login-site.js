// A small site with a login. Whoever has logged in gets a cookie with a JWT, and a link with a ticket of the gateway.

import { generateKeyPairSync, sign } from 'node:crypto';
import http from 'node:http';

import { servePages } from './servers.js';

const FORM = `<!doctype html><html lang="en"><title>Sign in</title>
<form method="post" action="/login">
<label>Name <input name="user" required></label>
<label>Password <input name="password" type="password" required></label>
<button>Sign in</button>
</form>`;

/** A viewer's index.html for a gateway on another host. */
export function forGateway(text, route) {
  const changed = text
    .replace('name="gateway" content="desk"', `name="gateway" content="${route}"`)
    .replace("default-src 'self'", `default-src 'self'; connect-src ${new URL(route).origin}`);
  if (!changed.includes(route)) throw new Error('index.html does not name the gateway as expected');
  return changed;
}

/** Sends JSON to the gateway over a Unix socket; returns the answer's status and JSON. */
export function askGateway(socketPath, method, path, body) {
  return new Promise((resolve, reject) => {
    // A connection of its own: the gateway may close one that is idle while a request is on its way.
    const request = http.request({ socketPath, method, path, agent: false, timeout: 10_000 }, async (answer) => {
      const text = (await answer.toArray()).join('');
      resolve({ status: answer.statusCode, json: text && JSON.parse(text) });
    });
    request.on('timeout', () => request.destroy(new Error(`no answer to ${method} ${path}`)));
    request.on('error', reject).end(body && JSON.stringify(body));
  });
}

/**
 * A site on a free port of loopback, with the files of `root` for everybody.
 *
 * `publicKey` verifies its tokens. `gateway`, to be set before the first login, is the origin of the gateway's links.
 *
 * @param {object} options
 * @param {string} options.root the viewer
 * @param {{certificate: string, privateKey: string}} options.identity
 * @param {string} options.host its name
 * @param {string} options.domain where the cookie is sent to
 * @param {string} options.tickets the socket where the gateway issues tickets
 * @param {Record<string, {password: string, routes: string[], lifetime: number}>} options.users `lifetime` of a token in
 *   seconds
 */
export async function startLoginSite({ root, identity, host, domain, tickets, users }) {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const site = { publicKey: publicKey.export({ type: 'spki', format: 'pem' }), issuer: `https://${host}`, issued: [] };

  const token = (user, expires) => {
    const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const claims = { iss: site.issuer, aud: 'portcullis', sub: user, exp: expires, routes: users[user].routes };
    const text = `${encode({ alg: 'ES256', typ: 'JWT' })}.${encode(claims)}`;
    return `${text}.${sign('sha256', Buffer.from(text), { key: privateKey, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`;
  };

  const logIn = async (request, response) => {
    const form = new URLSearchParams((await request.toArray()).join(''));
    const name = form.get('user');
    const user = Object.hasOwn(users, name) ? users[name] : undefined;
    if (user?.password !== form.get('password')) return response.writeHead(403, { 'content-type': 'text/plain' }).end('wrong');
    const terms = { route: 'desk', user: name, valid_for: '10m', session_for: '8h', base: site.gateway };
    const answer = await askGateway(tickets, 'POST', '/api/tickets', terms);
    if (answer.status !== 201) throw new Error(`no ticket: ${JSON.stringify(answer)}`);
    const expires = Math.floor(Date.now() / 1000) + user.lifetime;
    const cookie = `desk=${token(name, expires)}; Domain=${domain}; Path=/; Max-Age=${user.lifetime}; Secure; HttpOnly; SameSite=Strict`;
    const link = `${site.address}?ticket=${answer.json.ticket}`;
    site.issued.push({ user: name, expires, link, id: answer.json.id });
    response.writeHead(303, { location: link, 'set-cookie': cookie }).end();
  };

  const server = await servePages(root, identity, {
    change: (name, text, query) =>
      name === '/index.html' ? forGateway(text, `${site.gateway}/desk?ticket=${query.get('ticket')}`) : text,
    answer: (request, response) => {
      if (new URL(request.url, site.address).pathname !== '/login') return false;
      if (request.method === 'POST') {
        logIn(request, response).catch((error) => response.writeHead(500, { 'content-type': 'text/plain' }).end(String(error)));
      } else {
        response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' }).end(FORM);
      }
      return true;
    },
  });
  site.origin = `https://${host}:${server.port}`;
  site.address = `${site.origin}/`;
  site.stop = server.stop;
  return site;
}
