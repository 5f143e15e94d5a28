// The remote desktop, end to end: the page of examples/vnc in Chromium, Portcullis with TLS, a TightVNC desktop.
//
//   Chromium --wss--> network --wss--> Portcullis --tcp--> network --tcp--> Xtightvnc
//
// The test's networks count connections and bytes, and can be made to fail.
//
// environment: PORTCULLIS   the program under test (default: target/debug/portcullis)
//              ARTEFACTS    the directory of logs and screenshots (default: tests/artefacts)

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { after } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { buildPage } from '../../examples/build.js';
import { CertificateAuthority } from '../../examples/launch/certificates.js';
import { replaceValues, startGateway } from '../../examples/launch/gateway.js';
import { isAlive } from '../../examples/launch/processes.js';
import { until } from '../../examples/launch/until.js';
import { BACKGROUND, BLUE, CLOCK, GREEN, INK, LOGO } from '../../examples/launch/vnc.js';
import { EDGE, FONT, REACTOR_WINDOW, SCREEN, SHELL_CURSOR, SHELL_PROMPT, SHELL_WINDOW, startDesktop } from '../../examples/launch/vnc.js';
import { accessibilityViolations, startBrowser, trust } from './lib/browser.js';
import { startExample } from './lib/example.js';
import { Picture } from './lib/picture.js';
import { servePages, startNetwork } from './lib/servers.js';
import { scenario } from './lib/scenario.js';
import { Viewer } from './lib/viewer.js';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../..', import.meta.url));
const example = path.join(root, 'examples/vnc');
const program = path.resolve(process.env.PORTCULLIS ?? path.join(root, 'target/debug/portcullis'));
const artefacts = path.resolve(process.env.ARTEFACTS ?? path.join(root, 'tests/artefacts'));

const GATEWAY = 'desk.test';
const ALLOWED_HOST = 'viewer.test'; // an allowed origin of the route
const FOREIGN_HOST = 'foreign.test'; // the same pages from the same server: only the origin differs

/** The parts of the desktop that do not change without input. */
const STATIC_AREAS = [REACTOR_WINDOW, SHELL_WINDOW, LOGO];

fs.mkdirSync(artefacts, { recursive: true });
fs.mkdirSync(path.join(root, 'target'), { recursive: true });
const work = fs.mkdtempSync(path.join(root, 'target', 'vnc-test-'));
const removeWork = () => fs.rmSync(work, { recursive: true, force: true, maxRetries: 5 });
process.on('exit', removeWork);

let authority;
let pageDirectory; // of the built page
let desktop;
let lan; // the network between the gateway and the desktop
let wan; // the network between the browser and the gateway
let gateway;
let otherServer; // the server of pages from other origins
let browser;
let viewer;

const step = scenario({ report });

/** Prints, on stderr, information that helps to understand a failure. */
async function report() {
  const say = (title, text) => process.stderr.write(`\n--- ${title}\n${text}\n`);
  if (viewer) {
    await viewer.screenshot(artefact('failure.png')).catch(() => {});
    say(`banner (picture: ${artefact('failure.png')})`, JSON.stringify(await viewer.banner().catch(String)));
    say('page console', viewer.console.join('\n'));
  }
  if (gateway) say(`gateway log, running: ${!gateway.end}`, gateway.log().slice(-6000));
  if (desktop) say('VNC server log', desktop.log().slice(-3000));
  say('networks', JSON.stringify({ lan, wan }));
}

after(async () => {
  await browser?.close();
  await gateway?.stop();
  for (const server of [lan, wan, otherServer]) server?.stop();
  await desktop?.stop();
});

function artefact(name) {
  return path.join(artefacts, `vnc-${name}`);
}

/** Waits until the banner's description matches `pattern`, in `state`. */
function showsBanner(pattern, state, { seconds = 15, of = viewer } = {}) {
  return until(`the page shows ${pattern}${state ? `, ${state}` : ''}`, seconds, async (observed) => {
    const banner = await of.banner();
    observed(JSON.stringify(banner));
    return pattern.test(banner.description) && (!state || banner.state === state) && banner;
  });
}

/** Waits until the viewer's canvas shows the X server's own image of its screen. */
async function shown(of = viewer) {
  await until('the page shows the desktop', 30, async (observed) => {
    const [expected, seen] = [Picture.fromXwd(await desktop.dump()), await of.picture()];
    if (!seen) {
      observed(`no canvas; the banner is ${JSON.stringify(await of.banner())}`);
      return false;
    }
    const same = STATIC_AREAS.map((area) => expected.part(area).similarity(seen.part(area)));
    const window_ = seen.part(REACTOR_WINDOW);
    const filled = Math.max(window_.share(GREEN), window_.share(BLUE));
    const background = seen.share(BACKGROUND);
    observed(`${seen.width}x${seen.height}, same as the X server's: ${same}, background ${background}, window ${filled}`);
    const rightSize = seen.width === SCREEN.width && seen.height === SCREEN.height;
    return rightSize && same.every((share) => share > 0.99) && background > 0.1 && filled > 0.8;
  });
}

function inkAt(picture, x, y) {
  return picture.part({ x: x - 4, y: y - 4, width: 8, height: 8 }).share(INK);
}

/** Clicks a point of the desktop and waits for ink there, and nowhere else in the window. */
async function clickLeavesInk(x, y) {
  const before = await viewer.picture();
  assert.equal(inkAt(before, x, y), 0, 'there is ink before the click');
  await viewer.click(x, y);
  const after = await until(`the click at ${x},${y} leaves ink there`, 15, async (observed) => {
    const seen = await viewer.picture();
    observed(`ink there: ${inkAt(seen, x, y)}, in the window: ${seen.part(REACTOR_WINDOW).share(INK)}`);
    return inkAt(seen, x, y) === 1 && seen;
  });
  const grown = after.part(REACTOR_WINDOW).share(INK) - before.part(REACTOR_WINDOW).share(INK);
  assert.ok(grown > 0 && grown < 0.02, `the ink of one click covers ${grown} of the window`);
}

/** Types a key into the reactor's window and waits for the colour of that key. */
async function keyPaints(key, colour) {
  await viewer.move(REACTOR_WINDOW.x + 300, REACTOR_WINDOW.y + 80); // the pointer selects the window that gets the keys
  const before = (await viewer.picture()).part(REACTOR_WINDOW).share(colour);
  assert.ok(before < 0.01, `the window has the colour ${colour} before the key: ${before}`);
  await viewer.press(key);
  await painted(colour);
}

function painted(colour) {
  return until(`the window is ${colour}`, 15, async (observed) => {
    const share = (await viewer.picture()).part(REACTOR_WINDOW).share(colour);
    observed(`a share of ${share}`);
    return share > 0.8;
  });
}

/** Waits until a file on the desktop contains `text`: a typed command has run. */
function fileContains(name, text) {
  const file = path.join(work, 'desktop', name);
  return until(`${name} on the desktop contains ${JSON.stringify(text)}`, 15, (observed) => {
    const content = fs.readFileSync(file, 'utf8');
    observed(JSON.stringify(content));
    return content === text;
  });
}

async function overTheShell() {
  await viewer.move(SHELL_WINDOW.x + 300, SHELL_WINDOW.y + 200);
}

/**
 * Waits until the shell is ready for the next command, with its cursor behind a prompt in a line that `fits`, and returns
 * that line's number. Keys typed earlier may arrive while the terminal changes its mode.
 */
function prompt(fits) {
  const rows = Math.floor((SHELL_WINDOW.height - 2 * EDGE) / FONT.height);
  const x = SHELL_WINDOW.x + EDGE + SHELL_PROMPT.length * FONT.width;
  const cell = (line) => ({ x, y: SHELL_WINDOW.y + EDGE + line * FONT.height, width: FONT.width, height: FONT.height });
  return until('the shell prompts', 15, async (observed) => {
    const seen = await viewer.picture();
    const lines = Array.from({ length: rows }, (_, line) => line);
    const found = lines.find((line) => seen.part(cell(line)).share(SHELL_CURSOR) > 0.9);
    observed(`the cursor behind a prompt in line ${found}`);
    return found !== undefined && fits(found) && { line: found };
  }).then(({ line }) => line);
}

/** The text that programs on the desktop paste. */
async function desktopClipboard() {
  const { stdout } = await run('xclip', ['-o', '-selection', 'clipboard'], { env: desktop.env, timeout: 5000 });
  return stdout;
}

/** Copies text as a program on the desktop. */
function copyOnDesktop(text) {
  const child = spawn('xclip', ['-i', '-selection', 'clipboard'], { env: desktop.env, stdio: ['pipe', 'ignore', 'ignore'] });
  child.stdin.end(text);
}

function clipboardShows(text) {
  return until(`the page's clipboard shows ${JSON.stringify(text)}`, 15, async (observed) => {
    const shows = await viewer.page.locator('#clipboard-text').inputValue();
    observed(JSON.stringify(shows));
    return shows === text;
  });
}

function desktopPastes(text) {
  return until(`programs on the desktop paste ${JSON.stringify(text)}`, 15, async (observed) => {
    const pasted = await desktopClipboard();
    observed(JSON.stringify(pasted));
    return pasted === text;
  });
}

function sessionsEnded() {
  return gateway.events('session ended');
}

function nextSessionEnds(before) {
  return until('the gateway logs the end of the session', 15, (observed) => {
    observed(gateway.log().slice(-1000));
    const lines = sessionsEnded();
    return lines.length > before && lines[before];
  });
}

async function closeViewer(of) {
  const before = sessionsEnded().length;
  await of.close();
  await nextSessionEnds(before);
}

async function noAccessibilityViolations(what) {
  assert.deepEqual(await accessibilityViolations(viewer.page), [], what);
}

step('a desktop, the gateway and a browser start', async () => {
  authority = new CertificateAuthority(path.join(work, 'authority'));
  pageDirectory = await buildPage(example, { outdir: path.join(work, 'page') });
  desktop = await startDesktop({ directory: path.join(work, 'desktop'), log: artefact('server.log') });
  lan = await startNetwork(desktop.port);
  const hosts = authority.issue(ALLOWED_HOST, FOREIGN_HOST);
  otherServer = await servePages(pageDirectory, hosts, {
    // A page from another origin names the gateway, as index.html says.
    change: (name, text) =>
      name === '/index.html'
        ? text
            .replace('name="gateway" content="desk"', `name="gateway" content="wss://${GATEWAY}:${gateway.port}/desk"`)
            .replace("default-src 'self'", `default-src 'self'; connect-src wss://${GATEWAY}:${gateway.port}`)
        : text,
  });
  const { certificate, privateKey } = authority.issue(GATEWAY);
  const text = replaceValues(fs.readFileSync(path.join(example, 'gateway.toml'), 'utf8'), {
    '0.0.0.0:8443': '127.0.0.1:0',
    'certs/localhost.crt': certificate,
    'certs/localhost.key': privateKey,
    'tcp://127.0.0.1:5900': `tcp://127.0.0.1:${lan.port}`,
    dist: pageDirectory,
  });
  const listed = text.replace('[[route]]', `[[route]]\norigins = ["same-origin", "https://${ALLOWED_HOST}:${otherServer.port}"]`);
  assert.notEqual(listed, text);
  gateway = await startGateway({ program, text: listed, directory: path.join(work, 'gateway'), log: artefact('gateway.log') });
  wan = await startNetwork(gateway.port);
  trust(authority, work);
  browser = await startBrowser(work, [GATEWAY, ALLOWED_HOST, FOREIGN_HOST]);
  process.on('exit', removeWork); // again, so that it runs after the exit handler that stops the browser
  assert.equal(lan.connections, 0);
});

step('the browser rejects a certificate of an unknown authority', async () => {
  const other = await servePages(pageDirectory, new CertificateAuthority(path.join(work, 'other')).issue(ALLOWED_HOST));
  const tab = await browser.newPage();
  await assert.rejects(tab.goto(`https://${ALLOWED_HOST}:${other.port}/`), /ERR_CERT_AUTHORITY_INVALID/);
  await tab.close();
  other.stop();
});

step('the page asks for the password, and reports a wrong one', async () => {
  viewer = await Viewer.open(browser, `https://${GATEWAY}:${wan.port}/`);
  await showsBanner(/^The desktop asks for its password\.$/, 'connecting');
  await noAccessibilityViolations('while the password is asked for');
  const before = sessionsEnded().length;
  await viewer.enterPassword('not this');
  const fault = viewer.page.locator('#login-error');
  await fault.waitFor();
  assert.match(await fault.innerText(), /^The password was not right.*try again/);
  assert.equal(await viewer.page.locator('#password').inputValue(), 'not this', 'the typed password is still there');
  await showsBanner(/^The password was not right/, 'closed');
  await nextSessionEnds(before);
  await noAccessibilityViolations('after a wrong password');
  await viewer.screenshot(artefact('wrong-password.png'));
});

step('the right password shows the desktop', async () => {
  const before = [lan.connections, desktop.connections()];
  await viewer.enterPassword(desktop.password);
  await shown();
  await showsBanner(/^Connected to .*portcullis/, 'open');
  assert.deepEqual([lan.connections, desktop.connections()], before.map((count) => count + 1));
  assert.equal(await viewer.page.locator('#login').isVisible(), false);
  await noAccessibilityViolations('while connected');
  await viewer.screenshot(artefact('shown.png'));
});

step('the picture is updated without input', async () => {
  const pictures = new Set();
  await until('the clock shows five different pictures', 20, async (observed) => {
    pictures.add((await viewer.picture()).part(CLOCK).rgba.toString('base64'));
    observed(`${pictures.size} pictures`);
    return pictures.size >= 5;
  });
});

step('a click arrives at its position', async () => {
  await clickLeavesInk(150, 120);
  await clickLeavesInk(420, 200);
  await clickLeavesInk(260, 300);
});

step('a typed key reaches the window', async () => {
  await keyPaints('b', BLUE);
  await keyPaints('g', GREEN);
});

step('every kind of key reaches the desktop', async () => {
  await overTheShell();
  let line = await prompt(() => true);
  const next = () => prompt((other) => other > line);
  const all = 'The quick brown fox; jumps: 0123456789 ~!@#%^&*()_+-=[]{}|,.<>/?';
  await viewer.type('cat > typed\n');
  await fileContains('typed', '');
  await viewer.type(`${all}\n`);
  await fileContains('typed', `${all}\n`);
  await viewer.press('Control+d');
  line = await next();
  // Control-C stops a program, the arrow key recalls the last line, the backspace key deletes.
  await viewer.type("sh -c 'echo -n yes > asleep; exec sleep 1000'\n");
  await fileContains('asleep', 'yes');
  await viewer.press('Control+c');
  line = await next();
  await viewer.type('echo -n one > shell\n');
  await fileContains('shell', 'one');
  line = await next();
  await viewer.press('ArrowUp');
  for (let i = 0; i < 'one > shell'.length; i++) await viewer.press('Backspace');
  await viewer.type('two > shell\n');
  await fileContains('shell', 'two');
  line = await next();
  // And keys that the browser does not pass to pages.
  await viewer.type('cat > key\n');
  await fileContains('key', '');
  await viewer.page.locator('#keys').selectOption({ label: 'Escape' });
  await viewer.type('\n');
  await fileContains('key', '\x1b\n');
  await viewer.press('Control+d');
  await next();
  await viewer.type('clear\n');
  await prompt((other) => other === 0);
});

step('Ctrl+Alt+Shift moves the focus from the desktop to the page', async () => {
  await viewer.canvas.focus();
  for (const key of ['Control', 'Alt', 'Shift']) await viewer.page.keyboard.down(key);
  for (const key of ['Shift', 'Alt', 'Control']) await viewer.page.keyboard.up(key);
  assert.equal(await viewer.page.evaluate(() => document.activeElement.id), 'fit');
  await keyPaints('b', BLUE); // no modifier is stuck on the desktop
  await keyPaints('g', GREEN);
});

step('text copied on the desktop appears on the page', async () => {
  await viewer.page.locator('#clipboard-button').click();
  copyOnDesktop('copied by a program: grüße, 5 €, 👍\nand a second line');
  await clipboardShows('copied by a program: grüße, 5 €, 👍\nand a second line');
  // Selected with the mouse.
  await overTheShell();
  await prompt((line) => line === 0);
  await viewer.type('clear; echo marked_with_the_mouse\n');
  const word = { x: SHELL_WINDOW.x + 60, y: SHELL_WINDOW.y + 5 + 7 };
  await until('a word is selected', 15, async (observed) => {
    await viewer.click(word.x, word.y, { clickCount: 2 });
    const marked = await desktopClipboard();
    observed(marked);
    return marked === 'marked_with_the_mouse';
  });
  await clipboardShows('marked_with_the_mouse');
  await noAccessibilityViolations('with the clipboard open');
});

step('text sent from the page can be pasted on the desktop', async () => {
  const sent = 'sent by the page: ½ grüße, 7 €, 🐦\nsecond line';
  await viewer.page.locator('#clipboard-text').fill(sent);
  await viewer.page.locator('#clipboard-send').click();
  await desktopPastes(sent);
  // The middle button pastes into the shell. The Enter key runs the command, so press it until the text has arrived.
  await viewer.page.locator('#clipboard-text').fill('echo -n middle > pasted');
  await viewer.page.locator('#clipboard-send').click();
  await desktopPastes('echo -n middle > pasted');
  await viewer.click(SHELL_WINDOW.x + 300, SHELL_WINDOW.y + 200, { button: 'middle' });
  await until('the pasted command has run', 15, async () => {
    await viewer.press('Enter');
    return fs.existsSync(path.join(work, 'desktop', 'pasted'));
  });
  await fileContains('pasted', 'middle');
});

step("this computer's clipboard is shared if the user allows it", async () => {
  const { page: tab } = viewer;
  await tab.evaluate(() => document.querySelector('#clipboard-share').focus());
  await browser.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: `https://${GATEWAY}:${wan.port}` });
  await tab.evaluate(() => navigator.clipboard.writeText('from this computer'));
  await tab.locator('#clipboard-share').check();
  await desktopPastes('from this computer');
  copyOnDesktop('from the desktop');
  await until("this computer's clipboard has it", 15, async (observed) => {
    const ours = await tab.evaluate(() => navigator.clipboard.readText());
    observed(ours);
    return ours === 'from the desktop';
  });
  await tab.evaluate(() => navigator.clipboard.writeText('copied while away'));
  await viewer.canvas.focus();
  await desktopPastes('copied while away');
  await tab.locator('#clipboard-share').uncheck();
  await viewer.screenshot(artefact('clipboard.png'));
  await tab.locator('#clipboard-button').click();
});

step('view-only sends nothing and keeps showing the desktop', async () => {
  await viewer.page.locator('#view-only').click();
  const [before, bytes] = [await viewer.picture(), await desktopClipboard()];
  await viewer.click(520, 120);
  await viewer.move(520, 140);
  await viewer.press('b');
  assert.equal(await viewer.page.locator('#clipboard-send').isDisabled(), true);
  // After the clock has moved twice, any input that was sent would have had its effect.
  const clocks = new Set();
  await until('the clock moves', 15, async () => {
    clocks.add((await viewer.picture()).part(CLOCK).rgba.toString('base64'));
    return clocks.size >= 3;
  });
  const seen = await viewer.picture();
  assert.equal(seen.part(REACTOR_WINDOW).similarity(before.part(REACTOR_WINDOW)), 1);
  assert.equal(await desktopClipboard(), bytes);
  await viewer.page.locator('#view-only').click();
  await clickLeavesInk(520, 120);
  await keyPaints('b', BLUE);
});

step('the picture is scaled to the window, or has its own size', async () => {
  const size = async () => {
    const [canvas, stage] = [await viewer.canvas.boundingBox(), await viewer.page.locator('#stage').boundingBox()];
    return { width: Math.round(canvas.width), fits: canvas.width <= stage.width && canvas.height <= stage.height };
  };
  await viewer.page.setViewportSize({ width: 620, height: 560 });
  await until('the picture fits into a small window', 10, async (observed) => {
    const now = await size();
    observed(JSON.stringify(now));
    return now.fits && now.width < 620 && now.width > 200;
  });
  await clickLeavesInk(100, 220);
  await viewer.screenshot(artefact('small.png'));
  await noAccessibilityViolations('in a small window');
  await viewer.page.locator('#fit').click();
  await until('the picture has its own size', 10, async (observed) => {
    const now = await size();
    observed(JSON.stringify(now));
    return now.width === SCREEN.width && !now.fits;
  });
  await viewer.page.locator('#fit').click();
  await viewer.page.setViewportSize({ width: 1500, height: 1200 });
  await until('the picture fills a large window', 10, async (observed) => {
    const now = await size();
    observed(JSON.stringify(now));
    return now.fits && now.width > SCREEN.width;
  });
  await clickLeavesInk(600, 250);
  await viewer.page.setViewportSize({ width: 1120, height: 860 });
});

step('the network is down for 10 s, and keys typed meanwhile arrive', async () => {
  const before = sessionsEnded().length;
  await viewer.move(REACTOR_WINDOW.x + 300, REACTOR_WINDOW.y + 80);
  await shown();
  wan.stall();
  await viewer.press('g');
  const gone = pause(10_000);
  await showsBanner(/^No answer for \d+ s\. Is the network down\?$/, 'open');
  await viewer.screenshot(artefact('silent.png'));
  await gone;
  wan.resume();
  await painted(GREEN);
  await showsBanner(/^Connected to /, 'open');
  assert.equal(sessionsEnded().length, before, 'it is the same session');
});

step('the network breaks: the page shows it and reconnects automatically', async () => {
  const before = sessionsEnded().length;
  wan.cut();
  await showsBanner(/^(The connection was lost\.|Could not connect: )/, 'waiting');
  assert.equal(await viewer.page.locator('#last-frame').isVisible(), true, 'the last picture stays, in grey');
  const ended = await nextSessionEnds(before);
  assert.equal(ended.reason, 'client_gone');
  const { countdown } = await showsBanner(/^Could not connect: /, 'waiting', { seconds: 30 });
  assert.match(countdown, /^Next try in \d+ s\.$/);
  await wan.restore();
  await shown();
  await showsBanner(/^Connected to /, 'open');
  assert.equal(await viewer.page.locator('#last-frame').isVisible(), false);
  assert.equal(await viewer.page.locator('#login').isVisible(), false, 'the page does not ask for the password again');
});

step('this computer goes offline: the page shows it, and reconnects when it is online', async () => {
  await browser.setOffline(true);
  wan.cut();
  await showsBanner(/^This computer is offline\.$/, 'waiting');
  await wan.restore();
  await browser.setOffline(false);
  await shown();
});

step('the VNC server is killed: the page shows that it is unreachable, and reconnects after its restart', async () => {
  const before = sessionsEnded().length;
  await desktop.kill();
  const ended = await nextSessionEnds(before);
  assert.match(ended.reason, /^backend_(closed|failed)$/);
  lan.cut(); // the gateway must get a refused connection, too
  await showsBanner(/^Failed: the server behind the gateway refused the connection\.$/, 'waiting', { seconds: 30 });
  await viewer.screenshot(artefact('server-down.png'));
  await noAccessibilityViolations('while waiting');
  assert.equal(await desktop.start(), true);
  await lan.restore();
  await viewer.page.locator('#banner button').click({ timeout: 2000 }).catch(() => {}); // unless it has reconnected already
  await shown();
  await keyPaints('b', BLUE);
});

step('the gateway restarts: the page shows the reason and reconnects automatically', async () => {
  const second = await Viewer.open(browser, `https://${GATEWAY}:${wan.port}/`);
  await second.page.locator('#password').fill('half a pass');
  await showsBanner(/^The desktop asks/, 'connecting', { of: second });
  const before = sessionsEnded().length;
  await gateway.stop();
  assert.equal(gateway.end, 'exit status 0');
  const lines = sessionsEnded().slice(before);
  assert.deepEqual(lines.map(({ reason, close_code }) => [reason, close_code]), [['draining', 1001], ['draining', 1001]]);
  await showsBanner(/^(Interrupted: the gateway is stopping\.|Could not connect: )/, 'waiting');
  await showsBanner(/^(Interrupted: the gateway is stopping\.|Could not connect: )/, 'waiting', { of: second });
  await gateway.start();
  await shown();
  await showsBanner(/^Connected to /, 'open');
  await showsBanner(/^The desktop asks/, 'connecting', { seconds: 30, of: second });
  assert.equal(await second.page.locator('#password').inputValue(), 'half a pass', 'the typed password is still there');
  await second.enterPassword(desktop.password);
  await shown(second);
  await closeViewer(second);
});

step('a viewer that disconnects is logged once, with the relayed bytes', async () => {
  await closeViewer(viewer);
  const [before, bytesIn, bytesOut, arrived] = [sessionsEnded().length, lan.bytesIn, lan.bytesOut, lan.connections];
  viewer = await Viewer.open(browser, `https://${GATEWAY}:${wan.port}/`);
  await viewer.enterPassword(desktop.password);
  await shown();
  await viewer.page.locator('#disconnect').click();
  await showsBanner(/^Disconnected\.$/, 'closed');
  const ended = await nextSessionEnds(before);
  assert.equal(sessionsEnded().length, before + 1);
  assert.equal(ended.reason, 'client_closed');
  assert.equal(ended.route, 'desk');
  assert.equal(ended.backend, `tcp://127.0.0.1:${lan.port}`);
  assert.equal(lan.connections, arrived + 1);
  await until('every byte of the client has arrived at the VNC server', 5, (observed) => {
    observed(`${lan.bytesIn - bytesIn} of ${ended.bytes_in}`);
    return lan.bytesIn - bytesIn === ended.bytes_in;
  });
  const fromServer = `${ended.bytes_out} bytes logged, ${lan.bytesOut - bytesOut} sent by the VNC server`;
  assert.ok(ended.bytes_out > 1000 && ended.bytes_out <= lan.bytesOut - bytesOut, fromServer);
  await viewer.page.locator('#banner button').click();
  await shown();
  await viewer.close();
});

step('a page from an allowed origin shows and controls the desktop', async () => {
  viewer = await Viewer.open(browser, `https://${ALLOWED_HOST}:${otherServer.port}/`);
  await viewer.enterPassword(desktop.password);
  await shown();
  await clickLeavesInk(300, 200);
  await viewer.close();
});

step('a page from a foreign origin is refused, and the VNC server gets no connection', async () => {
  const before = [lan.connections, desktop.connections()];
  const refusals = () => gateway.events('refused').filter(({ reason }) => reason === 'origin_refused');
  assert.equal(refusals().length, 0);
  viewer = await Viewer.open(browser, `https://${FOREIGN_HOST}:${otherServer.port}/`);
  const banner = await showsBanner(/^Could not connect: .*the gateway refuses this page/, 'waiting');
  assert.match(banner.description, /console/);
  const [refusal] = await until('the gateway logs the refusal', 15, (observed) => {
    observed(gateway.log().slice(-1000));
    return refusals().length > 0 && refusals();
  });
  assert.equal(refusal.route, 'desk');
  assert.match(viewer.console.join('\n'), /403/, 'the console of the browser names the status');
  assert.equal(await viewer.page.locator('#login').isVisible(), false);
  assert.equal((await viewer.picture())?.share(BACKGROUND) ?? 0, 0);
  await viewer.screenshot(artefact('refused.png'));
  await viewer.page.locator('#disconnect').click();
  await showsBanner(/^Disconnected/, 'closed');
  assert.deepEqual([lan.connections, desktop.connections()], before);
  await viewer.close();
});

step('a session that was ended by policy is reopened only on request', async () => {
  for (const [code, reason, description] of [
    [1008, 'the credential has expired', /^Ended by the gateway: the credential has expired\.$/],
    [1000, 'idle for too long', /^Closed: idle for too long\.$/],
  ]) {
    const ending = await servePages(pageDirectory, authority.issue(ALLOWED_HOST), { close: { code, reason } });
    viewer = await Viewer.open(browser, `https://${ALLOWED_HOST}:${ending.port}/`);
    await showsBanner(description, 'closed');
    assert.equal(ending.upgrades, 1);
    await viewer.page.locator('#banner button').click(); // the user may have signed in again meanwhile
    await until('another attempt, on request', 10, () => ending.upgrades === 2);
    await showsBanner(description, 'closed');
    await viewer.close();
    ending.stop();
  }
});

step('the page retries while the gateway is full', async () => {
  const full = await servePages(pageDirectory, authority.issue(ALLOWED_HOST), { close: { code: 1013, reason: 'the gateway is full, try again later' } });
  viewer = await Viewer.open(browser, `https://${ALLOWED_HOST}:${full.port}/`);
  await showsBanner(/^Busy: the gateway is full, try again later\.$/, 'waiting');
  await until('more attempts', 20, () => full.upgrades >= 3);
  await viewer.close();
  full.stop();
});

step('the address of a route, opened as a page, explains itself', async () => {
  const before = lan.connections;
  const tab = await browser.newPage();
  const response = await tab.goto(`https://${GATEWAY}:${gateway.port}/desk`);
  assert.equal(response.status(), 426);
  assert.match(await tab.locator('body').innerText(), /WebSocket/i);
  assert.equal(lan.connections, before);
  await tab.close();
});

step('./start runs the example, and Ctrl-C stops everything', async () => {
  const identity = authority.issue('localhost');
  const options = { example, identity, run: path.join(work, 'run'), log: artefact('start.log'), program, seconds: 30 };
  const { started, address } = await startExample(options);
  const [, password] = /password of the desktop is: (\S+)/.exec(started.log());
  viewer = await Viewer.open(browser, address);
  await viewer.enterPassword(password);
  await showsBanner(/^Connected to /, 'open');
  await until('the desktop is shown', 15, async () => (await viewer.picture()).share(BACKGROUND) > 0.1);
  const children = fs.readFileSync(`/proc/${started.pid}/task/${started.pid}/children`, 'utf8').trim().split(' ').map(Number);
  assert.ok(children.length >= 8, `./start has started ${children.length} processes`);
  started.signal('SIGINT');
  await showsBanner(/^(Interrupted: the gateway is stopping|Could not connect)/, 'waiting');
  await until('./start has exited', 15, () => started.end);
  assert.equal(started.end, 'exit status 0');
  assert.deepEqual(children.filter(isAlive), [], 'no child process is left');
  await viewer.close();
});

step('./start names missing programs, and one command that installs them', async () => {
  const bin = path.join(work, 'bin');
  fs.mkdirSync(bin);
  for (const tool of ['sh', 'dirname', 'node']) {
    const { stdout } = await run('sh', ['-c', `command -v ${tool}`]);
    fs.symlinkSync(fs.realpathSync(stdout.trim()), path.join(bin, tool));
  }
  const env = { PATH: bin, PORTCULLIS: program };
  const failure = await run(path.join(example, 'start'), [], { env }).catch((error) => error);
  assert.equal(failure.code, 3);
  assert.match(failure.stderr, /missing on this machine: Xtightvnc, .*autocutsel/);
  assert.match(failure.stderr, /\n {4}sudo apt-get install --no-install-recommends .*autocutsel.* tightvncserver .*xterm/);
  const lost = await run(path.join(example, 'start'), [], { env: { PATH: bin, PORTCULLIS: '/no/portcullis' } }).catch((error) => error);
  assert.equal(lost.code, 3);
  assert.match(lost.stderr, /PORTCULLIS names \/no\/portcullis, which is not an executable/);
  const wrong = await run(path.join(example, 'start'), ['--port', 'x'], { env }).catch((error) => error);
  assert.equal(wrong.code, 1);
  assert.match(wrong.stderr, /--port x: not a port number/);
});

// The last step, because the VNC server refuses all logins for a while.
step('the page waits while the server refuses logins after too many wrong passwords', async () => {
  viewer = await Viewer.open(browser, `https://${GATEWAY}:${wan.port}/`);
  for (let tries = 0; !/too many tries/.test((await viewer.banner()).description); tries++) {
    assert.ok(tries < 10, 'the server still accepts attempts after ten wrong passwords');
    const ended = sessionsEnded().length;
    await viewer.enterPassword(`wrong ${tries}`);
    await nextSessionEnds(ended);
    await showsBanner(/^The password was not right/, 'closed');
  }
  await viewer.enterPassword(desktop.password);
  const { countdown } = await showsBanner(/^The desktop refuses all logins at the moment: Too many authentication failures\.$/, 'waiting');
  assert.match(countdown, /^Next try in \d+ s\.$/);
  assert.equal(await viewer.page.locator('#password').inputValue(), desktop.password, 'the typed password is still there');
  await viewer.screenshot(artefact('locked.png'));
  await showsBanner(/^Connected to /, 'open', { seconds: 45 });
  await shown();
});
