/** All conversations of this browser: the list in memory, and its copy in the database. */

import { pacer } from "../frames.js";
import { openDatabase } from "./database.js";

/** @typedef {import("../conversation.js").Conversation} Conversation */
/** @typedef {import("../conversation.js").TokenScore} TokenScore */

/** Scores in one JSON text. The database copies texts quickly; 10,000 objects would take longer than a frame. */
const PART = 500;

export class Library {
  /** @param {Awaited<ReturnType<typeof openDatabase>>} database */
  constructor(database) {
    this.database = database;
    this.persistent = database.persistent;
    /** @type {Map<string, Conversation>} */
    this.conversations = new Map();
    /** @type {Map<string, TokenScore[]>} scores of the messages that this tab has generated or read */
    this.scores = new Map();
    /** @type {() => void} */
    this.onchange = () => {};
  }

  static async open() {
    const library = new Library(await openDatabase());
    for (const conversation of await library.database.conversations.all())
      library.conversations.set(conversation.id, conversation);
    return library;
  }

  /** @returns {Conversation[]} without the second sides of comparisons, the latest first */
  list() {
    return [...this.conversations.values()]
      .filter((conversation) => !conversation.side)
      .sort((a, b) => b.updated - a.updated);
  }

  /**
   * @param {Conversation} conversation
   * @returns {Conversation[]} the conversation, or both sides of its comparison
   */
  sides(conversation) {
    const other = conversation.pair ? this.conversations.get(conversation.pair) : undefined;
    return other ? [conversation, other].sort((a, b) => (a.side ?? 0) - (b.side ?? 0)) : [conversation];
  }

  /** @param {Conversation} conversation */
  async save(conversation) {
    this.conversations.set(conversation.id, conversation);
    this.onchange();
    await this.database.conversations.put(conversation);
  }

  /**
   * @param {string} message
   * @param {TokenScore[]} tokens
   */
  async saveScores(message, tokens) {
    this.scores.set(message, tokens);
    const parts = [];
    const pause = pacer();
    for (let start = 0; start < tokens.length; start += PART) {
      parts.push(JSON.stringify(tokens.slice(start, start + PART)));
      await pause();
    }
    await this.database.tokens.put({ id: message, parts });
  }

  /**
   * @param {string} message
   * @returns {Promise<TokenScore[]>} empty if the answer has no scores
   */
  async readScores(message) {
    let tokens = this.scores.get(message);
    if (!tokens) {
      const stored = /** @type {any} */ (await this.database.tokens.get(message));
      tokens = (stored?.parts ?? []).flatMap((/** @type {string} */ part) => JSON.parse(part));
      this.scores.set(message, /** @type {TokenScore[]} */ (tokens));
    }
    return /** @type {TokenScore[]} */ (tokens);
  }

  /** @param {Conversation[]} conversations */
  async remove(conversations) {
    const messages = conversations.flatMap((conversation) => Object.keys(conversation.messages));
    for (const { id } of conversations) this.conversations.delete(id);
    for (const id of messages) this.scores.delete(id);
    this.onchange();
    await this.database.conversations.delete(conversations.map(({ id }) => id));
    await this.database.tokens.delete(messages);
  }
}
