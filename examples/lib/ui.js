/** What the three pages show alike. */

const DOTS = { connecting: 'busy', open: 'good', waiting: 'busy', closed: 'bad' };

/**
 * The line that says what the connection is like. Screen readers are told the words when they change, and not the
 * seconds that run.
 */
export class Banner {
  #element;
  #words;
  #countdown;
  #button;
  #timer;
  #state;

  /**
   * @param {HTMLElement} element an empty element; it becomes the banner
   * @param {() => void} tryNow somebody does not want to wait
   */
  constructor(element, tryNow) {
    this.#element = element;
    element.classList.add('banner');
    const dot = part('span', 'dot');
    dot.setAttribute('aria-hidden', 'true');
    this.#words = part('span', 'words');
    this.#words.setAttribute('role', 'status');
    this.#countdown = part('span', 'countdown');
    this.#button = part('button', 'button small');
    this.#button.type = 'button';
    this.#button.addEventListener('click', tryNow);
    element.replaceChildren(dot, this.#words, this.#countdown, this.#button);
    this.show({ state: 'closed', words: 'Not connected.' });
  }

  /**
   * @param {import('./retry.js').State} state
   * @param {{button?: string | null}} [options] what the button says, or null for none; by default it is there while
   *   waiting, and after an end for good
   */
  show(state, { button = { waiting: 'Try now', closed: 'Connect again' }[state.state] ?? null } = {}) {
    this.#state = state;
    this.#element.dataset.state = state.state;
    this.#element.dataset.dot = DOTS[state.state];
    if (this.#words.textContent !== state.words) this.#words.textContent = state.words;
    this.#button.hidden = !button;
    this.#button.textContent = button ?? '';
    clearInterval(this.#timer);
    if (state.state === 'waiting') this.#timer = setInterval(() => this.#count(), 250);
    this.#count();
  }

  #count() {
    const { state, retryAt } = this.#state;
    const left = Math.max(1, Math.ceil((retryAt - performance.now()) / 1000));
    this.#countdown.textContent = state === 'waiting' ? `Next try in ${left} s.` : '';
  }
}

function part(tag, className) {
  const element = document.createElement(tag);
  element.className = className;
  return element;
}
