// RabbitMQ with its STOMP plug-in: a broker of its own, whatever else of the kind runs on the machine. Its files, its
// Erlang cookie and its epmd (the name service that Erlang nodes find each other by) lie in one directory and on loopback.

import { createHash, randomBytes } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';

import { Broker, startBroker } from './broker.js';
import { freePort, start } from './processes.js';

/** Debian's `rabbitmq-server` on the PATH becomes another user and knows one place only; this is what it calls. */
const SERVER = '/usr/lib/rabbitmq/bin/rabbitmq-server';

/** What it takes, and which Debian package brings it. */
export const TOOLS = [
  { program: SERVER, package: 'rabbitmq-server' },
  { program: 'epmd', package: 'erlang-base' },
  { program: 'setpriv', package: 'util-linux' },
];

/** Starts one: see `startBroker`. It logs to a file in its directory unless `log` names another. */
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
    fs.writeFileSync(definitions, JSON.stringify(whatThereIs(account), undefined, 2), { mode: 0o600 });
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
      // Its script then becomes the server, instead of waiting for it as a shell.
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

  /** Starts it; again, after it has ended, with all it had. */
  async start() {
    const options = { env: this.#env, log: this.logFile, cwd: this.directory };
    if (!this.#epmd || this.#epmd.end) {
      this.#epmd = start('epmd', ['-address', '127.0.0.1', '-port', `${this.#epmdPort}`], options);
      await this.#epmd.answers(this.#epmdPort);
    }
    await this.begin(() => start(SERVER, [], options), /Server startup complete/g);
  }

  /** Throws if it has ended, with the end of its log. */
  mustRun() {
    super.mustRun();
    this.#epmd.mustRun();
  }

  async stop() {
    await super.stop();
    await this.#epmd.stop();
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
