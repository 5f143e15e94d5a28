// Starts an example by its `./start`, as its README says.

import fs from 'node:fs';
import path from 'node:path';

import { start } from '../../../examples/launch/processes.js';
import { until } from '../../../examples/launch/until.js';

/**
 * Starts the example in the directory `example` on a free port.
 *
 * @param {object} options
 * @param {string} options.example
 * @param {{certificate: string, privateKey: string}} options.identity the files of its certificate
 * @param {string} options.run it writes only here
 * @param {string} options.log the file of its output
 * @param {string} options.program the gateway
 * @param {string[]} [options.args] additional arguments of `./start`
 * @param {string} [options.cwd]
 * @param {number} [options.seconds] the timeout
 * @returns {Promise<{started: Process, address: string}>} the process, and the address that it prints
 */
export async function startExample({ example, identity, run, log, program, args = [], cwd, seconds = 60 }) {
  const { certificate, privateKey } = identity;
  fs.writeFileSync(log, '');
  const all = ['--port', '0', '--run', run, '--certificate', certificate, '--private-key', privateKey, ...args];
  const started = start(path.join(example, 'start'), all, { env: { ...process.env, PORTCULLIS: program }, log, cwd });
  try {
    const address = await until('./start prints the address to open', seconds, (observed) => {
      observed(started.log());
      started.assertRunning();
      return /^open (https:\/\/localhost:\d+\/)$/m.exec(started.log())?.[1];
    });
    return { started, address };
  } catch (error) {
    await started.kill();
    throw error;
  }
}
