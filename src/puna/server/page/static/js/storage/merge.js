/** Merges a conversation with its stored copy, which another tab may have changed. */

/** @typedef {import("../conversation.js").Conversation} Conversation */

const SETTINGS = /** @type {const} */ (["title", "model", "system", "sampling", "pair", "side"]);

/**
 * What this tab last read or wrote of a conversation, without its messages.
 * @typedef {{settings: Record<string, string>, selected: Record<string, string>}} Base
 */

/** @param {any} value */
const text = (value) => JSON.stringify(value) ?? "";

/** @param {Conversation} conversation @returns {Base} */
export function baseOf(conversation) {
  const settings = Object.fromEntries(SETTINGS.map((name) => [name, text(conversation[name])]));
  return { settings, selected: { ...conversation.selected } };
}

/**
 * Adds what is stored: messages of other tabs, later revisions, and settings that this tab has not changed since `base`.
 * @param {Conversation} own is changed in place, with its messages, because views refer to them
 * @param {Conversation} stored
 * @param {Base | undefined} base
 * @param {boolean} busy whether this tab receives an answer, whose branch stays selected
 * @returns {string[]} ids of the messages that were taken from `stored`
 */
export function adopt(own, stored, base, busy) {
  const taken = [];
  for (const [id, message] of Object.entries(stored.messages)) {
    const mine = own.messages[id];
    if (mine && (mine.revision ?? 0) >= (message.revision ?? 0)) continue;
    if (mine) for (const name of Object.keys(mine)) delete (/** @type {any} */ (mine)[name]);
    own.messages[id] = Object.assign(mine ?? {}, message);
    taken.push(id);
  }
  for (const name of SETTINGS) {
    if (base && text(own[name]) !== base.settings[name]) continue;
    if (stored[name] === undefined) delete own[name];
    else Object.assign(own, { [name]: stored[name] });
  }
  for (const [parent, child] of Object.entries(stored.selected)) {
    const changed = own.selected[parent] !== base?.selected[parent];
    if (!own.selected[parent] || !(busy || changed)) own.selected[parent] = child;
  }
  own.updated = Math.max(own.updated, stored.updated);
  return taken;
}
