// A real desktop: TightVNC's X server on loopback with a clock, a pair of eyes and a window that reacts.

import { execFile, execFileSync } from 'node:child_process';
import { randomBytes, randomInt } from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { Picture } from './picture.js';
import { start } from './processes.js';
import { until } from './until.js';

const run = promisify(execFile);
const REACTOR = fileURLToPath(new URL('../desktop/reactor', import.meta.url));

/** What stands where on the desktop, in pixels, and in which colour. */
export const SCREEN = { x: 0, y: 0, width: 800, height: 600 };
export const BACKGROUND = '#1d3b53';
export const CLOCK = { x: 610, y: 24, width: 166, height: 166 };
export const REACTOR_WINDOW = { x: 24, y: 24, width: 562, height: 556 };
export const INK = '#d9482b';
export const GREEN = '#1e6b3a';
export const BLUE = '#243a8f';

const LOGO = ['-bg', '#16303f', '-fg', '#8fd0a5'];

/** The parts of the desktop that are still as long as nobody touches anything. */
export const STILL = [REACTOR_WINDOW, { x: 610, y: 350, width: 190, height: 250 }];

/**
 * Starts the desktop. The X server has no option to pick a free display or port, so another pair is tried when
 * somebody else was faster.
 */
export async function startDesktop(workDirectory, artefacts) {
  const password = randomBytes(4).toString('hex');
  const passwordFile = path.join(workDirectory, 'vnc-password');
  const scrambled = execFileSync('tightvncpasswd', ['-f'], { input: `${password}\n` });
  fs.writeFileSync(passwordFile, scrambled, { mode: 0o600 });
  const log = path.join(artefacts, 'vnc.log');
  fs.writeFileSync(log, '');
  const env = { PATH: process.env.PATH, HOME: workDirectory, LC_ALL: 'C' };

  let refusals = '';
  for (let attempt = 0; attempt < 10; attempt++) {
    const [display, port] = [freeDisplay(), await freePort()];
    const server = start(
      'Xtightvnc',
      // prettier-ignore
      [`:${display}`, '-geometry', '800x600', '-depth', '24', '-rfbport', `${port}`, '-rfbauth', passwordFile,
        '-localhost', '-nolisten', 'tcp', '-ac', '-alwaysshared', '-desktop', 'portcullis', '-co', '/etc/X11/rgb'],
      { env, log },
    );
    const displayEnv = { ...env, DISPLAY: `:${display}` };
    const up = await until(`X display :${display} answers`, 20, async (saw) => {
      if (server.end) return 'ended';
      saw(`log: ${server.log().slice(-300)}`);
      await run('xsetroot', ['-solid', BACKGROUND], { env: displayEnv, timeout: 5000 });
      return 'up';
    });
    if (up === 'up' && !server.end) return new Desktop(server, port, password, displayEnv, workDirectory);
    refusals += `:${display} port ${port}: ${server.end}\n`;
  }
  throw new Error(`Xtightvnc did not start in ten attempts:\n${refusals}${fs.readFileSync(log, 'utf8').slice(-2000)}`);
}

class Desktop {
  #server;
  #programs;
  #env;

  constructor(server, port, password, env, workDirectory) {
    this.#server = server;
    this.#env = env;
    this.port = port;
    this.password = password;
    const log = path.join(workDirectory, 'desktop-programs.log');
    const at = ({ x, y }) => `+${x}+${y}`;
    // An xterm counts in characters of the font: 92 x 42 of 6 x 13 pixels, and a border of 5 on each side.
    const reactor = [
      ...['-fn', 'fixed', '-geometry', `92x42${at(REACTOR_WINDOW)}`, '-b', '4', '-bw', '1', '+sb'],
      ...['-bg', GREEN, '-fg', '#ffffff', '-T', 'reactor', '-e', REACTOR, INK, GREEN, BLUE],
    ];
    const { width, height } = CLOCK;
    this.#programs = [
      start('xterm', reactor, { env, log }),
      start('xclock', ['-update', '1', '-geometry', `${width - 2}x${height - 2}${at(CLOCK)}`], { env, log }),
      start('xeyes', ['-geometry', `${width - 2}x110+${CLOCK.x}+220`], { env, log }),
      start('xlogo', ['-geometry', `${width - 2}x${width - 2}+${CLOCK.x}+380`, ...LOGO], { env, log }),
    ];
  }

  /** The picture that the X server itself says is on its screen. */
  async picture() {
    for (const program of [this.#server, ...this.#programs]) program.mustRun();
    const options = { env: this.#env, encoding: 'buffer', maxBuffer: 32 << 20, timeout: 10_000 };
    const { stdout } = await run('xwd', ['-root', '-silent'], options);
    return Picture.fromXwd(stdout);
  }

  /** How many viewers the VNC server says have ever connected. */
  connections() {
    return this.#server.log().match(/Got connection from client/g)?.length ?? 0;
  }

  log() {
    return this.#server.log();
  }

  async stop() {
    for (const program of this.#programs) await program.stop();
    await this.#server.stop();
  }
}

function freeDisplay() {
  for (;;) {
    const display = randomInt(20, 1000);
    const traces = [`/tmp/.X11-unix/X${display}`, `/tmp/.X${display}-lock`];
    if (!traces.some((file) => fs.existsSync(file))) return display;
  }
}

async function freePort() {
  const server = net.createServer();
  await new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  const { port } = server.address();
  await new Promise((resolve) => {
    server.close(resolve);
  });
  return port;
}
