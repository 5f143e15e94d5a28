// The state that survives a reload of the page. It belongs to one tab: it is deleted with the tab, and another tab is
// another player.

const KEY = 'rock-paper-scissors';

/** The ids whose lock this page holds. */
const lockedIds = new Set();

/** The stored state of this tab; undefined if there is none, or if it is invalid. */
export function load() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY)) ?? undefined;
  } catch {
    return undefined;
  }
}

export function store(value) {
  sessionStorage.setItem(KEY, JSON.stringify(value));
}

/**
 * Acquires the lock of the player `id`; false after two seconds. A duplicated tab has the same state and must become
 * another player; a tab that is reloaded may have to wait until its previous page has ended.
 */
export function lockPlayer(id) {
  return new Promise((resolve) => {
    if (lockedIds.has(id)) return resolve(true);
    const granted = () => {
      lockedIds.add(id);
      resolve(true);
      return new Promise(() => {}); // holds the lock as long as the page exists
    };
    navigator.locks.request(`${KEY} ${id}`, { signal: AbortSignal.timeout(2000) }, granted).catch(() => resolve(false));
  });
}

/** The player's picture, in a cache because it is too large for sessionStorage. */
export const picture = {
  async load(id) {
    const found = await (await caches.open(KEY)).match(`/${id}`);
    return found ? found.blob() : null;
  },
  async store(id, blob) {
    const cache = await caches.open(KEY);
    for (const old of await cache.keys()) {
      if (new URL(old.url).pathname === `/${id}`) await cache.delete(old);
    }
    if (blob) await cache.put(`/${id}`, new Response(blob, { headers: { 'content-type': blob.type } }));
  },
};
