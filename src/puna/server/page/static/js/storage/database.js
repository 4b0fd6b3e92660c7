/** Conversations and token scores in IndexedDB; in memory if the browser has no IndexedDB (private windows). */

/** @typedef {import("../conversation.js").Conversation} Conversation */
/** @typedef {import("../conversation.js").TokenScore} TokenScore */

const NAME = "puna";
const VERSION = 1;

/** Token scores are large and rarely read, so they have their own store; key: the id of the message. */
const STORES = ["conversations", "tokens"];

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** The same methods as a store of IndexedDB, in memory. */
class MemoryStore {
  constructor() {
    /** @type {Map<string, any>} */
    this.values = new Map();
  }
  async get(/** @type {string} */ key) {
    return structuredClone(this.values.get(key));
  }
  async all() {
    return structuredClone([...this.values.values()]);
  }
  async put(/** @type {any} */ value) {
    this.values.set(value.id, structuredClone(value));
  }
  /**
   * @param {any} value
   * @param {(stored: any) => void} merge
   */
  async update(value, merge) {
    merge(await this.get(value.id));
    await this.put(value);
  }
  async delete(/** @type {string[]} */ keys) {
    for (const key of keys) this.values.delete(key);
  }
}

class IndexedStore {
  /**
   * @param {IDBDatabase} database
   * @param {string} name
   */
  constructor(database, name) {
    this.database = database;
    this.name = name;
  }
  /** @param {IDBTransactionMode} mode */
  store(mode) {
    return this.database.transaction(this.name, mode).objectStore(this.name);
  }
  get(/** @type {string} */ key) {
    return result(this.store("readonly").get(key));
  }
  all() {
    return result(this.store("readonly").getAll());
  }
  async put(/** @type {any} */ value) {
    await result(this.store("readwrite").put(value));
  }
  /**
   * Stores a value in the transaction that reads the stored one, so that no other tab stores one in between.
   * @param {any} value
   * @param {(stored: any) => void} merge changes the value before it is stored; it gets undefined for a new value
   */
  async update(value, merge) {
    const store = this.store("readwrite");
    merge(await result(store.get(value.id)));
    await result(store.put(value));
  }
  async delete(/** @type {string[]} */ keys) {
    const store = this.store("readwrite");
    await Promise.all(keys.map((key) => result(store.delete(key))));
  }
}

/** @typedef {MemoryStore | IndexedStore} Store */

/** @returns {Promise<{conversations: Store, tokens: Store, persistent: boolean}>} */
export async function openDatabase() {
  try {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => STORES.forEach((name) => request.result.createObjectStore(name, { keyPath: "id" }));
    const database = await result(request);
    return {
      conversations: new IndexedStore(database, "conversations"),
      tokens: new IndexedStore(database, "tokens"),
      persistent: true,
    };
  } catch {
    return { conversations: new MemoryStore(), tokens: new MemoryStore(), persistent: false };
  }
}
