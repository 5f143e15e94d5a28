// Who is there. A broker tells nobody that a client is gone, so players tell each other that they are there, every
// other second, and who has been silent for too long is not.
//
// It refuses to know connections and clocks: times are arguments, in milliseconds, and come from a clock that never
// goes back. It keeps this invariant: nobody is called silent for a time in which I could not have heard him,
// because I had no connection or because this page itself was asleep.

/** How often each player says that he is there. */
export const BEAT_MS = 2000;

/** Who has not been heard for so long is silent. Three beats, and a little for a slow network. */
export const SILENT_MS = 7000;

/** Between two ticks of a page that is awake lies less. */
const ASLEEP_MS = 4000;

/** Watches one other player. */
export class Watch {
  #since;
  #ticked;
  #listening = false;
  #bye = false;

  /** @param {number} now */
  constructor(now) {
    this.#since = now;
    this.#ticked = now;
  }

  /** A sign of life. */
  heard(now) {
    this.#since = now;
    this.#bye = false;
  }

  /** He says that he closes the page; perhaps only to load it again. */
  left() {
    this.#bye = true;
  }

  /**
   * Time passes; called at least every two seconds while the page is awake.
   * @param {boolean} connected whether I could have heard him
   */
  tick(now, connected) {
    const awake = now - this.#ticked < ASLEEP_MS;
    if (!connected || !this.#listening || !awake) this.#since = Math.max(this.#since, now);
    this.#listening = connected;
    this.#ticked = now;
  }

  /** @returns {'here' | 'closed' | 'silent'} */
  state(now) {
    if (this.#bye) return 'closed';
    return now - this.#since > SILENT_MS ? 'silent' : 'here';
  }
}

/** The players of the lobby. */
export class Roster {
  #players = new Map();
  #ticked;

  /** @param {number} now */
  constructor(now) {
    this.#ticked = now;
  }

  /** @param {{id: string, name: string, game: string | null, open: boolean}} player */
  here(player, now) {
    this.#players.set(player.id, { ...player, heard: now });
  }

  gone(id) {
    this.#players.delete(id);
  }

  /** Forgets who was silent for too long; nobody after a time in which I could not hear anybody. */
  tick(now, connected) {
    const awake = now - this.#ticked < ASLEEP_MS;
    this.#ticked = now;
    for (const player of this.#players.values()) {
      if (!connected || !awake) player.heard = now;
      else if (now - player.heard > SILENT_MS) this.gone(player.id);
    }
  }

  get(id) {
    return this.#players.get(id);
  }

  /** Everybody, by name. */
  get players() {
    return [...this.#players.values()].sort((a, b) => a.name.localeCompare(b.name) || (a.id < b.id ? -1 : 1));
  }
}
