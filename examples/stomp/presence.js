// Presence. A broker does not announce that a client has gone, so players send beats to each other every two seconds, and a
// player without a beat for too long counts as absent.
//
// It knows nothing of connections and clocks: times are arguments, in milliseconds of a monotonic clock. Invariant: a time
// in which no beat could have arrived, because this page had no connection or was suspended, does not count as silence.

/** The interval of beats. */
export const BEAT_MS = 2000;

/** A player without a beat for this long is silent: three beats, and some time for a slow network. */
export const SILENT_MS = 7000;

/** A longer time between two ticks means that the page was suspended. */
const SUSPENDED_MS = 4000;

/** The presence of one other player. */
export class PeerPresence {
  #lastReceived;
  #ticked;
  #wasConnected = false;
  #closed = false;

  /** @param {number} now */
  constructor(now) {
    this.#lastReceived = now;
    this.#ticked = now;
  }

  /** A beat or another message has arrived. */
  received(now) {
    this.#lastReceived = now;
    this.#closed = false;
  }

  /** The player closes the page, perhaps only to reload it. */
  left() {
    this.#closed = true;
  }

  /**
   * Called at least every two seconds while the page is not suspended.
   * @param {boolean} connected whether a beat could have arrived
   */
  tick(now, connected) {
    const awake = now - this.#ticked < SUSPENDED_MS;
    if (!connected || !this.#wasConnected || !awake) this.#lastReceived = Math.max(this.#lastReceived, now);
    this.#wasConnected = connected;
    this.#ticked = now;
  }

  /** @returns {'here' | 'closed' | 'silent'} */
  state(now) {
    if (this.#closed) return 'closed';
    return now - this.#lastReceived > SILENT_MS ? 'silent' : 'here';
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
    this.#players.set(player.id, { ...player, lastReceived: now });
  }

  gone(id) {
    this.#players.delete(id);
  }

  /** Removes silent players, but not after a time in which no beat could have arrived. */
  tick(now, connected) {
    const awake = now - this.#ticked < SUSPENDED_MS;
    this.#ticked = now;
    for (const player of this.#players.values()) {
      if (!connected || !awake) player.lastReceived = now;
      else if (now - player.lastReceived > SILENT_MS) this.gone(player.id);
    }
  }

  get(id) {
    return this.#players.get(id);
  }

  /** All players, by name. */
  get players() {
    return [...this.#players.values()].sort((a, b) => a.name.localeCompare(b.name) || (a.id < b.id ? -1 : 1));
  }
}
