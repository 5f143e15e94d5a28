// Chromium with a fresh profile and a trust store of its own, and pages whose console is recorded.

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

import { chromium } from 'playwright-core';

const AXE = createRequire(import.meta.url).resolve('axe-core/axe.min.js');

/** Makes `home` a home directory in which Chromium trusts only this authority in addition to its defaults. */
export function trust(authority, home) {
  const database = path.join(home, '.pki', 'nssdb');
  fs.mkdirSync(database, { recursive: true });
  execFileSync('certutil', ['-d', `sql:${database}`, '-N', '--empty-password']);
  const entry = ['-A', '-t', 'C,,', '-n', 'test authority', '-i', authority.certificate];
  execFileSync('certutil', ['-d', `sql:${database}`, ...entry]);
}

/** The launch options of Chromium with `home` as its home directory and all `hosts` resolved to loopback. */
export function chromiumOptions(home, hosts) {
  return {
    executablePath: execFileSync('sh', ['-c', 'command -v chromium'], { encoding: 'utf8' }).trim(),
    chromiumSandbox: false, // the sandbox does not work for root, and all pages are trusted
    env: { ...process.env, HOME: home },
    args: [
      '--no-proxy-server',
      '--disable-gpu',
      '--disable-quic',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      `--host-resolver-rules=${hosts.map((host) => `MAP ${host} 127.0.0.1`).join(', ')}`,
    ],
  };
}

/** Starts Chromium with `home` as its home directory and all `hosts` resolved to loopback. */
export async function startBrowser(home, hosts, viewport = { width: 1120, height: 860 }) {
  return chromium.launchPersistentContext(path.join(home, 'profile'), { ...chromiumOptions(home, hosts), viewport });
}

/** Opens `address` in a new page; `consoleLines` of the result are the lines of its console. */
export async function openPage(browser, address) {
  const page = await browser.newPage();
  const consoleLines = [];
  page.on('console', (message) => consoleLines.push(message.text()));
  page.on('pageerror', (error) => consoleLines.push(`error: ${error}`));
  await page.goto(address);
  return { page, consoleLines };
}

/** The serious and critical violations that axe-core finds on the page as it is, in light and in dark mode. */
export async function accessibilityViolations(page) {
  const found = [];
  await page.evaluate(fs.readFileSync(AXE, 'utf8'));
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    const { violations, passes } = await page.evaluate(() => window.axe.run());
    if (passes.length < 10) throw new Error(`axe-core checked almost nothing: ${passes.length} rules passed`);
    for (const { id, impact, nodes } of violations) {
      if (impact !== 'serious' && impact !== 'critical') continue;
      found.push(...nodes.map(({ html, failureSummary }) => `${colorScheme}: ${id} (${impact}): ${html}: ${failureSummary}`));
    }
  }
  await page.emulateMedia({ colorScheme: null });
  return found;
}
