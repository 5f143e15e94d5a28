// A real desktop: TightVNC's X server on loopback, with a few programs on it and a clipboard that works.
//
// A VNC server of this age knows cut buffers only, and programs of today use selections: autocutsel keeps the cut buffer
// and the CLIPBOARD alike. The terminals put what the mouse marks into the CLIPBOARD, too. A second autocutsel for PRIMARY,
// where it would go otherwise, does not do: Xtightvnc disowns that selection whenever a viewer sends text.

import { execFile, execFileSync } from 'node:child_process';
import { randomBytes, randomInt } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { freePort, start } from './processes.js';
import { until } from './until.js';

const run = promisify(execFile);
const REACTOR = fileURLToPath(new URL('reactor', import.meta.url));

/** What it takes, and which Debian package brings it. */
export const TOOLS = [
  { program: 'Xtightvnc', package: 'tightvncserver' },
  { program: 'tightvncpasswd', package: 'tightvncpasswd' },
  { program: 'autocutsel', package: 'autocutsel' },
  { program: 'xterm', package: 'xterm' },
  { program: 'xclock', package: 'x11-apps' },
  { program: 'xeyes', package: 'x11-apps' },
  { program: 'xlogo', package: 'x11-apps' },
  { program: 'xsetroot', package: 'x11-xserver-utils' },
  { program: 'setpriv', package: 'util-linux' },
  { program: 'bash', package: 'bash' },
  { program: '/etc/X11/rgb.txt', package: 'x11-common' },
  { program: '/usr/share/fonts/X11/misc/fonts.dir', package: 'xfonts-base' },
];

/** What stands where on the desktop, in pixels, and in which colour. */
export const SCREEN = { x: 0, y: 0, width: 960, height: 720 };
export const BACKGROUND = '#1d3b53';
export const REACTOR_WINDOW = { x: 24, y: 24, width: 658, height: 310 };
export const SHELL_WINDOW = { x: 24, y: 356, width: 658, height: 340 };
export const CLOCK = { x: 706, y: 24, width: 230, height: 230 };
export const EYES = { x: 706, y: 278, width: 230, height: 130 };
export const LOGO = { x: 706, y: 432, width: 230, height: 264 };
export const INK = '#d9482b';
export const GREEN = '#1e6b3a';
export const BLUE = '#243a8f';
export const SHELL = '#12181d';
export const SHELL_CURSOR = '#8fd0a5';
export const SHELL_PROMPT = 'desktop$ ';

/** A character of the terminals' font, and what surrounds the characters on each side. */
export const FONT = { name: '9x15', width: 9, height: 15 };
export const EDGE = 5;

/**
 * Starts the desktop. The X server has no option to pick a free display or port, so another pair is tried when
 * somebody else was faster.
 *
 * @param {object} options
 * @param {string} options.directory everything it writes lies here
 * @param {string} [options.password] at most 8 characters count; by default 8 of chance
 * @param {string} [options.log] the file the VNC server logs to
 */
export async function startDesktop({
  directory,
  password = randomBytes(4).toString('hex'),
  log = path.join(directory, 'vnc.log'),
}) {
  fs.mkdirSync(directory, { recursive: true });
  fs.writeFileSync(log, '');
  const passwordFile = path.join(directory, 'vnc-password');
  const scrambled = execFileSync('tightvncpasswd', ['-f'], { input: `${password}\n` });
  fs.rmSync(passwordFile, { force: true });
  fs.writeFileSync(passwordFile, scrambled, { mode: 0o600 });
  const authority = path.join(directory, 'Xauthority');
  fs.rmSync(authority, { force: true });
  fs.writeFileSync(authority, cookie(), { mode: 0o600 });

  for (let attempt = 0; attempt < 10; attempt++) {
    const place = { display: freeDisplay(), port: await freePort() };
    const desktop = new Desktop({ ...place, directory, password, passwordFile, authority, log });
    if (await desktop.start()) return desktop;
  }
  throw new Error(`Xtightvnc did not start in ten attempts:\n${fs.readFileSync(log, 'utf8').slice(-2000)}`);
}

class Desktop {
  #place;
  #server;
  #programs = [];
  #env;

  constructor(place) {
    this.#place = place;
    this.port = place.port;
    this.password = place.password;
    const { directory, display, authority } = place;
    this.#env = {
      PATH: process.env.PATH,
      HOME: directory,
      LC_ALL: 'C.UTF-8',
      DISPLAY: `:${display}`,
      XAUTHORITY: authority,
    };
  }

  /** Starts it, again where it was if it has ended; false if somebody else has the place. */
  async start() {
    const { display, port, passwordFile, authority, log } = this.#place;
    const { width, height } = SCREEN;
    const server = start(
      'Xtightvnc',
      // prettier-ignore
      [`:${display}`, '-geometry', `${width}x${height}`, '-depth', '24', '-rfbport', `${port}`, '-rfbauth', passwordFile,
        '-localhost', '-nolisten', 'tcp', '-auth', authority, '-alwaysshared', '-desktop', 'portcullis',
        '-co', '/etc/X11/rgb'],
      { env: this.#env, log },
    );
    this.#server = server;
    await until(`X display :${display} answers`, 20, async (saw) => {
      if (server.end) return true;
      saw(`log: ${server.log().slice(-300)}`);
      await run('xsetroot', ['-solid', BACKGROUND], { env: this.#env, timeout: 5000 });
      return true;
    });
    if (server.end) return false;
    this.#programs = this.#startPrograms();
    return true;
  }

  #startPrograms() {
    const terminal = ({ x, y, width, height }, ...more) => {
      const [columns, rows] = [(width - 2 * EDGE) / FONT.width, (height - 2 * EDGE) / FONT.height];
      const look = ['-fn', FONT.name, '-geometry', `${columns}x${rows}+${x}+${y}`, '-b', '4', '-bw', '1', '+sb'];
      const marking = ['-xrm', '*selectToClipboard: true'];
      return ['xterm', [...look, ...marking, ...more]];
    };
    // X counts the inside of a window; its border of one pixel comes on top.
    const inside = ({ x, y, width, height }) => ['-geometry', `${width - 2}x${height - 2}+${x}+${y}`];
    const shell = ['-bg', SHELL, '-fg', '#cfe3d8', '-cr', SHELL_CURSOR, '-T', 'shell', '-e', 'bash', '--norc', '--noprofile'];
    const programs = [
      terminal(REACTOR_WINDOW, '-bg', GREEN, '-fg', '#ffffff', '-T', 'reactor', '-e', REACTOR, INK, GREEN, BLUE),
      terminal(SHELL_WINDOW, ...shell),
      ['xclock', ['-update', '1', ...inside(CLOCK)]],
      ['xeyes', inside(EYES)],
      ['xlogo', [...inside(LOGO), '-bg', '#16303f', '-fg', '#8fd0a5']],
      ['autocutsel', ['-selection', 'CLIPBOARD', '-pause', '100']],
    ];
    const env = { ...this.#env, PS1: SHELL_PROMPT };
    const { directory } = this.#place;
    const log = path.join(directory, 'desktop-programs.log');
    return programs.map(([command, args]) => start(command, args, { env, log, cwd: directory }));
  }

  /** For programs that are to run on this desktop. */
  get env() {
    return { ...this.#env };
  }

  /** The picture that the X server itself says is on its screen, as an X Window Dump. */
  async dump() {
    this.mustRun();
    const options = { env: this.#env, encoding: 'buffer', maxBuffer: 32 << 20, timeout: 10_000 };
    const { stdout } = await run('xwd', ['-root', '-silent'], options);
    return stdout;
  }

  /** How many viewers the VNC server says have ever connected. */
  connections() {
    return this.log().match(/Got connection from client/g)?.length ?? 0;
  }

  log() {
    return this.#server.log();
  }

  /** Throws if the server or one of its programs has ended. */
  mustRun() {
    for (const process_ of [this.#server, ...this.#programs]) process_.mustRun();
  }

  async stop() {
    for (const program of this.#programs) await program.stop();
    await this.#server.stop();
  }

  /** Ends the VNC server as a crash would; its programs cannot live without it. */
  async kill() {
    await this.#server.kill();
    for (const program of this.#programs) await program.stop();
  }
}

/** An Xauthority file with one fresh secret, for any display (see Xsecurity(7) and libXau's Xauth.h). */
function cookie() {
  const ANY = 0xffff;
  const field = (bytes) => Buffer.concat([number(bytes.length), bytes]);
  const number = (value) => Buffer.from([value >> 8, value & 0xff]);
  const nothing = Buffer.alloc(0);
  const secret = randomBytes(16);
  return Buffer.concat([number(ANY), field(nothing), field(nothing), field(Buffer.from('MIT-MAGIC-COOKIE-1')), field(secret)]);
}

function freeDisplay() {
  for (;;) {
    const display = randomInt(20, 1000);
    const traces = [`/tmp/.X11-unix/X${display}`, `/tmp/.X${display}-lock`];
    if (!traces.some((file) => fs.existsSync(file))) return display;
  }
}
