/** A clock for tests: time passes only by `advance` and `sleep`. */
export class ManualClock {
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

  get pendingTimers() {
    return this.#timers.size;
  }

  /** Advances by `ms`. Each timer fires at its time, and its promises settle before the next timer fires. */
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

  /** Advances by `ms` in one step, as when a laptop sleeps: timers fire late. */
  async sleep(ms) {
    this.#now += ms;
    await this.advance(0);
  }
}

/** Settles every promise that can be settled now. */
async function settle() {
  for (let i = 0; i < 20; i++) await undefined;
}
