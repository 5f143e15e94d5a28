// ActiveMQ 5 ("Classic"; Artemis is another program) with its STOMP connector: a separate broker in one directory and on
// loopback, independent of Debian's instances.

import fs from 'node:fs';
import path from 'node:path';

import { Broker, startBroker } from './broker.js';
import { freePort, start } from './processes.js';

const HOME = '/usr/share/activemq';
const JAR = `${HOME}/bin/activemq.jar`;

/** The required programs, and the Debian packages that contain them. */
export const TOOLS = [
  { program: JAR, package: 'activemq' },
  { program: 'java', package: 'default-jre-headless' },
  { program: 'setpriv', package: 'util-linux' },
];

/** The modules that its libraries access by reflection, which Java 17 forbids by default. */
const OPEN_MODULES = [
  'java.base/java.lang',
  'java.base/java.net',
  'java.base/java.security',
  'java.base/java.util',
  'java.base/java.util.concurrent',
  'java.naming/javax.naming.spi',
];

/** See `startBroker`. The log is a file in its directory unless `log` names another. */
export function startActivemq({ log, ...options }) {
  return startBroker(Activemq, { ...options, log: log ?? path.join(options.directory, 'activemq.log') });
}

class Activemq extends Broker {
  name = 'ActiveMQ';

  async prepare(account, port) {
    this.port = port ?? (await freePort());
    for (const name of ['data', 'tmp']) fs.mkdirSync(this.file(name), { recursive: true });
    const data = this.file('data');
    fs.writeFileSync(this.file('activemq.xml'), configuration({ ...account, data, port: this.port }), { mode: 0o600 });
    fs.writeFileSync(
      this.file('log4j.properties'),
      `log4j.rootLogger=INFO, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d %p %c{1} %m%n
`,
    );
  }

  /** Starts the broker; after it has ended, starts it again with the same data. */
  async start() {
    const settings = {
      'java.io.tmpdir': this.file('tmp'),
      'activemq.home': HOME,
      'activemq.base': this.directory,
      'activemq.conf': this.directory,
      'activemq.data': this.file('data'),
      'activemq.classpath': this.directory,
      'log4j.configuration': `file:${this.file('log4j.properties')}`,
    };
    const args = [
      '-Xms64M',
      '-Xmx512M',
      ...OPEN_MODULES.map((name) => `--add-opens=${name}=ALL-UNNAMED`),
      ...Object.entries(settings).map(([name, value]) => `-D${name}=${value}`),
      '-jar',
      JAR,
      'start',
      `xbean:file:${this.file('activemq.xml')}`,
    ];
    const options = { env: { PATH: process.env.PATH }, log: this.logFile, cwd: this.directory };
    await this.startServer(() => start('java', args, options), /Apache ActiveMQ [\d.]+ \(.*\) started$/gm);
  }
}

function configuration({ login, password, prefix, data, port }) {
  const xml = (text) => text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
  const spring = 'http://www.springframework.org/schema/beans';
  const core = 'http://activemq.apache.org/schema/core';
  const permissions = 'read="players" write="players" admin="players"';
  // Accept heart-beats half a period late: clients send them exactly on time, and the network adds its delay.
  const uri = `stomp+nio://127.0.0.1:${port}?transport.hbGracePeriodMultiplier=1.5`;
  // Messages and queues that are not used for an hour belong to finished games: messages expire first, then empty queues.
  const hour = 3_600_000;
  return `<beans xmlns="${spring}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xsi:schemaLocation="${spring} ${spring}/spring-beans-2.0.xsd ${core} ${core}/activemq-core.xsd">
  <broker xmlns="${core}" useJmx="false" brokerName="game" dataDirectory="${xml(data)}" schedulePeriodForDestinationPurge="60000">
    <destinationPolicy>
      <policyMap>
        <policyEntries>
          <policyEntry queue=">" gcInactiveDestinations="true" inactiveTimeoutBeforeGC="${hour}">
            <deadLetterStrategy>
              <sharedDeadLetterStrategy processExpired="false"/>
            </deadLetterStrategy>
          </policyEntry>
          <policyEntry topic=">" gcInactiveDestinations="true" inactiveTimeoutBeforeGC="${hour}"/>
        </policyEntries>
      </policyMap>
    </destinationPolicy>
    <persistenceAdapter>
      <kahaDB directory="${xml(data)}/kahadb"/>
    </persistenceAdapter>
    <plugins>
      <simpleAuthenticationPlugin>
        <users>
          <authenticationUser username="${xml(login)}" password="${xml(password)}" groups="players"/>
        </users>
      </simpleAuthenticationPlugin>
      <authorizationPlugin>
        <map>
          <authorizationMap>
            <authorizationEntries>
              <authorizationEntry queue="${prefix}.&gt;" ${permissions}/>
              <authorizationEntry topic="${prefix}.&gt;" ${permissions}/>
              <authorizationEntry topic="ActiveMQ.Advisory.&gt;" ${permissions}/>
            </authorizationEntries>
          </authorizationMap>
        </map>
      </authorizationPlugin>
      <timeStampingBrokerPlugin zeroExpirationOverride="${hour}" ttlCeiling="${hour}"/>
    </plugins>
    <systemUsage>
      <systemUsage>
        <memoryUsage>
          <memoryUsage limit="256 mb"/>
        </memoryUsage>
        <storeUsage>
          <storeUsage limit="1 gb"/>
        </storeUsage>
        <tempUsage>
          <tempUsage limit="1 gb"/>
        </tempUsage>
      </systemUsage>
    </systemUsage>
    <transportConnectors>
      <transportConnector name="stomp" uri="${uri}"/>
    </transportConnectors>
  </broker>
</beans>
`;
}
