// The game, end to end: two players in two browsers, Portcullis with TLS in front of a broker, RabbitMQ and then ActiveMQ.
//
//   Chromium (@stomp/stompjs) --wss--> test network    --> Portcullis --tcp--> RabbitMQ or ActiveMQ
//   Chromium (@stomp/stompjs) --wss--> another network -->
//
// The steps with one broker are one scenario and depend on each other: after the first failure the rest is skipped.
//
// environment: PORTCULLIS   the program under test (default: target/debug/portcullis)
//              ARTEFACTS    the directory of logs and screenshots (default: tests/artefacts)

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { buildPage } from '../../examples/build.js';
import { startActivemq } from '../../examples/launch/activemq.js';
import { CertificateAuthority } from '../../examples/launch/certificates.js';
import { replaceValues, startGateway } from '../../examples/launch/gateway.js';
import { freePort } from '../../examples/launch/processes.js';
import { startRabbitmq } from '../../examples/launch/rabbitmq.js';
import { until } from '../../examples/launch/until.js';
import { trust } from './lib/browser.js';
import { startExample } from './lib/example.js';
import { Chromium, Player } from './lib/players.js';
import { testImage } from './lib/test-image.js';
import { servePages, startNetwork } from './lib/servers.js';
import { scenario } from './lib/scenario.js';

const here = fileURLToPath(new URL('.', import.meta.url));
const root = path.resolve(here, '../..');
const example = path.join(root, 'examples/stomp');
const program = path.resolve(process.env.PORTCULLIS ?? path.join(root, 'target/debug/portcullis'));
const artefacts = path.resolve(process.env.ARTEFACTS ?? path.join(root, 'tests/artefacts'));

const HOST = 'game.test';
const PASSWORD = 'what players know';
const BROKERS = { rabbitmq: startRabbitmq, activemq: startActivemq };
const BROKER_NAMES = { rabbitmq: 'RabbitMQ', activemq: 'ActiveMQ' };

fs.mkdirSync(artefacts, { recursive: true });
fs.mkdirSync(path.join(root, 'target'), { recursive: true });
const work = fs.mkdtempSync(path.join(root, 'target', 'stomp-test-'));
const authority = new CertificateAuthority(path.join(work, 'authority'));
const { certificate, privateKey } = authority.issue(HOST);
const built = await buildPage(example);
const picture = testImage(1300, 1340);

const open = [];
after(async () => {
  // Stop all of them, even after an error: a running one would keep this process alive.
  const ends = [];
  for (const server of open.reverse()) ends.push(await Promise.allSettled([server.stop()]));
  const [failure] = ends.flat().filter(({ status }) => status === 'rejected');
  if (failure) throw failure.reason;
});
process.on('exit', () => fs.rmSync(work, { recursive: true, force: true, maxRetries: 5 }));

let browsers = 0;
/** A separate browser that trusts the test's certificate authority. */
async function chromium() {
  const home = path.join(work, `home-${++browsers}`);
  trust(authority, home);
  const browser = await Chromium.start(home, HOST);
  open.push(browser);
  return browser;
}

/** A gateway with the example's configuration and other addresses; `origins` makes the route refuse its own pages. */
async function gatewayFor(name, backend, page, origins) {
  const text = replaceValues(fs.readFileSync(path.join(example, 'gateway.toml'), 'utf8'), {
    '0.0.0.0:8443': '127.0.0.1:0',
    'certs/localhost.crt': certificate,
    'certs/localhost.key': privateKey,
    'tcp://127.0.0.1:61613': `tcp://127.0.0.1:${backend}`,
    dist: page,
  });
  const gateway = await startGateway({
    program,
    text: origins ? text.replace('path = "/stomp"', `path = "/stomp"\norigins = ["${origins}"]`) : text,
    directory: path.join(work, name),
    log: path.join(artefacts, `${name}.log`),
  });
  open.push(gateway);
  return gateway;
}

// Both scenarios run concurrently, because many steps only wait.
describe('rock, paper, scissors', { concurrency: 2 }, () => {
  for (const [kind, startBroker] of Object.entries(BROKERS)) {
    describe(`over ${BROKER_NAMES[kind]}`, { concurrency: 1 }, () => steps(kind, startBroker));
  }
});

function steps(kind, startBroker) {
  const context = {};
  const step = scenario({ report, timeout: 90_000 });

  /** Prints, on stderr, information that helps to understand a failure. */
  async function report() {
    const say = (title, text) => process.stderr.write(`\n--- ${title}\n${text}\n`);
    for (const player of [context.ann, context.ben, context.cid].filter(Boolean)) {
      await player.screenshot(artefact(`failure-${player.name}.png`)).catch(() => {});
      const seen = await player.look().catch(String);
      say(`page of ${player.name}`, JSON.stringify(seen, undefined, 2));
      say(`console of ${player.name}`, player.console.join('\n'));
    }
    if (context.gateway) say('gateway log', context.gateway.log().slice(-4000));
    if (context.broker) say('broker log', context.broker.log().slice(-4000));
  }

  function artefact(name) {
    return path.join(artefacts, `stomp-${kind}-${name}`);
  }

  /** Waits until both players see this score, each from their own side. */
  async function bothSee(score, decided) {
    await until(`both see ${score.join(' : ')} after ${decided} rounds`, 30, async (observed) => {
      const [a, b] = [await context.ann.look(), await context.ben.look()];
      observed(JSON.stringify([a, b]));
      const [mine, theirs] = score;
      return (
        a.score === `${mine} : ${theirs}` && b.score === `${theirs} : ${mine}` &&
        a.rounds.length === decided && b.rounds.length === decided
      );
    });
  }

  async function newGame() {
    await context.ann.press('Open a game');
    await context.ann.sees('turn', /Waiting for an opponent/);
    await context.ben.press('Join the game of Ann');
    await context.ann.sees('turn', /^Round 1: choose/);
    await context.ben.sees('turn', /^Round 1: choose/);
  }

  async function round(ann, ben) {
    await context.ann.press(ann);
    await context.ben.sees('turn', /has chosen|choose/);
    await context.ben.press(ben);
  }

  step('a page whose broker is down says so, keeps the login form, and logs in when the broker is up', async () => {
    context.page = path.join(work, `page-${kind}`);
    fs.cpSync(built, context.page, { recursive: true });
    fs.writeFileSync(path.join(context.page, 'config.json'), JSON.stringify({ broker: BROKER_NAMES[kind], path: 'stomp' }));
    const port = await freePort();
    context.gateway = await gatewayFor(`stomp-${kind}-gateway`, port, context.page);
    for (const name of ['ann', 'ben']) {
      const network = await startNetwork(context.gateway.port);
      open.push(network);
      context[name] = await Player.open(await chromium(), name, `https://${HOST}:${network.port}/`);
      context[name].network = network;
    }
    await context.ann.logIn(PASSWORD);
    await context.ann.sees('banner', /^Failed: .*(refused|reach)/);
    assert.deepEqual(await context.ann.loginFields(), { name: 'Ann', password: PASSWORD });
    await context.ann.screenshot(artefact('down.png'));
    const account = { login: 'player', password: PASSWORD, prefix: 'rps' };
    context.broker = await startBroker({ directory: path.join(work, kind), port, log: artefact('broker.log'), ...account });
    open.push(context.broker);
    await context.ann.sees('screen', /^lobby$/, 40);
    await context.ann.sees('banner', new RegExp(`^Connected to ${BROKER_NAMES[kind]}`));
  });

  step('a wrong password shows an error, and the login form keeps its values', async () => {
    await context.ben.logIn('wrong');
    await context.ben.sees('error', /refused the login.*Is the password right\?/);
    assert.deepEqual(await context.ben.loginFields(), { name: 'Ben', password: 'wrong' });
    assert.deepEqual(await context.ben.accessibilityViolations(artefact('login.png')), []);
    await context.ben.logIn(PASSWORD);
    await context.ben.sees('screen', /^lobby$/);
    await context.ben.sees('players', /Ann in the lobby/);
    await context.ann.sees('players', /Ben in the lobby/);
    assert.deepEqual(await context.ann.accessibilityViolations(artefact('lobby.png')), []);
  });

  step('two players finish a best of three; pictures of 5 MB and chat messages arrive', async () => {
    assert.ok(picture.file.length > 4.9 * (1 << 20) && picture.file.length <= 5 << 20, `${picture.file.length} bytes`);
    await context.ann.choosePicture(picture.file);
    await context.ann.sees('note', /is shown to your opponent/);
    await newGame();
    await until("Ben sees Ann's picture, pixel by pixel", 30, async (observed) => {
      const shown = await context.ben.otherPicture();
      observed(JSON.stringify(shown));
      return shown?.width === picture.width && shown.height === picture.height && shown.sha256 === sha256(picture.rgba);
    });
    await context.ann.say('Good luck!');
    await context.ben.sees('chat', /Ann: Good luck!/);
    await context.ben.say('And to you.');
    await context.ann.sees('chat', /You: Good luck!\nBen: And to you\./);
    await round('Rock', 'Scissors');
    await bothSee([1, 0], 1);
    await round('Paper', 'Paper');
    await bothSee([1, 0], 2);
    await context.ann.press('Rock');
    await context.ann.sees('turn', /you chose rock. Waiting for Ben/);
    await context.ben.sees('turn', /Ann has chosen/);
    assert.deepEqual(await context.ben.accessibilityViolations(artefact('room.png')), []);
    await context.ben.press('Paper');
    await bothSee([1, 1], 3);
    await round('Scissors', 'Paper');
    await bothSee([2, 1], 4);
    await context.ann.sees('turn', /^You win the game, 2 to 1!$/);
    await context.ben.sees('turn', /^Ann wins the game, 2 to 1\.$/);
    assert.deepEqual((await context.ben.look()).rounds, [
      'Rock blunts scissors: Ann wins.',
      'Paper and paper: a draw.',
      'Paper wraps rock: you win.',
      'Scissors cut paper: Ann wins.',
    ]);
    await context.ann.screenshot(artefact('finished.png'), 560); // the README shows it
    for (const player of [context.ann, context.ben]) {
      await player.press('Back to the lobby');
      await player.sees('screen', /^lobby$/);
    }
  });

  step('a player reloads the page during a game, and the game continues', async () => {
    await newGame();
    await round('Rock', 'Scissors');
    await bothSee([1, 0], 1);
    await context.ben.say('Wait a moment');
    await context.ann.press('Paper');
    await context.ben.reload();
    await context.ben.sees('turn', /^Round 2: Ann has chosen/);
    assert.deepEqual((await context.ben.look()).chat, 'You: Wait a moment');
    await context.ann.reload();
    await context.ann.sees('turn', /^Round 2: you chose paper/);
    await context.ben.press('Scissors');
    await bothSee([1, 1], 2);
    assert.equal((await context.ann.look()).chat, 'Ben: Wait a moment');
  });

  step('the gateway restarts during a game: nothing is lost or counted twice', async () => {
    await context.ben.draftMessage('half a sent');
    await context.gateway.stop();
    await context.ann.sees('banner', /going away|gateway/i);
    await context.ann.press('Rock');
    await context.ann.sees('unsent', /Not sent yet/);
    await context.gateway.start();
    await context.ann.sees('banner', /^Connected/, 40);
    await context.ben.sees('turn', /^Round 3: Ann has chosen/, 40);
    assert.equal(await context.ben.draft(), 'half a sent');
    await context.ben.draftMessage('');
    await context.ben.press('Rock');
    await bothSee([1, 1], 3);
  });

  step('the broker is killed and restarted during a game: nothing is lost or counted twice', async () => {
    await context.ann.press('Paper');
    await context.ben.sees('turn', /^Round 4: Ann has chosen/);
    await context.broker.kill();
    await context.ben.sees('banner', /Closed|Failed|Interrupted|lost|could not/i);
    await context.ben.sees('presence', /You are not connected/);
    await context.ben.press('Paper');
    await context.ben.say('Are you still there?');
    await context.broker.start();
    await bothSee([1, 1], 4);
    await context.ann.sees('chat', /^Ben: Wait a moment\nBen: Are you still there\?$/);
  });

  step('the network is down for twelve seconds: both pages show it, and the game continues', async () => {
    context.ann.network.stall();
    const stalledAt = Date.now();
    await context.ben.sees('presence', /^Ann is unreachable/, 20);
    await context.ann.press('Scissors');
    await context.ann.sees('banner', /silent for too long/, 25);
    await context.ann.screenshot(artefact('network.png'));
    await until('twelve seconds are over', 15, () => Date.now() - stalledAt > 12_000);
    context.ann.network.resume();
    await context.ann.sees('banner', /^Connected/, 40);
    await context.ben.sees('presence', /^Ann is here/);
    await context.ben.sees('turn', /^Round 5: Ann has chosen/);
    await context.ben.press('Rock');
    await bothSee([1, 2], 5);
    await context.ann.sees('turn', /^Ben wins the game, 2 to 1/);
    for (const player of [context.ann, context.ben]) await player.press('Back to the lobby');
  });

  step('one browser is killed during a game, and the other player\'s page shows it', async () => {
    await newGame();
    await round('Rock', 'Scissors');
    await bothSee([1, 0], 1);
    await context.ben.press('Paper');
    await context.ben.kill();
    await context.ann.sees('presence', /^Ben is unreachable: the browser or the network is down/, 20);
    await context.ann.screenshot(artefact('unreachable.png'));
    await context.ann.press('Leave the game');
    await context.ann.sees('screen', /^lobby$/);
    await context.ann.sees('players', /^Ann \(you\) in the lobby$/);
    context.ben = undefined;
  });

  step('a page that the gateway refuses shows the possible causes', async () => {
    const gateway = await gatewayFor(`stomp-${kind}-origin`, context.broker.port, context.page, 'https://elsewhere.test');
    context.cid = await Player.open(context.ann.browser, 'cid', `https://${HOST}:${gateway.port}/`);
    await context.cid.logIn(PASSWORD);
    await context.cid.sees('banner', /Could not connect: .*refuses this page/);
    await until('the gateway logs the refusal', 15, (observed) => {
      observed(gateway.log().slice(-1000));
      return gateway.events('refused').some(({ reason, route }) => reason === 'origin_refused' && route === 'game');
    });
    assert.deepEqual(await context.cid.loginFields(), { name: 'Cid', password: PASSWORD });
    await context.cid.close();
    context.cid = undefined;
    await gateway.stop();
  });

  step('a session that was ended by policy is not reopened automatically', async () => {
    const close = { code: 1008, reason: 'the credential has expired' };
    const pages = await servePages(context.page, { certificate, privateKey }, { close });
    open.push(pages);
    context.cid = await Player.open(context.ann.browser, 'cid', `https://${HOST}:${pages.port}/`);
    await context.cid.logIn(PASSWORD);
    await context.cid.sees('banner', /^Ended by the gateway: the credential has expired\.$/);
    assert.equal(await context.cid.connection(), 'closed');
    assert.equal(pages.upgrades, 1);
    await context.cid.press('Connect again');
    await until('another attempt is made', 15, () => pages.upgrades === 2);
    assert.deepEqual(await context.cid.loginFields(), { name: 'Cid', password: PASSWORD });
    await context.cid.close();
    context.cid = undefined;
    pages.stop();
  });

  step('logging out disconnects from the broker', async () => {
    const ended = () => context.gateway.events('session ended');
    const before = ended().length;
    await context.ann.press('Log out');
    await context.ann.sees('screen', /^login$/);
    const [last] = await until('the gateway logs the end of the session', 15, (observed) => {
      observed(context.gateway.log().slice(-1000));
      const lines = ended().slice(before);
      return lines.length > 0 && lines;
    });
    assert.ok(['client_closed', 'backend_closed'].includes(last.reason), last.reason);
    assert.deepEqual(context.ann.console.filter((line) => /Content.Security|Uncaught|TypeError/.test(line)), []);
    await context.gateway.stop();
    await context.broker.stop();
    await context.ann.kill();
  });
}

function sha256(bytes) {
  return createHash('sha256').update(bytes).digest('hex');
}

test('./start runs the example with one command', { timeout: 90_000 }, async () => {
  const { started, address } = await startExample({
    example,
    identity: { certificate, privateKey },
    run: path.join(work, 'run'),
    log: path.join(artefacts, 'stomp-start.log'),
    program,
    args: ['--broker', 'activemq'],
    cwd: '/',
  });
  open.push(started);
  const [, password] = /^password of the game: (\S+)$/m.exec(started.log());
  const player = await Player.open(await chromium(), 'dee', address.replace('localhost', HOST));
  await player.logIn(password);
  await player.sees('banner', /^Connected to ActiveMQ/);
  await player.press('Open a game');
  await player.sees('turn', /Waiting for an opponent/);
  started.signal('SIGINT');
  await player.sees('banner', /Interrupted|the gateway is down/);
  await until('./start exits', 20, () => started.end);
  assert.equal(started.end, 'exit status 0');
});
