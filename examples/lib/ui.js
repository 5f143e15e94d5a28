/** User interface elements that the three pages share. */

const DOTS = { connecting: 'busy', open: 'good', waiting: 'busy', closed: 'bad' };

/** The line that shows the state of the connection. Screen readers announce the description, but not the countdown. */
export class Banner {
  #element;
  #description;
  #countdown;
  #button;
  #timer;
  #state;

  /**
   * @param {HTMLElement} element an empty element that becomes the banner
   * @param {() => void} tryNow called when the user presses the button
   */
  constructor(element, tryNow) {
    this.#element = element;
    element.classList.add('banner');
    const dot = createElement('span', 'dot');
    dot.setAttribute('aria-hidden', 'true');
    this.#description = createElement('span', 'description');
    this.#description.setAttribute('role', 'status');
    this.#countdown = createElement('span', 'countdown');
    this.#button = createElement('button', 'button small');
    this.#button.type = 'button';
    this.#button.addEventListener('click', tryNow);
    element.replaceChildren(dot, this.#description, this.#countdown, this.#button);
    this.show({ state: 'closed', description: 'Not connected.' });
  }

  /**
   * @param {import('./retry.js').State} state
   * @param {{button?: string | null}} [options] the label of the button, or null for no button; by default it is
   *   shown while waiting and after a final close
   */
  show(state, { button = { waiting: 'Try now', closed: 'Connect again' }[state.state] ?? null } = {}) {
    this.#state = state;
    this.#element.dataset.state = state.state;
    this.#element.dataset.dot = DOTS[state.state];
    if (this.#description.textContent !== state.description) this.#description.textContent = state.description;
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

function createElement(tag, className) {
  const element = document.createElement(tag);
  element.className = className;
  return element;
}
