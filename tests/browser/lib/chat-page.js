// The page of examples/xmpp as a user operates it.

import { until } from '../../../examples/launch/until.js';
import { openPage } from './browser.js';

export class ChatPage {
  static async open(browser, address, name) {
    const { page, consoleLines } = await openPage(browser, address);
    return new ChatPage(page, consoleLines, name);
  }

  constructor(page, consoleLines, name) {
    this.page = page;
    this.console = consoleLines;
    this.name = name;
  }

  /** The state of the connection as the page shows it: {state, description}. */
  banner() {
    return this.page.evaluate(() => {
      const banner = document.getElementById('banner');
      return { state: banner.dataset.state, description: banner.querySelector('.description')?.textContent };
    });
  }

  /** Waits until the banner's description matches `pattern`, in `state`. */
  shows(pattern, state, seconds = 20) {
    return until(`${this.name}'s page shows ${pattern}${state ? `, ${state}` : ''}`, seconds, async (observed) => {
      const banner = await this.banner();
      observed(JSON.stringify(banner));
      return pattern.test(banner.description) && (!state || banner.state === state) && banner;
    });
  }

  /** Presses "Try now" if the page waits for its next attempt. */
  async tryNow() {
    await this.page.evaluate(() => {
      const banner = document.getElementById('banner');
      if (banner.dataset.state === 'waiting') banner.querySelector('button').click();
    });
  }

  /** Waits until the page is connected, without waiting for the back-off. */
  async reconnected(seconds = 20) {
    await until(`${this.name}'s page is connected again`, seconds, async (observed) => {
      const banner = await this.banner();
      observed(JSON.stringify(banner));
      if (banner.description === 'Connected.') return true;
      await this.tryNow();
      return false;
    });
  }

  async signIn(address, password, transport = 'xmpp') {
    await this.page.locator('#address').fill(address);
    await this.page.locator('#password').fill(password);
    await this.page.locator(`input[name=transport][value=${transport}]`).check();
    await this.page.locator('#login button[type=submit]').click();
  }

  /** Opens the conversation with this name: "Bob", "# lobby". */
  async choose(name) {
    await this.page.bringToFront(); // a click would wait for ever in a background tab
    await this.page.locator('#conversations .name', { hasText: new RegExp(`^${name}$`) }).click();
    await this.page.locator('#partner', { hasText: new RegExp(`^${name}$`) }).waitFor();
  }

  /** Sends a message in the open conversation. */
  async send(text) {
    await this.page.locator('#text').fill(text);
    await this.page.keyboard.press('Enter');
  }

  /** The messages of the open conversation, from top to bottom: {from, text, progress, description} each. */
  messages() {
    return this.page.evaluate(() =>
      [...document.querySelectorAll('#messages > li')].map((item) => {
        if (item.className === 'gap') return { gap: item.textContent, progress: '' };
        const textOf = (name) => item.querySelector(`.${name}`).textContent;
        return { from: textOf('from'), text: textOf('text'), progress: item.dataset.progress, description: textOf('progress') };
      }),
    );
  }

  /** Waits until the open conversation shows exactly these texts, in this order. */
  showsMessages(texts, { seconds = 20, progress } = {}) {
    const all = texts.map((text) => short(text ?? '(a gap)')).join(' | ');
    return until(`${this.name} sees ${all}${progress ? `, ${progress}` : ''}`, seconds, async (observed) => {
      const messages = await this.messages();
      observed(messages.map((one) => one.gap ?? `${short(one.text)}${one.progress && ` (${one.progress})`}`).join(' | '));
      if (messages.map(({ text }) => text).join('\n') !== texts.join('\n')) return false;
      return !progress || messages.every((one) => one.progress === '' || progress.test(one.progress));
    });
  }

  /** All messages of the open conversation back to `first`, by loading older messages. */
  async readBack(first) {
    await this.page.bringToFront();
    const older = this.page.locator('#older');
    return until(`${this.name} can read back to the beginning`, 30, async (observed) => {
      const texts = (await this.messages()).map(({ text }) => text);
      observed(`${texts.length} messages, the first is ${texts[0]}`);
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
          const textOf = (name) => entry.querySelector(`.${name}`).textContent;
          const unread = entry.querySelector('.unread').hidden ? 0 : Number(textOf('unread'));
          return [textOf('name'), { presence: entry.querySelector('.dot').dataset.presence, unread, last: textOf('last') }];
        }),
      ),
    );
  }

  /** Waits until the contact with this name is `presence`: here, away or gone. */
  seesPresence(name, presence) {
    return until(`${this.name} sees that ${name} is ${presence}`, 20, async (observed) => {
      const list = await this.list();
      observed(JSON.stringify(list));
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
