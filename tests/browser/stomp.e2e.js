// The game, end to end: two players in two browsers, Portcullis with TLS in front of a broker, RabbitMQ and then ActiveMQ.
//
//   Chromium (@stomp/stompjs) --wss--> cable of the test's own --> Portcullis --tcp--> RabbitMQ or ActiveMQ
//   Chromium (@stomp/stompjs) --wss--> another cable           -->
//
// The scenes with one broker are one story and depend on each other: after the first that fails the rest of them is
// skipped.
//
// environment: PORTCULLIS   the program to test (default: target/debug/portcullis)
//              ARTEFACTS    where logs and screenshots are kept (default: tests/artefacts)

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { buildPage } from '../../examples/build.js';
import { startActivemq } from '../../examples/launch/activemq.js';
import { Authority } from '../../examples/launch/certificates.js';
import { replaceValues, startGateway } from '../../examples/launch/gateway.js';
import { freePort } from '../../examples/launch/processes.js';
import { startRabbitmq } from '../../examples/launch/rabbitmq.js';
import { until } from '../../examples/launch/until.js';
import { trust } from './lib/browser.js';
import { startExample } from './lib/example.js';
import { Chromium, Player } from './lib/players.js';
import { portrait } from './lib/portrait.js';
import { servePages, startNetwork } from './lib/servers.js';
import { story } from './lib/story.js';

const here = fileURLToPath(new URL('.', import.meta.url));
const root = path.resolve(here, '../..');
const example = path.join(root, 'examples/stomp');
const program = path.resolve(process.env.PORTCULLIS ?? path.join(root, 'target/debug/portcullis'));
const artefacts = path.resolve(process.env.ARTEFACTS ?? path.join(root, 'tests/artefacts'));

const HOST = 'game.test';
const PASSWORD = 'what players know';
const MOVES = ['rock', 'paper', 'scissors'];
const BROKERS = { rabbitmq: startRabbitmq, activemq: startActivemq };
const NAMES = { rabbitmq: 'RabbitMQ', activemq: 'ActiveMQ' };

fs.mkdirSync(artefacts, { recursive: true });
fs.mkdirSync(path.join(root, 'target'), { recursive: true });
const work = fs.mkdtempSync(path.join(root, 'target', 'stomp-test-'));
const authority = new Authority(path.join(work, 'authority'));
const { certificate, privateKey } = authority.issue(HOST);
const built = await buildPage(example);
const picture = portrait(1300, 1340);

const open = [];
after(async () => {
  // All of them, whatever one of them says: what goes on running would keep this process from ending.
  const ends = [];
  for (const thing of open.reverse()) ends.push(await Promise.allSettled([thing.stop()]));
  const [failure] = ends.flat().filter(({ status }) => status === 'rejected');
  if (failure) throw failure.reason;
});
process.on('exit', () => fs.rmSync(work, { recursive: true, force: true, maxRetries: 5 }));

let browsers = 0;
/** A browser of its own that trusts the test's authority alone. */
async function chromium() {
  const home = path.join(work, `home-${++browsers}`);
  trust(authority, home);
  const browser = await Chromium.start(home, HOST);
  open.push(browser);
  return browser;
}

/** The gateway as the example's own file has it, but for addresses; `origins` for a route that refuses its own pages. */
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

// Both stories at the same time: in many scenes nothing but time goes by.
describe('rock, paper, scissors', { concurrency: 2 }, () => {
  for (const [kind, startBroker] of Object.entries(BROKERS)) {
    describe(`over ${NAMES[kind]}`, { concurrency: 1 }, () => scenes(kind, startBroker));
  }
});

function scenes(kind, startBroker) {
  const cast = {};
  const scene = story({ report, timeout: 90_000 });

  /** Everything that helps to understand a failure, on stderr. */
  async function report() {
    const say = (title, text) => process.stderr.write(`\n--- ${title}\n${text}\n`);
    for (const player of [cast.ann, cast.ben, cast.cid].filter(Boolean)) {
      await player.screenshot(artefact(`failure-${player.name}.png`)).catch(() => {});
      const seen = await player.look().catch(String);
      say(`what ${player.name} sees`, JSON.stringify(seen, undefined, 2));
      say(`console of ${player.name}`, player.console.join('\n'));
    }
    if (cast.gateway) say('gateway log', cast.gateway.log().slice(-4000));
    if (cast.broker) say('broker log', cast.broker.log().slice(-4000));
  }

  function artefact(name) {
    return path.join(artefacts, `stomp-${kind}-${name}`);
  }

  /** Both see this game, each from his side. */
  async function bothSee(score, decided) {
    await until(`both see ${score.join(' : ')} after ${decided} rounds`, 30, async (saw) => {
      const [a, b] = [await cast.ann.look(), await cast.ben.look()];
      saw(JSON.stringify([a, b]));
      const [mine, theirs] = score;
      return (
        a.score === `${mine} : ${theirs}` && b.score === `${theirs} : ${mine}` &&
        a.rounds.length === decided && b.rounds.length === decided
      );
    });
  }

  async function newGame() {
    await cast.ann.press('Open a game');
    await cast.ann.sees('turn', /Waiting for somebody/);
    await cast.ben.press('Join the game of Ann');
    await cast.ann.sees('turn', /^Round 1: choose/);
    await cast.ben.sees('turn', /^Round 1: choose/);
  }

  async function round(ann, ben) {
    await cast.ann.press(ann);
    await cast.ben.sees('turn', /has chosen|choose/);
    await cast.ben.press(ben);
  }

  scene('a page whose broker is down says so, keeps what was typed, and goes in when it is up', async () => {
    cast.page = path.join(work, `page-${kind}`);
    fs.cpSync(built, cast.page, { recursive: true });
    fs.writeFileSync(path.join(cast.page, 'config.json'), JSON.stringify({ broker: NAMES[kind], path: 'stomp' }));
    const port = await freePort();
    cast.gateway = await gatewayFor(`stomp-${kind}-gateway`, port, cast.page);
    for (const name of ['ann', 'ben']) {
      const network = await startNetwork(cast.gateway.port);
      open.push(network);
      cast[name] = await Player.open(await chromium(), name, `https://${HOST}:${network.port}/`);
      cast[name].network = network;
    }
    await cast.ann.goIn(PASSWORD);
    await cast.ann.sees('banner', /^Failed: .*(refused|reach)/);
    assert.deepEqual(await cast.ann.typed(), { name: 'Ann', password: PASSWORD });
    await cast.ann.screenshot(artefact('down.png'));
    const account = { login: 'player', password: PASSWORD, prefix: 'rps' };
    cast.broker = await startBroker({ directory: path.join(work, kind), port, log: artefact('broker.log'), ...account });
    open.push(cast.broker);
    await cast.ann.sees('screen', /^lobby$/, 40);
    await cast.ann.sees('banner', new RegExp(`^Connected to ${NAMES[kind]}`));
  });

  scene('a wrong password is refused in words, and what was typed stays', async () => {
    await cast.ben.goIn('wrong');
    await cast.ben.sees('fault', /does not let you in.*Is the password right\?/);
    assert.deepEqual(await cast.ben.typed(), { name: 'Ben', password: 'wrong' });
    assert.deepEqual(await cast.ben.faults(artefact('door.png')), []);
    await cast.ben.goIn(PASSWORD);
    await cast.ben.sees('screen', /^lobby$/);
    await cast.ben.sees('players', /Ann in the lobby/);
    await cast.ann.sees('players', /Ben in the lobby/);
    assert.deepEqual(await cast.ann.faults(artefact('lobby.png')), []);
  });

  scene('two players finish a best of three; pictures of 5 MB and words arrive', async () => {
    assert.ok(picture.file.length > 4.9 * (1 << 20) && picture.file.length <= 5 << 20, `${picture.file.length} bytes`);
    await cast.ann.choosePicture(picture.file);
    await cast.ann.sees('note', /is shown to the player/);
    await newGame();
    await until("Ben sees Ann's picture, pixel by pixel", 30, async (saw) => {
      const shown = await cast.ben.otherPicture();
      saw(JSON.stringify(shown));
      return shown?.width === picture.width && shown.height === picture.height && shown.sha256 === sha256(picture.rgba);
    });
    await cast.ann.say('Good luck!');
    await cast.ben.sees('talk', /Ann: Good luck!/);
    await cast.ben.say('And to you.');
    await cast.ann.sees('talk', /You: Good luck!\nBen: And to you\./);
    await round('Rock', 'Scissors');
    await bothSee([1, 0], 1);
    await round('Paper', 'Paper');
    await bothSee([1, 0], 2);
    await cast.ann.press('Rock');
    await cast.ann.sees('turn', /you took rock. Waiting for Ben/);
    await cast.ben.sees('turn', /Ann has chosen/);
    assert.deepEqual(await cast.ben.faults(artefact('room.png')), []);
    await cast.ben.press('Paper');
    await bothSee([1, 1], 3);
    await round('Scissors', 'Paper');
    await bothSee([2, 1], 4);
    await cast.ann.sees('turn', /^You win the game, 2 to 1!$/);
    await cast.ben.sees('turn', /^Ann wins the game, 2 to 1\.$/);
    assert.deepEqual((await cast.ben.look()).rounds, [
      'Rock blunts scissors: Ann wins.',
      'Paper and paper: a draw.',
      'Paper wraps rock: you win.',
      'Scissors cut paper: Ann wins.',
    ]);
    await cast.ann.screenshot(artefact('finished.png'), 560); // the README shows it
    for (const player of [cast.ann, cast.ben]) {
      await player.press('Back to the lobby');
      await player.sees('screen', /^lobby$/);
    }
  });

  scene('a player loads the page again in mid-game, and the game goes on', async () => {
    await newGame();
    await round('Rock', 'Scissors');
    await bothSee([1, 0], 1);
    await cast.ben.say('Wait a moment');
    await cast.ann.press('Paper');
    await cast.ben.reload();
    await cast.ben.sees('turn', /^Round 2: Ann has chosen/);
    assert.deepEqual((await cast.ben.look()).talk, 'You: Wait a moment');
    await cast.ann.reload();
    await cast.ann.sees('turn', /^Round 2: you took paper/);
    await cast.ben.press('Scissors');
    await bothSee([1, 1], 2);
    assert.equal((await cast.ann.look()).talk, 'Ben: Wait a moment');
  });

  scene('the gateway is restarted in mid-game: nothing is lost or counted twice', async () => {
    await cast.ben.write('half a sent');
    await cast.gateway.stop();
    await cast.ann.sees('banner', /going away|gateway/i);
    await cast.ann.press('Rock');
    await cast.ann.sees('unsent', /Not sent yet/);
    await cast.gateway.start();
    await cast.ann.sees('banner', /^Connected/, 40);
    await cast.ben.sees('turn', /^Round 3: Ann has chosen/, 40);
    assert.equal(await cast.ben.written(), 'half a sent');
    await cast.ben.write('');
    await cast.ben.press('Rock');
    await bothSee([1, 1], 3);
  });

  scene('the broker is killed and started again in mid-game: nothing is lost or counted twice', async () => {
    await cast.ann.press('Paper');
    await cast.ben.sees('turn', /^Round 4: Ann has chosen/);
    await cast.broker.kill();
    await cast.ben.sees('banner', /Closed|Failed|Interrupted|lost|could not/i);
    await cast.ben.sees('presence', /You are not connected/);
    await cast.ben.press('Paper');
    await cast.ben.say('Are you still there?');
    await cast.broker.start();
    await bothSee([1, 1], 4);
    await cast.ann.sees('talk', /^Ben: Wait a moment\nBen: Are you still there\?$/);
  });

  scene('the network is gone for twelve seconds: both are told, and the game goes on', async () => {
    cast.ann.network.stall();
    const gone = Date.now();
    await cast.ben.sees('presence', /^Ann has vanished/, 20);
    await cast.ann.press('Scissors');
    await cast.ann.sees('banner', /silent for too long/, 25);
    await cast.ann.screenshot(artefact('network.png'));
    await until('twelve seconds are over', 15, () => Date.now() - gone > 12_000);
    cast.ann.network.resume();
    await cast.ann.sees('banner', /^Connected/, 40);
    await cast.ben.sees('presence', /^Ann is here/);
    await cast.ben.sees('turn', /^Round 5: Ann has chosen/);
    await cast.ben.press('Rock');
    await bothSee([1, 2], 5);
    await cast.ann.sees('turn', /^Ben wins the game, 2 to 1/);
    for (const player of [cast.ann, cast.ben]) await player.press('Back to the lobby');
  });

  scene('one browser is killed in mid-game, and the other player is told', async () => {
    await newGame();
    await round('Rock', 'Scissors');
    await bothSee([1, 0], 1);
    await cast.ben.press('Paper');
    await cast.ben.kill();
    await cast.ann.sees('presence', /^Ben has vanished: the browser or the network is gone/, 20);
    await cast.ann.screenshot(artefact('vanished.png'));
    await cast.ann.press('Leave the game');
    await cast.ann.sees('screen', /^lobby$/);
    await cast.ann.sees('players', /^Ann \(you\) in the lobby$/);
    cast.ben = undefined;
  });

  scene('a page that the gateway refuses says what it can know', async () => {
    const gateway = await gatewayFor(`stomp-${kind}-origin`, cast.broker.port, cast.page, 'https://elsewhere.test');
    cast.cid = await Player.open(cast.ann.browser, 'cid', `https://${HOST}:${gateway.port}/`);
    await cast.cid.goIn(PASSWORD);
    await cast.cid.sees('banner', /Could not connect: .*refuses this page/);
    await until('the gateway logs the refusal', 15, (saw) => {
      saw(gateway.log().slice(-1000));
      return gateway.said('refused').some(({ reason, route }) => reason === 'origin_refused' && route === 'game');
    });
    assert.deepEqual(await cast.cid.typed(), { name: 'Cid', password: PASSWORD });
    await cast.cid.close();
    cast.cid = undefined;
    await gateway.stop();
  });

  scene('a session that the rules end is not begun again by itself', async () => {
    const close = { code: 1008, reason: 'the credential has expired' };
    const pages = await servePages(cast.page, { certificate, privateKey }, { close });
    open.push(pages);
    cast.cid = await Player.open(cast.ann.browser, 'cid', `https://${HOST}:${pages.port}/`);
    await cast.cid.goIn(PASSWORD);
    await cast.cid.sees('banner', /^Ended by the gateway: the credential has expired\.$/);
    assert.equal(await cast.cid.connection(), 'closed');
    assert.equal(pages.upgrades, 1);
    await cast.cid.press('Connect again');
    await until('it is tried once more', 15, () => pages.upgrades === 2);
    assert.deepEqual(await cast.cid.typed(), { name: 'Cid', password: PASSWORD });
    await cast.cid.close();
    cast.cid = undefined;
    pages.stop();
  });

  scene('who goes out says goodbye to the broker', async () => {
    const ended = () => cast.gateway.said('session ended');
    const before = ended().length;
    await cast.ann.press('Go out');
    await cast.ann.sees('screen', /^door$/);
    const [last] = await until('the gateway logs the end', 15, (saw) => {
      saw(cast.gateway.log().slice(-1000));
      const lines = ended().slice(before);
      return lines.length > 0 && lines;
    });
    assert.ok(['client_closed', 'backend_closed'].includes(last.reason), last.reason);
    assert.deepEqual(cast.ann.console.filter((line) => /Content.Security|Uncaught|TypeError/.test(line)), []);
    await cast.gateway.stop();
    await cast.broker.stop();
    await cast.ann.kill();
  });
}

function sha256(bytes) {
  return createHash('sha256').update(bytes).digest('hex');
}

test('./start does all of this with one command', { timeout: 90_000 }, async () => {
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
  await player.goIn(password);
  await player.sees('banner', /^Connected to ActiveMQ/);
  await player.press('Open a game');
  await player.sees('turn', /Waiting for somebody/);
  started.signal('SIGINT');
  await player.sees('banner', /Interrupted|the gateway is down/);
  await until('./start ends', 20, () => started.end);
  assert.equal(started.end, 'exit status 0');
});
