// The processes of a test: started with a log of their own, ended by their id whatever happens.

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';

const running = new Set();

process.on('exit', () => {
  for (const child of running) child.kill('SIGTERM');
  // An X server that is asked to end removes its lock and its socket. No event loop runs any more, so look.
  const deadline = Date.now() + 2000;
  while (Date.now() < deadline && [...running].some(isAlive)) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
  }
  for (const child of running) child.kill('SIGKILL');
});
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => process.exit(128 + os.constants.signals[signal]));
}

function isAlive({ pid }) {
  try {
    const [, state] = /^\d+ \(.*\) (\w)/s.exec(fs.readFileSync(`/proc/${pid}/stat`, 'utf8')) ?? [];
    return state !== 'Z';
  } catch {
    return false;
  }
}

/**
 * Starts `command`; what it prints on either stream goes to the file `log`. Should this process be killed, the
 * kernel ends the other.
 */
export function start(command, args, { env, log, cwd }) {
  const output = fs.openSync(log, 'a');
  const stdio = ['ignore', output, output];
  const child = spawn('setpriv', ['--pdeathsig', 'TERM', '--', command, ...args], { env, cwd, stdio });
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

  /** Ends it politely, after five seconds by force, and returns how it ended. */
  async stop() {
    const force = setTimeout(() => this.#child.kill('SIGKILL'), 5000);
    this.#child.kill('SIGTERM');
    await this.#ended;
    clearTimeout(force);
    return this.end;
  }
}
