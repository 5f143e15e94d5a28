// Run by ./start.

import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import * as activemq from '../launch/activemq.js';
import { runExample } from '../launch/example.js';
import * as rabbitmq from '../launch/rabbitmq.js';

const directory = fileURLToPath(new URL('.', import.meta.url));

const BROKERS = {
  rabbitmq: { tools: rabbitmq.TOOLS, start: rabbitmq.startRabbitmq },
  activemq: { tools: activemq.TOOLS, start: activemq.startActivemq },
};

function chosen({ broker }) {
  if (!Object.hasOwn(BROKERS, broker)) throw new Error(`--broker ${broker}: known brokers: ${Object.keys(BROKERS).join(', ')}`);
  return BROKERS[broker];
}

await runExample({
  directory,
  title: 'Rock, paper, scissors in the browser, over a STOMP broker and Portcullis.',
  options: { broker: { type: 'string', default: 'rabbitmq' }, password: { type: 'string' } },
  help: `  --broker NAME        rabbitmq or activemq (default: rabbitmq)
  --password WORD      the password of all players (default: a new one at each start)`,
  tools: (options) => chosen(options).tools,
  async servers({ run, options, say }) {
    const password = options.password ?? randomBytes(4).toString('hex');
    say(`starting ${options.broker}; this takes a few seconds`);
    const account = { login: 'player', password, prefix: 'rps' };
    const broker = await chosen(options).start({ directory: path.join(run, options.broker), ...account });
    // The page reads this to find its broker.
    fs.writeFileSync(path.join(directory, 'dist', 'config.json'), JSON.stringify({ broker: broker.name, path: 'stomp' }));
    return {
      values: { 'tcp://127.0.0.1:61613': `tcp://127.0.0.1:${broker.port}` },
      lines: [`password of the game: ${password}`],
      watch: [broker],
    };
  },
});
