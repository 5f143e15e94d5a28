// What the brokers of the game have in common: one server in one directory, which logs when it has started.

import fs from 'node:fs';
import path from 'node:path';

import { until } from './until.js';

/**
 * Starts a broker with one user, who may only use topics and queues whose names begin with `prefix`.
 *
 * @param {typeof Broker} Kind
 * @param {object} options
 * @param {string} options.directory the broker writes only here
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

/** A broker: `name`, `port`, and a server that can be killed and restarted with the same data. */
export class Broker {
  #server;

  constructor(directory, log) {
    this.directory = directory;
    this.logFile = log;
  }

  /** Starts the server by `start`, and waits for another line in the log that matches `line`. */
  async startServer(start, line) {
    const times = () => this.log().match(line)?.length ?? 0;
    const before = times();
    const server = start();
    this.#server = server;
    await until(`${this.name} has started`, 60, (observed) => {
      observed(server.log().slice(-500) || 'an empty log');
      return server.end || times() > before;
    });
    server.assertRunning();
  }

  log() {
    return fs.readFileSync(this.logFile, 'utf8');
  }

  /** Throws if it has exited, with the end of its log. */
  assertRunning() {
    this.#server.assertRunning();
  }

  /** Kills it without a shutdown, as a power failure does. */
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
