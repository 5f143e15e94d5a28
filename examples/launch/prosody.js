// Prosody: an XMPP server on loopback that requires encryption and archives messages.

import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

import { CertificateAuthority } from './certificates.js';
import { freePort, start } from './processes.js';
import { findProgram } from './tools.js';

const run = promisify(execFile);

/** The required programs, and the Debian packages that contain them. */
export const PROSODY_TOOLS = [
  { program: 'prosody', package: 'prosody' },
  { program: 'prosodyctl', package: 'prosody' },
  { program: 'openssl', package: 'openssl' },
  { program: 'setpriv', package: 'util-linux' },
];

/** A free port may be taken by the time Prosody binds it. */
const ATTEMPTS = 5;

/**
 * Starts a server for `domain` with a chat room and these accounts, which are in each other's rosters. Accounts and archive
 * of an earlier run in the same directory are kept.
 *
 * @param {object} options
 * @param {string} options.directory the server writes only here
 * @param {string} [options.domain]
 * @param {string[]} [options.users] new ones get random passwords
 */
export async function startProsody({ directory, domain = 'chat.example', users = ['alice', 'bob'] }) {
  for (const name of ['data', 'certs']) fs.mkdirSync(path.join(directory, name), { recursive: true, mode: 0o700 });
  const authority = new CertificateAuthority(path.join(directory, 'authority'));
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
    /** The domain of rooms: lobby@ROOMS. */
    this.rooms = rooms;
    /** The file of the CA certificate that the server's certificate is signed with. */
    this.certificate = certificate;
    /** Passwords by user name. */
    this.passwords = {};
  }

  /** The values of the chat's gateway.toml that refer to this server, and their replacements. */
  get values() {
    return {
      'starttls+xmpp://127.0.0.1:5222': `starttls+xmpp://127.0.0.1:${this.plain}`,
      'tls://127.0.0.1:5223': `tls://127.0.0.1:${this.tls}`,
      'certs/chat-ca.pem': this.certificate,
    };
  }

  /** Picks two free ports: `plain`, which requires STARTTLS, and `tls`. */
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

  /** Starts the server; after it has exited, starts it again on the same ports and with the same data. */
  async start() {
    const log = path.join(this.#directory, 'prosody.log');
    const process_ = start(findProgram('prosody'), ['--config', this.#config, '-F'], { log, env: environment(this.#directory) });
    this.#process = process_;
    await process_.waitForPort(this.plain);
    await process_.waitForPort(this.tls);
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

  async #control(...command) {
    const root = process.getuid() === 0 ? ['--root'] : [];
    await run(findProgram('prosodyctl'), ['--config', this.#config, ...root, ...command], { env: environment(this.#directory) });
  }

  get #groups() {
    return path.join(this.#directory, 'groups.txt');
  }

  #settings() {
    const { certificate, privateKey } = this.#identity;
    const identity = `{ certificate = ${lua(certificate)}; key = ${lua(privateKey)} }`;
    return `-- Generated at every start.
run_as_root = ${process.getuid() === 0}
pidfile = ${lua(path.join(this.#directory, 'prosody.pid'))}
data_path = ${lua(path.join(this.#directory, 'data'))}
log = { info = "*console" }
interfaces = { "127.0.0.1" }
local_interfaces = { "127.0.0.1" }

-- Encryption is required. The gateway provides it: STARTTLS on the first port, direct TLS on the second.
c2s_ports = { ${this.plain} }
c2s_direct_tls_ports = { ${this.tls} }
c2s_require_encryption = true
ssl = ${identity}
c2s_direct_tls_ssl = ${identity}
authentication = "internal_hashed"

-- The archive fills the gap after a lost connection; offline messages would duplicate it.
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

/** A Lua string literal. */
function lua(text) {
  return `"${text.replace(/[\\"\n]/g, (character) => (character === '\n' ? '\\n' : `\\${character}`))}"`;
}
