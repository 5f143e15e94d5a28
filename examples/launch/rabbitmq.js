// RabbitMQ with its STOMP plug-in: a separate broker, independent of any other on the machine. Its files, its Erlang cookie
// and its epmd (the name service of Erlang nodes) are in one directory and on loopback.

import { createHash, randomBytes } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';

import { Broker, startBroker } from './broker.js';
import { freePort, start } from './processes.js';

/** Debian's `rabbitmq-server` on the PATH switches to another user and a fixed directory; this is the script it runs. */
const SERVER = '/usr/lib/rabbitmq/bin/rabbitmq-server';

/** The required programs, and the Debian packages that contain them. */
export const TOOLS = [
  { program: SERVER, package: 'rabbitmq-server' },
  { program: 'epmd', package: 'erlang-base' },
  { program: 'setpriv', package: 'util-linux' },
];

/** See `startBroker`. The log is a file in its directory unless `log` names another. */
export function startRabbitmq({ log, ...options }) {
  return startBroker(Rabbitmq, { ...options, log: log ?? path.join(options.directory, 'rabbitmq.log') });
}

class Rabbitmq extends Broker {
  name = 'RabbitMQ';
  #epmdPort;
  #env;
  #epmd;

  async prepare(account, port) {
    this.port = port ?? (await freePort());
    this.#epmdPort = await freePort();
    const home = this.file('home');
    fs.mkdirSync(home, { recursive: true, mode: 0o700 });
    const definitions = this.file('definitions.json');
    fs.writeFileSync(definitions, JSON.stringify(brokerDefinitions(account), undefined, 2), { mode: 0o600 });
    fs.writeFileSync(this.file('enabled_plugins'), '[rabbitmq_stomp].\n');
    fs.writeFileSync(
      this.file('rabbitmq.conf'),
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
      // Makes its script exec the server instead of waiting for it.
      RUNNING_UNDER_SYSTEMD: 'true',
      RABBITMQ_CONF_ENV_FILE: '/dev/null',
      RABBITMQ_CONFIG_FILE: this.file('rabbitmq.conf'),
      RABBITMQ_ENABLED_PLUGINS_FILE: this.file('enabled_plugins'),
      RABBITMQ_MNESIA_BASE: this.file('data'),
      RABBITMQ_LOG_BASE: this.file('log'),
      RABBITMQ_NODENAME: 'game@localhost',
      RABBITMQ_DIST_PORT: `${await freePort()}`,
      RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: '-kernel inet_dist_use_interface {127,0,0,1}',
      ERL_EPMD_ADDRESS: '127.0.0.1',
      ERL_EPMD_PORT: `${this.#epmdPort}`,
      ERL_CRASH_DUMP: this.file('erl_crash.dump'),
    };
  }

  /** Starts the broker; after it has exited, starts it again with the same data. */
  async start() {
    const options = { env: this.#env, log: this.logFile, cwd: this.directory };
    if (!this.#epmd || this.#epmd.end) {
      this.#epmd = start('epmd', ['-address', '127.0.0.1', '-port', `${this.#epmdPort}`], options);
      await this.#epmd.waitForPort(this.#epmdPort);
    }
    await this.startServer(() => start(SERVER, [], options), /Server startup complete/g);
  }

  /** Throws if it has exited, with the end of its log. */
  assertRunning() {
    super.assertRunning();
    this.#epmd.assertRunning();
  }

  async stop() {
    await super.stop();
    await this.#epmd.stop();
  }
}

/** Users, permissions and policies, in RabbitMQ's import format. */
function brokerDefinitions({ login, password, prefix }) {
  const salt = randomBytes(4);
  const hash = createHash('sha256').update(salt).update(password).digest();
  // The queues that the STOMP plug-in creates for each subscription to a topic, and the game's own.
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
    // Queues that are not used for an hour belong to finished games.
    policies: [
      { name: 'forget', vhost: '/', pattern: `^${prefix}\\.`, 'apply-to': 'queues', priority: 0, definition: { expires: 3_600_000 } },
    ],
  };
}
