// Portcullis itself: the real program with a configuration file, known by what it logs.

import fs from 'node:fs';
import path from 'node:path';

import { start } from './processes.js';
import { until } from './until.js';

/** Starts `program` with the configuration `text` and waits until it says it is ready. */
export async function startGateway(program, text, workDirectory, artefacts) {
  if (!fs.existsSync(program)) {
    throw new Error(`${program} does not exist: build it with "cargo build", or name another in PORTCULLIS`);
  }
  const config = path.join(workDirectory, 'gateway.toml');
  fs.writeFileSync(config, text);
  const log = path.join(artefacts, 'gateway.log');
  fs.writeFileSync(log, '');
  const process_ = start(program, ['run', '--config', config], { env: process.env, log, cwd: '/' });
  const gateway = new Gateway(process_);
  await until('the gateway is ready', 20, (saw) => {
    saw(gateway.log() || 'an empty log');
    return process_.end || gateway.said('ready').length > 0;
  });
  process_.mustRun();
  return gateway;
}

class Gateway {
  #process;

  constructor(process_) {
    this.#process = process_;
  }

  log() {
    return this.#process.log();
  }

  /** The log's events with this message, as objects. Every line must be a JSON object. */
  said(message) {
    const lines = this.log().split('\n');
    lines.pop(); // what follows the last line's end is a line still being written
    return lines.map((line) => JSON.parse(line)).filter((event) => event.message === message);
  }

  /** The port it listens on. */
  get port() {
    const [{ address }] = this.said('listening');
    return Number(address.slice(address.lastIndexOf(':') + 1));
  }

  signal(name) {
    this.#process.signal(name);
  }

  /** How the process ended, in words; undefined while it runs. */
  get end() {
    return this.#process.end;
  }

  stop() {
    return this.#process.stop();
  }
}
