// Prosody: an XMPP server that insists on encryption, with an archive of what is said, on loopback.

import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

import { Authority } from './certificates.js';
import { freePort, start } from './processes.js';
import { find } from './tools.js';

const run = promisify(execFile);

/** What must be installed. */
export const PROSODY_TOOLS = [
  { program: 'prosody', package: 'prosody' },
  { program: 'prosodyctl', package: 'prosody' },
  { program: 'openssl', package: 'openssl' },
  { program: 'setpriv', package: 'util-linux' },
];

/** A port that was free a moment ago may be taken by the time Prosody asks for it. */
const ATTEMPTS = 5;

/**
 * Starts a server for `domain` with these accounts, who have each other in their rosters, and a chat room. Accounts and
 * archive of an earlier run in the same directory are kept.
 *
 * @param {object} options
 * @param {string} options.directory everything the server writes lies here
 * @param {string} [options.domain]
 * @param {string[]} [options.users] their passwords are drawn by lot when they are new
 */
export async function startProsody({ directory, domain = 'chat.example', users = ['alice', 'bob'] }) {
  for (const name of ['data', 'certs']) fs.mkdirSync(path.join(directory, name), { recursive: true, mode: 0o700 });
  const authority = new Authority(path.join(directory, 'authority'));
  const rooms = `rooms.${domain}`;
  const server = new Prosody(directory, domain, rooms, authority.certificate, authority.issue(domain, rooms));
  await server.choosePorts();
  await server.register(users);
  for (let attempt = 1; ; attempt++) {
    try {
      await server.start();
      return server;
    } catch (error) {
      if (attempt === ATTEMPTS) throw error;
      await server.choosePorts();
    }
  }
}

class Prosody {
  #directory;
  #identity;
  #config;
  #process;

  constructor(directory, domain, rooms, certificate, identity) {
    this.#directory = directory;
    this.#identity = identity;
    this.#config = path.join(directory, 'prosody.cfg.lua');
    this.domain = domain;
    /** Where rooms are: lobby@ROOMS. */
    this.rooms = rooms;
    /** The file with the authority that has signed the server's certificate. */
    this.certificate = certificate;
    /** Passwords by user name. */
    this.passwords = {};
  }

  /** What stands for this server in gateway.toml of the chat, and what to put there instead. */
  get values() {
    return {
      'starttls+xmpp://127.0.0.1:5222': `starttls+xmpp://127.0.0.1:${this.plain}`,
      'tls://127.0.0.1:5223': `tls://127.0.0.1:${this.tls}`,
      'certs/chat-ca.pem': this.certificate,
    };
  }

  /** Picks two free ports: `plain`, which asks for STARTTLS, and `tls`. */
  async choosePorts() {
    [this.plain, this.tls] = [await freePort(), await freePort()];
    fs.writeFileSync(this.#config, this.#settings());
  }

  async register(users) {
    const file = path.join(this.#directory, 'passwords.json');
    const known = fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, 'utf8')) : {};
    for (const user of users) {
      this.passwords[user] = known[user] ?? randomBytes(6).toString('hex');
      if (!known[user]) await this.#control('register', user, this.domain, this.passwords[user]);
    }
    fs.writeFileSync(file, `${JSON.stringify({ ...known, ...this.passwords }, null, 2)}\n`, { mode: 0o600 });
    const members = users.map((user) => `${user}@${this.domain}=${user[0].toUpperCase()}${user.slice(1)}\n`);
    fs.writeFileSync(this.#groups, `[Colleagues]\n${members.join('')}`);
  }

  /** Starts it; again, after it has ended, on the same ports and with the same data. */
  async start() {
    const log = path.join(this.#directory, 'prosody.log');
    const process_ = start(find('prosody'), ['--config', this.#config, '-F'], { log, env: environment(this.#directory) });
    this.#process = process_;
    await process_.answers(this.plain);
    await process_.answers(this.tls);
  }

  async restart() {
    await this.stop();
    await this.start();
  }

  log() {
    return this.#process.log();
  }

  get pid() {
    return this.#process.pid;
  }

  signal(name) {
    this.#process.signal(name);
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

  async #control(...command) {
    const root = process.getuid() === 0 ? ['--root'] : [];
    await run(find('prosodyctl'), ['--config', this.#config, ...root, ...command], { env: environment(this.#directory) });
  }

  get #groups() {
    return path.join(this.#directory, 'groups.txt');
  }

  #settings() {
    const { certificate, privateKey } = this.#identity;
    const identity = `{ certificate = ${lua(certificate)}; key = ${lua(privateKey)} }`;
    return `-- Written anew at every start.
run_as_root = ${process.getuid() === 0}
pidfile = ${lua(path.join(this.#directory, 'prosody.pid'))}
data_path = ${lua(path.join(this.#directory, 'data'))}
log = { info = "*console" }
interfaces = { "127.0.0.1" }
local_interfaces = { "127.0.0.1" }

-- Nobody gets in without TLS: the gateway brings it, by STARTTLS on the one port and from the first byte on the other.
c2s_ports = { ${this.plain} }
c2s_direct_tls_ports = { ${this.tls} }
c2s_require_encryption = true
ssl = ${identity}
c2s_direct_tls_ssl = ${identity}
authentication = "internal_hashed"

-- The archive is what fills the gap after a lost connection; nobody needs offline messages beside it.
modules_enabled = { "roster", "groups", "saslauth", "tls", "disco", "ping", "carbons", "mam" }
modules_disabled = { "s2s", "offline" }
groups_file = ${lua(this.#groups)}
default_archive_policy = true
max_archive_query_results = 100

VirtualHost ${lua(this.domain)}
  ssl = ${identity}

Component ${lua(this.rooms)} "muc"
  name = "Rooms"
  modules_enabled = { "muc_mam" }
  restrict_room_creation = "local"
  muc_room_locking = false
  muc_room_default_persistent = true
  muc_log_by_default = true
  max_archive_query_results = 100
`;
  }
}

function environment(home) {
  return { PATH: process.env.PATH, HOME: home, LC_ALL: 'C.UTF-8' };
}

/** A string of Lua. */
function lua(text) {
  return `"${text.replace(/[\\"\n]/g, (character) => (character === '\n' ? '\\n' : `\\${character}`))}"`;
}
