// The chat, end to end: the page of examples/xmpp in Chromium, Portcullis with TLS, and Prosody, which insists on it.
//
//   Alice's Chromium tab --wss--> network --wss--> late network --wss--> Portcullis --STARTTLS--> Prosody
//   Bob's Chromium tab   --wss------------------------------------------> Portcullis --TLS-------> Prosody
//
// The networks are the test's own: they fail when they are told to.
//
// environment: PORTCULLIS   the program to test (default: target/debug/portcullis)
//              ARTEFACTS    where logs and screenshots are kept (default: tests/artefacts)

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
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
import { startProsody } from '../../examples/launch/prosody.js';
import { until } from '../../examples/launch/until.js';
import { accessibilityFaults, startBrowser, trust } from './lib/browser.js';
import { startExample } from './lib/example.js';
import { startLateNetwork } from './lib/late.js';
import { servePages, startNetwork } from './lib/servers.js';
import { story } from './lib/story.js';
import { Talker } from './lib/talker.js';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../..', import.meta.url));
const example = path.join(root, 'examples/xmpp');
const program = path.resolve(process.env.PORTCULLIS ?? path.join(root, 'target/debug/portcullis'));
const artefacts = path.resolve(process.env.ARTEFACTS ?? path.join(root, 'tests/artefacts'));

const HOST = 'talk.test';
const STRANGER = 'stranger.test'; // the same page from elsewhere: only the origin differs
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
let late; // between Alice's network and the gateway
let wan; // between Alice's browser and everything
let elsewhere; // a server of the page that is not the gateway
let killer; // a server of the page that ends every WebSocket as the gateway does when an operator kills a session
let page; // where the built page is
let browser;
let alice;
let bob;

/** What has been said so far, and both must see: exactly this, in this order. */
const direct = [];
const lobby = [];

const scene = story({ report });

/** Everything that helps to understand a failure, on stderr. */
async function report() {
  const say = (title, text) => process.stderr.write(`\n--- ${title}\n${text}\n`);
  for (const talker of [alice, bob].filter(Boolean)) {
    const file = artefact(`failure-${talker.name}.png`);
    await talker.screenshot(file).catch(() => {});
    const [banner, messages] = [await talker.banner().catch(String), await talker.messages().catch(String)];
    say(`${talker.name}'s page (picture: ${file})`, JSON.stringify([banner, messages]).slice(-3000));
    say(`${talker.name}'s console`, talker.console.slice(-30).join('\n'));
  }
  if (gateway) say(`gateway log, running: ${!gateway.end}`, gateway.log().slice(-5000));
  if (server) say('Prosody log', server.log().slice(-3000));
}

after(async () => {
  await browser?.close();
  await gateway?.stop();
  for (const one of [wan, late, elsewhere, killer]) one?.stop();
  await server?.stop();
});

function artefact(name) {
  return path.join(artefacts, `xmpp-${name}`);
}

/** What broke is mended: nobody waits for the back-off. */
async function bothBack(...talkers) {
  await Promise.all((talkers.length ? talkers : [alice, bob]).map((talker) => talker.back()));
}

/** Both see all that was said between them, or in the room, once and in the same order. */
async function bothSee(texts, progress = /^(sent|delivered)$/) {
  await Promise.all([alice.shows(texts, { progress }), bob.shows(texts, { progress })]);
}

async function bothChoose(ofAlice, ofBob = ofAlice) {
  await alice.choose(ofAlice);
  await bob.choose(ofBob);
}

scene('a chat server, the gateway and a browser start', async () => {
  authority = new Authority(path.join(work, 'authority'));
  page = await buildPage(example);
  server = await startProsody({ directory: path.join(work, 'prosody') });
  const identity = authority.issue(HOST, STRANGER);
  elsewhere = await servePages(page, identity, {
    // The page connects to where it came from, and forbids itself all else; this one is made to go where it does not belong.
    change: (name, text) =>
      name === '/app.js'
        ? text.replaceAll('location.href', `"https://${HOST}:${gateway.port}/"`)
        : text.replace("default-src 'self'", `default-src 'self'; connect-src wss://${HOST}:${gateway.port}`),
  });
  killer = await servePages(page, identity, { close: { code: 1008, reason: 'killed by an operator' } });
  const text = replaceValues(fs.readFileSync(path.join(example, 'gateway.toml'), 'utf8'), {
    '0.0.0.0:8443': '127.0.0.1:0',
    'certs/localhost.crt': identity.certificate,
    'certs/localhost.key': identity.privateKey,
    dist: page,
    ...server.values,
  });
  gateway = await startGateway({ program, text, directory: work, log: artefact('gateway.log') });
  late = await startLateNetwork(gateway.port);
  wan = await startNetwork(late.port);
  trust(authority, work);
  browser = await startBrowser(work, [HOST, STRANGER], { width: 1040, height: 720 });
  process.on('exit', removeWork); // again: by now an exit ends the browser first
});

scene('a wrong password is told, and what was typed stays', async () => {
  alice = await Talker.open(browser, `https://${HOST}:${wan.port}/`, 'Alice');
  assert.deepEqual(await accessibilityFaults(alice.page), []);
  await alice.signIn(ALICE, 'wrong');
  await alice.page.locator('#fault', { hasText: 'Wrong address or password.' }).waitFor();
  assert.equal(await alice.page.locator('#address').inputValue(), ALICE);
  assert.equal(await alice.page.locator('#password').inputValue(), 'wrong');
  assert.equal((await alice.banner()).state, 'closed', 'it does not try a wrong password again');
  await alice.signIn('nobody', 'wrong');
  await alice.page.locator('#fault', { hasText: 'name@server' }).waitFor();
  await alice.signIn('alice@elsewhere.example', 'wrong');
  await alice.page.locator('#fault', { hasText: 'not in charge of that address' }).waitFor();
});

scene('two people sign in, one by STARTTLS and one by TLS, and see each other', async () => {
  await alice.signIn(ALICE, server.passwords.alice, 'xmpp');
  await alice.says(/^Connected\.$/, 'open');
  await alice.sees('Bob', 'gone');
  bob = await Talker.open(browser, `https://${HOST}:${gateway.port}/`, 'Bob');
  await bob.signIn(BOB, server.passwords.bob, 'xmpps');
  await bob.says(/^Connected\.$/, 'open');
  await Promise.all([alice.sees('Bob', 'here'), bob.sees('Alice', 'here')]);
});

scene('they talk, both directions, and know what has arrived', async () => {
  await bothChoose('Bob', 'Alice');
  await alice.say('Good morning! Is the <gate> open & well?');
  direct.push('Good morning! Is the <gate> open & well?');
  await bothSee(direct);
  await bob.say('It is. Grüße – 你好 😀');
  direct.push('It is. Grüße – 你好 😀');
  await bothSee(direct, /^delivered$/);
  const [first, second] = await alice.messages();
  assert.deepEqual([first.from, second.from], ['You', 'bob']);
  assert.equal(first.words, 'delivered');
});

scene('a message of many kilobytes arrives whole, whatever pieces it is cut into', async () => {
  const long = `long: ${'äöü€😀'.repeat(12_000)}`;
  await bob.say(long);
  direct.push(long);
  await bothSee(direct);
  await alice.say('A long one.');
  direct.push('A long one.');
  await bothSee(direct);
});

scene('what is said elsewhere is counted until it is looked at', async () => {
  await bothChoose('# lobby');
  await alice.say('Hello, everybody');
  lobby.push('Hello, everybody');
  await bob.say('Hello, Alice');
  lobby.push('Hello, Alice');
  const order = await until('both see the same two', 15, async () => {
    const [one, other] = [await alice.messages(), await bob.messages()].map((all) => all.map(({ text }) => text));
    return one.length === 2 && one.join() === other.join() && one;
  });
  lobby.splice(0, 2, ...order);
  await bothSee(lobby);
  await bob.page.locator('#presence', { hasText: 'In the room: alice, bob' }).waitFor();
  await bob.say('Are you there?');
  lobby.push('Are you there?');
  await bothSee(lobby);

  await alice.choose('Bob');
  await bob.say('Hello?');
  lobby.push('Hello?');
  await until('Alice is told of one unread message in the room', 15, async (saw) => {
    const list = await alice.list();
    saw(JSON.stringify(list));
    return list['# lobby'].unread === 1 && list['# lobby'].last === 'bob: Hello?' && (await alice.page.title()) === '(1) Chat';
  });
  await alice.choose('# lobby');
  await bothSee(lobby);
  assert.equal((await alice.list())['# lobby'].unread, 0);
});

scene('somebody who is away is seen to be', async () => {
  await bob.page.locator('#away').click();
  await alice.sees('Bob', 'away');
  await bob.page.locator('#away').click();
  await alice.sees('Bob', 'here');
});

scene('the page has no serious fault for those who do not see it, and looks good to those who do', async () => {
  await alice.say('See you at noon');
  lobby.push('See you at noon');
  await bothSee(lobby);
  for (const talker of [alice, bob]) assert.deepEqual(await accessibilityFaults(talker.page), []);
  await alice.screenshot(artefact('room.png')); // examples/xmpp/screenshot.png
  await bob.page.emulateMedia({ colorScheme: 'dark' });
  await bob.screenshot(artefact('room-dark.png'));
  await bob.page.emulateMedia({ colorScheme: null });
  await alice.page.setViewportSize({ width: 390, height: 760 });
  assert.equal(await alice.page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), true, 'it fits a telephone');
  assert.deepEqual(await accessibilityFaults(alice.page), []);
  await alice.screenshot(artefact('narrow.png'));
  await alice.page.setViewportSize({ width: 1040, height: 720 });
});

scene('one who reloads the page is back, with what was said and what was being typed', async () => {
  await alice.choose('Bob');
  await alice.page.locator('#text').fill('half a sent');
  await alice.page.reload();
  await alice.says(/^Connected\.$/, 'open');
  await alice.sees('Bob', 'here');
  const kept = await alice.page.evaluate(() => JSON.stringify({ ...sessionStorage }));
  assert.ok(kept.includes('alice') && !kept.includes(server.passwords.alice), 'the page keeps no password');
  await bothChoose('Bob', 'Alice');
  assert.equal(await alice.page.locator('#text').inputValue(), 'half a sent');
  await bothSee(direct);
  await bob.say('Welcome back');
  direct.push('Welcome back');
  await bothSee(direct);
  await bothChoose('# lobby');
  await bothSee(lobby);
});

for (const [what, end] of [['stopped', () => server.stop()], ['killed', () => server.kill()]]) {
  scene(`the chat server is ${what} in mid-session, and comes back: nothing is lost, nothing comes twice`, async () => {
    await bothChoose('Bob', 'Alice');
    await end();
    await alice.says(/^(The chat server|Failed|Closed)/, 'waiting');
    await bob.says(/^(The chat server|Failed|Closed)/, 'waiting');
    const text = `written while the server was ${what}`;
    await alice.say(text);
    await alice.shows([...direct, text]);
    assert.equal((await alice.messages()).at(-1).words, 'not sent yet');
    await alice.page.locator('#text').fill('still typing');
    await alice.tryNow();
    await alice.says(/refused the connection/, 'waiting');
    await server.start();
    await bothBack();
    direct.push(text);
    await bothSee(direct, /^delivered$/);
    assert.equal(await alice.page.locator('#text').inputValue(), 'still typing');
    await bothChoose('# lobby');
    await bob.say(`back in the room (${what})`);
    lobby.push(`back in the room (${what})`);
    await bothSee(lobby);
  });
}

scene('the gateway is restarted: the same', async () => {
  await bothChoose('Bob', 'Alice');
  await gateway.stop();
  await alice.says(/^(Interrupted: the gateway is stopping|Could not connect)/, 'waiting');
  await alice.say('written without a gateway');
  await gateway.start();
  direct.push('written without a gateway');
  await bothBack();
  await bothSee(direct);
});

scene('the network is gone for 10 s and nobody is told: what was under way arrives', async () => {
  await bothSee(direct);
  wan.stall();
  await alice.say('into the silence');
  await bob.say('can you hear me?');
  await alice.page.locator('.message', { hasText: 'into the silence' }).waitFor();
  await pause(10_000);
  assert.equal((await alice.messages()).at(-1).words, 'sending…');
  wan.resume();
  direct.push('can you hear me?', 'into the silence');
  await bothSee(direct);
});

scene('the network is gone for longer than the page believes in it: it says so, and fetches what it missed', async () => {
  wan.stall();
  await bob.say('and now?');
  await alice.says(/^No answer for \d+ s/, 'open', 30);
  await alice.say('I am on a train');
  await alice.says(/^Connection lost: no answer for \d+ s|^Connecting/, undefined, 30);
  wan.cut();
  assert.equal((await alice.messages()).at(-1).progress, 'unsure');
  wan.resume();
  wan.mend();
  await bothBack();
  direct.push('and now?', 'I am on a train');
  await bothSee(direct);
});

scene('a message that arrived, but whose connection broke before anybody said so, is not sent twice', async () => {
  late.hold('down');
  await alice.say('it arrived');
  direct.push('it arrived');
  await bob.shows(direct);
  assert.equal((await alice.messages()).at(-1).progress, 'sending');
  late.cut();
  await bothBack(alice);
  await bothSee(direct);
  await bothChoose('# lobby');
  await bothSee(lobby);
  late.hold('down');
  await alice.say('to the room, too');
  lobby.push('to the room, too');
  await bob.shows(lobby);
  assert.equal((await alice.messages()).at(-1).progress, 'sending');
  late.cut();
  await bothBack(alice);
  await bothSee(lobby);
});

scene('a message that the network kept for later is sent again, and when the first comes after all, it is not shown', async () => {
  for (const [name, other, texts] of [['Bob', 'Alice', direct], ['# lobby', '# lobby', lobby]]) {
    await bothChoose(name, other);
    await bothSee(texts);
    const before = late.open;
    late.hold('up');
    const text = `late, to ${name}`;
    await alice.say(text);
    await until('the network holds the message', 10, () => late.held > 0);
    late.cut();
    await bothBack(alice);
    texts.push(text);
    await bothSee(texts);
    // The old connection is still there for the gateway, and what it carries arrives now.
    assert.ok(late.held > 0 && late.open > before, `${late.held} bytes in ${late.open} connections`);
    late.release();
    await until('the old connection is over', 20, (saw) => {
      saw(`${late.open} connections`);
      return late.open <= before;
    });
    await bob.say(`after ${text}`);
    texts.push(`after ${text}`);
    await bothSee(texts);
  }
});

scene('whenever connections break, each message arrives once and in order', async () => {
  await bothChoose('Bob', 'Alice');
  await bothSee(direct);
  const [before, ofAlice, ofBob] = [direct.length, [], []];
  for (let i = 0; i < 24; i++) {
    await alice.say(`a${i}`);
    await bob.say(`b${i}`);
    ofAlice.push(`a${i}`);
    ofBob.push(`b${i}`);
    if (i % 6 === 2) late.hold('down');
    if (i % 6 === 4) late.cut();
    if (i % 8 === 7) await alice.tryNow();
  }
  const whole = await until('both see the same, all of it', 40, async (saw) => {
    const [one, other] = [await alice.messages(), await bob.messages()].map((all) => all.slice(before).map(({ text }) => text));
    saw(`Alice: ${one}; Bob: ${other}`);
    return one.length >= 48 && other.length >= 48 && [one, other];
  });
  for (const seen of whole) {
    assert.deepEqual(seen.filter((text) => text.startsWith('a')), ofAlice);
    assert.deepEqual(seen.filter((text) => text.startsWith('b')), ofBob);
  }
  // The archive has the last word on the order, and both archives have all of it.
  await Promise.all([alice.page.reload(), bob.page.reload()]);
  await bothChoose('Bob', 'Alice');
  const [one, other] = [await alice.readBack(direct[0]), await bob.readBack(direct[0])];
  assert.deepEqual(one, other);
  assert.deepEqual(one.slice(0, before), direct);
  assert.equal(new Set(one).size, one.length, 'none stands there twice');
  assert.equal(one.length, before + 48);
  direct.push(...one.slice(before));
});

scene('where the archive has forgotten, the page shows a gap and sends nothing again unasked', async () => {
  late.hold('up');
  await alice.say('did that arrive?');
  await until('the network holds the message', 10, () => late.held > 0);
  await server.stop();
  await alice.says(/^(The chat server|Failed)/, 'waiting');
  late.release();
  const archive = path.join(work, 'prosody/data/chat%2eexample/archive');
  assert.ok(fs.readdirSync(archive).length >= 2, 'there was an archive');
  fs.rmSync(archive, { recursive: true });
  await server.start();
  await bothBack();
  const gap = await until('there is a gap, and the message in doubt', 10, async (saw) => {
    const messages = await alice.messages();
    saw(JSON.stringify(messages.slice(-3)));
    return messages.at(-1).progress === 'doubtful' && messages.at(-2).gap;
  });
  assert.match(gap, /some may be missing here/);
  assert.equal((await alice.messages()).at(-1).words, 'perhaps not sent');
  await bob.shows([...direct, undefined]);
  await alice.page.locator('.message', { hasText: 'did that arrive?' }).getByRole('button', { name: 'Send again' }).click();
  await bothSee([...direct, undefined, 'did that arrive?']);
});

scene('a tab that is copied takes over, and the first one says so and does not fight', async () => {
  const opening = browser.waitForEvent('page');
  await alice.page.evaluate(() => window.open(location.href)); // a copied tab has a copy of its storage
  const copy = new Talker(await opening, [], 'the copied tab');
  await copy.says(/^Connected\.$/, 'open');
  await alice.says(/another tab, which has taken its place/, 'closed');
  await copy.close();
  await alice.page.locator('#banner button', { hasText: 'Connect again' }).click();
  await alice.says(/^Connected\.$/, 'open');
});

scene('one who is signed in twice sees the same in both places', async () => {
  const second = await Talker.open(browser, `https://${HOST}:${gateway.port}/`, 'the second Alice');
  await second.signIn(ALICE, server.passwords.alice, 'xmpps');
  await second.sees('Bob', 'here');
  await second.choose('Bob');
  await second.shows(['did that arrive?']);
  await alice.choose('Bob');
  await alice.say('from the first tab');
  await second.say('from the second tab');
  await until('Bob has both', 10, async () => (await bob.messages()).slice(-2).every(({ text }) => text.startsWith('from the ')));
  await bob.say('I see you twice');
  for (const talker of [alice, second]) {
    const texts = await until(`${talker.name} has all three`, 10, async (saw) => {
      const last = (await talker.messages()).slice(-4).map(({ from, text }) => `${from}: ${text}`);
      saw(last.join(' | '));
      return last.at(-1) === 'bob: I see you twice' && last;
    });
    assert.deepEqual(texts.slice(1, 3).sort(), ['You: from the first tab', 'You: from the second tab']);
  }
  await second.close();
});

scene('the server is down from the start: it says so, and lets people in when it is back', async () => {
  await bob.page.locator('#sign-out').click();
  await bob.page.locator('#login').waitFor();
  assert.equal(await bob.page.evaluate(() => sessionStorage.length), 0, 'nothing is left after signing out');
  await alice.sees('Bob', 'gone');
  await server.stop();
  await bob.signIn(BOB, server.passwords.bob, 'xmpps');
  await bob.says(/^Failed: .*refused the connection/, 'waiting');
  await server.start();
  await bob.says(/^Connected\.$/, 'open'); // by itself
  await bob.sees('Alice', 'here');
});

scene('a page from elsewhere is refused, and the chat server hears nothing', async () => {
  const refused = () => gateway.said('refused').filter(({ reason }) => reason === 'origin_refused');
  const ended = gateway.said('session ended').length;
  assert.equal(refused().length, 0);
  const stranger = await Talker.open(browser, `https://${STRANGER}:${elsewhere.port}/`, 'the stranger');
  await stranger.signIn(BOB, server.passwords.bob);
  await stranger.says(/^Could not connect: .*the gateway refuses this page/, 'waiting');
  await until('the gateway says so', 10, () => refused().length > 0);
  assert.equal(refused()[0].route, 'chat');
  assert.match(stranger.console.join('\n'), /403/);
  assert.equal(await stranger.page.locator('#password').inputValue(), server.passwords.bob, 'what was typed stays');
  assert.equal(gateway.said('session ended').length, ended);
  await stranger.close();
});

let killed;

scene('a session that an operator has killed does not come back by itself', async () => {
  killed = await Talker.open(browser, `https://${HOST}:${killer.port}/`, 'the killed one');
  await killed.signIn(BOB, server.passwords.bob);
  await killed.says(/^Ended by the gateway: killed by an operator\.$/, 'closed');
  assert.equal(killer.upgrades, 1);

  const close = { code: 1008, reason: 'the credential has expired' };
  const expiring = await servePages(page, authority.issue(HOST), { close });
  const expired = await Talker.open(browser, `https://${HOST}:${expiring.port}/`, 'the expired one');
  await expired.signIn(BOB, server.passwords.bob);
  await expired.says(/^Ended by the gateway: the credential has expired\.$/, 'closed');
  assert.equal(await expired.page.locator('#password').inputValue(), server.passwords.bob, 'what was typed stays');
  await expired.close();
  expiring.stop();
});

scene('./start is all it takes, and Ctrl-C ends everything', async () => {
  const identity = authority.issue('localhost');
  const options = { example, identity, run: path.join(work, 'run'), log: artefact('start.log'), program, seconds: 40 };
  const { started, address } = await startExample(options);
  const told = [...started.log().matchAll(/^(\S+) has the password (\S+)$/gm)];
  const passwords = Object.fromEntries(told.map(([, who, word]) => [who, word]));
  const one = await Talker.open(browser, address, 'Alice by ./start');
  const other = await Talker.open(browser, address, 'Bob by ./start');
  await one.signIn(ALICE, passwords[ALICE], 'xmpp');
  await other.signIn(BOB, passwords[BOB], 'xmpps');
  await one.sees('Bob', 'here');
  await one.choose('Bob');
  await other.choose('Alice');
  await one.say('Started!');
  await other.shows(['Started!']);
  await one.shows(['Started!'], { progress: /^delivered$/ });
  const family = fs.readFileSync(`/proc/${started.pid}/task/${started.pid}/children`, 'utf8');
  const children = family.trim().split(' ').map(Number);
  assert.ok(children.length >= 2, `it has started ${children.length} processes`);
  started.signal('SIGINT');
  await one.says(/^(Interrupted: the gateway is stopping|Could not connect|The chat server)/, 'waiting');
  await until('it has ended', 15, () => started.end);
  assert.equal(started.end, 'exit status 0');
  await until('nothing it started is left', 5, (saw) => {
    const left = children.filter(isAlive);
    saw(`${left}`);
    return left.length === 0;
  });
  await one.close();
  await other.close();
});

scene('./start says what is missing, and the one command that brings it', async () => {
  const bin = path.join(work, 'bin');
  fs.mkdirSync(bin);
  for (const tool of ['sh', 'dirname', 'node']) {
    const { stdout } = await run('sh', ['-c', `command -v ${tool}`]);
    fs.symlinkSync(fs.realpathSync(stdout.trim()), path.join(bin, tool));
  }
  // Debian has servers where find() looks without a PATH; openssl is nowhere else than on it.
  const failure = await run(path.join(example, 'start'), [], { env: { PATH: bin, PORTCULLIS: program } }).catch((error) => error);
  assert.equal(failure.code, 3);
  assert.match(failure.stderr, /missing on this machine: .*openssl/);
  assert.match(failure.stderr, /\n {4}sudo apt-get install --no-install-recommends .*openssl/);
});

scene('all along, the gateway saw nothing but good ends, and the killed page has not come back', async () => {
  await killed.says(/^Ended by the gateway/, 'closed');
  assert.equal(killer.upgrades, 1);
  for (const talker of [alice, bob]) {
    assert.deepEqual(talker.console.filter((line) => line.startsWith('error:')), [], `${talker.name}'s page has thrown nothing`);
  }
  const ends = gateway.said('session ended');
  const routes = new Set(ends.map(({ route }) => route));
  assert.deepEqual([...routes].sort(), ['chat', 'chat-tls']);
  const faults = ends.filter(({ reason }) => ['protocol_error', 'invalid_text', 'internal'].includes(reason));
  assert.deepEqual(faults, []);
});
