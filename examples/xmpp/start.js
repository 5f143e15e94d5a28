// Run by ./start.

import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { runExample } from '../launch/example.js';
import { PROSODY_TOOLS, startProsody } from '../launch/prosody.js';

await runExample({
  directory: fileURLToPath(new URL('.', import.meta.url)),
  title: 'A chat in the browser: Prosody, Portcullis and a page built on xmpp.js.',
  tools: PROSODY_TOOLS,
  async servers({ run }) {
    const server = await startProsody({ directory: path.join(run, 'prosody') });
    return {
      values: server.values,
      lines: Object.entries(server.passwords).map(([user, secret]) => `${user}@${server.domain} has the password ${secret}`),
      watch: [server],
    };
  },
});
