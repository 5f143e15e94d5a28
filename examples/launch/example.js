// What the `start` scripts of the examples have in common: options, checks for missing tools, the page, the gateway and
// the shutdown.

import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { selfSigned } from './certificates.js';
import { replaceValues, startGateway } from './gateway.js';
import { onSignal } from './processes.js';
import { MissingDependency, requireTools, findPortcullis } from './tools.js';

const EXAMPLES = fileURLToPath(new URL('..', import.meta.url));
const ROOT = path.dirname(path.resolve(EXAMPLES));

const OPTIONS = {
  port: { type: 'string', default: '8443' },
  certificate: { type: 'string' },
  'private-key': { type: 'string' },
  run: { type: 'string' },
  help: { type: 'boolean', short: 'h', default: false },
};

const HELP = `
  --port N             the port of the page, 0 for any free one (default: 8443)
  --certificate FILE   a PEM certificate chain, and
  --private-key FILE   its key (default: a self-signed certificate, made in the run directory)
  --run DIR            the directory that the servers write to (default: run/ beside this script)
  --help               this text

environment: PORTCULLIS   the gateway's executable (default: the one built in this tree, or on the PATH)
exit status: 0 stopped by Ctrl-C, 3 something is missing (the message names it), 1 any other error`;

/**
 * Runs an example until it is stopped.
 *
 * `gateway.toml` in the example's directory is as a user would write it. These of its values are replaced: "0.0.0.0:8443"
 * by the requested address, "certs/localhost.crt" and "certs/localhost.key" by the certificate, "dist" by the page, and
 * those that `servers` returns.
 *
 * @param {object} example
 * @param {string} example.directory of the example
 * @param {string} example.title one line, for --help
 * @param {object} [example.options] additional options for `parseArgs`
 * @param {string} [example.help] help lines about these
 * @param {{program: string, package: string}[] | ((options: object) => {program: string, package: string}[])} example.tools
 *   the required programs
 * @param {(context: {run: string, options: object, say: (line: string) => void}) =>
 *   Promise<{values: Record<string, string>, lines?: string[], watch?: {assertRunning: () => void}[]}>} example.servers starts
 *   the servers and returns replacements of values in gateway.toml, lines for the user, such as a password, and the
 *   servers that must keep running
 * @param {object} [example.build] additional options of esbuild
 */
export async function runExample(example) {
  try {
    await run(example);
  } catch (error) {
    if (error instanceof MissingDependency) {
      process.stderr.write(`${error.message}\n`);
      process.exit(3);
    }
    process.stderr.write(`${error.stderr ?? ''}${error.message ?? error}\n`);
    process.exit(1);
  }
}

async function run({ directory, title, options: more = {}, help = '', tools, servers, build }) {
  const { values: options } = parseArgs({ options: { ...OPTIONS, ...more } });
  if (options.help) {
    process.stdout.write(`${title}\n\nusage: ./start [OPTION]...\n${help && `\n${help}`}${HELP}\n`);
    return;
  }
  if (!/^\d{1,5}$/.test(options.port) || Number(options.port) > 65_535) throw new Error(`--port ${options.port}: not a port number`);
  if (!options.certificate !== !options['private-key']) throw new Error('--certificate and --private-key must be given together');

  const program = findPortcullis(ROOT);
  requireTools(typeof tools === 'function' ? tools(options) : tools);
  if (!fs.existsSync(path.join(EXAMPLES, 'node_modules/esbuild'))) {
    throw new MissingDependency(`missing: the libraries of the page. This command installs them:\n    (cd ${path.resolve(EXAMPLES)} && npm ci)`);
  }

  const say = (line) => process.stdout.write(`${line}\n`);
  const runDirectory = path.resolve(options.run ?? path.join(directory, 'run'));
  fs.mkdirSync(runDirectory, { recursive: true, mode: 0o700 });

  const { buildPage } = await import('../build.js');
  const page = await buildPage(directory, build);
  const { certificate, privateKey } = options.certificate
    ? { certificate: path.resolve(options.certificate), privateKey: path.resolve(options['private-key']) }
    : selfSigned(program, path.join(runDirectory, 'certs'));

  const { values, lines = [], watch = [] } = await servers({ run: runDirectory, options, say });
  const text = replaceValues(fs.readFileSync(path.join(directory, 'gateway.toml'), 'utf8'), {
    '0.0.0.0:8443': `127.0.0.1:${options.port}`,
    'certs/localhost.crt': certificate,
    'certs/localhost.key': privateKey,
    dist: page,
    ...values,
  });
  const gateway = await startGateway({ program, text, directory: runDirectory, level: 'info' });

  lines.forEach(say);
  say(`logs are in ${runDirectory}; press Ctrl-C to stop`);
  if (!options.certificate) say('the certificate is self-signed, so the browser will warn; the connection stays on this machine');
  say(`open https://localhost:${gateway.port}/`);

  // The gateway stops first and closes its sessions with a reason; a second signal does not wait for that.
  let stopping = false;
  onSignal(() => {
    stopping = true;
    onSignal(() => process.exit(1));
    gateway.stop().then(() => process.exit(0));
  });
  // If one server exits, all stop, with an error message.
  await new Promise((resolve, reject) => {
    setInterval(() => {
      try {
        if (!stopping) [gateway, ...watch].forEach((server) => server.assertRunning());
      } catch (error) {
        reject(error);
      }
    }, 1000);
  });
}
