// A real desktop: TightVNC's X server on loopback, with a few programs and a working clipboard.
//
// This VNC server only knows cut buffers, while current programs use selections: autocutsel synchronises the cut buffer and
// CLIPBOARD. The terminals copy text that is selected with the mouse to CLIPBOARD, too. A second autocutsel for PRIMARY does
// not work: Xtightvnc disowns that selection whenever a viewer sends text.

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

/** The required programs, and the Debian packages that contain them. */
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

/** The layout of the desktop in pixels, and its colours. */
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

/** The terminals' font in pixels, and the margin on each side of the text. */
export const FONT = { name: '9x15', width: 9, height: 15 };
export const EDGE = 5;

/**
 * Starts the desktop. The X server has no option to pick a free display or port, so another pair is tried if one is taken
 * meanwhile.
 *
 * @param {object} options
 * @param {string} options.directory the desktop writes only here
 * @param {string} [options.password] only the first 8 characters count; by default 8 random ones
 * @param {string} [options.log] the log file of the VNC server
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
    const settings = { display: freeDisplay(), port: await freePort() };
    const desktop = new Desktop({ ...settings, directory, password, passwordFile, authority, log });
    if (await desktop.start()) return desktop;
  }
  throw new Error(`Xtightvnc did not start in ten attempts:\n${fs.readFileSync(log, 'utf8').slice(-2000)}`);
}

class Desktop {
  #settings;
  #server;
  #programs = [];
  #env;

  constructor(settings) {
    this.#settings = settings;
    this.port = settings.port;
    this.password = settings.password;
    const { directory, display, authority } = settings;
    this.#env = {
      PATH: process.env.PATH,
      HOME: directory,
      LC_ALL: 'C.UTF-8',
      DISPLAY: `:${display}`,
      XAUTHORITY: authority,
    };
  }

  /** Starts the desktop on its display and port, also after it has exited; false if another process has taken them. */
  async start() {
    const { display, port, passwordFile, authority, log } = this.#settings;
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
    await until(`X display :${display} answers`, 20, async (observed) => {
      if (server.end) return true;
      observed(`log: ${server.log().slice(-300)}`);
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
      const appearance = ['-fn', FONT.name, '-geometry', `${columns}x${rows}+${x}+${y}`, '-b', '4', '-bw', '1', '+sb'];
      const selection = ['-xrm', '*selectToClipboard: true'];
      return ['xterm', [...appearance, ...selection, ...more]];
    };
    // X geometry is the inside of a window, without its border of one pixel.
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
    const { directory } = this.#settings;
    const log = path.join(directory, 'desktop-programs.log');
    return programs.map(([command, args]) => start(command, args, { env, log, cwd: directory }));
  }

  /** The environment of programs on this desktop. */
  get env() {
    return { ...this.#env };
  }

  /** The X server's own image of its screen, as an X Window Dump. */
  async dump() {
    this.assertRunning();
    const options = { env: this.#env, encoding: 'buffer', maxBuffer: 32 << 20, timeout: 10_000 };
    const { stdout } = await run('xwd', ['-root', '-silent'], options);
    return stdout;
  }

  /** How many connections of viewers the VNC server has logged. */
  connections() {
    return this.log().match(/Got connection from client/g)?.length ?? 0;
  }

  log() {
    return this.#server.log();
  }

  /** Throws if the server or one of its programs has exited. */
  assertRunning() {
    for (const process_ of [this.#server, ...this.#programs]) process_.assertRunning();
  }

  async stop() {
    for (const program of this.#programs) await program.stop();
    await this.#server.stop();
  }

  /** Kills the VNC server; its programs exit with it. */
  async kill() {
    await this.#server.kill();
    for (const program of this.#programs) await program.stop();
  }
}

/** An Xauthority file with one new secret, for any display (see Xsecurity(7) and libXau's Xauth.h). */
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
    const files = [`/tmp/.X11-unix/X${display}`, `/tmp/.X${display}-lock`];
    if (!files.some((file) => fs.existsSync(file))) return display;
  }
}
