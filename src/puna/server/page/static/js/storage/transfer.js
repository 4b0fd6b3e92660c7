/** Export and import as JSON. A file is data of unknown origin: shape and size are checked, other keys are dropped. */

import { duplicate, ROOT } from "../conversation.js";

/** @typedef {import("../conversation.js").Conversation} Conversation */
/** @typedef {import("../conversation.js").TokenScore} TokenScore */

export const FORMAT = "puna-conversations";
export const LIMITS = {
  bytes: 64 * 2 ** 20,
  conversations: 10_000,
  messages: 20_000,
  text: 4 * 2 ** 20,
  files: 100,
  tokens: 200_000,
  alternatives: 20,
  stops: 16,
};

const NUMBERS = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "repetition_penalty",
  "frequency_penalty",
  "presence_penalty",
  "max_completion_tokens",
  "seed",
];
const USAGE = ["prompt_tokens", "completion_tokens", "total_tokens"];

/**
 * @param {import("./library.js").Library} library
 * @param {Conversation[]} conversations with both sides of comparisons
 * @returns {Promise<object>}
 */
export async function exportDocument(library, conversations) {
  const items = [];
  for (const conversation of conversations) {
    /** @type {Record<string, TokenScore[]>} */
    const tokens = {};
    for (const id of Object.keys(conversation.messages)) {
      const scores = await library.readScores(id);
      if (scores.length) tokens[id] = scores;
    }
    items.push({ ...conversation, tokens });
  }
  return { format: FORMAT, version: 1, exported: new Date().toISOString(), conversations: items };
}

/** The error for a file that is not an export; its message contains the path of the first invalid value. */
export class ImportError extends Error {}

/**
 * @param {boolean} condition
 * @param {string} path
 * @param {string} expected
 * @returns {asserts condition}
 */
function check(condition, path, expected) {
  if (!condition) throw new ImportError(`${path} must be ${expected}.`);
}

const object = (/** @type {any} */ value, /** @type {string} */ path) => {
  check(typeof value === "object" && value !== null && !Array.isArray(value), path, "an object");
  return value;
};
const list = (/** @type {any} */ value, /** @type {string} */ path, /** @type {number} */ limit) => {
  check(Array.isArray(value) && value.length <= limit, path, `a list of at most ${limit} items`);
  return value;
};
const text = (/** @type {any} */ value, /** @type {string} */ path, limit = LIMITS.text) => {
  check(typeof value === "string" && value.length <= limit, path, `text of at most ${limit} characters`);
  return value;
};
const number = (/** @type {any} */ value, /** @type {string} */ path) => {
  check(typeof value === "number" && Number.isFinite(value), path, "a number");
  return value;
};
const time = (/** @type {any} */ value, /** @type {string} */ path) => {
  check(number(value, path) >= 0 && value <= 8.64e15, path, "a time in milliseconds since 1970");
  return value;
};
/** Hexadecimal ids cannot name properties that every object has, such as __proto__. */
const identifier = (/** @type {any} */ value, /** @type {string} */ path) => {
  check(typeof value === "string" && /^[0-9a-f]{32}$/.test(value), path, "an id of 32 hexadecimal digits");
  return value;
};

/**
 * @param {any} value
 * @param {string} path
 */
function readSampling(value, path) {
  object(value, path);
  /** @type {Record<string, any>} */
  const sampling = {};
  for (const name of NUMBERS) if (value[name] !== undefined) sampling[name] = number(value[name], `${path}.${name}`);
  if (value.stop !== undefined) {
    sampling.stop = list(value.stop, `${path}.stop`, LIMITS.stops).map((/** @type {any} */ item) =>
      text(item, `${path}.stop`, 1000),
    );
  }
  if (value.probabilities !== undefined) sampling.probabilities = value.probabilities === true;
  return sampling;
}

/**
 * @param {any} value
 * @param {string} path
 */
function readUsage(value, path) {
  object(value, path);
  /** @type {any} */
  const usage = Object.fromEntries(USAGE.map((name) => [name, number(value[name], `${path}.${name}`)]));
  const cached = value.prompt_tokens_details?.cached_tokens;
  if (cached !== undefined && cached !== null)
    usage.prompt_tokens_details = { cached_tokens: number(cached, `${path}.cached_tokens`) };
  return usage;
}

/**
 * @param {any} value
 * @param {string} path
 * @returns {import("../conversation.js").Message}
 */
function readMessage(value, path) {
  object(value, path);
  check(value.role === "user" || value.role === "assistant", `${path}.role`, '"user" or "assistant"');
  /** @type {import("../conversation.js").Message} */
  const message = {
    id: identifier(value.id, `${path}.id`),
    parent: value.parent === null ? null : identifier(value.parent, `${path}.parent`),
    role: value.role,
    content: text(value.content, `${path}.content`),
    created: time(value.created, `${path}.created`),
  };
  if (value.files !== undefined) {
    message.files = list(value.files, `${path}.files`, LIMITS.files).map((/** @type {any} */ file) => {
      object(file, `${path}.files`);
      return { name: text(file.name, `${path}.files.name`, 1000), text: text(file.text, `${path}.files.text`) };
    });
  }
  for (const name of /** @type {const} */ (["model", "system", "error", "finish", "fingerprint", "reasoning"])) {
    if (value[name] !== undefined) message[name] = text(value[name], `${path}.${name}`);
  }
  for (const name of /** @type {const} */ (["edited", "full"])) {
    if (value[name] !== undefined) message[name] = value[name] === true;
  }
  if (value.continued !== undefined) message.continued = number(value.continued, `${path}.continued`);
  if (value.parameters !== undefined) message.parameters = readSampling(value.parameters, `${path}.parameters`);
  if (value.usage !== undefined) message.usage = readUsage(value.usage, `${path}.usage`);
  if (value.timing !== undefined) {
    object(value.timing, `${path}.timing`);
    message.timing = {
      first: number(value.timing.first, `${path}.timing.first`),
      total: number(value.timing.total, `${path}.timing.total`),
    };
  }
  return message;
}

/**
 * @param {any} value
 * @param {string} path
 * @returns {TokenScore[]}
 */
function readTokens(value, path) {
  return list(value, path, LIMITS.tokens).map((/** @type {any} */ token) => {
    object(token, path);
    const top = list(token.top, `${path}.top`, LIMITS.alternatives).map((/** @type {any} */ pair) => {
      check(Array.isArray(pair) && pair.length === 2, `${path}.top`, "pairs of text and logprob");
      return /** @type {[string, number]} */ ([text(pair[0], `${path}.top`, 1000), number(pair[1], `${path}.top`)]);
    });
    return { text: text(token.text, `${path}.text`, 1000), logprob: number(token.logprob, `${path}.logprob`), top };
  });
}

/**
 * Parents must exist, must not form a cycle, and must have the other role; a first message has none.
 * @param {Record<string, import("../conversation.js").Message>} messages
 * @param {string} path
 */
function checkTree(messages, path) {
  const depths = new Map();
  for (const start of Object.values(messages)) {
    /** @type {import("../conversation.js").Message[]} */
    const chain = [];
    let message = start;
    while (!depths.has(message.id)) {
      check(!chain.includes(message) && chain.length <= LIMITS.messages, `${path}.messages`, "a tree");
      chain.push(message);
      if (message.parent === null) break;
      check(Object.hasOwn(messages, message.parent), `${path}.messages`, "a tree whose parents exist");
      message = messages[message.parent];
    }
    for (const item of chain) depths.set(item.id, true);
  }
}

/**
 * @param {any} value
 * @param {string} path
 */
function readConversation(value, path) {
  object(value, path);
  /** @type {Conversation} */
  const conversation = {
    id: identifier(value.id, `${path}.id`),
    title: text(value.title, `${path}.title`, 1000),
    created: time(value.created, `${path}.created`),
    updated: time(value.updated, `${path}.updated`),
    model: text(value.model, `${path}.model`, 1000),
    system: text(value.system, `${path}.system`),
    sampling: readSampling(value.sampling, `${path}.sampling`),
    messages: {},
    selected: {},
  };
  const messages = list(
    Object.values(object(value.messages, `${path}.messages`)),
    `${path}.messages`,
    LIMITS.messages,
  );
  for (const item of messages) {
    const message = readMessage(item, `${path}.messages`);
    conversation.messages[message.id] = message;
  }
  checkTree(conversation.messages, path);
  for (const [parent, child] of Object.entries(object(value.selected, `${path}.selected`))) {
    const message = conversation.messages[identifier(child, `${path}.selected`)];
    check(message !== undefined && (message.parent ?? ROOT) === parent, `${path}.selected`, "a child of each parent");
    conversation.selected[parent] = message.id;
  }
  if (value.pair !== undefined) {
    conversation.pair = identifier(value.pair, `${path}.pair`);
    conversation.side = value.side === 1 ? 1 : 0;
  }
  /** @type {Record<string, TokenScore[]>} */
  const tokens = {};
  for (const [id, scores] of Object.entries(object(value.tokens ?? {}, `${path}.tokens`))) {
    if (Object.hasOwn(conversation.messages, id)) tokens[id] = readTokens(scores, `${path}.tokens`);
  }
  return { conversation, tokens };
}

/**
 * @param {string} json
 * @returns {{conversation: Conversation, tokens: Record<string, TokenScore[]>}[]}
 */
export function readExport(json) {
  let document;
  try {
    document = JSON.parse(json);
  } catch {
    throw new ImportError("The file must be JSON.");
  }
  object(document, "The file");
  check(
    document.format === FORMAT && document.version === 1,
    "The file",
    `an export of this page ("format": "${FORMAT}", "version": 1)`,
  );
  return list(document.conversations, "conversations", LIMITS.conversations).map(
    (/** @type {any} */ item, /** @type {number} */ index) => readConversation(item, `conversations[${index}]`),
  );
}

/**
 * Adds the conversations of a file, except those that exist unchanged. They get new ids, because any tab may have
 * removed a conversation with the old one, and removes it again wherever it still appears.
 * @param {import("./library.js").Library} library
 * @param {string} json
 * @returns {Promise<number>} number of added conversations
 */
export async function importDocument(library, json) {
  const items = readExport(json);
  const stored = [...library.conversations.values()];
  const added = items.filter(
    ({ conversation }) =>
      !stored.some(
        ({ id, origin, updated }) =>
          (id === conversation.id || origin === conversation.id) && updated === conversation.updated,
      ),
  );
  const copies = added.map(({ conversation, tokens }) => {
    const { copy, ids } = duplicate(conversation, { origin: conversation.id });
    const renamed = Object.fromEntries(Object.entries(tokens).map(([id, scores]) => [ids.get(id), scores]));
    return { original: conversation.id, conversation: copy, tokens: renamed };
  });
  const names = new Map(copies.map(({ original, conversation }) => [original, conversation.id]));
  for (const { conversation, tokens } of copies) {
    if (conversation.pair) conversation.pair = names.get(conversation.pair);
    if (!conversation.pair) delete conversation.side;
    await library.save(conversation);
    for (const [id, scores] of Object.entries(tokens)) await library.saveScores(id, scores);
  }
  return copies.length;
}
