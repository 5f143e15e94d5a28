// The page of examples/xmpp, as a person sees and uses it.

import { until } from '../../../examples/launch/until.js';
import { openPage } from './browser.js';

export class Talker {
  static async open(browser, address, name) {
    const { page, heard } = await openPage(browser, address);
    return new Talker(page, heard, name);
  }

  constructor(page, heard, name) {
    this.page = page;
    this.console = heard;
    this.name = name;
  }

  /** The connection as the page tells it: {state, words}. */
  banner() {
    return this.page.evaluate(() => {
      const banner = document.getElementById('banner');
      return { state: banner.dataset.state, words: banner.querySelector('.words')?.textContent };
    });
  }

  /** Waits until the page says something like `words`, in `state`. */
  says(words, state, seconds = 20) {
    return until(`${this.name}'s page says ${words}${state ? `, ${state}` : ''}`, seconds, async (saw) => {
      const banner = await this.banner();
      saw(JSON.stringify(banner));
      return words.test(banner.words) && (!state || banner.state === state) && banner;
    });
  }

  /** Presses "Try now" if the page waits. */
  async tryNow() {
    await this.page.evaluate(() => {
      const banner = document.getElementById('banner');
      if (banner.dataset.state === 'waiting') banner.querySelector('button').click();
    });
  }

  /** Waits until the page is connected, and does not let it wait for its next try. */
  async back(seconds = 20) {
    await until(`${this.name}'s page is connected again`, seconds, async (saw) => {
      const banner = await this.banner();
      saw(JSON.stringify(banner));
      if (banner.words === 'Connected.') return true;
      await this.tryNow();
      return false;
    });
  }

  async signIn(address, password, way = 'xmpp') {
    await this.page.locator('#address').fill(address);
    await this.page.locator('#password').fill(password);
    await this.page.locator(`input[name=way][value=${way}]`).check();
    await this.page.locator('#login button[type=submit]').click();
  }

  /** Opens the conversation with this name: "Bob", "# lobby". */
  async choose(name) {
    await this.page.bringToFront(); // behind another tab nothing moves, and a click waits for it
    await this.page.locator('#conversations .name', { hasText: new RegExp(`^${name}$`) }).click();
    await this.page.locator('#partner', { hasText: new RegExp(`^${name}$`) }).waitFor();
  }

  /** Says something in the conversation that is open. */
  async say(text) {
    await this.page.locator('#text').fill(text);
    await this.page.keyboard.press('Enter');
  }

  /** What the open conversation shows, from top to bottom: {from, text, progress} each. */
  messages() {
    return this.page.evaluate(() =>
      [...document.querySelectorAll('#messages > li')].map((item) => {
        if (item.className === 'gap') return { gap: item.textContent, progress: '' };
        const said = (name) => item.querySelector(`.${name}`).textContent;
        return { from: said('from'), text: said('text'), progress: item.dataset.progress, words: said('progress') };
      }),
    );
  }

  /** Waits until the open conversation shows exactly these texts, in this order. */
  shows(texts, { seconds = 20, progress } = {}) {
    const all = texts.map((text) => short(text ?? '(a gap)')).join(' | ');
    return until(`${this.name} sees ${all}${progress ? `, ${progress}` : ''}`, seconds, async (saw) => {
      const messages = await this.messages();
      saw(messages.map((one) => one.gap ?? `${short(one.text)}${one.progress && ` (${one.progress})`}`).join(' | '));
      if (messages.map(({ text }) => text).join('\n') !== texts.join('\n')) return false;
      return !progress || messages.every((one) => one.progress === '' || progress.test(one.progress));
    });
  }

  /** All that was ever said in the open conversation, back to `first`, by asking for older messages. */
  async readBack(first) {
    await this.page.bringToFront();
    const older = this.page.locator('#older');
    return until(`${this.name} can read back to the beginning`, 30, async (saw) => {
      const texts = (await this.messages()).map(({ text }) => text);
      saw(`${texts.length} messages, the first is ${texts[0]}`);
      if (texts[0] === first) return texts;
      if ((await older.isVisible()) && (await older.isEnabled())) await older.click({ timeout: 1000 });
      return false;
    });
  }

  /** The list of conversations: {name, presence, unread, last} by name. */
  list() {
    return this.page.evaluate(() =>
      Object.fromEntries(
        [...document.querySelectorAll('#conversations .entry')].map((entry) => {
          const said = (name) => entry.querySelector(`.${name}`).textContent;
          const unread = entry.querySelector('.unread').hidden ? 0 : Number(said('unread'));
          return [said('name'), { presence: entry.querySelector('.dot').dataset.presence, unread, last: said('last') }];
        }),
      ),
    );
  }

  /** Waits until the person with this name is `presence`: here, away or gone. */
  sees(name, presence) {
    return until(`${this.name} sees that ${name} is ${presence}`, 20, async (saw) => {
      const list = await this.list();
      saw(JSON.stringify(list));
      return list[name]?.presence === presence;
    });
  }

  screenshot(file) {
    return this.page.screenshot({ path: file });
  }

  close() {
    return this.page.close();
  }
}

function short(text) {
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}
