// An example started as its README says, by its own `./start`.

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
 * @param {string} options.run everything that it writes lies here
 * @param {string} options.log the file that its output goes to
 * @param {string} options.program the gateway
 * @param {string[]} [options.args] more for `./start`
 * @param {string} [options.cwd]
 * @param {number} [options.seconds] how long it may take
 * @returns {Promise<{started: Process, address: string}>} the process, and the address that it says to open
 */
export async function startExample({ example, identity, run, log, program, args = [], cwd, seconds = 60 }) {
  const { certificate, privateKey } = identity;
  fs.writeFileSync(log, '');
  const all = ['--port', '0', '--run', run, '--certificate', certificate, '--private-key', privateKey, ...args];
  const started = start(path.join(example, 'start'), all, { env: { ...process.env, PORTCULLIS: program }, log, cwd });
  try {
    const address = await until('./start says which address to open', seconds, (saw) => {
      saw(started.log());
      started.mustRun();
      return /^open (https:\/\/localhost:\d+\/)$/m.exec(started.log())?.[1];
    });
    return { started, address };
  } catch (error) {
    await started.kill();
    throw error;
  }
}
