// The chat, end to end: the page of examples/xmpp in Chromium, Portcullis with TLS, and Prosody, which requires it.
//
//   Alice's Chromium tab --wss--> network --wss--> delayed network --wss--> Portcullis --STARTTLS--> Prosody
//   Bob's Chromium tab   --wss---------------------------------------------> Portcullis --TLS-------> Prosody
//
// The test's networks can be made to fail.
//
// environment: PORTCULLIS   the program under test (default: target/debug/portcullis)
//              ARTEFACTS    the directory of logs and screenshots (default: tests/artefacts)

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
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
import { startProsody } from '../../examples/launch/prosody.js';
import { until } from '../../examples/launch/until.js';
import { accessibilityViolations, startBrowser, trust } from './lib/browser.js';
import { startExample } from './lib/example.js';
import { startDelayedNetwork } from './lib/delayed-network.js';
import { servePages, startNetwork } from './lib/servers.js';
import { scenario } from './lib/scenario.js';
import { ChatPage } from './lib/chat-page.js';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../..', import.meta.url));
const example = path.join(root, 'examples/xmpp');
const program = path.resolve(process.env.PORTCULLIS ?? path.join(root, 'target/debug/portcullis'));
const artefacts = path.resolve(process.env.ARTEFACTS ?? path.join(root, 'tests/artefacts'));

const HOST = 'talk.test';
const FOREIGN_HOST = 'foreign.test'; // the same page from another origin
const ALICE = 'alice@chat.example';
const BOB = 'bob@chat.example';

fs.mkdirSync(artefacts, { recursive: true });
fs.mkdirSync(path.join(root, 'target'), { recursive: true });
const work = fs.mkdtempSync(path.join(root, 'target', 'xmpp-test-'));
const removeWork = () => fs.rmSync(work, { recursive: true, force: true, maxRetries: 5 });
process.on('exit', removeWork);

let authority;
let server;
let gateway;
let delayedNetwork; // between Alice's network and the gateway
let wan; // between Alice's browser and the delayed network
let otherServer; // serves the page from another origin
let killingServer; // serves the page, and closes every WebSocket as the gateway does when an operator kills a session
let pageDirectory; // of the built page
let browser;
let alice;
let bob;

/** The messages so far. Both users must see exactly these, in this order. */
const direct = [];
const lobby = [];

const step = scenario({ report });

/** Prints, on stderr, information that helps to understand a failure. */
async function report() {
  const say = (title, text) => process.stderr.write(`\n--- ${title}\n${text}\n`);
  for (const page of [alice, bob].filter(Boolean)) {
    const file = artefact(`failure-${page.name}.png`);
    await page.screenshot(file).catch(() => {});
    const [banner, messages] = [await page.banner().catch(String), await page.messages().catch(String)];
    say(`${page.name}'s page (picture: ${file})`, JSON.stringify([banner, messages]).slice(-3000));
    say(`${page.name}'s console`, page.console.slice(-30).join('\n'));
  }
  if (gateway) say(`gateway log, running: ${!gateway.end}`, gateway.log().slice(-5000));
  if (server) say('Prosody log', server.log().slice(-3000));
}

after(async () => {
  await browser?.close();
  await gateway?.stop();
  for (const one of [wan, delayedNetwork, otherServer, killingServer]) one?.stop();
  await server?.stop();
});

function artefact(name) {
  return path.join(artefacts, `xmpp-${name}`);
}

/** Waits until the pages are connected again, without waiting for the back-off. */
async function bothReconnected(...pages) {
  await Promise.all((pages.length ? pages : [alice, bob]).map((page) => page.reconnected()));
}

/** Waits until both see these messages, once and in the same order. */
async function bothSee(texts, progress = /^(sent|delivered)$/) {
  await Promise.all([alice.showsMessages(texts, { progress }), bob.showsMessages(texts, { progress })]);
}

async function bothChoose(ofAlice, ofBob = ofAlice) {
  await alice.choose(ofAlice);
  await bob.choose(ofBob);
}

step('a chat server, the gateway and a browser start', async () => {
  authority = new CertificateAuthority(path.join(work, 'authority'));
  pageDirectory = await buildPage(example);
  server = await startProsody({ directory: path.join(work, 'prosody') });
  const identity = authority.issue(HOST, FOREIGN_HOST);
  otherServer = await servePages(pageDirectory, identity, {
    // By its content security policy the page connects only to its own origin. This copy connects to the gateway.
    change: (name, text) =>
      name === '/app.js'
        ? text.replaceAll('location.href', `"https://${HOST}:${gateway.port}/"`)
        : text.replace("default-src 'self'", `default-src 'self'; connect-src wss://${HOST}:${gateway.port}`),
  });
  killingServer = await servePages(pageDirectory, identity, { close: { code: 1008, reason: 'killed by an operator' } });
  const text = replaceValues(fs.readFileSync(path.join(example, 'gateway.toml'), 'utf8'), {
    '0.0.0.0:8443': '127.0.0.1:0',
    'certs/localhost.crt': identity.certificate,
    'certs/localhost.key': identity.privateKey,
    dist: pageDirectory,
    ...server.values,
  });
  gateway = await startGateway({ program, text, directory: work, log: artefact('gateway.log') });
  delayedNetwork = await startDelayedNetwork(gateway.port);
  wan = await startNetwork(delayedNetwork.port);
  trust(authority, work);
  browser = await startBrowser(work, [HOST, FOREIGN_HOST], { width: 1040, height: 720 });
  process.on('exit', removeWork); // again, so that it runs after the exit handler that stops the browser
});

step('a wrong password shows an error, and the login form keeps its values', async () => {
  alice = await ChatPage.open(browser, `https://${HOST}:${wan.port}/`, 'Alice');
  assert.deepEqual(await accessibilityViolations(alice.page), []);
  await alice.signIn(ALICE, 'wrong');
  await alice.page.locator('#error', { hasText: 'Wrong address or password.' }).waitFor();
  assert.equal(await alice.page.locator('#address').inputValue(), ALICE);
  assert.equal(await alice.page.locator('#password').inputValue(), 'wrong');
  assert.equal((await alice.banner()).state, 'closed', 'a wrong password is not retried');
  await alice.signIn('nobody', 'wrong');
  await alice.page.locator('#error', { hasText: 'name@server' }).waitFor();
  await alice.signIn('alice@elsewhere.example', 'wrong');
  await alice.page.locator('#error', { hasText: 'not responsible for that address' }).waitFor();
});

step('two users sign in, one by STARTTLS and one by TLS, and see each other', async () => {
  await alice.signIn(ALICE, server.passwords.alice, 'xmpp');
  await alice.shows(/^Connected\.$/, 'open');
  await alice.seesPresence('Bob', 'gone');
  bob = await ChatPage.open(browser, `https://${HOST}:${gateway.port}/`, 'Bob');
  await bob.signIn(BOB, server.passwords.bob, 'xmpps');
  await bob.shows(/^Connected\.$/, 'open');
  await Promise.all([alice.seesPresence('Bob', 'here'), bob.seesPresence('Alice', 'here')]);
});

step('messages arrive in both directions, with receipts', async () => {
  await bothChoose('Bob', 'Alice');
  await alice.send('Good morning! Is the <gate> open & well?');
  direct.push('Good morning! Is the <gate> open & well?');
  await bothSee(direct);
  await bob.send('It is. Grüße – 你好 😀');
  direct.push('It is. Grüße – 你好 😀');
  await bothSee(direct, /^delivered$/);
  const [first, second] = await alice.messages();
  assert.deepEqual([first.from, second.from], ['You', 'bob']);
  assert.equal(first.description, 'delivered');
});

step('a message of many kilobytes arrives complete', async () => {
  const long = `long: ${'äöü€😀'.repeat(12_000)}`;
  await bob.send(long);
  direct.push(long);
  await bothSee(direct);
  await alice.send('A long one.');
  direct.push('A long one.');
  await bothSee(direct);
});

step('messages in other conversations are counted as unread', async () => {
  await bothChoose('# lobby');
  await alice.send('Hello, everybody');
  lobby.push('Hello, everybody');
  await bob.send('Hello, Alice');
  lobby.push('Hello, Alice');
  const order = await until('both see the same two', 15, async () => {
    const [one, other] = [await alice.messages(), await bob.messages()].map((all) => all.map(({ text }) => text));
    return one.length === 2 && one.join() === other.join() && one;
  });
  lobby.splice(0, 2, ...order);
  await bothSee(lobby);
  await bob.page.locator('#presence', { hasText: 'In the room: alice, bob' }).waitFor();
  await bob.send('Are you there?');
  lobby.push('Are you there?');
  await bothSee(lobby);

  await alice.choose('Bob');
  await bob.send('Hello?');
  lobby.push('Hello?');
  await until('Alice sees one unread message in the room', 15, async (observed) => {
    const list = await alice.list();
    observed(JSON.stringify(list));
    return list['# lobby'].unread === 1 && list['# lobby'].last === 'bob: Hello?' && (await alice.page.title()) === '(1) Chat';
  });
  await alice.choose('# lobby');
  await bothSee(lobby);
  assert.equal((await alice.list())['# lobby'].unread, 0);
});

step('a user who is away is shown as away', async () => {
  await bob.page.locator('#away').click();
  await alice.seesPresence('Bob', 'away');
  await bob.page.locator('#away').click();
  await alice.seesPresence('Bob', 'here');
});

step('the page has no serious accessibility violation, and fits small screens', async () => {
  await alice.send('See you at noon');
  lobby.push('See you at noon');
  await bothSee(lobby);
  for (const page of [alice, bob]) assert.deepEqual(await accessibilityViolations(page.page), []);
  await alice.screenshot(artefact('room.png')); // examples/xmpp/screenshot.png
  await bob.page.emulateMedia({ colorScheme: 'dark' });
  await bob.screenshot(artefact('room-dark.png'));
  await bob.page.emulateMedia({ colorScheme: null });
  await alice.page.setViewportSize({ width: 390, height: 760 });
  assert.equal(await alice.page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), true, 'it fits the screen of a phone');
  assert.deepEqual(await accessibilityViolations(alice.page), []);
  await alice.screenshot(artefact('narrow.png'));
  await alice.page.setViewportSize({ width: 1040, height: 720 });
});

step('after a reload the user is signed in, with all messages and the draft', async () => {
  await alice.choose('Bob');
  await alice.page.locator('#text').fill('half a sent');
  await alice.page.reload();
  await alice.shows(/^Connected\.$/, 'open');
  await alice.seesPresence('Bob', 'here');
  const kept = await alice.page.evaluate(() => JSON.stringify({ ...sessionStorage }));
  assert.ok(kept.includes('alice') && !kept.includes(server.passwords.alice), 'the page stores no password');
  await bothChoose('Bob', 'Alice');
  assert.equal(await alice.page.locator('#text').inputValue(), 'half a sent');
  await bothSee(direct);
  await bob.send('Welcome back');
  direct.push('Welcome back');
  await bothSee(direct);
  await bothChoose('# lobby');
  await bothSee(lobby);
});

for (const [what, end] of [['stopped', () => server.stop()], ['killed', () => server.kill()]]) {
  step(`the chat server is ${what} during a session and restarted: no message is lost or duplicated`, async () => {
    await bothChoose('Bob', 'Alice');
    await end();
    await alice.shows(/^(The chat server|Failed|Closed)/, 'waiting');
    await bob.shows(/^(The chat server|Failed|Closed)/, 'waiting');
    const text = `written while the server was ${what}`;
    await alice.send(text);
    await alice.showsMessages([...direct, text]);
    assert.equal((await alice.messages()).at(-1).description, 'not sent yet');
    await alice.page.locator('#text').fill('still typing');
    await alice.tryNow();
    await alice.shows(/refused the connection/, 'waiting');
    await server.start();
    await bothReconnected();
    direct.push(text);
    await bothSee(direct, /^delivered$/);
    assert.equal(await alice.page.locator('#text').inputValue(), 'still typing');
    await bothChoose('# lobby');
    await bob.send(`back in the room (${what})`);
    lobby.push(`back in the room (${what})`);
    await bothSee(lobby);
  });
}

step('the gateway restarts: no message is lost or duplicated', async () => {
  await bothChoose('Bob', 'Alice');
  await gateway.stop();
  await alice.shows(/^(Interrupted: the gateway is stopping|Could not connect)/, 'waiting');
  await alice.send('written without a gateway');
  await gateway.start();
  direct.push('written without a gateway');
  await bothReconnected();
  await bothSee(direct);
});

step('the network stalls for 10 s without an error: messages in flight arrive', async () => {
  await bothSee(direct);
  wan.stall();
  await alice.send('into the silence');
  await bob.send('can you hear me?');
  await alice.page.locator('.message', { hasText: 'into the silence' }).waitFor();
  await pause(10_000);
  assert.equal((await alice.messages()).at(-1).description, 'sending…');
  wan.resume();
  direct.push('can you hear me?', 'into the silence');
  await bothSee(direct);
});

step('the network stalls for longer than the timeout: the page shows it, and loads missed messages', async () => {
  wan.stall();
  await bob.send('and now?');
  await alice.shows(/^No answer for \d+ s/, 'open', 30);
  await alice.send('I am on a train');
  await alice.shows(/^Connection lost: no answer for \d+ s|^Connecting/, undefined, 30);
  wan.cut();
  assert.equal((await alice.messages()).at(-1).progress, 'unsure');
  wan.resume();
  wan.restore();
  await bothReconnected();
  direct.push('and now?', 'I am on a train');
  await bothSee(direct);
});

step('a message that arrived before the connection broke, but was not confirmed, is not sent twice', async () => {
  delayedNetwork.hold('down');
  await alice.send('it arrived');
  direct.push('it arrived');
  await bob.showsMessages(direct);
  assert.equal((await alice.messages()).at(-1).progress, 'sending');
  delayedNetwork.cut();
  await bothReconnected(alice);
  await bothSee(direct);
  await bothChoose('# lobby');
  await bothSee(lobby);
  delayedNetwork.hold('down');
  await alice.send('to the room, too');
  lobby.push('to the room, too');
  await bob.showsMessages(lobby);
  assert.equal((await alice.messages()).at(-1).progress, 'sending');
  delayedNetwork.cut();
  await bothReconnected(alice);
  await bothSee(lobby);
});

step('a message that the network delays is sent again, and the delayed copy is not shown', async () => {
  for (const [name, other, texts] of [['Bob', 'Alice', direct], ['# lobby', '# lobby', lobby]]) {
    await bothChoose(name, other);
    await bothSee(texts);
    const before = delayedNetwork.open;
    delayedNetwork.hold('up');
    const text = `late, to ${name}`;
    await alice.send(text);
    await until('the network holds the message', 10, () => delayedNetwork.held > 0);
    delayedNetwork.cut();
    await bothReconnected(alice);
    texts.push(text);
    await bothSee(texts);
    // For the gateway the old connection is still open, and its data arrives now.
    assert.ok(delayedNetwork.held > 0 && delayedNetwork.open > before, `${delayedNetwork.held} bytes in ${delayedNetwork.open} connections`);
    delayedNetwork.release();
    await until('the old connection is closed', 20, (observed) => {
      observed(`${delayedNetwork.open} connections`);
      return delayedNetwork.open <= before;
    });
    await bob.send(`after ${text}`);
    texts.push(`after ${text}`);
    await bothSee(texts);
  }
});

step('each message arrives once and in order, whenever connections break', async () => {
  await bothChoose('Bob', 'Alice');
  await bothSee(direct);
  const [before, ofAlice, ofBob] = [direct.length, [], []];
  for (let i = 0; i < 24; i++) {
    await alice.send(`a${i}`);
    await bob.send(`b${i}`);
    ofAlice.push(`a${i}`);
    ofBob.push(`b${i}`);
    if (i % 6 === 2) delayedNetwork.hold('down');
    if (i % 6 === 4) delayedNetwork.cut();
    if (i % 8 === 7) await alice.tryNow();
  }
  const whole = await until('both see all messages', 40, async (observed) => {
    const [one, other] = [await alice.messages(), await bob.messages()].map((all) => all.slice(before).map(({ text }) => text));
    observed(`Alice: ${one}; Bob: ${other}`);
    return one.length >= 48 && other.length >= 48 && [one, other];
  });
  for (const seen of whole) {
    assert.deepEqual(seen.filter((text) => text.startsWith('a')), ofAlice);
    assert.deepEqual(seen.filter((text) => text.startsWith('b')), ofBob);
  }
  // The archive defines the final order, and both archives have all messages.
  await Promise.all([alice.page.reload(), bob.page.reload()]);
  await bothChoose('Bob', 'Alice');
  const [one, other] = [await alice.readBack(direct[0]), await bob.readBack(direct[0])];
  assert.deepEqual(one, other);
  assert.deepEqual(one.slice(0, before), direct);
  assert.equal(new Set(one).size, one.length, 'no message is shown twice');
  assert.equal(one.length, before + 48);
  direct.push(...one.slice(before));
});

step('if the archive has lost messages, the page shows a gap and sends nothing again automatically', async () => {
  delayedNetwork.hold('up');
  await alice.send('did that arrive?');
  await until('the network holds the message', 10, () => delayedNetwork.held > 0);
  await server.stop();
  await alice.shows(/^(The chat server|Failed)/, 'waiting');
  delayedNetwork.release();
  const archive = path.join(work, 'prosody/data/chat%2eexample/archive');
  assert.ok(fs.readdirSync(archive).length >= 2, 'there was an archive');
  fs.rmSync(archive, { recursive: true });
  await server.start();
  await bothReconnected();
  const gap = await until('there is a gap, and the message is marked', 10, async (observed) => {
    const messages = await alice.messages();
    observed(JSON.stringify(messages.slice(-3)));
    return messages.at(-1).progress === 'doubtful' && messages.at(-2).gap;
  });
  assert.match(gap, /some may be missing here/);
  assert.equal((await alice.messages()).at(-1).description, 'may not have been sent');
  await bob.showsMessages([...direct, undefined]);
  await alice.page.locator('.message', { hasText: 'did that arrive?' }).getByRole('button', { name: 'Send again' }).click();
  await bothSee([...direct, undefined, 'did that arrive?']);
});

step('a duplicated tab takes over the session, and the first tab shows it and does not reconnect', async () => {
  const opening = browser.waitForEvent('page');
  await alice.page.evaluate(() => window.open(location.href)); // a duplicated tab has a copy of its storage
  const copy = new ChatPage(await opening, [], 'the duplicated tab');
  await copy.shows(/^Connected\.$/, 'open');
  await alice.shows(/replaced by another tab/, 'closed');
  await copy.close();
  await alice.page.locator('#banner button', { hasText: 'Connect again' }).click();
  await alice.shows(/^Connected\.$/, 'open');
});

step('a user who is signed in twice sees the same in both tabs', async () => {
  const second = await ChatPage.open(browser, `https://${HOST}:${gateway.port}/`, 'the second Alice');
  await second.signIn(ALICE, server.passwords.alice, 'xmpps');
  await second.seesPresence('Bob', 'here');
  await second.choose('Bob');
  await second.showsMessages(['did that arrive?']);
  await alice.choose('Bob');
  await alice.send('from the first tab');
  await second.send('from the second tab');
  await until('Bob has both', 10, async () => (await bob.messages()).slice(-2).every(({ text }) => text.startsWith('from the ')));
  await bob.send('I see you twice');
  for (const page of [alice, second]) {
    const texts = await until(`${page.name} has all three`, 10, async (observed) => {
      const last = (await page.messages()).slice(-4).map(({ from, text }) => `${from}: ${text}`);
      observed(last.join(' | '));
      return last.at(-1) === 'bob: I see you twice' && last;
    });
    assert.deepEqual(texts.slice(1, 3).sort(), ['You: from the first tab', 'You: from the second tab']);
  }
  await second.close();
});

step('the server is down at the login: the page shows it, and signs in when the server is up', async () => {
  await bob.page.locator('#sign-out').click();
  await bob.page.locator('#login').waitFor();
  assert.equal(await bob.page.evaluate(() => sessionStorage.length), 0, 'nothing is left after signing out');
  await alice.seesPresence('Bob', 'gone');
  await server.stop();
  await bob.signIn(BOB, server.passwords.bob, 'xmpps');
  await bob.shows(/^Failed: .*refused the connection/, 'waiting');
  await server.start();
  await bob.shows(/^Connected\.$/, 'open'); // automatically
  await bob.seesPresence('Alice', 'here');
});

step('a page from a foreign origin is refused, and the chat server gets no connection', async () => {
  const refused = () => gateway.events('refused').filter(({ reason }) => reason === 'origin_refused');
  const ended = gateway.events('session ended').length;
  assert.equal(refused().length, 0);
  const foreignPage = await ChatPage.open(browser, `https://${FOREIGN_HOST}:${otherServer.port}/`, 'the page from a foreign origin');
  await foreignPage.signIn(BOB, server.passwords.bob);
  await foreignPage.shows(/^Could not connect: .*the gateway refuses this page/, 'waiting');
  await until('the gateway logs the refusal', 10, () => refused().length > 0);
  assert.equal(refused()[0].route, 'chat');
  assert.match(foreignPage.console.join('\n'), /403/);
  assert.equal(await foreignPage.page.locator('#password').inputValue(), server.passwords.bob, 'the login form keeps its values');
  assert.equal(gateway.events('session ended').length, ended);
  await foreignPage.close();
});

let killed;

step('a session that an operator has killed does not reconnect automatically', async () => {
  killed = await ChatPage.open(browser, `https://${HOST}:${killingServer.port}/`, 'the killed one');
  await killed.signIn(BOB, server.passwords.bob);
  await killed.shows(/^Ended by the gateway: killed by an operator\.$/, 'closed');
  assert.equal(killingServer.upgrades, 1);

  const close = { code: 1008, reason: 'the credential has expired' };
  const expiring = await servePages(pageDirectory, authority.issue(HOST), { close });
  const expired = await ChatPage.open(browser, `https://${HOST}:${expiring.port}/`, 'the expired one');
  await expired.signIn(BOB, server.passwords.bob);
  await expired.shows(/^Ended by the gateway: the credential has expired\.$/, 'closed');
  assert.equal(await expired.page.locator('#password').inputValue(), server.passwords.bob, 'the login form keeps its values');
  await expired.close();
  expiring.stop();
});

step('./start runs the example, and Ctrl-C stops everything', async () => {
  const identity = authority.issue('localhost');
  const options = { example, identity, run: path.join(work, 'run'), log: artefact('start.log'), program, seconds: 40 };
  const { started, address } = await startExample(options);
  const printed = [...started.log().matchAll(/^(\S+) has the password (\S+)$/gm)];
  const passwords = Object.fromEntries(printed.map(([, user, password]) => [user, password]));
  const one = await ChatPage.open(browser, address, 'Alice by ./start');
  const other = await ChatPage.open(browser, address, 'Bob by ./start');
  await one.signIn(ALICE, passwords[ALICE], 'xmpp');
  await other.signIn(BOB, passwords[BOB], 'xmpps');
  await one.seesPresence('Bob', 'here');
  await one.choose('Bob');
  await other.choose('Alice');
  await one.send('Started!');
  await other.showsMessages(['Started!']);
  await one.showsMessages(['Started!'], { progress: /^delivered$/ });
  const family = fs.readFileSync(`/proc/${started.pid}/task/${started.pid}/children`, 'utf8');
  const children = family.trim().split(' ').map(Number);
  assert.ok(children.length >= 2, `./start has started ${children.length} processes`);
  started.signal('SIGINT');
  await one.shows(/^(Interrupted: the gateway is stopping|Could not connect|The chat server)/, 'waiting');
  await until('./start has exited', 15, () => started.end);
  assert.equal(started.end, 'exit status 0');
  await until('no child process is left', 5, (observed) => {
    const left = children.filter(isAlive);
    observed(`${left}`);
    return left.length === 0;
  });
  await one.close();
  await other.close();
});

step('./start names missing programs, and one command that installs them', async () => {
  const bin = path.join(work, 'bin');
  fs.mkdirSync(bin);
  for (const tool of ['sh', 'dirname', 'node']) {
    const { stdout } = await run('sh', ['-c', `command -v ${tool}`]);
    fs.symlinkSync(fs.realpathSync(stdout.trim()), path.join(bin, tool));
  }
  // findProgram() finds servers in Debian's sbin directories without a PATH, but openssl only on the PATH.
  const failure = await run(path.join(example, 'start'), [], { env: { PATH: bin, PORTCULLIS: program } }).catch((error) => error);
  assert.equal(failure.code, 3);
  assert.match(failure.stderr, /missing on this machine: .*openssl/);
  assert.match(failure.stderr, /\n {4}sudo apt-get install --no-install-recommends .*openssl/);
});

step('all sessions ended without an error, and the killed page has not reconnected', async () => {
  await killed.shows(/^Ended by the gateway/, 'closed');
  assert.equal(killingServer.upgrades, 1);
  for (const page of [alice, bob]) {
    assert.deepEqual(page.console.filter((line) => line.startsWith('error:')), [], `${page.name}'s page has thrown no error`);
  }
  const ends = gateway.events('session ended');
  const routes = new Set(ends.map(({ route }) => route));
  assert.deepEqual([...routes].sort(), ['chat', 'chat-tls']);
  const faults = ends.filter(({ reason }) => ['protocol_error', 'invalid_text', 'internal'].includes(reason));
  assert.deepEqual(faults, []);
});
