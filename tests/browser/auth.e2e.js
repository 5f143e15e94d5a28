// Who may enter, end to end: a site with a login, people with a browser each, Portcullis with TLS, a TightVNC desktop.
//
//   Chromium --https--> the site --tickets.sock--> Portcullis
//   Chromium --wss, with the site's cookie and the link's ticket--> Portcullis --tcp--> Xtightvnc
//
// The scenes share the servers, and nothing else: each has browsers, logins and links of its own.
//
// environment: PORTCULLIS   the program under test (default: target/debug/portcullis)
//              ARTEFACTS    the directory of logs and screenshots (default: tests/artefacts)

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import https from 'node:https';
import path from 'node:path';
import test, { after, before } from 'node:test';
import { fileURLToPath } from 'node:url';

import { chromium } from 'playwright-core';

import { buildPage } from '../../examples/build.js';
import { CertificateAuthority } from '../../examples/launch/certificates.js';
import { startGateway } from '../../examples/launch/gateway.js';
import { until } from '../../examples/launch/until.js';
import { BACKGROUND, LOGO, REACTOR_WINDOW, startDesktop } from '../../examples/launch/vnc.js';
import { chromiumOptions, trust } from './lib/browser.js';
import { askGateway, forGateway, startLoginSite } from './lib/login-site.js';
import { Picture } from './lib/picture.js';
import { servePages } from './lib/servers.js';
import { Viewer } from './lib/viewer.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const program = path.resolve(process.env.PORTCULLIS ?? path.join(root, 'target/debug/portcullis'));
const artefacts = path.resolve(process.env.ARTEFACTS ?? path.join(root, 'tests/artefacts'));

const DOMAIN = 'company.test';
const SITE = `www.${DOMAIN}`;
const GATEWAY = `desk.${DOMAIN}`;
const SIBLING = `notes.${DOMAIN}`; // the same site for a browser, which sends it SameSite cookies, and another origin
const STRANGER = 'stranger.test'; // another site
const HOSTS = [SITE, GATEWAY, SIBLING];

/** How Chromium's console names the status of a refusal. */
const NAMED = { 401: 'HTTP Authentication failed', 403: 'Unexpected response code: 403' };

/** How late a session may end. */
const GRACE_MS = 5000;

const USERS = {
  ann: { password: 'ann’s secret', routes: ['desk', 'careless'], lifetime: 3600 },
  bob: { password: 'bob’s secret', routes: ['desk'], lifetime: 3600 },
  guest: { password: 'guest’s secret', routes: ['elsewhere'], lifetime: 3600 },
  brief: { password: 'brief’s secret', routes: ['desk'], lifetime: 20 },
};

fs.mkdirSync(artefacts, { recursive: true });
fs.mkdirSync(path.join(root, 'target'), { recursive: true });
const work = fs.mkdtempSync(path.join(root, 'target', 'auth-test-'));
const removeWork = () => fs.rmSync(work, { recursive: true, force: true, maxRetries: 5 });
process.on('exit', removeWork);
const ticketSocket = path.join(work, 'tickets.sock');
const adminSocket = path.join(work, 'admin.sock');

let authority;
let desktop;
let site;
let foreignPages; // the viewer from other origins
let gateway;
let browser;

before(async () => {
  authority = new CertificateAuthority(path.join(work, 'authority'));
  const viewer = await buildPage(path.join(root, 'examples/vnc'), { outdir: path.join(work, 'page') });
  desktop = await startDesktop({ directory: path.join(work, 'desktop'), log: artefact('server.log') });
  const options = { root: viewer, identity: authority.issue(SITE), host: SITE, domain: DOMAIN, tickets: ticketSocket, users: USERS };
  site = await startLoginSite(options);
  foreignPages = await servePages(viewer, authority.issue(SIBLING), {
    change: (name, page, query) =>
      name === '/index.html' ? forGateway(page, `${site.gateway}/${query.get('route') ?? 'desk'}?ticket=${query.get('ticket')}`) : page,
  });
  const { certificate, privateKey } = authority.issue(GATEWAY);
  const key = path.join(work, 'site.pem');
  fs.writeFileSync(key, site.publicKey);
  const text = `
[[listener]]
address = "127.0.0.1:0"
certificate = "${certificate}"
private_key = "${privateKey}"
[[route]]
name = "desk"
path = "/desk"
backend = "tcp://127.0.0.1:${desktop.port}"
origins = ["${site.origin}"]
auth = ["site", "links"]
[[route]]
name = "careless"
path = "/careless"
backend = "tcp://127.0.0.1:${desktop.port}"
origins = ["https://${SIBLING}:${foreignPages.port}", "https://${STRANGER}"]
auth = "site"
[auth.site]
kind = "jwt"
algorithms = ["ES256"]
key = "${key}"
issuer = "${site.issuer}"
audience = "portcullis"
from = ["cookie:desk"]
routes_claim = "routes"
leeway = "0s"
[auth.links]
kind = "ticket"
[admin]
address = "unix:${adminSocket}"
[admin.tickets]
address = "unix:${ticketSocket}"
[limits.per_ip]
exempt = ["127.0.0.0/8"]
`;
  gateway = await startGateway({ program, text, directory: path.join(work, 'gateway'), log: artefact('gateway.log') });
  site.gateway = `wss://${GATEWAY}:${gateway.port}`;
  trust(authority, work);
  browser = await chromium.launch(chromiumOptions(work, HOSTS));
  process.on('exit', removeWork); // again, so that it runs after the exit handler that stops the browser
}, { timeout: 120_000 });

after(async () => {
  await browser?.close();
  await gateway?.stop();
  foreignPages?.stop();
  site?.stop();
  await desktop?.stop();
});

function artefact(name) {
  return path.join(artefacts, `auth-${name}`);
}

/** A person with a browser: a context of its own, with no cookies at first. */
class Person {
  viewers = [];

  static async arrives() {
    const context = await browser.newContext({ viewport: { width: 1120, height: 860 } });
    await context.addInitScript(record);
    return new Person(context);
  }

  constructor(context) {
    this.context = context;
  }

  /** Logs in at the site, whose answer leads to the viewer. Returns it, and what the site has issued. */
  async logIn(user) {
    const page = await this.context.newPage();
    const consoleLines = [];
    page.on('console', (message) => consoleLines.push(message.text()));
    await page.goto(`${site.address}login`);
    await page.getByLabel('Name').fill(user);
    await page.getByLabel('Password').fill(USERS[user].password);
    await page.getByRole('button', { name: 'Sign in' }).click();
    await until('the site leads to the viewer', 30, async (observed) => {
      observed(`${page.url()}: ${await page.locator('body').innerText()}`);
      return site.issued.some((other) => other.link === page.url());
    });
    const issued = site.issued.findLast((other) => other.link === page.url());
    assert.equal(issued?.user, user);
    return { viewer: this.#has(new Viewer(page, consoleLines)), issued };
  }

  /** Logs in without opening the link: it stays unused. */
  async logInOnly(user) {
    const page = await this.context.newPage();
    await page.goto(`${site.address}login`);
    const before = site.issued.length;
    const form = { user, password: USERS[user].password };
    const post = (fields) => fetch('/login', { method: 'POST', body: new URLSearchParams(fields), redirect: 'manual' }).then(({ type }) => type);
    assert.equal(await page.evaluate(post, form), 'opaqueredirect');
    await page.close();
    const [issued] = site.issued.slice(before);
    assert.equal(issued.user, user);
    return issued;
  }

  async open(address) {
    return this.#has(await Viewer.open(this.context, address));
  }

  cookies() {
    return this.context.cookies(`https://${GATEWAY}/`);
  }

  #has(viewer) {
    this.viewers.push(viewer);
    return viewer;
  }
}

/** In every page: records how its WebSockets close, and what its banner shows, with the time. */
function record() {
  window.closes = [];
  window.shown = [];
  window.WebSocket = new Proxy(WebSocket, {
    construct(target, args) {
      const socket = new target(...args);
      socket.addEventListener('close', ({ code, reason }) => window.closes.push({ code, reason, at: Date.now() }));
      return socket;
    },
  });
  new MutationObserver(() => {
    const text = document.querySelector('#banner .description')?.textContent;
    if (text && text !== window.shown.at(-1)?.text) window.shown.push({ text, at: Date.now() });
  }).observe(document, { subtree: true, childList: true, characterData: true });
}

/** A test with people of its own; says what they see when it fails. */
function scene(name, run) {
  test(name, { timeout: 120_000 }, async () => {
    const people = [];
    const arrives = async () => {
      people.push(await Person.arrives());
      return people.at(-1);
    };
    try {
      await run(arrives);
    } catch (error) {
      await report(name, people);
      throw error;
    } finally {
      for (const { context } of people) await context.close();
    }
  });
}

async function report(name, people) {
  const say = (title, text) => process.stderr.write(`\n--- ${title}\n${text}\n`);
  for (const [number, viewer] of people.flatMap(({ viewers }) => viewers).entries()) {
    const picture = artefact(`failure-${name.replaceAll(/\W+/g, '-')}-${number}.png`);
    await viewer.screenshot(picture).catch(() => {});
    const closes = await viewer.page.evaluate(() => window.closes).catch(String);
    say(`banner (picture: ${picture})`, JSON.stringify([await viewer.banner().catch(String), closes]));
    say('page console', viewer.console.join('\n'));
  }
  say(`gateway log, running: ${!gateway.end}`, gateway.log().slice(-6000));
  say('VNC server log', desktop.log().slice(-2000));
}

function showsBanner(viewer, pattern, state, seconds = 20) {
  return until(`the page shows ${pattern}, ${state}`, seconds, async (observed) => {
    const banner = await viewer.banner();
    observed(JSON.stringify(banner));
    return pattern.test(banner.description) && banner.state === state;
  });
}

/** The desktop asks for its own password, and the page shows the X server's picture. */
async function isIn(viewer) {
  await viewer.enterPassword(desktop.password);
  await until('the page shows the desktop', 30, async (observed) => {
    const [expected, seen] = [Picture.fromXwd(await desktop.dump()), await viewer.picture()];
    if (!seen) {
      observed(`no canvas; the banner is ${JSON.stringify(await viewer.banner())}`);
      return false;
    }
    const same = [REACTOR_WINDOW, LOGO].map((area) => expected.part(area).similarity(seen.part(area)));
    observed(`same as the X server's: ${same}, background ${seen.share(BACKGROUND)}`);
    return same.every((share) => share > 0.99) && seen.share(BACKGROUND) > 0.1;
  });
  await showsBanner(viewer, /^Connected to .*portcullis/, 'open');
}

/** Runs `open`, and waits until its page shows that it was refused with this status, the gateway logs why, and no one is in. */
async function isRefused(open, { status, reason, detail }) {
  const [refusalsBefore, connections] = [gateway.events('refused').length, desktop.connections()];
  const viewer = await open();
  await until(`the console of the browser names the status ${status}`, 20, (observed) => {
    observed(viewer.console.join('\n'));
    return viewer.console.some((line) => line.includes(NAMED[status]));
  });
  await showsBanner(viewer, /^Could not connect: .*the gateway refuses this page/, 'waiting');
  const refusals = () => gateway.events('refused').slice(refusalsBefore);
  await until(`the gateway logs ${reason}`, 10, (observed) => {
    observed(JSON.stringify(refusals()));
    return refusals().some((event) => event.reason === reason && detail.test(event.detail ?? ''));
  });
  assert.equal(desktop.connections(), connections, 'the VNC server got a connection');
  assert.equal(await viewer.page.locator('#login').isVisible(), false);
  await viewer.close();
}

async function usesLeft({ id }) {
  const { status, json } = await askGateway(ticketSocket, 'GET', `/api/tickets/${id}`);
  assert.equal(status, 200, JSON.stringify(json));
  return json.uses_left;
}

/** The users of the open sessions. */
async function usersInside() {
  const { json } = await askGateway(adminSocket, 'GET', '/api/sessions');
  return json.sessions.map(({ user }) => user);
}

scene('a user who has logged in opens the desktop, and the gateway knows who it is', async (arrives) => {
  const ann = await arrives();
  const { viewer, issued } = await ann.logIn('ann');
  await isIn(viewer);
  const [cookie] = await ann.cookies();
  assert.deepEqual([cookie.name, cookie.httpOnly, cookie.sameSite, cookie.secure], ['desk', true, 'Strict', true]);
  assert.equal(await viewer.page.evaluate(() => document.cookie), '', 'a script can read the cookie');
  const users = await usersInside();
  assert.ok(users.includes('ann'), `the open sessions are those of ${users}`);
  assert.equal(await usesLeft(issued), 0);
  await viewer.screenshot(artefact('in.png'));
  const endedBefore = gateway.events('session ended').length;
  await viewer.close();
  await until('the gateway logs the end of the session', 15, (observed) => {
    const ends = gateway.events('session ended').slice(endedBefore);
    observed(JSON.stringify(ends));
    return ends.some(({ user, route }) => user === 'ann' && route === 'desk');
  });
  for (const secret of [cookie.value, issued.link.split('=').at(-1)]) {
    assert.ok(!gateway.log().includes(secret), 'a credential is in the log');
  }
});

scene('a link opens the desktop once', async (arrives) => {
  const ann = await arrives();
  const { viewer, issued } = await ann.logIn('ann');
  await isIn(viewer);
  await isRefused(() => ann.open(issued.link), { status: 401, reason: 'unauthorized', detail: /ticket/ });
  assert.equal((await viewer.banner()).state, 'open', 'the session that the link has opened goes on');
});

scene('another user is refused, with or without a right to the desktop', async (arrives) => {
  const ann = await arrives();
  const link = await ann.logInOnly('ann');
  const bob = await arrives();
  const { viewer } = await bob.logIn('bob');
  await isIn(viewer); // with a link and a cookie of his own, Bob may enter
  await isRefused(() => bob.open(link.link), { status: 403, reason: 'forbidden', detail: /different users/ });
  assert.equal(await usesLeft(link), 1, 'a request that was refused has used the ticket');
  await isIn(await ann.open(link.link));

  const guest = await arrives();
  const own = await guest.logInOnly('guest');
  await isRefused(() => guest.open(own.link), { status: 403, reason: 'forbidden', detail: /not for this route/ });
  assert.equal(await usesLeft(own), 1);

  const nobody = await arrives();
  const unused = await bob.logInOnly('bob');
  await isRefused(() => nobody.open(unused.link), { status: 401, reason: 'unauthorized', detail: /./ });
  assert.equal(await usesLeft(unused), 1);
});

scene('a foreign page is refused with a cookie that is valid, and uses no ticket', async (arrives) => {
  const ann = await arrives();
  const link = await ann.logInOnly('ann');
  const ticket = new URL(link.link).search;
  const [cookie] = await ann.cookies();
  const foreign = { status: 403, reason: 'origin_refused', detail: /.?/ };

  const refusedAt = async (person) => {
    const page = `https://${SIBLING}:${foreignPages.port}/${ticket}`;
    await isRefused(() => person.open(page), { status: 403, reason: 'origin_refused', detail: /.?/ });
    // The browser does send the cookie from this page, and it is valid: a route that lists the page's origin admits it.
    const viewer = await person.open(`${page}&route=careless`);
    await viewer.page.locator('#login').waitFor();
    await viewer.close();
  };

  // In Ann's browser, a page of the same site and another origin: SameSite lets the cookie through.
  await refusedAt(ann);

  // In another browser, with the stolen cookie.
  const thief = await arrives();
  await thief.context.addCookies([cookie]);
  await refusedAt(thief);

  // By a program that sends the stolen cookie, as a page of another site.
  const fields = { origin: `https://${STRANGER}`, cookie: `desk=${cookie.value}` };
  assert.equal(await handshake(`/desk${ticket}`, fields), 403);
  assert.equal(await handshake(`/careless${ticket}`, fields), 101, 'a route that lists its origin admits it');

  assert.equal(await usesLeft(link), 1);
  await isIn(await ann.open(link.link));
});

/** The status of the response to an opening handshake with these additional fields. */
function handshake(target, fields) {
  const upgrade = { connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-version': '13', 'sec-websocket-key': randomBytes(16).toString('base64') };
  const options = { host: '127.0.0.1', port: gateway.port, path: target, servername: GATEWAY, ca: fs.readFileSync(authority.certificate), timeout: 10_000 };
  return new Promise((resolve, reject) => {
    const headers = { host: `${GATEWAY}:${gateway.port}`, ...upgrade, ...fields };
    const request = https.get({ ...options, headers });
    request.on('timeout', () => request.destroy(new Error(`no answer to ${target}`)));
    request.on('error', reject);
    for (const event of ['response', 'upgrade']) {
      request.on(event, ({ statusCode }) => {
        resolve(statusCode);
        request.destroy();
      });
    }
  });
}

scene('a token expires while the desktop is open, and the viewer says so within 5 s', async (arrives) => {
  const person = await arrives();
  const { viewer, issued } = await person.logIn('brief');
  await isIn(viewer);
  const end = issued.expires * 1000;
  assert.ok(Date.now() < end, `the desktop was shown after the token had expired: more than ${USERS.brief.lifetime} s`);
  await showsBanner(viewer, /^Ended by the gateway: your login has expired\.$/, 'closed', (end + 4 * GRACE_MS - Date.now()) / 1000);
  const { closes, shown } = await viewer.page.evaluate(() => ({ closes: window.closes, shown: window.shown }));
  assert.deepEqual(closes.map(({ code, reason }) => [code, reason]), [[1008, 'your login has expired']]);
  const late = [closes[0].at, shown.at(-1).at].map((at) => at - end);
  assert.ok(late.every((ms) => ms >= 0 && ms <= GRACE_MS), `closed and shown ${late} ms after the token's time`);
  const ended = await until('the gateway logs the end of the session', 10, () => {
    const ends = gateway.events('session ended').filter(({ user }) => user === 'brief');
    return ends.length > 0 && ends;
  });
  assert.deepEqual(ended.map(({ reason, close_code }) => [reason, close_code]), [['credential_expired', 1008]]);
  await viewer.screenshot(artefact('expired.png'));

  // The page makes no attempt of its own; a new login opens the desktop again.
  const { viewer: next } = await person.logIn('brief');
  await isIn(next);
});
