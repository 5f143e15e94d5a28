// Portcullis itself: the real program with a configuration file, known by what it logs.

import fs from 'node:fs';
import path from 'node:path';

import { start } from './processes.js';
import { until } from './until.js';

/**
 * A configuration with other values: `values` says for each string of the text what stands there instead. A string that
 * the text does not have is an error, so that no value is left out unnoticed.
 */
export function replaceValues(text, values) {
  let result = text;
  for (const [old, value] of Object.entries(values)) {
    const quoted = JSON.stringify(old);
    // Comments explain the values; they stay.
    const isComment = (line) => line.trimStart().startsWith('#');
    const lines = result.split('\n').map((line) => (isComment(line) ? line : line.replaceAll(quoted, JSON.stringify(value))));
    const replaced = lines.join('\n');
    if (replaced === result && old !== value) throw new Error(`the configuration has no value ${quoted}`);
    result = replaced;
  }
  return result;
}

/**
 * Starts a gateway and waits until it says it is ready.
 *
 * @param {object} options
 * @param {string} options.program
 * @param {string} options.text the configuration, without a [log] table: it is told to log as JSON
 * @param {string} options.directory where the effective configuration is written, as gateway.toml
 * @param {string} [options.log] the file it logs to, by default gateway.log in the same directory
 * @param {string} [options.level] how much it logs
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

  /** Starts it; again, after it has ended, on the port it had. */
  async start() {
    const before = this.said('ready').length;
    if (before > 0) this.#text = this.#text.replace(/^(address = ".*):0"$/m, `$1:${this.port}"`);
    fs.writeFileSync(this.#config, this.#text);
    const process_ = start(this.#program, ['run', '--config', this.#config], { env: process.env, log: this.#log, cwd: '/' });
    this.#process = process_;
    await until('the gateway is ready', 20, (saw) => {
      saw(this.log() || 'an empty log');
      return process_.end || this.said('ready').length > before;
    });
    process_.mustRun();
  }

  /** Ends it as an operator would, and starts it again. */
  async restart() {
    await this.stop();
    await this.start();
  }

  log() {
    return fs.readFileSync(this.#log, 'utf8');
  }

  /** The log's events with this message, as objects. What it says before it can log is left out. */
  said(message) {
    const lines = this.log().split('\n');
    lines.pop(); // what follows the last line's end is a line still being written
    const events = lines.filter((line) => line.startsWith('{')).map((line) => JSON.parse(line));
    return events.filter((event) => event.message === message);
  }

  /** The port it listens on. */
  get port() {
    const { address } = this.said('listening').at(-1);
    return Number(address.slice(address.lastIndexOf(':') + 1));
  }

  signal(name) {
    this.#process.signal(name);
  }

  /** How the process ended, in words; undefined while it runs. */
  get end() {
    return this.#process.end;
  }

  /** Throws if it has ended, with the end of its log. */
  mustRun() {
    this.#process.mustRun();
  }

  kill() {
    return this.#process.kill();
  }

  stop() {
    return this.#process.stop();
  }
}
