// What outlives a reload of the page. It belongs to one tab: the browser forgets it with the tab, and another tab is
// another player.

const KEY = 'rock-paper-scissors';

/** The players this page is known to be. */
const held = new Set();

/** What was kept last in this tab; undefined if there is nothing, or nothing that can be read. */
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
 * Whether this tab alone is the player `id`, within two seconds. A tab that was duplicated has the same memory, and
 * must become somebody else; a tab that is being loaded again may have to wait for its own past to end.
 */
export function alone(id) {
  return new Promise((resolve) => {
    if (held.has(id)) return resolve(true);
    const granted = () => {
      held.add(id);
      resolve(true);
      return new Promise(() => {}); // held for as long as this page is there
    };
    navigator.locks.request(`${KEY} ${id}`, { signal: AbortSignal.timeout(2000) }, granted).catch(() => resolve(false));
  });
}

/** The player's picture is too large for sessionStorage. */
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
