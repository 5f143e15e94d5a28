// What the brokers of the game have in common: one server in one directory, which says in its log that it has started.

import fs from 'node:fs';
import path from 'node:path';

import { until } from './until.js';

/**
 * Starts a broker with one user, who may use topics and queues whose names begin with `prefix`, and nothing else.
 *
 * @param {typeof Broker} Kind
 * @param {object} options
 * @param {string} options.directory everything it writes lies here
 * @param {string} options.login
 * @param {string} options.password
 * @param {string} options.prefix letters and digits
 * @param {number} [options.port] of loopback; by default a free one
 * @param {string} options.log the file it logs to
 */
export async function startBroker(Kind, { directory, port, log, ...account }) {
  fs.mkdirSync(directory, { recursive: true });
  fs.writeFileSync(log, '');
  const broker = new Kind(path.resolve(directory), log);
  await broker.prepare(account, port);
  await broker.start();
  return broker;
}

/** A broker: `name`, `port`, and a server that can be killed and started again with all it had. */
export class Broker {
  #server;

  constructor(directory, log) {
    this.directory = directory;
    this.logFile = log;
  }

  /** Waits until the server that `start` starts has written, once more, a line that matches `line`. */
  async begin(start, line) {
    const times = () => this.log().match(line)?.length ?? 0;
    const before = times();
    const server = start();
    this.#server = server;
    await until(`${this.name} has started`, 60, (saw) => {
      saw(server.log().slice(-500) || 'an empty log');
      return server.end || times() > before;
    });
    server.mustRun();
  }

  log() {
    return fs.readFileSync(this.logFile, 'utf8');
  }

  /** Throws if it has ended, with the end of its log. */
  mustRun() {
    this.#server.mustRun();
  }

  /** Ends it as a power cut would. */
  kill() {
    return this.#server.kill();
  }

  stop() {
    return this.#server.stop();
  }

  file(name) {
    return path.join(this.directory, name);
  }
}
