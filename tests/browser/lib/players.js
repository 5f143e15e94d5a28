// The page of examples/stomp as a player uses it, in a browser that can be killed.

import { chromium } from 'playwright-core';

import { until } from '../../../examples/launch/until.js';
import { accessibilityViolations, chromiumOptions, openPage } from './browser.js';

/** A browser process with `home` as its home directory and `host` resolved to loopback. */
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

  /** Kills it, so that pages cannot send anything any more. */
  kill() {
    return this.#server.kill();
  }

  stop() {
    return this.#server.close();
  }
}

/** One page, and its player, whose name is the capitalised `key`. */
export class Player {
  static async open(browser, key, address) {
    const { page, consoleLines } = await openPage(browser.context, address);
    return new Player(browser, page, consoleLines, key[0].toUpperCase() + key.slice(1));
  }

  constructor(browser, page, consoleLines, name) {
    this.browser = browser;
    this.page = page;
    this.console = consoleLines;
    this.name = name;
  }

  /** The texts on the page; '' if an element is not shown. */
  look() {
    return this.page.evaluate(() => {
      const at = (selector) => {
        const element = document.querySelector(selector);
        return element?.checkVisibility() ? element.innerText.trim() : '';
      };
      const items = (selector) =>
        [...document.querySelectorAll(`${selector} > li`)].filter((li) => li.checkVisibility()).map((li) => li.innerText);
      const screen = ['login', 'lobby', 'room'].find((id) => document.getElementById(id).checkVisibility()) ?? '';
      return {
        screen,
        banner: at('#connection .description'),
        error: at('#login-error'),
        players: items('#players').map((text) => text.replaceAll('\n', ' ')).join('\n'),
        note: at('#picture-note'),
        presence: at('#presence'),
        turn: at('#turn'),
        score: at('#score'),
        rounds: items('#rounds').map((text) => text.split('\n').at(-1)),
        chat: items('#chat').join('\n'),
        unsent: at('#unsent'),
      };
    });
  }

  /** Waits until the text `what` of `look` matches `pattern`. */
  async sees(what, pattern, seconds = 15) {
    await until(`${this.name} sees ${what} matching ${pattern}`, seconds, async (observed) => {
      const seen = await this.look();
      observed(JSON.stringify(seen));
      return pattern.test(seen[what]);
    });
  }

  async logIn(password) {
    await this.page.getByLabel('Your name').fill(this.name);
    await this.page.getByLabel('Game password').fill(password);
    await this.page.getByRole('button', { name: 'Log in' }).click();
  }

  /** The state of the page's connection: connecting, open, waiting or closed. */
  connection() {
    return this.page.evaluate(() => document.getElementById('connection').dataset.state);
  }

  /** The values of the fields of the login form. */
  async loginFields() {
    const [name, password] = ['Your name', 'Game password'].map((label) => this.page.getByLabel(label).inputValue());
    return { name: await name, password: await password };
  }

  async press(button) {
    await this.page.getByRole('button', { name: button, exact: true }).click({ timeout: 15_000 });
  }

  async draftMessage(text) {
    await this.page.getByLabel('Chat message').fill(text);
  }

  draft() {
    return this.page.getByLabel('Chat message').inputValue();
  }

  async say(text) {
    await this.draftMessage(text);
    await this.page.keyboard.press('Enter');
  }

  async choosePicture(bytes) {
    await this.page.getByLabel('Your picture').setInputFiles({ name: 'picture.png', mimeType: 'image/png', buffer: bytes });
  }

  /** The other player's picture as shown: {width, height, sha256} of its pixels; undefined while there is none. */
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

  /** Takes a screenshot, and returns the serious and critical accessibility violations. */
  async accessibilityViolations(file) {
    await this.screenshot(file);
    return accessibilityViolations(this.page);
  }

  async reload() {
    await this.page.reload();
  }

  /** Takes a screenshot of the page, or of its upper `height` pixels. */
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
