/** A clock that stands still until it is told to go on. For tests. */
export class HandClock {
  #now = 0;
  #timers = new Set();

  now = () => this.#now;

  setTimeout = (callback, ms) => {
    const timer = { at: this.#now + ms, callback };
    this.#timers.add(timer);
    return timer;
  };

  clearTimeout = (timer) => {
    this.#timers.delete(timer);
  };

  /** How many timers wait. */
  get waiting() {
    return this.#timers.size;
  }

  /** Lets `ms` go by; every timer rings at its time, and what it caused has happened before the next one rings. */
  async advance(ms) {
    const end = this.#now + ms;
    for (;;) {
      await settle();
      const [next] = [...this.#timers].filter(({ at }) => at <= end).sort((a, b) => a.at - b.at);
      if (!next) break;
      this.#now = Math.max(this.#now, next.at);
      this.#timers.delete(next);
      next.callback();
    }
    this.#now = end;
    await settle();
  }

  /** Lets `ms` go by in one jump, as when a laptop sleeps: the timers ring late. */
  async sleep(ms) {
    this.#now += ms;
    await this.advance(0);
  }
}

/** Lets every promise that can be settled now be settled. */
async function settle() {
  for (let i = 0; i < 20; i++) await undefined;
}
