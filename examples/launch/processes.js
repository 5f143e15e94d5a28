// Child processes with log files. They are stopped by their id when this process exits, for whatever reason.

import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';

import { until } from './until.js';

const running = new Set();

process.on('exit', () => {
  // Processes that were started later may depend on earlier ones, so they are stopped first.
  for (const child of [...running].reverse()) child.kill('SIGTERM');
  // An X server needs time to remove its lock and its socket. The event loop has ended, so poll.
  const deadline = Date.now() + 2000;
  while (Date.now() < deadline && [...running].some(({ pid }) => isAlive(pid))) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
  }
  for (const child of running) child.kill('SIGKILL');
});

let ending = (signal) => process.exit(128 + os.constants.signals[signal]);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => ending(signal));

/** Calls `end` on a signal, instead of exiting at once. */
export function onSignal(end) {
  ending = end;
}

/** Whether the process exists and is not a zombie. */
export function isAlive(pid) {
  try {
    const [, state] = /^\d+ \(.*\) (\w)/s.exec(fs.readFileSync(`/proc/${pid}/stat`, 'utf8')) ?? [];
    return state !== 'Z';
  } catch {
    return false;
  }
}

/**
 * Starts `command` with its output appended to the file `log`. If this process is killed, the kernel terminates the child.
 * A Ctrl-C in the terminal reaches this process alone, which then stops its children in order.
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

  /** How it exited, as text; undefined while it runs. */
  get end() {
    if (this.#failure) return String(this.#failure.message);
    if (this.#child.exitCode !== null) return `exit status ${this.#child.exitCode}`;
    if (this.#child.signalCode !== null) return `signal ${this.#child.signalCode}`;
    return undefined;
  }

  get pid() {
    return this.#child.pid;
  }

  /** Its output so far. */
  log() {
    return fs.readFileSync(this.logFile, 'utf8');
  }

  /** Throws if it has exited, with the end of its log. */
  assertRunning() {
    if (this.end) throw new Error(`${this.commandLine}: exited (${this.end})\n${this.log().slice(-2000)}`);
  }

  signal(name) {
    this.#child.kill(name);
  }

  /** Waits until `host:port` accepts connections. */
  async waitForPort(port, { host = '127.0.0.1', seconds = 30 } = {}) {
    await until(`${this.commandLine} accepts connections on ${host}:${port}`, seconds, async (observed) => {
      if (this.end) return true;
      observed(this.log().slice(-500) || 'an empty log');
      return reachable(port, host);
    });
    this.assertRunning();
  }

  /** Kills it, and returns how it exited. */
  async kill() {
    this.#child.kill('SIGKILL');
    await this.#ended;
    return this.end;
  }

  /** Sends SIGTERM, after five seconds SIGKILL, and returns how it exited. */
  async stop() {
    const force = setTimeout(() => this.#child.kill('SIGKILL'), 5000);
    this.#child.kill('SIGTERM');
    await this.#ended;
    clearTimeout(force);
    return this.end;
  }
}

/** Whether the port accepts connections. */
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
 * A loopback port that is free at the moment, for servers that cannot pick one themselves. It is below the ephemeral ports
 * (Linux: from 32768), so that no outgoing connection and no other server gets it by chance, not even while the server it
 * is meant for is down. If another process is faster all the same, the start fails and can be retried.
 */
export async function freePort() {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = randomInt(15_000, 32_000);
    if (await bindable(port)) return port;
  }
  throw new Error('no free port between 15000 and 32000');
}

function bindable(port) {
  return new Promise((resolve) => {
    const server = net.createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}
