// The page of examples/vnc as a user operates it.

import { openPage } from './browser.js';
import { Picture } from './picture.js';

export class Viewer {
  static async open(browser, address) {
    const { page, consoleLines } = await openPage(browser, address);
    return new Viewer(page, consoleLines);
  }

  constructor(page, consoleLines) {
    this.page = page;
    this.console = consoleLines;
    this.canvas = page.locator('#screen canvas');
  }

  /** The state of the connection as the page shows it: {state, description, countdown}. */
  banner() {
    return this.page.evaluate(() => {
      const banner = document.getElementById('banner');
      const textOf = (name) => banner.querySelector(`.${name}`)?.textContent;
      return { state: banner.dataset.state, description: textOf('description'), countdown: textOf('countdown') };
    });
  }

  async enterPassword(password) {
    await this.page.locator('#login').waitFor();
    await this.page.locator('#password').fill(password);
    await this.page.locator('#login button[type=submit]').click();
  }

  /** The pixels of the desktop, unscaled; undefined while there is none. */
  async picture() {
    const shown = await this.page.evaluate(() => {
      const canvas = document.querySelector('#screen canvas');
      if (!canvas?.width || !canvas.height) return null;
      const { width, height } = canvas;
      const pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
      const CHUNK = 1 << 15;
      let text = '';
      for (let from = 0; from < pixels.length; from += CHUNK) {
        text += String.fromCharCode(...pixels.subarray(from, from + CHUNK));
      }
      return { width, height, rgba: btoa(text) };
    });
    return shown ? new Picture(shown.width, shown.height, Buffer.from(shown.rgba, 'base64')) : undefined;
  }

  /** The position of a point of the desktop on the page. */
  async at(x, y) {
    const box = await this.canvas.boundingBox();
    const scale = box.width / (await this.canvas.evaluate((canvas) => canvas.width));
    return { x: box.x + x * scale, y: box.y + y * scale };
  }

  /** Clicks a point of the desktop. */
  async click(x, y, options) {
    const point = await this.at(x, y);
    await this.page.mouse.click(point.x, point.y, options);
  }

  async move(x, y) {
    const point = await this.at(x, y);
    await this.page.mouse.move(point.x, point.y);
  }

  async press(key) {
    await this.canvas.focus();
    await this.page.keyboard.press(key);
  }

  async type(text) {
    await this.canvas.focus();
    await this.page.keyboard.type(text);
  }

  screenshot(file) {
    return this.page.screenshot({ path: file });
  }

  close() {
    return this.page.close();
  }
}
