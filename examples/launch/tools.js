// Checks for the programs that an example needs. Nothing is installed here: the error names the command to run.

import fs from 'node:fs';
import path from 'node:path';

/** Something is missing; `message` names it, and the one command that installs it. */
export class MissingDependency extends Error {}

const SBIN = ['/usr/local/sbin', '/usr/sbin', '/sbin'];

/** The path of a program, on the PATH or in Debian's directories of servers; undefined if there is none. */
export function findProgram(program) {
  if (path.isAbsolute(program)) return fs.existsSync(program) ? program : undefined;
  const directories = [...(process.env.PATH ?? '').split(path.delimiter).filter(Boolean), ...SBIN];
  return directories.map((directory) => path.join(directory, program)).find(executable);
}

function executable(file) {
  try {
    fs.accessSync(file, fs.constants.X_OK);
    return fs.statSync(file).isFile();
  } catch {
    return false;
  }
}

/**
 * Throws MissingDependency unless all programs are there.
 *
 * @param {{program: string, package: string}[]} tools programs (or files, as absolute paths), and the Debian packages
 *   that contain them
 */
export function requireTools(tools) {
  const missing = tools.filter(({ program }) => !findProgram(program));
  if (missing.length === 0) return;
  const packages = [...new Set(missing.map((tool) => tool.package))].sort();
  const names = missing.map(({ program }) => program).join(', ');
  throw new MissingDependency(
    `missing on this machine: ${names}\n` +
      'On Debian or Ubuntu this command installs it:\n' +
      `    sudo apt-get install --no-install-recommends ${packages.join(' ')}`,
  );
}

/** The gateway's executable: the one that PORTCULLIS names, that was built in this tree (`root`), or that is on the PATH. */
export function findPortcullis(root) {
  const named = process.env.PORTCULLIS;
  if (named) {
    if (executable(named)) return path.resolve(named);
    throw new MissingDependency(`PORTCULLIS names ${named}, which is not an executable`);
  }
  const built = ['release', 'debug'].map((kind) => path.join(root, 'target', kind, 'portcullis'));
  const found = built.find(executable) ?? findProgram('portcullis');
  if (found) return found;
  throw new MissingDependency(
    'missing: the program portcullis. This command builds it, with Rust 1.91 or newer:\n' +
      `    (cd ${path.resolve(root)} && cargo build --release)`,
  );
}
