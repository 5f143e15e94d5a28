// The real thing, end to end: a TightVNC desktop, Portcullis with TLS in front of it, noVNC in Chromium.
//
//   Chromium (noVNC) --wss--> Portcullis --tcp--> counting relay --tcp--> Xtightvnc
//
// The scenes are one story and depend on each other: after the first that fails the rest is skipped.
//
// environment: PORTCULLIS   the program to test (default: target/debug/portcullis)
//              ARTEFACTS    where logs and screenshots are kept (default: tests/artefacts)

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import test, { after } from 'node:test';
import { fileURLToPath } from 'node:url';

import { Viewer, startBrowser } from './lib/browser.js';
import { Authority, trust } from './lib/certificates.js';
import { BACKGROUND, BLUE, CLOCK, GREEN, INK, REACTOR_WINDOW, SCREEN, STILL, startDesktop } from './lib/desktop.js';
import { startGateway } from './lib/gateway.js';
import { countingRelay, servePages } from './lib/servers.js';
import { until } from './lib/until.js';

const here = fileURLToPath(new URL('.', import.meta.url));
const root = path.resolve(here, '../..');
const program = path.resolve(process.env.PORTCULLIS ?? path.join(root, 'target/debug/portcullis'));
const artefacts = path.resolve(process.env.ARTEFACTS ?? path.join(root, 'tests/artefacts'));

const GATEWAY = 'desk.test';
const FRIEND = 'viewer.test'; // its pages may use the route
const STRANGER = 'stranger.test'; // the same pages from the same server: only the origin differs

fs.mkdirSync(artefacts, { recursive: true });
fs.mkdirSync(path.join(root, 'target'), { recursive: true });
const work = fs.mkdtempSync(path.join(root, 'target', 'browser-test-'));

let desktop;
let relay;
let pages;
let gateway;
let browser;
let viewer;
let failed;

function scene(name, play) {
  test(name, { timeout: 120_000 }, async (t) => {
    if (failed) return t.skip(`because this failed: ${failed}`);
    try {
      await play();
    } catch (error) {
      failed = name;
      await report();
      throw error;
    }
  });
}

/** Everything that helps to understand a failure, on stderr. */
async function report() {
  const say = (title, text) => process.stderr.write(`\n--- ${title}\n${text}\n`);
  if (viewer) {
    await viewer.screenshot(artefact('failure.png')).catch(() => {});
    say(`page events (picture: ${artefact('failure.png')})`, (await viewer.events().catch(String)).toString());
    say('page console', viewer.console.join('\n'));
  }
  if (gateway) say(`gateway log, running: ${!gateway.end}`, gateway.log().slice(-8000));
  if (desktop) say('VNC server log', desktop.log().slice(-4000));
  if (relay) say('relay to the VNC server', JSON.stringify(relay));
}

after(async () => {
  await browser?.close();
  await gateway?.stop();
  relay?.stop();
  pages?.stop();
  await desktop?.stop();
});
process.on('exit', removeWork);

function removeWork() {
  fs.rmSync(work, { recursive: true, force: true, maxRetries: 5 });
}

function artefact(name) {
  return path.join(artefacts, name);
}

/** Waits until the viewer's canvas shows what the X server itself says is on its screen. */
async function shown() {
  await until('the page shows the desktop', 30, async (saw) => {
    const [truth, seen] = [await desktop.picture(), await viewer.picture()];
    if (!seen) {
      saw(`no canvas; page events: ${await viewer.events()}`);
      return false;
    }
    const same = STILL.map((area) => truth.part(area).sameness(seen.part(area)));
    const window_ = seen.part(REACTOR_WINDOW);
    const filled = Math.max(window_.share(GREEN), window_.share(BLUE));
    const background = seen.share(BACKGROUND);
    saw(`${seen.width}x${seen.height}, same as the X server's: ${same}, background ${background}, window ${filled}`);
    const rightSize = seen.width === SCREEN.width && seen.height === SCREEN.height;
    return rightSize && same.every((share) => share > 0.99) && background > 0.1 && filled > 0.8;
  });
}

/** Clicks at a point of the desktop and waits for the ink there, and nowhere else in the window. */
async function clickLeavesInk(x, y) {
  const at = { x: x - 4, y: y - 4, width: 8, height: 8 };
  const before = await viewer.picture();
  assert.equal(before.part(at).share(INK), 0, 'there is ink before the click');
  const inkBefore = before.part(REACTOR_WINDOW).share(INK);
  await viewer.click(x, y);
  await until(`the click at ${x},${y} leaves ink there`, 15, async (saw) => {
    const seen = await viewer.picture();
    saw(`ink there: ${seen.part(at).share(INK)}, in the window: ${seen.part(REACTOR_WINDOW).share(INK)}`);
    return seen.part(at).share(INK) === 1;
  });
  const grown = (await viewer.picture()).part(REACTOR_WINDOW).share(INK) - inkBefore;
  assert.ok(grown > 0 && grown < 0.02, `the ink of one click covers ${grown} of the window`);
}

/** Types a key and waits for the window to take the colour it stands for. */
async function keyPaints(key, colour) {
  const before = (await viewer.picture()).part(REACTOR_WINDOW).share(colour);
  assert.ok(before < 0.01, `the window has the colour ${colour} before the key: ${before}`);
  await viewer.type(key);
  await until(`the key ${key} paints the window ${colour}`, 15, async (saw) => {
    const share = (await viewer.picture()).part(REACTOR_WINDOW).share(colour);
    saw(`a share of ${share}`);
    return share > 0.8;
  });
}

scene('a desktop, the gateway and a browser start', async () => {
  const authority = new Authority(path.join(work, 'authority'));
  const site = path.join(work, 'site');
  fs.cpSync(path.join(here, 'page'), site, { recursive: true });
  for (const directory of ['core', 'vendor']) {
    const library = path.join(here, 'node_modules/@novnc/novnc', directory);
    fs.cpSync(library, path.join(site, 'novnc', directory), { recursive: true });
  }
  desktop = await startDesktop(work, artefacts);
  relay = await countingRelay(desktop.port);
  pages = await servePages(site, authority.issue(FRIEND, STRANGER));
  const { certificate, privateKey } = authority.issue(GATEWAY);
  gateway = await startGateway(
    program,
    `
[[listener]]
address = "127.0.0.1:0"
certificate = "${certificate}"
private_key = "${privateKey}"

[[route]]
name = "desk"
path = "/desk"
backend = "tcp://127.0.0.1:${relay.port}"
origins = ["https://${FRIEND}:${pages.port}"]

[[route]]
name = "own"
path = "/own"
backend = "tcp://127.0.0.1:${relay.port}"

[web]
root = "${site}"

[log]
format = "json"
level = "debug"
`,
    work,
    artefacts,
  );
  trust(authority, work);
  browser = await startBrowser(work, [GATEWAY, FRIEND, STRANGER]);
  process.on('exit', removeWork); // again: by now an exit ends the browser first
  assert.equal(relay.connections, 0);
});

scene('the browser accepts no certificate of a stranger', async () => {
  const site = path.join(work, 'site');
  const other = await servePages(site, new Authority(path.join(work, 'other')).issue(FRIEND));
  const page = await browser.newPage();
  await assert.rejects(page.goto(`https://${FRIEND}:${other.port}/`), /ERR_CERT_AUTHORITY_INVALID/);
  await page.close();
  other.stop();
});

scene('a page on a listed origin shows the desktop', async () => {
  viewer = await Viewer.open(browser, `https://${FRIEND}:${pages.port}/`);
  await viewer.connect(`wss://${GATEWAY}:${gateway.port}/desk`, desktop.password);
  await shown();
  assert.equal(relay.connections, 1);
  assert.equal(desktop.connections(), 1);
  await viewer.screenshot(artefact('shown.png'));
});

scene('the picture keeps moving by itself', async () => {
  const pictures = new Set();
  await until('the clock shows five different pictures', 20, async (saw) => {
    pictures.add((await viewer.picture()).part(CLOCK).rgba.toString('base64'));
    saw(`${pictures.size} pictures`);
    return pictures.size >= 5;
  });
});

scene('a click reaches the place where it was made', async () => {
  await clickLeavesInk(150, 200);
  await clickLeavesInk(420, 300);
  await clickLeavesInk(260, 480);
});

scene('a typed key reaches the window', async () => {
  await viewer.screenshot(artefact('clicked.png'));
  await keyPaints('b', BLUE);
  await viewer.screenshot(artefact('typed.png'));
  await keyPaints('g', GREEN);
});

scene('a viewer that leaves is logged once, with the bytes that were carried', async () => {
  assert.deepEqual(gateway.said('session ended'), []);
  await viewer.disconnect();
  const [ended] = await until('the gateway logs the end of the session', 15, (saw) => {
    saw(gateway.log().slice(-1000));
    const lines = gateway.said('session ended');
    return lines.length > 0 && lines;
  });
  const { wasClean } = await until('the page is told', 15, () => viewer.closed());
  assert.equal(wasClean, true);
  assert.equal(gateway.said('session ended').length, 1);
  assert.equal(ended.reason, 'client_closed');
  assert.equal(ended.route, 'desk');
  assert.equal(ended.backend, `tcp://127.0.0.1:${relay.port}`);
  await until('every byte of the client has arrived at the VNC server', 5, (saw) => {
    saw(`${relay.bytesIn} of ${ended.bytes_in}`);
    return relay.bytesIn === ended.bytes_in;
  });
  const fromServer = `${ended.bytes_out} bytes logged, ${relay.bytesOut} sent by the VNC server`;
  assert.ok(ended.bytes_out > 1000 && ended.bytes_out <= relay.bytesOut, fromServer);
  await viewer.close();
});

scene('a page on a foreign origin gets nothing, and the VNC server hears nothing', async () => {
  const before = [relay.connections, desktop.connections()];
  viewer = await Viewer.open(browser, `https://${STRANGER}:${pages.port}/`);
  for (const [i, route] of ['desk', 'own'].entries()) {
    await viewer.connect(`wss://${GATEWAY}:${gateway.port}/${route}`, desktop.password);
    const closed = await until('the page is told', 15, async (saw) => {
      saw(await viewer.events());
      return viewer.closed();
    });
    assert.deepEqual(closed, { code: 1006, reason: '', wasClean: false });
    const events = await viewer.events();
    assert.ok(events.includes('error') && !events.includes('connected'), `page events: ${events}`);
    const refusals = await until('the gateway logs the refusal', 15, (saw) => {
      saw(gateway.log().slice(-1000));
      const lines = gateway.said('refused').filter(({ reason }) => reason === 'origin_refused');
      return lines.length > i && lines;
    });
    assert.equal(refusals.length, i + 1);
    assert.equal(refusals[i].route, route);
  }
  assert.match(viewer.console.join('\n'), /403/, 'the console of the browser names the status');
  assert.equal((await viewer.picture())?.share(BACKGROUND) ?? 0, 0);
  assert.deepEqual([relay.connections, desktop.connections()], before);
  assert.equal(gateway.said('session ended').length, 1);
  await viewer.screenshot(artefact('refused.png'));
  await viewer.close();
});

scene('a page that the gateway itself serves shows and moves the desktop', async () => {
  viewer = await Viewer.open(browser, `https://${GATEWAY}:${gateway.port}/`);
  await viewer.connect(`wss://${GATEWAY}:${gateway.port}/own`, desktop.password);
  await shown();
  await clickLeavesInk(300, 350);
  await keyPaints('b', BLUE);
  assert.equal(relay.connections, 2);
  await viewer.screenshot(artefact('served.png'));
});

scene('the address of a route, opened as a page, says what it is for', async () => {
  const page = await browser.newPage();
  const response = await page.goto(`https://${GATEWAY}:${gateway.port}/own`);
  assert.equal(response.status(), 426);
  assert.match(await page.locator('body').innerText(), /WebSocket/i);
  assert.equal(relay.connections, 2);
  await page.close();
});

scene('a gateway that stops tells the page', async () => {
  gateway.signal('SIGTERM');
  const closed = await until('the page is told', 15, () => viewer.closed());
  assert.equal(closed.code, 1001);
  assert.equal(closed.wasClean, true);
  await until('the gateway ends', 15, () => gateway.end);
  assert.equal(gateway.end, 'exit status 0');
  const [, last] = gateway.said('session ended');
  assert.equal(last.reason, 'draining');
  assert.equal(last.close_code, 1001);
});
