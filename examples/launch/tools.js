// What must be on the machine before an example can start. Nothing is installed here: it is said what to do.

import fs from 'node:fs';
import path from 'node:path';

/** Something is missing; `message` says what, and the one command that brings it. */
export class Missing extends Error {}

const SBIN = ['/usr/local/sbin', '/usr/sbin', '/sbin'];

/** Where the program is, on the PATH or where Debian has servers; undefined if it is nowhere. */
export function find(program) {
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
 * Throws Missing unless all is there.
 *
 * @param {{program: string, package: string}[]} tools programs (or files, as absolute paths), and the Debian packages
 *   that bring them
 */
export function need(tools) {
  const missing = tools.filter(({ program }) => !find(program));
  if (missing.length === 0) return;
  const packages = [...new Set(missing.map((tool) => tool.package))].sort();
  const names = missing.map(({ program }) => program).join(', ');
  throw new Missing(
    `missing on this machine: ${names}\n` +
      'On Debian or Ubuntu this command installs what it takes:\n' +
      `    sudo apt-get install --no-install-recommends ${packages.join(' ')}`,
  );
}

/** The gateway's program: PORTCULLIS names it, or it was built in this tree (`root`), or it is on the PATH. */
export function portcullis(root) {
  const named = process.env.PORTCULLIS;
  if (named) {
    if (executable(named)) return path.resolve(named);
    throw new Missing(`PORTCULLIS names ${named}, which is no program`);
  }
  const built = ['release', 'debug'].map((kind) => path.join(root, 'target', kind, 'portcullis'));
  const found = built.find(executable) ?? find('portcullis');
  if (found) return found;
  throw new Missing(
    'missing: the program portcullis. This builds it, with Rust 1.91 or newer:\n' +
      `    (cd ${path.resolve(root)} && cargo build --release)`,
  );
}
