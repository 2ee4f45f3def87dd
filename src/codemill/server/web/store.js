// What the browser keeps: chats in IndexedDB, choices in localStorage, the API key for this tab or, if asked, for longer.

const DATABASE = "codemill";
const CHATS = "chats";
const KEY = "codemill.key";

function asPromise(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Chats by id. Where a browser has no IndexedDB (some private windows), they last as long as the page. */
export class ChatStore {
  static async open() {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(CHATS, { keyPath: "id" });
    try {
      return new ChatStore(await asPromise(request));
    } catch {
      return new MemoryStore();
    }
  }

  constructor(database) {
    this.database = database;
    this.lasts = true;
  }

  #chats(mode) {
    return this.database.transaction(CHATS, mode).objectStore(CHATS);
  }

  all() {
    return asPromise(this.#chats("readonly").getAll());
  }

  put(record) {
    return asPromise(this.#chats("readwrite").put(record));
  }

  remove(id) {
    return asPromise(this.#chats("readwrite").delete(id));
  }
}

class MemoryStore {
  chats = new Map();
  lasts = false;

  async all() {
    return [...this.chats.values()];
  }

  async put(record) {
    this.chats.set(record.id, record);
  }

  async remove(id) {
    this.chats.delete(id);
  }
}

/** A choice that outlives the page; anything that JSON can hold. */
export function remembered(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`codemill.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function remember(name, value) {
  localStorage.setItem(`codemill.${name}`, JSON.stringify(value));
}

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "",
  isKept: () => localStorage.getItem(KEY) !== null,
  set(key, keep) {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
    if (key) (keep ? localStorage : sessionStorage).setItem(KEY, key);
  },
};
