/** All conversations of this browser: the list in memory, and its copy in the database, which the tabs share. */

import { pacer } from "../frames.js";
import { openDatabase } from "./database.js";
import { adopt, baseOf } from "./merge.js";

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
    /** @type {Map<string, import("./merge.js").Base>} what this tab last read or wrote of each conversation */
    this.bases = new Map();
    /** Conversations that a tab has removed: an answer that still arrives does not store them again. */
    this.removed = new Set();
    /** Conversations in which this tab receives an answer. */
    this.busy = new Set();
    /** @type {() => void} */
    this.onchange = () => {};
    /** @type {(conversation: Conversation) => void} called when another tab has changed a conversation */
    this.onadopt = () => {};
    /** @type {(conversation: Conversation) => boolean} whether a person is editing a message, whose branch stays */
    this.isEdited = () => false;
    /** @type {(ids: string[]) => void} called when another tab has removed conversations */
    this.onremove = () => {};
    /** Tells the other tabs what this one has stored. */
    this.channel = new BroadcastChannel("puna");
    this.channel.onmessage = ({ data }) => {
      if (data.saved) this.#read(data.saved);
      else if (data.scored) this.scores.delete(data.scored);
      else this.#forget(data.removed);
    };
  }

  static async open() {
    const library = new Library(await openDatabase());
    for (const conversation of await library.database.conversations.all()) {
      library.conversations.set(conversation.id, conversation);
      library.bases.set(conversation.id, baseOf(conversation));
    }
    return library;
  }

  /** @param {string} id of a conversation that another tab has stored */
  async #read(id) {
    const own = this.conversations.get(id);
    if (own) {
      await this.refresh(own);
      this.onadopt(own);
    } else {
      const stored = await this.database.conversations.get(id);
      if (!stored || this.conversations.has(id) || this.removed.has(id)) return;
      this.conversations.set(id, stored);
      this.bases.set(id, baseOf(stored));
    }
    this.onchange();
  }

  /** @param {string[]} ids of conversations that another tab has removed */
  async #forget(ids) {
    for (const id of ids) {
      this.removed.add(id);
      this.conversations.delete(id);
    }
    this.onremove(ids);
    this.onchange();
    await this.database.conversations.delete(ids); // this tab may have stored one again meanwhile
  }

  /** @param {Conversation} conversation gets the changes of other tabs */
  async refresh(conversation) {
    const stored = await this.database.conversations.get(conversation.id);
    if (!stored) return;
    this.#adopt(conversation, stored);
    this.bases.set(conversation.id, baseOf(stored));
  }

  /**
   * @param {Conversation} own
   * @param {Conversation} stored
   */
  #adopt(own, stored) {
    const taken = adopt(own, stored, this.bases.get(own.id), this.busy.has(own.id) || this.isEdited(own));
    for (const id of taken) this.scores.delete(id);
    return taken.length > 0;
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
    const { id } = conversation;
    if (this.removed.has(id)) return;
    this.conversations.set(id, conversation);
    this.onchange();
    let changed = false;
    await this.database.conversations.update(conversation, (stored) => {
      if (stored) changed = this.#adopt(conversation, stored);
      this.bases.set(id, baseOf(conversation));
    });
    this.channel.postMessage({ saved: id });
    if (changed) this.onadopt(conversation);
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
    this.channel.postMessage({ scored: message });
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
    const ids = conversations.map(({ id }) => id);
    for (const id of ids) {
      this.removed.add(id);
      this.conversations.delete(id);
    }
    for (const id of messages) this.scores.delete(id);
    this.onchange();
    await this.database.conversations.delete(ids);
    this.channel.postMessage({ removed: ids });
    await this.database.tokens.delete(messages);
  }
}
