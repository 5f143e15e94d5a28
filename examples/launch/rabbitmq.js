// RabbitMQ with its STOMP plug-in: a broker of its own, whatever else of the kind runs on the machine. Its files, its
// Erlang cookie and its epmd (the name service that Erlang nodes find each other by) lie in one directory and on loopback.

import { createHash, randomBytes } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';

import { freePort, start } from './processes.js';
import { until } from './until.js';

/** Debian's `rabbitmq-server` on the PATH becomes another user and knows one place only; this is what it calls. */
const SERVER = '/usr/lib/rabbitmq/bin/rabbitmq-server';

/** What it takes, and which Debian package brings it. */
export const TOOLS = [
  { program: SERVER, package: 'rabbitmq-server' },
  { program: 'epmd', package: 'erlang-base' },
  { program: 'setpriv', package: 'util-linux' },
];

/**
 * Starts a broker with one user, who may use topics and queues whose names begin with `prefix`, and nothing else.
 *
 * @param {object} options
 * @param {string} options.directory everything it writes lies here
 * @param {string} options.login
 * @param {string} options.password
 * @param {string} options.prefix letters and digits
 * @param {number} [options.port] of loopback; by default a free one
 * @param {string} [options.log] the file it logs to
 */
export async function startRabbitmq({ directory, port, log = path.join(directory, 'rabbitmq.log'), ...account }) {
  fs.mkdirSync(directory, { recursive: true });
  fs.writeFileSync(log, '');
  const broker = new Rabbitmq(path.resolve(directory), log);
  await broker.prepare(account, port);
  await broker.start();
  return broker;
}

class Rabbitmq {
  name = 'RabbitMQ';
  #directory;
  #log;
  #epmdPort;
  #env;
  #epmd;
  #server;

  constructor(directory, log) {
    this.#directory = directory;
    this.#log = log;
  }

  async prepare(account, port) {
    this.port = port ?? (await freePort());
    this.#epmdPort = await freePort();
    const home = this.#file('home');
    fs.mkdirSync(home, { recursive: true, mode: 0o700 });
    const definitions = this.#file('definitions.json');
    fs.writeFileSync(definitions, JSON.stringify(whatThereIs(account), undefined, 2), { mode: 0o600 });
    fs.writeFileSync(this.#file('enabled_plugins'), '[rabbitmq_stomp].\n');
    fs.writeFileSync(
      this.#file('rabbitmq.conf'),
      `listeners.tcp = none
stomp.listeners.tcp.1 = 127.0.0.1:${this.port}
load_definitions = ${definitions}
log.console = true
log.file = false
`,
    );
    this.#env = {
      PATH: process.env.PATH,
      LANG: 'C.UTF-8',
      HOME: home,
      // Its script then becomes the server, instead of waiting for it as a shell.
      RUNNING_UNDER_SYSTEMD: 'true',
      RABBITMQ_CONF_ENV_FILE: '/dev/null',
      RABBITMQ_CONFIG_FILE: this.#file('rabbitmq.conf'),
      RABBITMQ_ENABLED_PLUGINS_FILE: this.#file('enabled_plugins'),
      RABBITMQ_MNESIA_BASE: this.#file('data'),
      RABBITMQ_LOG_BASE: this.#file('log'),
      RABBITMQ_NODENAME: 'game@localhost',
      RABBITMQ_DIST_PORT: `${await freePort()}`,
      RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: '-kernel inet_dist_use_interface {127,0,0,1}',
      ERL_EPMD_ADDRESS: '127.0.0.1',
      ERL_EPMD_PORT: `${this.#epmdPort}`,
      ERL_CRASH_DUMP: this.#file('erl_crash.dump'),
    };
  }

  /** Starts it; again, after it has ended, with all it had. */
  async start() {
    const options = { env: this.#env, log: this.#log, cwd: this.#directory };
    if (!this.#epmd || this.#epmd.end) {
      this.#epmd = start('epmd', ['-address', '127.0.0.1', '-port', `${this.#epmdPort}`], options);
      await this.#epmd.answers(this.#epmdPort);
    }
    const before = this.#started();
    const server = start(SERVER, [], options);
    this.#server = server;
    await until('RabbitMQ has started', 60, (saw) => {
      saw(server.log().slice(-500) || 'an empty log');
      return server.end || this.#started() > before;
    });
    server.mustRun();
  }

  log() {
    return fs.readFileSync(this.#log, 'utf8');
  }

  /** Throws if it has ended, with the end of its log. */
  mustRun() {
    this.#server.mustRun();
    this.#epmd.mustRun();
  }

  /** Ends it as a power cut would. */
  kill() {
    return this.#server.kill();
  }

  async stop() {
    await this.#server.stop();
    await this.#epmd.stop();
  }

  #started() {
    return this.log().match(/Server startup complete/g)?.length ?? 0;
  }

  #file(name) {
    return path.join(this.#directory, name);
  }
}

/** Users, permissions and policies, as RabbitMQ imports them. */
function whatThereIs({ login, password, prefix }) {
  const salt = randomBytes(4);
  const hash = createHash('sha256').update(salt).update(password).digest();
  // What the STOMP plug-in makes for each subscription to a topic, and what is ours.
  const own = `stomp-subscription-|${prefix}\\.`;
  return {
    users: [
      {
        name: login,
        password_hash: Buffer.concat([salt, hash]).toString('base64'),
        hashing_algorithm: 'rabbit_password_hashing_sha256',
        tags: '',
      },
    ],
    vhosts: [{ name: '/' }],
    permissions: [
      { user: login, vhost: '/', configure: `^(${own})`, write: `^(${own}|amq\\.(topic|default)$)`, read: `^(${own}|amq\\.topic$)` },
    ],
    // Queues that nobody asked for during an hour are those of games long over.
    policies: [
      { name: 'forget', vhost: '/', pattern: `^${prefix}\\.`, 'apply-to': 'queues', priority: 0, definition: { expires: 3_600_000 } },
    ],
  };
}
