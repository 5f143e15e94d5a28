// Chromium: a fresh profile, its own trust store, and pages that show a desktop.

import { execFileSync } from 'node:child_process';
import path from 'node:path';

import { chromium } from 'playwright-core';

import { Picture } from './picture.js';

/** Starts Chromium with `home` as its home directory and every `hosts` name on loopback. */
export async function startBrowser(home, hosts) {
  const executablePath = execFileSync('sh', ['-c', 'command -v chromium'], { encoding: 'utf8' }).trim();
  const context = await chromium.launchPersistentContext(path.join(home, 'profile'), {
    executablePath,
    chromiumSandbox: false, // it does not work for root, and every page here is our own
    env: { ...process.env, HOME: home },
    viewport: { width: 828, height: 660 },
    args: [
      '--no-proxy-server',
      '--disable-gpu',
      '--disable-quic',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      `--host-resolver-rules=${hosts.map((host) => `MAP ${host} 127.0.0.1`).join(', ')}`,
    ],
  });
  return context;
}

/** A page with the viewer on it, at `address`. */
export class Viewer {
  static async open(browser, address) {
    const page = await browser.newPage();
    const viewer = new Viewer(page);
    page.on('console', (message) => viewer.console.push(message.text()));
    page.on('pageerror', (error) => viewer.console.push(String(error)));
    await page.goto(address);
    await page.waitForFunction(() => window.viewer, undefined, { timeout: 20_000 });
    return viewer;
  }

  constructor(page) {
    this.page = page;
    this.console = [];
  }

  /** Lets noVNC connect to the WebSocket `address`. */
  async connect(address, password) {
    await this.page.evaluate(([to, secret]) => window.viewer.connect(to, secret), [address, password]);
  }

  disconnect() {
    return this.page.evaluate(() => window.viewer.rfb.disconnect());
  }

  /** What the canvas shows; undefined while there is none. */
  async picture() {
    const shown = await this.page.evaluate(() => window.viewer.picture());
    return shown && new Picture(shown.width, shown.height, Buffer.from(shown.rgba, 'base64'));
  }

  async click(x, y) {
    await this.page.locator('canvas').click({ position: { x, y } });
  }

  async type(key) {
    await this.page.evaluate(() => window.viewer.rfb.focus());
    await this.page.keyboard.press(key);
  }

  events() {
    return this.page.evaluate(() => window.viewer.events);
  }

  closed() {
    return this.page.evaluate(() => window.viewer.closed);
  }

  screenshot(file) {
    return this.page.screenshot({ path: file });
  }

  close() {
    return this.page.close();
  }
}
