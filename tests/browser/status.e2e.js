// The status page, end to end: a gateway under load, watched in Chromium.
//
//   Chromium --http--> admin address of Portcullis <--ws-- many clients, and others that are refused
//
// environment: PORTCULLIS   the program to test (default: target/debug/portcullis)
//              ARTEFACTS    where logs and screenshots are kept (default: tests/artefacts)
//              CURVE        how many seconds of curves the screenshots show (default: 20); 110 made docs/images/status.png

import assert from 'node:assert/strict';
import fs from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import path from 'node:path';
import { after } from 'node:test';
import { fileURLToPath } from 'node:url';

import { selfSigned } from '../../examples/launch/certificates.js';
import { startGateway } from '../../examples/launch/gateway.js';
import { until } from '../../examples/launch/until.js';
import { accessibilityViolations, startBrowser } from './lib/browser.js';
import { Client } from './lib/client.js';
import { scenario } from './lib/scenario.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const program = path.resolve(process.env.PORTCULLIS ?? path.join(root, 'target/debug/portcullis'));
const artefacts = path.resolve(process.env.ARTEFACTS ?? path.join(root, 'tests/artefacts'));

const CURVE = Number(process.env.CURVE ?? 20);

/** Sessions that send and receive messages continuously. */
const SESSIONS = 40;
const MESSAGE = 4096;
/** The bytes that the backend sends for each byte it receives. */
const ANSWER = 3;

fs.mkdirSync(artefacts, { recursive: true });
fs.mkdirSync(path.join(root, 'target'), { recursive: true });
const work = fs.mkdtempSync(path.join(root, 'target', 'status-test-'));
process.on('exit', () => fs.rmSync(work, { recursive: true, force: true, maxRetries: 5 }));

let echo;
let gateway;
let admin; // the port
let browser;
let page;
let foreignSite;
let load;
const consoleLines = [];

const scene = scenario({ report, timeout: 60_000 + CURVE * 1000 });

/** Everything that helps to understand a failure, on stderr. */
async function report() {
  const section = (title, text) => process.stderr.write(`\n--- ${title}\n${text}\n`);
  if (page) {
    await page.screenshot({ path: artefact('failure.png') }).catch(() => {});
    section(`the page (picture: ${artefact('failure.png')})`, await page.locator('body').innerText().catch(String));
  }
  section('console', consoleLines.join('\n'));
  if (gateway) section(`gateway log, running: ${!gateway.end}`, gateway.log().slice(-6000));
}

after(async () => {
  load?.stop();
  await browser?.close();
  await gateway?.stop();
  foreignSite?.stop();
  echo?.close();
});

function artefact(name) {
  return path.join(artefacts, `status-${name}`);
}

/** The clients: sessions that carry messages, and now and then a request that is refused. */
class Load {
  constructor(port) {
    this.port = port;
    this.clients = [];
    this.refusedRequests = setInterval(() => this.sendRefused(), 120);
  }

  /** Opens a session, and keeps it busy until it ends. */
  open(number) {
    const [length, pause] = [MESSAGE * (1 + (number % 5)), 20 + (number % 7) * 10];
    let due = 0;
    const busy = (client) => {
      if (client.received < due) return;
      due += length * ANSWER;
      setTimeout(() => client.send(length), pause);
    };
    this.clients.push(new Client(this.port, number % 4 === 0 ? '/chat' : '/desk', busy));
  }

  sendRefused() {
    const kinds = [
      { path: '/nowhere', headers: {} },
      { path: '/desk', headers: { origin: 'https://evil.example' } },
      { path: '/desk', headers: { origin: 'https://evil.example' } },
    ];
    const kind = kinds[Math.floor(Math.random() * kinds.length)];
    const upgrade = { connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-version': '13', 'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==' };
    const request = http.get({ host: '127.0.0.1', port: this.port, path: kind.path, agent: false, headers: { ...upgrade, ...kind.headers } });
    request.on('error', () => {});
    request.on('response', (response) => response.resume());
  }

  get openCount() {
    return this.clients.filter((client) => client.received > 0 && !client.end).length;
  }

  stop() {
    clearInterval(this.refusedRequests);
    for (const client of this.clients) client.close();
  }
}

/** Asks the API directly, not through the page. */
async function sessions(query = '') {
  const answer = await fetch(`http://127.0.0.1:${admin}/api/sessions?${query}`);
  return (await answer.json()).sessions;
}

const rows = () => page.locator('#sessions tbody tr');

async function numbersShown() {
  const numbers = await page.locator('#sessions tbody tr td:first-child').allInnerTexts();
  return numbers.map(Number);
}

scene('a gateway under load', async () => {
  echo = net.createServer((socket) => {
    socket.on('error', () => socket.destroy());
    socket.on('data', (bytes) => socket.write(Buffer.concat(Array(ANSWER).fill(bytes))));
  });
  await new Promise((resolve) => {
    echo.listen(0, '127.0.0.1', resolve);
  });
  const identity = selfSigned(program, path.join(work, 'certs'));
  const backend = `tcp://127.0.0.1:${echo.address().port}`;
  const route = (name, more) =>
    `[[route]]\nname = "${name}"\npath = "/${name}"\nbackend = ${more}\norigins = ["https://desk.example.com"]\nmissing_origin = "allow"\n`;
  const text = `
[[listener]]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
certificate = "${identity.certificate}"
private_key = "${identity.privateKey}"
${route('desk', JSON.stringify(backend))}
${route('chat', JSON.stringify([backend, 'tcp://127.0.0.1:1']))}
balance = "first"
[route.health]
[limits]
max_sessions = 60
[limits.per_ip]
exempt = ["127.0.0.0/8"]
[admin]
address = "127.0.0.1:0"
`;
  gateway = await startGateway({ program, text, directory: path.join(work, 'gateway'), log: artefact('gateway.log') });
  const [plain] = gateway.events('listening').filter((event) => !event.tls);
  admin = Number(gateway.events('listening on the admin address').at(-1).address.split(':').at(-1));
  load = new Load(Number(plain.address.split(':').at(-1)));
  for (let number = 0; number < SESSIONS; number++) load.open(number);
  await until('every session is answered', 20, (saw) => {
    saw(`${load.openCount} of ${SESSIONS}`);
    return load.openCount === SESSIONS;
  });
});

scene('the page shows the load', async () => {
  browser = await startBrowser(path.join(work, 'home'), ['desk.test', 'evil.test'], { width: 1280, height: 1000 });
  page = await browser.newPage();
  page.on('console', (message) => consoleLines.push(message.text()));
  page.on('pageerror', (error) => consoleLines.push(`error: ${error}`));
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', ({ violatedDirective, blockedURI }) =>
      window.violations.push(`${violatedDirective}: ${blockedURI}`));
  });
  const loaded = [];
  page.on('request', (request) => loaded.push(new URL(request.url()).host));
  const answer = await page.goto(`http://localhost:${admin}/`);
  assert.match(answer.headers()['content-security-policy'], /^default-src 'none';/);
  await until('every session and its rates are shown', 20, async (saw) => {
    const seen = {
      state: await page.locator('#state').innerText(),
      rows: await rows().count(),
      rates: await page.locator('#throughput li b').allInnerTexts(),
      refused: await page.locator('#refusals li').allInnerTexts(),
      backends: await page.locator('#backends tbody tr').allInnerTexts(),
      listeners: await page.locator('#listeners tbody tr').allInnerTexts(),
      limits: await page.locator('#limits dd').allInnerTexts(),
      points: await page.locator('#throughput polyline').first().getAttribute('points').catch(() => ''),
    };
    saw(JSON.stringify(seen, null, 1));
    return (
      seen.state === 'ready' &&
      seen.rows === SESSIONS &&
      seen.rates.length === 2 && seen.rates.every((rate) => /^\d.*[kM]B\/s$/.test(rate)) &&
      seen.refused.some((line) => /origin_refused/.test(line)) && seen.refused.some((line) => /unknown_route/.test(line)) &&
      seen.backends.length === 3 && seen.backends.filter((line) => /\bdown\b/.test(line)).length === 1 &&
      seen.listeners.some((line) => /expires in \d+ (d|h)/.test(line)) &&
      seen.limits.some((line) => new RegExp(`^${SESSIONS} of 60`).test(line)) &&
      seen.points.split(' ').length >= 4
    );
  });
  assert.deepEqual([...new Set(loaded)], [`localhost:${admin}`], 'the page sent requests to another host');
});

scene('a session is found and closed', async () => {
  const [victim] = (await sessions('route=chat')).slice(-1);
  await page.getByLabel('Find').fill(victim.peer);
  await until('only that session is shown', 10, async (saw) => {
    const shown = await numbersShown();
    saw(String(shown));
    return shown.length === 1 && shown[0] === victim.id;
  });
  await page.getByRole('button', { name: `Close session ${victim.id}` }).click();
  await page.getByLabel('Message to the client').fill('the coffee is ready');
  await page.getByRole('button', { name: 'Close', exact: true }).click();
  const closed = await until('its client gets the Close', 10, () => load.clients.find((client) => client.end));
  assert.deepEqual(closed.end, { code: 1008, reason: 'the coffee is ready' });
  await until('it is gone from the page', 10, async (saw) => {
    saw(await page.locator('#count').innerText());
    return (await rows().count()) === 0;
  });
  await page.getByLabel('Find').fill('');
  await until('the others are still there', 10, async (saw) => {
    const shown = await numbersShown();
    saw(String(shown));
    return shown.length === SESSIONS - 1 && !shown.includes(victim.id);
  });
  assert.equal((await sessions()).length, SESSIONS - 1);
  assert.match(await page.locator('#message').innerText(), new RegExp(`Session ${victim.id} is being closed`));
  await until('the reason is counted', 10, async () => /killed 1/.test(await page.locator('#reasons').innerText()));
  assert.equal(load.openCount, SESSIONS - 1, 'other sessions were closed, too');
});

scene('it can be used by keyboard and is accessible', async () => {
  const [second] = await numbersShown();
  await page.getByLabel('Find').focus();
  const focused = () => page.evaluate(() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.id);
  await until('Tab leads to the first session', 10, async (saw) => {
    await page.keyboard.press('Tab');
    const name = await focused();
    saw(name);
    return name === `Close session ${second} …`;
  });
  // The list is refreshed each second; the focused button keeps the focus.
  const polls = () => page.evaluate(() => performance.getEntriesByType('resource').filter((entry) => /api\/sessions/.test(entry.name)).length);
  const before = await polls();
  await until('the page has polled twice more', 10, async () => (await polls()) >= before + 2);
  assert.equal(await focused(), `Close session ${second} …`);
  await page.keyboard.press('Enter');
  await page.getByRole('dialog').waitFor();
  const faultsOfDialog = await accessibilityViolations(page);
  await page.keyboard.press('Escape');
  assert.equal((await sessions()).length, SESSIONS - 1, 'Escape cancels');
  assert.deepEqual([...faultsOfDialog, ...(await accessibilityViolations(page))], []);
});

scene('a page of another origin can neither read nor change anything', async () => {
  const evil = http.createServer((_, response) => response.setHeader('content-type', 'text/html').end('<!doctype html><title>evil</title>'));
  await new Promise((resolve) => {
    evil.listen(0, '127.0.0.1', resolve);
  });
  foreignSite = { stop: () => evil.close() };
  const foreignPage = await browser.newPage();
  const attack = async (target) => {
    const attempts = await foreignPage.evaluate(async (base) => {
      const tries = [];
      const attempt = async (name, path_, options) => {
        const done = await fetch(base + path_, options).then(async (answer) => `${answer.status} ${answer.type}: ${await answer.text()}`, () => 'failed');
        tries.push(`${name}: ${done}`);
      };
      await attempt('read', '/api/sessions', {});
      await attempt('read, no-cors', '/api/sessions', { mode: 'no-cors' });
      await attempt('post', '/api/drain', { method: 'POST' });
      await attempt('post, no-cors', '/api/drain', { method: 'POST', mode: 'no-cors' });
      await attempt('post with the field', '/api/drain', { method: 'POST', headers: { 'X-Portcullis': 'status-page' } });
      await attempt('delete', '/api/sessions/2', { method: 'DELETE', headers: { 'X-Portcullis': 'status-page' } });
      return tries;
    }, target);
    // The response of a no-cors request is empty for the page.
    assert.deepEqual(attempts.filter((line) => !/: (failed|0 opaque: |403 .*)$/s.test(line)), []);
    assert.ok(!attempts.join().includes('peer'), attempts.join('\n'));
    return attempts;
  };
  // From another port of this machine; then by a name that resolves to it (DNS rebinding), which is the same origin.
  await foreignPage.goto(`http://127.0.0.1:${evil.address().port}/`);
  await attack(`http://127.0.0.1:${admin}`);
  const rebound = await foreignPage.goto(`http://evil.test:${admin}/`);
  assert.equal(rebound.status(), 403);
  const attempts = await attack('');
  assert.ok(attempts.every((line) => /: 403 /.test(line)), attempts.join('\n'));
  // A form is sent without a preflight.
  await foreignPage.goto(`http://127.0.0.1:${evil.address().port}/`);
  const [answer] = await Promise.all([
    foreignPage.waitForNavigation(),
    foreignPage.evaluate((action) => {
      const form = Object.assign(document.createElement('form'), { method: 'POST', action });
      document.body.append(form);
      form.submit();
    }, `http://127.0.0.1:${admin}/api/drain`),
  ]);
  assert.equal(answer.status(), 403);
  await foreignPage.close();
  assert.equal(load.openCount, SESSIONS - 1, 'a foreign page closed a session');
});

scene('nothing violated the content security policy', async () => {
  assert.deepEqual(await page.evaluate(() => window.violations), []);
  assert.deepEqual(consoleLines.filter((line) => /error|violat|refused|failed/i.test(line)), []);
  await until('the curves have some length', 30 + CURVE, async (saw) => {
    const points = (await page.locator('#throughput polyline').first().getAttribute('points')).split(' ').length;
    saw(`${points} seconds`);
    return points >= CURVE;
  });
  await page.setViewportSize({ width: 1280, height: 1040 });
  await page.evaluate(() => {
    document.activeElement.blur();
    window.scrollTo(0, 0);
  });
  await page.screenshot({ path: artefact('page.png') });
  await page.emulateMedia({ colorScheme: 'dark' });
  await page.screenshot({ path: artefact('dark.png') });
  await page.emulateMedia({ colorScheme: null });
});

scene('reload and drain ask for confirmation', async () => {
  await page.getByRole('button', { name: 'Reload …' }).click();
  await page.getByRole('button', { name: 'Reload', exact: true }).click();
  await until('the page shows the result of the reload', 10, async (saw) => {
    const message = await page.locator('#message').innerText();
    saw(message);
    return /^reloaded: 2 listener/.test(message);
  });
  await page.getByRole('button', { name: 'Drain …' }).click();
  await page.getByRole('button', { name: 'Cancel' }).click();
  assert.equal(load.openCount, SESSIONS - 1, 'Cancel must not drain');
  await page.getByRole('button', { name: 'Drain …' }).click();
  await page.getByRole('button', { name: 'Drain', exact: true }).click();
  await until('every client gets the Close', 30, (saw) => {
    const codes = load.clients.map((client) => client.end?.code);
    saw(String(codes));
    return codes.filter((code) => code === 1001).length === SESSIONS - 1;
  });
  await until('the page shows no session', 10, async (saw) => {
    saw(await page.locator('body').innerText());
    return (await page.locator('#state').innerText()) === 'draining' && (await rows().count()) === 0;
  });
});
