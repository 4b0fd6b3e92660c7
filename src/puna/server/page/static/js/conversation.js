/**
 * Conversations as trees: an edit or another answer adds a sibling, so that nothing is lost. `selected` holds the child
 * that is shown below each message. Functions here change the given conversation and touch neither the DOM nor storage.
 */

/**
 * @typedef {object} TokenScore
 * @property {string} text
 * @property {number} logprob
 * @property {[string, number][]} top alternatives with their logprobs, the most probable first
 */

/**
 * @typedef {object} Timing in milliseconds
 * @property {number} first until the first token
 * @property {number} total until the end
 */

/**
 * @typedef {object} Message
 * @property {string} id
 * @property {string | null} parent
 * @property {"user" | "assistant"} role
 * @property {string} content
 * @property {string} [reasoning] that precedes the content
 * @property {number} created milliseconds since 1970
 * @property {{name: string, text: string}[]} [files] text files that follow the content of a user message
 * @property {boolean} [edited] whether a person changed the answer
 * @property {string} [model]
 * @property {Sampling} [parameters] sampling settings of the request
 * @property {string} [system] system prompt of the request
 * @property {number} [continued] length of the text that the last request continued
 * @property {any} [usage]
 * @property {Timing} [timing]
 * @property {string} [finish] "stop", "length", "stopped" (by the user), "error"; absent: it arrives or was interrupted
 * @property {string} [error]
 * @property {boolean} [full] whether the request or the answer ended because the context is full
 * @property {string} [fingerprint]
 * @property {number} [revision] increased before each save of an answer that arrives
 */

/** @typedef {Record<string, any>} Sampling only the settings that differ from the model's defaults */

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {number} created
 * @property {number} updated
 * @property {string} model empty: the server's first model
 * @property {string} system
 * @property {Sampling} sampling
 * @property {Record<string, Message>} messages
 * @property {Record<string, string>} selected child by parent id; the parent of the first message is "root"
 * @property {string} [pair] id of the other conversation of a comparison
 * @property {0 | 1} [side] column in a comparison
 * @property {string} [origin] id in the file from which the conversation was imported
 */

export const ROOT = "root";

/** @returns {string} a random id; unlike randomUUID, getRandomValues also works without HTTPS */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {Partial<Conversation>} [values]
 * @returns {Conversation}
 */
export function newConversation(values = {}) {
  const now = Date.now();
  return {
    id: newId(),
    title: "",
    created: now,
    updated: now,
    model: "",
    system: "",
    sampling: {},
    messages: {},
    selected: {},
    ...values,
  };
}

/**
 * @param {Conversation} conversation
 * @returns {Message[]} the messages that are shown, first to last
 */
export function path(conversation) {
  const result = [];
  let message = conversation.messages[conversation.selected[ROOT]];
  while (message) {
    result.push(message);
    message = conversation.messages[conversation.selected[message.id]];
  }
  return result;
}

/**
 * @param {Conversation} conversation
 * @param {Message} message
 * @returns {Message[]} the message and those before it, first to last
 */
export function pathTo(conversation, message) {
  const result = [message];
  while (result[0].parent) result.unshift(conversation.messages[result[0].parent]);
  return result;
}

/**
 * @param {Conversation} conversation
 * @param {Message} message
 * @returns {Message[]} the message and its siblings, oldest first
 */
export function siblings(conversation, message) {
  const all = Object.values(conversation.messages).filter((other) => other.parent === message.parent);
  return all.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
}

/**
 * Adds a message below `parent` and shows it.
 * @param {Conversation} conversation
 * @param {Message | null} parent
 * @param {{role: "user" | "assistant", content: string} & Partial<Message>} values
 * @returns {Message}
 */
export function addMessage(conversation, parent, values) {
  const siblingTimes = Object.values(conversation.messages)
    .filter((other) => other.parent === (parent?.id ?? null))
    .map((other) => other.created + 1);
  const created = Math.max(Date.now(), ...siblingTimes); // later than its siblings, which keeps their order
  const message = { id: newId(), parent: parent?.id ?? null, created, ...values };
  conversation.messages[message.id] = message;
  select(conversation, message);
  if (!conversation.title && message.role === "user") conversation.title = titleOf(message);
  conversation.updated = Date.now();
  return message;
}

/**
 * Shows a branch.
 * @param {Conversation} conversation
 * @param {Message} message
 */
export function select(conversation, message) {
  conversation.selected[message.parent ?? ROOT] = message.id;
}

/** @param {Message} message */
function titleOf(message) {
  const text = message.content.trim().replace(/\s+/g, " ") || message.files?.[0]?.name || "New conversation";
  return text.length > 60 ? `${text.slice(0, 57).trimEnd()} …` : text;
}

/**
 * Returns a copy with new ids, for a comparison or an import.
 * @param {Conversation} conversation
 * @param {Partial<Conversation>} [values]
 * @returns {{copy: Conversation, ids: Map<string, string>}} `ids` maps old to new ids of messages
 */
export function duplicate(conversation, values = {}) {
  const ids = new Map(Object.keys(conversation.messages).map((id) => [id, newId()]));
  const rename = (/** @type {string | null} */ id) => (id === null ? null : (ids.get(id) ?? null));
  const copy = { ...structuredClone(conversation), id: newId(), messages: {}, selected: {}, ...values };
  for (const message of Object.values(conversation.messages)) {
    const id = /** @type {string} */ (ids.get(message.id));
    copy.messages[id] = { ...structuredClone(message), id, parent: rename(message.parent) };
  }
  for (const [parent, child] of Object.entries(conversation.selected)) {
    const [from, to] = [parent === ROOT ? ROOT : ids.get(parent), ids.get(child)];
    if (from && to) copy.selected[from] = to;
  }
  return { copy, ids };
}

/**
 * @param {Conversation} conversation
 * @returns {boolean} whether any message contains the words, in any order; case is ignored
 */
export function matches(conversation, /** @type {string} */ query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const texts = [
    conversation.title,
    conversation.system,
    ...Object.values(conversation.messages).map((message) => message.content),
  ];
  const text = texts.join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}
