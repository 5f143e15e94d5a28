// Portcullis: the real program with a configuration file. Its state is read from its log.

import fs from 'node:fs';
import path from 'node:path';

import { start } from './processes.js';
import { until } from './until.js';

/**
 * Replaces string values of a configuration: `values` maps old to new ones. An old value that the configuration does not
 * contain is an error.
 */
export function replaceValues(text, values) {
  let result = text;
  for (const [old, value] of Object.entries(values)) {
    const quoted = JSON.stringify(old);
    // Comments explain the values and are not changed.
    const isComment = (line) => line.trimStart().startsWith('#');
    const lines = result.split('\n').map((line) => (isComment(line) ? line : line.replaceAll(quoted, JSON.stringify(value))));
    const replaced = lines.join('\n');
    if (replaced === result && old !== value) throw new Error(`the configuration has no value ${quoted}`);
    result = replaced;
  }
  return result;
}

/**
 * Starts a gateway and waits until it is ready.
 *
 * @param {object} options
 * @param {string} options.program
 * @param {string} options.text the configuration, without a [log] table: the log format is set to JSON here
 * @param {string} options.directory the directory of the effective configuration, gateway.toml
 * @param {string} [options.log] the log file, by default gateway.log in the same directory
 * @param {string} [options.level] the log level
 */
export async function startGateway({ program, text, directory, log = path.join(directory, 'gateway.log'), level = 'debug' }) {
  if (!fs.existsSync(program)) {
    throw new Error(`${program} does not exist: build it with "cargo build", or name another in PORTCULLIS`);
  }
  fs.mkdirSync(directory, { recursive: true });
  fs.writeFileSync(log, '');
  const gateway = new Gateway(program, `${text}\n[log]\nformat = "json"\nlevel = "${level}"\n`, directory, log);
  await gateway.start();
  return gateway;
}

class Gateway {
  #program;
  #text;
  #config;
  #log;
  #process;

  constructor(program, text, directory, log) {
    this.#program = program;
    this.#text = text;
    this.#config = path.join(directory, 'gateway.toml');
    this.#log = log;
  }

  /** Starts the gateway; after it has exited, starts it again on the same port. */
  async start() {
    const before = this.events('ready').length;
    if (before > 0) this.#text = this.#text.replace(/^(address = ".*):0"$/m, `$1:${this.port}"`);
    fs.writeFileSync(this.#config, this.#text);
    const process_ = start(this.#program, ['run', '--config', this.#config], { env: process.env, log: this.#log, cwd: '/' });
    this.#process = process_;
    await until('the gateway is ready', 20, (observed) => {
      observed(this.log() || 'an empty log');
      return process_.end || this.events('ready').length > before;
    });
    process_.assertRunning();
  }

  /** Stops it with SIGTERM and starts it again. */
  async restart() {
    await this.stop();
    await this.start();
  }

  log() {
    return fs.readFileSync(this.#log, 'utf8');
  }

  /** The log events with this message, as objects, without the plain lines before logging is set up. */
  events(message) {
    const lines = this.log().split('\n');
    lines.pop(); // a line that is still being written
    const events = lines.filter((line) => line.startsWith('{')).map((line) => JSON.parse(line));
    return events.filter((event) => event.message === message);
  }

  /** The port it listens on. */
  get port() {
    const { address } = this.events('listening').at(-1);
    return Number(address.slice(address.lastIndexOf(':') + 1));
  }

  signal(name) {
    this.#process.signal(name);
  }

  /** How the process exited, as text; undefined while it runs. */
  get end() {
    return this.#process.end;
  }

  /** Throws if it has exited, with the end of its log. */
  assertRunning() {
    this.#process.assertRunning();
  }

  kill() {
    return this.#process.kill();
  }

  stop() {
    return this.#process.stop();
  }
}
