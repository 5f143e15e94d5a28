// Bundles the page of an example into its dist/ directory: `node build.js vnc xmpp stomp`, or by the start scripts.

import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { build } from 'esbuild';

const here = fileURLToPath(new URL('.', import.meta.url));

/** Files of an example that are copied unchanged. */
const STATIC = ['index.html', 'icon.svg'];

/**
 * Bundles app.js and app.css of the example in `directory`, copies index.html and icon.svg, and returns the directory.
 *
 * @param {string} directory
 * @param {import('esbuild').BuildOptions} [options] additional options of esbuild; `outdir` is dist/ by default
 */
export async function buildPage(directory, options = {}) {
  const page = options.outdir ?? path.join(directory, 'dist');
  fs.rmSync(page, { recursive: true, force: true });
  fs.mkdirSync(page, { recursive: true });
  await build({
    absWorkingDir: directory,
    entryPoints: ['app.js', 'app.css'],
    outdir: page,
    bundle: true,
    format: 'esm',
    target: 'es2022',
    minify: true,
    sourcemap: true,
    logLevel: 'error',
    ...options,
  });
  for (const name of STATIC) fs.copyFileSync(path.join(directory, name), path.join(page, name));
  return page;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const name of process.argv.slice(2)) process.stdout.write(`${await buildPage(path.join(here, name))}\n`);
}
