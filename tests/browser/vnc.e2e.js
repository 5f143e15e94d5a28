// The remote desktop, end to end: the page of examples/vnc in Chromium, Portcullis with TLS, a TightVNC desktop.
//
//   Chromium --wss--> network --wss--> Portcullis --tcp--> network --tcp--> Xtightvnc
//
// The networks are the test's own: they count, and they fail when they are told to.
//
// environment: PORTCULLIS   the program to test (default: target/debug/portcullis)
//              ARTEFACTS    where logs and screenshots are kept (default: tests/artefacts)

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { after } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { buildPage } from '../../examples/build.js';
import { Authority } from '../../examples/launch/certificates.js';
import { replaceValues, startGateway } from '../../examples/launch/gateway.js';
import { isAlive } from '../../examples/launch/processes.js';
import { until } from '../../examples/launch/until.js';
import { BACKGROUND, BLUE, CLOCK, GREEN, INK, LOGO } from '../../examples/launch/vnc.js';
import { EDGE, FONT, REACTOR_WINDOW, SCREEN, SHELL_CURSOR, SHELL_PROMPT, SHELL_WINDOW, startDesktop } from '../../examples/launch/vnc.js';
import { accessibilityFaults, startBrowser, trust } from './lib/browser.js';
import { startExample } from './lib/example.js';
import { Picture } from './lib/picture.js';
import { servePages, startNetwork } from './lib/servers.js';
import { story } from './lib/story.js';
import { Viewer } from './lib/viewer.js';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../..', import.meta.url));
const example = path.join(root, 'examples/vnc');
const program = path.resolve(process.env.PORTCULLIS ?? path.join(root, 'target/debug/portcullis'));
const artefacts = path.resolve(process.env.ARTEFACTS ?? path.join(root, 'tests/artefacts'));

const GATEWAY = 'desk.test';
const FRIEND = 'viewer.test'; // its pages may use the route
const STRANGER = 'stranger.test'; // the same pages from the same server: only the origin differs

/** The parts of the desktop that are still as long as nobody touches anything. */
const STILL = [REACTOR_WINDOW, SHELL_WINDOW, LOGO];

fs.mkdirSync(artefacts, { recursive: true });
fs.mkdirSync(path.join(root, 'target'), { recursive: true });
const work = fs.mkdtempSync(path.join(root, 'target', 'vnc-test-'));
const removeWork = () => fs.rmSync(work, { recursive: true, force: true, maxRetries: 5 });
process.on('exit', removeWork);

let authority;
let page; // where the built page is
let desktop;
let lan; // the network between the gateway and the desktop
let wan; // the network between the browser and the gateway
let gateway;
let elsewhere; // the server of pages that the gateway does not serve
let browser;
let viewer;

const scene = story({ report });

/** Everything that helps to understand a failure, on stderr. */
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
  for (const server of [lan, wan, elsewhere]) server?.stop();
  await desktop?.stop();
});

function artefact(name) {
  return path.join(artefacts, `vnc-${name}`);
}

/** Waits until the page says something like `words`, in `state`. */
function says(words, state, { seconds = 15, of = viewer } = {}) {
  return until(`the page says ${words}${state ? `, ${state}` : ''}`, seconds, async (saw) => {
    const banner = await of.banner();
    saw(JSON.stringify(banner));
    return words.test(banner.words) && (!state || banner.state === state) && banner;
  });
}

/** Waits until the viewer's canvas shows what the X server itself says is on its screen. */
async function shown(of = viewer) {
  await until('the page shows the desktop', 30, async (saw) => {
    const [truth, seen] = [Picture.fromXwd(await desktop.dump()), await of.picture()];
    if (!seen) {
      saw(`no canvas; the page says ${JSON.stringify(await of.banner())}`);
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

function inkAt(picture, x, y) {
  return picture.part({ x: x - 4, y: y - 4, width: 8, height: 8 }).share(INK);
}

/** Clicks at a point of the desktop and waits for the ink there, and nowhere else in the window. */
async function clickLeavesInk(x, y) {
  const before = await viewer.picture();
  assert.equal(inkAt(before, x, y), 0, 'there is ink before the click');
  await viewer.click(x, y);
  const after = await until(`the click at ${x},${y} leaves ink there`, 15, async (saw) => {
    const seen = await viewer.picture();
    saw(`ink there: ${inkAt(seen, x, y)}, in the window: ${seen.part(REACTOR_WINDOW).share(INK)}`);
    return inkAt(seen, x, y) === 1 && seen;
  });
  const grown = after.part(REACTOR_WINDOW).share(INK) - before.part(REACTOR_WINDOW).share(INK);
  assert.ok(grown > 0 && grown < 0.02, `the ink of one click covers ${grown} of the window`);
}

/** Types a key into the reacting window and waits for it to take the colour the key stands for. */
async function keyPaints(key, colour) {
  await viewer.move(REACTOR_WINDOW.x + 300, REACTOR_WINDOW.y + 80); // keys go where the pointer is
  const before = (await viewer.picture()).part(REACTOR_WINDOW).share(colour);
  assert.ok(before < 0.01, `the window has the colour ${colour} before the key: ${before}`);
  await viewer.press(key);
  await painted(colour);
}

function painted(colour) {
  return until(`the window is ${colour}`, 15, async (saw) => {
    const share = (await viewer.picture()).part(REACTOR_WINDOW).share(colour);
    saw(`a share of ${share}`);
    return share > 0.8;
  });
}

/** Waits until a file of the desktop says `text`: something that was typed there has been done. */
function fileSays(name, text) {
  const file = path.join(work, 'desktop', name);
  return until(`${name} on the desktop says ${JSON.stringify(text)}`, 15, (saw) => {
    const said = fs.readFileSync(file, 'utf8');
    saw(JSON.stringify(said));
    return said === text;
  });
}

async function overTheShell() {
  await viewer.move(SHELL_WINDOW.x + 300, SHELL_WINDOW.y + 200);
}

/**
 * Waits until the shell is ready for the next command, with its cursor behind a prompt in a line that `fits`, and returns
 * that line's number. What is typed earlier may meet a terminal that is just changing its ways.
 */
function prompt(fits) {
  const rows = Math.floor((SHELL_WINDOW.height - 2 * EDGE) / FONT.height);
  const x = SHELL_WINDOW.x + EDGE + SHELL_PROMPT.length * FONT.width;
  const cell = (line) => ({ x, y: SHELL_WINDOW.y + EDGE + line * FONT.height, width: FONT.width, height: FONT.height });
  return until('the shell prompts', 15, async (saw) => {
    const seen = await viewer.picture();
    const lines = Array.from({ length: rows }, (_, line) => line);
    const found = lines.find((line) => seen.part(cell(line)).share(SHELL_CURSOR) > 0.9);
    saw(`the cursor behind a prompt in line ${found}`);
    return found !== undefined && fits(found) && { line: found };
  }).then(({ line }) => line);
}

/** What programs on the desktop paste. */
async function desktopClipboard() {
  const { stdout } = await run('xclip', ['-o', '-selection', 'clipboard'], { env: desktop.env, timeout: 5000 });
  return stdout;
}

/** Copies as a program on the desktop does. */
function copyOnDesktop(text) {
  const child = spawn('xclip', ['-i', '-selection', 'clipboard'], { env: desktop.env, stdio: ['pipe', 'ignore', 'ignore'] });
  child.stdin.end(text);
}

function clipboardShows(text) {
  return until(`the page's clipboard shows ${JSON.stringify(text)}`, 15, async (saw) => {
    const shows = await viewer.page.locator('#clipboard-text').inputValue();
    saw(JSON.stringify(shows));
    return shows === text;
  });
}

function desktopPastes(text) {
  return until(`programs on the desktop paste ${JSON.stringify(text)}`, 15, async (saw) => {
    const pasted = await desktopClipboard();
    saw(JSON.stringify(pasted));
    return pasted === text;
  });
}

function sessionsEnded() {
  return gateway.said('session ended');
}

function nextSessionEnds(before) {
  return until('the gateway logs the end of the session', 15, (saw) => {
    saw(gateway.log().slice(-1000));
    const lines = sessionsEnded();
    return lines.length > before && lines[before];
  });
}

async function leaves(of) {
  const before = sessionsEnded().length;
  await of.close();
  await nextSessionEnds(before);
}

async function noAccessibilityFaults(what) {
  assert.deepEqual(await accessibilityFaults(viewer.page), [], what);
}

scene('a desktop, the gateway and a browser start', async () => {
  authority = new Authority(path.join(work, 'authority'));
  page = await buildPage(example, { outdir: path.join(work, 'page') });
  desktop = await startDesktop({ directory: path.join(work, 'desktop'), log: artefact('server.log') });
  lan = await startNetwork(desktop.port);
  const hosts = authority.issue(FRIEND, STRANGER);
  elsewhere = await servePages(page, hosts, {
    // A page from elsewhere names the gateway, as index.html says.
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
    dist: page,
  });
  const listed = text.replace('[[route]]', `[[route]]\norigins = ["same-origin", "https://${FRIEND}:${elsewhere.port}"]`);
  assert.notEqual(listed, text);
  gateway = await startGateway({ program, text: listed, directory: path.join(work, 'gateway'), log: artefact('gateway.log') });
  wan = await startNetwork(gateway.port);
  trust(authority, work);
  browser = await startBrowser(work, [GATEWAY, FRIEND, STRANGER]);
  process.on('exit', removeWork); // again: by now an exit ends the browser first
  assert.equal(lan.connections, 0);
});

scene('the browser accepts no certificate of a stranger', async () => {
  const other = await servePages(page, new Authority(path.join(work, 'other')).issue(FRIEND));
  const tab = await browser.newPage();
  await assert.rejects(tab.goto(`https://${FRIEND}:${other.port}/`), /ERR_CERT_AUTHORITY_INVALID/);
  await tab.close();
  other.stop();
});

scene('the page asks for the password, and says that a wrong one is wrong', async () => {
  viewer = await Viewer.open(browser, `https://${GATEWAY}:${wan.port}/`);
  await says(/^The desktop asks for its password\.$/, 'connecting');
  await noAccessibilityFaults('while the password is asked for');
  const before = sessionsEnded().length;
  await viewer.givePassword('not this');
  const fault = viewer.page.locator('#login-fault');
  await fault.waitFor();
  assert.match(await fault.innerText(), /^The password was not right.*try again/);
  assert.equal(await viewer.page.locator('#password').inputValue(), 'not this', 'what was typed is still there');
  await says(/^The password was not right/, 'closed');
  await nextSessionEnds(before);
  await noAccessibilityFaults('after a wrong password');
  await viewer.screenshot(artefact('wrong-password.png'));
});

scene('the right password shows the desktop', async () => {
  const before = [lan.connections, desktop.connections()];
  await viewer.givePassword(desktop.password);
  await shown();
  await says(/^Connected to .*portcullis/, 'open');
  assert.deepEqual([lan.connections, desktop.connections()], before.map((count) => count + 1));
  assert.equal(await viewer.page.locator('#login').isVisible(), false);
  await noAccessibilityFaults('while connected');
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
  await clickLeavesInk(150, 120);
  await clickLeavesInk(420, 200);
  await clickLeavesInk(260, 300);
});

scene('a typed key reaches the window', async () => {
  await keyPaints('b', BLUE);
  await keyPaints('g', GREEN);
});

scene('every kind of key reaches the desktop', async () => {
  await overTheShell();
  let line = await prompt(() => true);
  const next = () => prompt((other) => other > line);
  const all = 'The quick brown fox; jumps: 0123456789 ~!@#%^&*()_+-=[]{}|,.<>/?';
  await viewer.type('cat > typed\n');
  await fileSays('typed', '');
  await viewer.type(`${all}\n`);
  await fileSays('typed', `${all}\n`);
  await viewer.press('Control+d');
  line = await next();
  // Control-C ends a program, the arrow brings the last line back, the backspace rubs out.
  await viewer.type("sh -c 'echo -n yes > asleep; exec sleep 1000'\n");
  await fileSays('asleep', 'yes');
  await viewer.press('Control+c');
  line = await next();
  await viewer.type('echo -n one > shell\n');
  await fileSays('shell', 'one');
  line = await next();
  await viewer.press('ArrowUp');
  for (let i = 0; i < 'one > shell'.length; i++) await viewer.press('Backspace');
  await viewer.type('two > shell\n');
  await fileSays('shell', 'two');
  line = await next();
  // And keys that the browser keeps for itself.
  await viewer.type('cat > key\n');
  await fileSays('key', '');
  await viewer.page.locator('#keys').selectOption({ label: 'Escape' });
  await viewer.type('\n');
  await fileSays('key', '\x1b\n');
  await viewer.press('Control+d');
  await next();
  await viewer.type('clear\n');
  await prompt((other) => other === 0);
});

scene('Ctrl+Alt+Shift takes the keys back from the desktop', async () => {
  await viewer.canvas.focus();
  for (const key of ['Control', 'Alt', 'Shift']) await viewer.page.keyboard.down(key);
  for (const key of ['Shift', 'Alt', 'Control']) await viewer.page.keyboard.up(key);
  assert.equal(await viewer.page.evaluate(() => document.activeElement.id), 'fit');
  await keyPaints('b', BLUE); // no modifier hangs on the desktop
  await keyPaints('g', GREEN);
});

scene('what is copied on the desktop is on the page', async () => {
  await viewer.page.locator('#clipboard-button').click();
  copyOnDesktop('copied by a program: grüße, 5 €, 👍\nand a second line');
  await clipboardShows('copied by a program: grüße, 5 €, 👍\nand a second line');
  // Marked with the mouse, as people do.
  await overTheShell();
  await prompt((line) => line === 0);
  await viewer.type('clear; echo marked_with_the_mouse\n');
  const word = { x: SHELL_WINDOW.x + 60, y: SHELL_WINDOW.y + 5 + 7 };
  await until('a word is marked', 15, async (saw) => {
    await viewer.click(word.x, word.y, { clickCount: 2 });
    const marked = await desktopClipboard();
    saw(marked);
    return marked === 'marked_with_the_mouse';
  });
  await clipboardShows('marked_with_the_mouse');
  await noAccessibilityFaults('with the clipboard open');
});

scene('what is sent from the page is pasted on the desktop', async () => {
  const sent = 'sent by the page: ½ grüße, 7 €, 🐦\nsecond line';
  await viewer.page.locator('#clipboard-text').fill(sent);
  await viewer.page.locator('#clipboard-send').click();
  await desktopPastes(sent);
  // The middle button pastes into the shell, which takes it at the next Enter: not before the text is there.
  await viewer.page.locator('#clipboard-text').fill('echo -n middle > pasted');
  await viewer.page.locator('#clipboard-send').click();
  await desktopPastes('echo -n middle > pasted');
  await viewer.click(SHELL_WINDOW.x + 300, SHELL_WINDOW.y + 200, { button: 'middle' });
  await until('what was pasted is there', 15, async () => {
    await viewer.press('Enter');
    return fs.existsSync(path.join(work, 'desktop', 'pasted'));
  });
  await fileSays('pasted', 'middle');
});

scene("this computer's clipboard is shared if the person wants it", async () => {
  const { page: tab } = viewer;
  await tab.evaluate(() => document.querySelector('#clipboard-share').focus());
  await browser.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: `https://${GATEWAY}:${wan.port}` });
  await tab.evaluate(() => navigator.clipboard.writeText('from this computer'));
  await tab.locator('#clipboard-share').check();
  await desktopPastes('from this computer');
  copyOnDesktop('from the desktop');
  await until("this computer's clipboard has it", 15, async (saw) => {
    const ours = await tab.evaluate(() => navigator.clipboard.readText());
    saw(ours);
    return ours === 'from the desktop';
  });
  await tab.evaluate(() => navigator.clipboard.writeText('copied while away'));
  await viewer.canvas.focus();
  await desktopPastes('copied while away');
  await tab.locator('#clipboard-share').uncheck();
  await viewer.screenshot(artefact('clipboard.png'));
  await tab.locator('#clipboard-button').click();
});

scene('view-only sends nothing and goes on showing', async () => {
  await viewer.page.locator('#view-only').click();
  const [before, bytes] = [await viewer.picture(), await desktopClipboard()];
  await viewer.click(520, 120);
  await viewer.move(520, 140);
  await viewer.press('b');
  assert.equal(await viewer.page.locator('#clipboard-send').isDisabled(), true);
  // The clock goes on: what was sent before it moved twice would have been answered by now.
  const clocks = new Set();
  await until('the clock moves', 15, async () => {
    clocks.add((await viewer.picture()).part(CLOCK).rgba.toString('base64'));
    return clocks.size >= 3;
  });
  const seen = await viewer.picture();
  assert.equal(seen.part(REACTOR_WINDOW).sameness(before.part(REACTOR_WINDOW)), 1);
  assert.equal(await desktopClipboard(), bytes);
  await viewer.page.locator('#view-only').click();
  await clickLeavesInk(520, 120);
  await keyPaints('b', BLUE);
});

scene('the picture is scaled to the window, or has its own size', async () => {
  const size = async () => {
    const [canvas, stage] = [await viewer.canvas.boundingBox(), await viewer.page.locator('#stage').boundingBox()];
    return { width: Math.round(canvas.width), fits: canvas.width <= stage.width && canvas.height <= stage.height };
  };
  await viewer.page.setViewportSize({ width: 620, height: 560 });
  await until('the picture fits into a small window', 10, async (saw) => {
    const now = await size();
    saw(JSON.stringify(now));
    return now.fits && now.width < 620 && now.width > 200;
  });
  await clickLeavesInk(100, 220);
  await viewer.screenshot(artefact('small.png'));
  await noAccessibilityFaults('in a small window');
  await viewer.page.locator('#fit').click();
  await until('the picture has its own size', 10, async (saw) => {
    const now = await size();
    saw(JSON.stringify(now));
    return now.width === SCREEN.width && !now.fits;
  });
  await viewer.page.locator('#fit').click();
  await viewer.page.setViewportSize({ width: 1500, height: 1200 });
  await until('the picture fills a large window', 10, async (saw) => {
    const now = await size();
    saw(JSON.stringify(now));
    return now.fits && now.width > SCREEN.width;
  });
  await clickLeavesInk(600, 250);
  await viewer.page.setViewportSize({ width: 1120, height: 860 });
});

scene('the network is gone for 10 s, and what was typed meanwhile arrives', async () => {
  const before = sessionsEnded().length;
  await viewer.move(REACTOR_WINDOW.x + 300, REACTOR_WINDOW.y + 80);
  await shown();
  wan.stall();
  await viewer.press('g');
  const gone = pause(10_000);
  await says(/^No answer for \d+ s\. Is the network down\?$/, 'open');
  await viewer.screenshot(artefact('silent.png'));
  await gone;
  wan.resume();
  await painted(GREEN);
  await says(/^Connected to /, 'open');
  assert.equal(sessionsEnded().length, before, 'it is the same session');
});

scene('the network breaks: the page says so, tries again, and comes back by itself', async () => {
  const before = sessionsEnded().length;
  wan.cut();
  await says(/^(The connection was lost\.|Could not connect: )/, 'waiting');
  assert.equal(await viewer.page.locator('#ghost').isVisible(), true, 'the last picture stays, in grey');
  const ended = await nextSessionEnds(before);
  assert.equal(ended.reason, 'client_gone');
  const { countdown } = await says(/^Could not connect: /, 'waiting', { seconds: 30 });
  assert.match(countdown, /^Next try in \d+ s\.$/);
  await wan.mend();
  await shown();
  await says(/^Connected to /, 'open');
  assert.equal(await viewer.page.locator('#ghost').isVisible(), false);
  assert.equal(await viewer.page.locator('#login').isVisible(), false, 'nobody is asked for the password again');
});

scene('this computer goes offline: the page says so, and is back when it is online', async () => {
  await browser.setOffline(true);
  wan.cut();
  await says(/^This computer is offline\.$/, 'waiting');
  await wan.mend();
  await browser.setOffline(false);
  await shown();
});

scene('the VNC server dies: the page says that it cannot be reached, and is back when it is', async () => {
  const before = sessionsEnded().length;
  await desktop.kill();
  const ended = await nextSessionEnds(before);
  assert.match(ended.reason, /^backend_(closed|failed)$/);
  lan.cut(); // nobody listens there any more, and so it is for the gateway
  await says(/^Failed: the server behind the gateway refused the connection\.$/, 'waiting', { seconds: 30 });
  await viewer.screenshot(artefact('server-down.png'));
  await noAccessibilityFaults('while waiting');
  assert.equal(await desktop.start(), true);
  await lan.mend();
  await viewer.page.locator('#banner button').click({ timeout: 2000 }).catch(() => {}); // unless it is back by itself
  await shown();
  await keyPaints('b', BLUE);
});

scene('the gateway restarts: the page is told why, and comes back by itself', async () => {
  const second = await Viewer.open(browser, `https://${GATEWAY}:${wan.port}/`);
  await second.page.locator('#password').fill('half a pass');
  await says(/^The desktop asks/, 'connecting', { of: second });
  const before = sessionsEnded().length;
  await gateway.stop();
  assert.equal(gateway.end, 'exit status 0');
  const lines = sessionsEnded().slice(before);
  assert.deepEqual(lines.map(({ reason, close_code }) => [reason, close_code]), [['draining', 1001], ['draining', 1001]]);
  await says(/^(Interrupted: the gateway is stopping\.|Could not connect: )/, 'waiting');
  await says(/^(Interrupted: the gateway is stopping\.|Could not connect: )/, 'waiting', { of: second });
  await gateway.start();
  await shown();
  await says(/^Connected to /, 'open');
  await says(/^The desktop asks/, 'connecting', { seconds: 30, of: second });
  assert.equal(await second.page.locator('#password').inputValue(), 'half a pass', 'what was typed is still there');
  await second.givePassword(desktop.password);
  await shown(second);
  await leaves(second);
});

scene('a viewer that leaves is logged once, with the bytes that were carried', async () => {
  await leaves(viewer);
  const [before, bytesIn, bytesOut, arrived] = [sessionsEnded().length, lan.bytesIn, lan.bytesOut, lan.connections];
  viewer = await Viewer.open(browser, `https://${GATEWAY}:${wan.port}/`);
  await viewer.givePassword(desktop.password);
  await shown();
  await viewer.page.locator('#disconnect').click();
  await says(/^Disconnected\.$/, 'closed');
  const ended = await nextSessionEnds(before);
  assert.equal(sessionsEnded().length, before + 1);
  assert.equal(ended.reason, 'client_closed');
  assert.equal(ended.route, 'desk');
  assert.equal(ended.backend, `tcp://127.0.0.1:${lan.port}`);
  assert.equal(lan.connections, arrived + 1);
  await until('every byte of the client has arrived at the VNC server', 5, (saw) => {
    saw(`${lan.bytesIn - bytesIn} of ${ended.bytes_in}`);
    return lan.bytesIn - bytesIn === ended.bytes_in;
  });
  const fromServer = `${ended.bytes_out} bytes logged, ${lan.bytesOut - bytesOut} sent by the VNC server`;
  assert.ok(ended.bytes_out > 1000 && ended.bytes_out <= lan.bytesOut - bytesOut, fromServer);
  await viewer.page.locator('#banner button').click();
  await shown();
  await viewer.close();
});

scene('a page on a listed origin shows and moves the desktop', async () => {
  viewer = await Viewer.open(browser, `https://${FRIEND}:${elsewhere.port}/`);
  await viewer.givePassword(desktop.password);
  await shown();
  await clickLeavesInk(300, 200);
  await viewer.close();
});

scene('a page on a foreign origin gets nothing, and the VNC server hears nothing', async () => {
  const before = [lan.connections, desktop.connections()];
  const refusals = () => gateway.said('refused').filter(({ reason }) => reason === 'origin_refused');
  assert.equal(refusals().length, 0);
  viewer = await Viewer.open(browser, `https://${STRANGER}:${elsewhere.port}/`);
  const told = await says(/^Could not connect: .*the gateway refuses this page/, 'waiting');
  assert.match(told.words, /console/);
  const [refusal] = await until('the gateway logs the refusal', 15, (saw) => {
    saw(gateway.log().slice(-1000));
    return refusals().length > 0 && refusals();
  });
  assert.equal(refusal.route, 'desk');
  assert.match(viewer.console.join('\n'), /403/, 'the console of the browser names the status');
  assert.equal(await viewer.page.locator('#login').isVisible(), false);
  assert.equal((await viewer.picture())?.share(BACKGROUND) ?? 0, 0);
  await viewer.screenshot(artefact('refused.png'));
  await viewer.page.locator('#disconnect').click();
  await says(/^Disconnected/, 'closed');
  assert.deepEqual([lan.connections, desktop.connections()], before);
  await viewer.close();
});

scene('a session that the rules end is over for good, until somebody asks for another', async () => {
  for (const [code, reason, words] of [
    [1008, 'the credential has expired', /^Ended by the gateway: the credential has expired\.$/],
    [1000, 'idle for too long', /^Closed: idle for too long\.$/],
  ]) {
    const ending = await servePages(page, authority.issue(FRIEND), { close: { code, reason } });
    viewer = await Viewer.open(browser, `https://${FRIEND}:${ending.port}/`);
    await says(words, 'closed');
    assert.equal(ending.upgrades, 1);
    await viewer.page.locator('#banner button').click(); // somebody may have signed in again meanwhile
    await until('another try, for somebody asked for it', 10, () => ending.upgrades === 2);
    await says(words, 'closed');
    await viewer.close();
    ending.stop();
  }
});

scene('a gateway that is full is tried again', async () => {
  const full = await servePages(page, authority.issue(FRIEND), { close: { code: 1013, reason: 'the gateway is full, try again later' } });
  viewer = await Viewer.open(browser, `https://${FRIEND}:${full.port}/`);
  await says(/^Busy: the gateway is full, try again later\.$/, 'waiting');
  await until('more tries', 20, () => full.upgrades >= 3);
  await viewer.close();
  full.stop();
});

scene('the address of a route, opened as a page, says what it is for', async () => {
  const before = lan.connections;
  const tab = await browser.newPage();
  const response = await tab.goto(`https://${GATEWAY}:${gateway.port}/desk`);
  assert.equal(response.status(), 426);
  assert.match(await tab.locator('body').innerText(), /WebSocket/i);
  assert.equal(lan.connections, before);
  await tab.close();
});

scene('./start is all it takes, and Ctrl-C ends everything', async () => {
  const identity = authority.issue('localhost');
  const options = { example, identity, run: path.join(work, 'run'), log: artefact('start.log'), program, seconds: 30 };
  const { started, address } = await startExample(options);
  const [, password] = /password of the desktop is: (\S+)/.exec(started.log());
  viewer = await Viewer.open(browser, address);
  await viewer.givePassword(password);
  await says(/^Connected to /, 'open');
  await until('the desktop is shown', 15, async () => (await viewer.picture()).share(BACKGROUND) > 0.1);
  const children = fs.readFileSync(`/proc/${started.pid}/task/${started.pid}/children`, 'utf8').trim().split(' ').map(Number);
  assert.ok(children.length >= 8, `it has started ${children.length} processes`);
  started.signal('SIGINT');
  await says(/^(Interrupted: the gateway is stopping|Could not connect)/, 'waiting');
  await until('it has ended', 15, () => started.end);
  assert.equal(started.end, 'exit status 0');
  assert.deepEqual(children.filter(isAlive), [], 'nothing it started is left');
  await viewer.close();
});

scene('./start says what is missing, and the one command that brings it', async () => {
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
  assert.match(lost.stderr, /PORTCULLIS names \/no\/portcullis, which is no program/);
  const wrong = await run(path.join(example, 'start'), ['--port', 'x'], { env }).catch((error) => error);
  assert.equal(wrong.code, 1);
  assert.match(wrong.stderr, /--port x: no port/);
});

// The last one, for the VNC server is closed to everybody for a while.
scene('a server that lets nobody in after too many wrong passwords is waited for', async () => {
  viewer = await Viewer.open(browser, `https://${GATEWAY}:${wan.port}/`);
  for (let tries = 0; !/too many tries/.test((await viewer.banner()).words); tries++) {
    assert.ok(tries < 10, 'ten wrong passwords, and the server takes more');
    const ended = sessionsEnded().length;
    await viewer.givePassword(`wrong ${tries}`);
    await nextSessionEnds(ended);
    await says(/^The password was not right/, 'closed');
  }
  await viewer.givePassword(desktop.password);
  const { countdown } = await says(/^The desktop lets nobody in for now: Too many authentication failures\.$/, 'waiting');
  assert.match(countdown, /^Next try in \d+ s\.$/);
  assert.equal(await viewer.page.locator('#password').inputValue(), desktop.password, 'what was typed is still there');
  await viewer.screenshot(artefact('locked.png'));
  await says(/^Connected to /, 'open', { seconds: 45 });
  await shown();
});
