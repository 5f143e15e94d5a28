// Run by ./start.

import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { runExample } from '../launch/example.js';
import { TOOLS, startDesktop } from '../launch/vnc.js';

await runExample({
  directory: fileURLToPath(new URL('.', import.meta.url)),
  title: 'A remote desktop in the browser: TightVNC, Portcullis and a page built on noVNC.',
  options: { password: { type: 'string' } },
  help: '  --password TEXT      the password of the desktop, at most 8 characters (default: a random one)',
  tools: TOOLS,
  async servers({ run, options }) {
    const desktop = await startDesktop({ directory: path.join(run, 'desktop'), password: options.password });
    return {
      values: { 'tcp://127.0.0.1:5900': `tcp://127.0.0.1:${desktop.port}` },
      lines: [`the password of the desktop is: ${desktop.password}`],
      watch: [desktop],
    };
  },
});
