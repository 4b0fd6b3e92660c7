/** Locks of answers: of all tabs, only the one that holds the lock of an answer changes it. */

/**
 * @template T
 * @param {string} id of the message
 * @param {() => Promise<T>} task runs while this tab holds the lock; a tab that is closed releases its locks
 * @returns {Promise<T>}
 */
export function holding(id, task) {
  const locks = navigator.locks; // absent without HTTPS on other hosts than localhost
  return locks ? /** @type {any} */ (locks.request(id, task)) : task();
}
