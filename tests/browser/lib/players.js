// The page of examples/stomp, as a player sees and uses it, in a browser that can be killed.

import { chromium } from 'playwright-core';

import { until } from '../../../examples/launch/until.js';
import { accessibilityFaults, chromiumOptions, openPage } from './browser.js';

/** A browser as a process of its own, with `home` as its home directory and the name `host` on loopback. */
export class Chromium {
  static async start(home, host) {
    const server = await chromium.launchServer(chromiumOptions(home, [host]));
    const browser = await chromium.connect(server.wsEndpoint());
    return new Chromium(server, await browser.newContext({ viewport: { width: 1060, height: 860 } }));
  }

  #server;

  constructor(server, context) {
    this.#server = server;
    this.context = context;
  }

  /** Ends it as a crash would: nothing of it has time for a last word. */
  kill() {
    return this.#server.kill();
  }

  stop() {
    return this.#server.close();
  }
}

/** One page, and the player in front of it, who is called after `key`. */
export class Player {
  static async open(browser, key, address) {
    const { page, heard } = await openPage(browser.context, address);
    return new Player(browser, page, heard, key[0].toUpperCase() + key.slice(1));
  }

  constructor(browser, page, heard, name) {
    this.browser = browser;
    this.page = page;
    this.console = heard;
    this.name = name;
  }

  /** Everything that can be read on the page. What is not shown is ''. */
  look() {
    return this.page.evaluate(() => {
      const at = (selector) => {
        const element = document.querySelector(selector);
        return element?.checkVisibility() ? element.innerText.trim() : '';
      };
      const items = (selector) =>
        [...document.querySelectorAll(`${selector} > li`)].filter((li) => li.checkVisibility()).map((li) => li.innerText);
      const screen = ['door', 'lobby', 'room'].find((id) => document.getElementById(id).checkVisibility()) ?? '';
      return {
        screen,
        banner: at('#connection .words'),
        fault: at('#door-fault'),
        players: items('#players').map((text) => text.replaceAll('\n', ' ')).join('\n'),
        note: at('#picture-note'),
        presence: at('#presence'),
        turn: at('#turn'),
        score: at('#score'),
        rounds: items('#rounds').map((text) => text.split('\n').at(-1)),
        talk: items('#talk').join('\n'),
        unsent: at('#unsent'),
      };
    });
  }

  /** Waits until what is at one place of the page is like this. */
  async sees(what, pattern, seconds = 15) {
    await until(`${this.name} sees ${what} like ${pattern}`, seconds, async (saw) => {
      const seen = await this.look();
      saw(JSON.stringify(seen));
      return pattern.test(seen[what]);
    });
  }

  async goIn(password) {
    await this.page.getByLabel('Your name').fill(this.name);
    await this.page.getByLabel('Password of the game').fill(password);
    await this.page.getByRole('button', { name: 'Go in' }).click();
  }

  /** What the page's connection is: connecting, open, waiting or closed. */
  connection() {
    return this.page.evaluate(() => document.getElementById('connection').dataset.state);
  }

  /** What stands in the fields of the door. */
  async typed() {
    const [name, password] = ['Your name', 'Password of the game'].map((label) => this.page.getByLabel(label).inputValue());
    return { name: await name, password: await password };
  }

  async press(button) {
    await this.page.getByRole('button', { name: button, exact: true }).click({ timeout: 15_000 });
  }

  async write(words) {
    await this.page.getByLabel('Say something').fill(words);
  }

  written() {
    return this.page.getByLabel('Say something').inputValue();
  }

  async say(words) {
    await this.write(words);
    await this.page.keyboard.press('Enter');
  }

  async choosePicture(bytes) {
    await this.page.getByLabel('A picture of you').setInputFiles({ name: 'portrait.png', mimeType: 'image/png', buffer: bytes });
  }

  /** The other player's picture as it is shown: {width, height, sha256} of its pixels; undefined while there is none. */
  otherPicture() {
    return this.page.evaluate(async () => {
      const image = document.getElementById('other-picture');
      if (!image.checkVisibility() || !image.complete || !image.naturalWidth) return undefined;
      const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
      const context = canvas.getContext('2d');
      context.drawImage(image, 0, 0);
      const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
      const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', data));
      const sha256 = Array.from(hash, (byte) => byte.toString(16).padStart(2, '0')).join('');
      return { width: canvas.width, height: canvas.height, sha256 };
    });
  }

  /** Serious and critical faults of the page as it is, and a picture of it. */
  async faults(file) {
    await this.screenshot(file);
    return accessibilityFaults(this.page);
  }

  async reload() {
    await this.page.reload();
  }

  /** A picture of the page, or of its upper `height` pixels. */
  screenshot(file, height = 860) {
    return this.page.screenshot({ path: file, clip: { x: 0, y: 0, width: 1060, height } });
  }

  close() {
    return this.page.close();
  }

  kill() {
    return this.browser.kill();
  }
}
