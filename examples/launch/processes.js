// Processes: started with a log of their own, ended by their id whatever happens.

import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';

import { until } from './until.js';

const running = new Set();

process.on('exit', () => {
  // Those that were started last may need the others, so they are asked first.
  for (const child of [...running].reverse()) child.kill('SIGTERM');
  // An X server that is asked to end removes its lock and its socket. No event loop runs any more, so look.
  const deadline = Date.now() + 2000;
  while (Date.now() < deadline && [...running].some(({ pid }) => isAlive(pid))) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
  }
  for (const child of running) child.kill('SIGKILL');
});

let ending = (signal) => process.exit(128 + os.constants.signals[signal]);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => ending(signal));

/** Lets `end` decide what a signal does to this process, instead of ending it at once. */
export function onSignal(end) {
  ending = end;
}

/** Whether the process is there and more than a record of how it ended. */
export function isAlive(pid) {
  try {
    const [, state] = /^\d+ \(.*\) (\w)/s.exec(fs.readFileSync(`/proc/${pid}/stat`, 'utf8')) ?? [];
    return state !== 'Z';
  } catch {
    return false;
  }
}

/**
 * Starts `command`; what it prints on either stream goes to the file `log`. Should this process be killed, the
 * kernel ends the other. A Ctrl-C in the terminal reaches this process alone, which ends the others in good order.
 *
 * @param {string} command
 * @param {string[]} args
 * @param {{log: string, env?: object, cwd?: string}} options
 */
export function start(command, args, { env, log, cwd }) {
  const output = fs.openSync(log, 'a');
  const stdio = ['ignore', output, output];
  const child = spawn('setpriv', ['--pdeathsig', 'TERM', '--', command, ...args], { env, cwd, stdio, detached: true });
  fs.closeSync(output);
  return new Process(child, `${command} ${args.join(' ')}`, log);
}

class Process {
  #child;
  #failure;
  #ended;

  constructor(child, commandLine, log) {
    this.#child = child;
    this.commandLine = commandLine;
    this.logFile = log;
    running.add(child);
    this.#ended = new Promise((resolve) => {
      child.once('error', (error) => {
        this.#failure = error;
        resolve();
      });
      child.once('exit', resolve);
    }).then(() => running.delete(child));
  }

  /** How it ended, in words; undefined while it runs. */
  get end() {
    if (this.#failure) return String(this.#failure.message);
    if (this.#child.exitCode !== null) return `exit status ${this.#child.exitCode}`;
    if (this.#child.signalCode !== null) return `signal ${this.#child.signalCode}`;
    return undefined;
  }

  get pid() {
    return this.#child.pid;
  }

  /** Everything it has printed so far. */
  log() {
    return fs.readFileSync(this.logFile, 'utf8');
  }

  /** Throws if it has ended, with the end of its log. */
  mustRun() {
    if (this.end) throw new Error(`${this.commandLine}: ended (${this.end})\n${this.log().slice(-2000)}`);
  }

  signal(name) {
    this.#child.kill(name);
  }

  /** Waits until `host:port` takes connections. */
  async answers(port, { host = '127.0.0.1', seconds = 30 } = {}) {
    await until(`${this.commandLine} answers on ${host}:${port}`, seconds, async (saw) => {
      if (this.end) return true;
      saw(this.log().slice(-500) || 'an empty log');
      return reachable(port, host);
    });
    this.mustRun();
  }

  /** Ends it as a power cut would, and returns how it ended. */
  async kill() {
    this.#child.kill('SIGKILL');
    await this.#ended;
    return this.end;
  }

  /** Ends it politely, after five seconds by force, and returns how it ended. */
  async stop() {
    const force = setTimeout(() => this.#child.kill('SIGKILL'), 5000);
    this.#child.kill('SIGTERM');
    await this.#ended;
    clearTimeout(force);
    return this.end;
  }
}

/** Whether something takes connections there. */
export function reachable(port, host = '127.0.0.1') {
  return new Promise((resolve) => {
    const socket = net.connect({ port, host });
    socket.once('error', () => resolve(false));
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
  });
}

/**
 * A port of loopback that is free at this moment, for servers that cannot pick one themselves. It lies below those that the
 * system gives to whoever asks for any (Linux: from 32768), so that no connection and no other server takes it by chance,
 * not even while the server it is meant for is down. Should somebody be faster all the same, the start fails and can be
 * tried again.
 */
export async function freePort() {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = randomInt(15_000, 32_000);
    if (await bindable(port)) return port;
  }
  throw new Error('no free port was found between 15000 and 32000');
}

function bindable(port) {
  return new Promise((resolve) => {
    const server = net.createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}
