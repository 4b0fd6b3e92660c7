/** One conversation on the screen: header, messages, and the requests that extend it. A comparison has two panes. */

import { addMessage, path, select } from "../conversation.js";
import { h } from "../dom.js";
import { oncePerFrame } from "../frames.js";
import { Generation } from "./generation.js";
import { Header } from "./header.js";
import { holding } from "./lock.js";
import { MessageView } from "./message.js";
import { Scroller } from "./scroller.js";
import { welcome } from "./welcome.js";

/** @typedef {import("../conversation.js").Conversation} Conversation */
/** @typedef {import("../conversation.js").Message} Message */
/** @typedef {import("../conversation.js").TokenScore} TokenScore */
/** @typedef {import("../app.js").App} App */

/** Milliseconds between two saves of an answer that is arriving. */
const SAVE_INTERVAL = 1500;

export class Pane {
  /**
   * @param {App} app
   * @param {Conversation} conversation
   * @param {string} label "" or "A" and "B" in a comparison
   */
  constructor(app, conversation, label) {
    this.app = app;
    this.conversation = conversation;
    this.label = label;
    /** @type {Generation | null} */
    this.generation = null;
    /** @type {Map<string, MessageView>} */
    this.views = new Map();
    this.saved = 0;
    /** Ids of the answers whose locks this tab waits for: other tabs receive them. */
    this.awaited = new Set();
    this.list = h("div", { class: "messages" });
    this.header = new Header(this);
    this.scroller = new Scroller(label ? `Conversation ${label}` : "Conversation", this.header.system, this.list);
    this.element = h(
      "section",
      { class: "pane", "aria-label": label ? `Column ${label}` : "Chat" },
      this.scroller.element,
      this.scroller.jump,
    );
    this.header.draw();
    this.drawMessages();
    this.scroller.scrollToEnd();
  }

  get model() {
    return this.app.model(this.conversation.model);
  }

  /** Whether another tab receives the last answer. */
  get elsewhere() {
    return this.awaited.has(path(this.conversation).at(-1)?.id);
  }

  /** Whether a person is editing a message. */
  get editing() {
    return [...this.views.values()].some((view) => view.editing);
  }

  /** Whether no tab receives the last answer. */
  get idle() {
    return !this.generation && !this.elsewhere;
  }

  /** Shows what another tab has changed. */
  showChanges() {
    this.header.update();
    this.drawMessages();
    this.scroller.keepBottom();
  }

  drawMessages() {
    const messages = path(this.conversation);
    // The last message comes first: its end is what a person reads.
    const elements = messages.toReversed().map((message) => {
      let view = this.views.get(message.id);
      if (!view) {
        view = new MessageView(this, message);
        this.views.set(message.id, view);
      } else if (!this.generation || view.generation !== this.generation) {
        view.refresh();
      }
      return view.element;
    });
    elements.reverse();
    for (const child of [...this.list.children]) if (!elements.includes(child)) child.remove();
    elements.forEach((element, index) => {
      const place = this.list.children[index];
      if (place !== element) this.list.insertBefore(element, place ?? null);
    });
    this.element.classList.toggle("empty", !messages.length);
    if (!messages.length) this.list.replaceChildren(welcome(this));
    this.header.drawGauge();
  }

  /** @param {Message} message @returns {boolean} */
  isLast(message) {
    return path(this.conversation).at(-1) === message;
  }

  /**
   * @param {Message | null} message
   * @param {number} offset
   */
  focusMessage(message, offset) {
    const messages = path(this.conversation);
    const index = message ? messages.indexOf(message) + offset : offset < 0 ? messages.length - 1 : 0;
    const view = this.views.get(messages[index]?.id ?? "");
    view?.element.focus();
    view?.element.scrollIntoView({ block: "nearest" });
  }

  /**
   * Sends a message of the user.
   * @param {string} content
   * @param {{name: string, text: string}[]} files
   * @returns {Promise<void>} resolved when the answer has ended
   */
  send(content, files) {
    const parent = path(this.conversation).at(-1) ?? null;
    const message = addMessage(this.conversation, parent, {
      role: "user",
      content,
      ...(files.length ? { files } : {}),
    });
    return this.#answer(message);
  }

  /** @param {Message | null} parent */
  #newAnswer(parent, content = "") {
    const { conversation } = this;
    return addMessage(conversation, parent, {
      role: "assistant",
      content,
      model: conversation.model || this.model?.id || "",
      system: conversation.system,
      parameters: this.#parameters(),
    });
  }

  /** @returns {import("../conversation.js").Sampling} the settings of the next request */
  #parameters() {
    return { ...this.model?.sampling, ...structuredClone(this.conversation.sampling) };
  }

  /** @param {Message} user */
  #answer(user) {
    return this.#generate(this.#newAnswer(user), []);
  }

  /** @param {Message} message an answer: another one becomes its sibling */
  regenerate(message) {
    if (!this.idle) return;
    return this.#answer(this.conversation.messages[message.parent ?? ""]);
  }

  /** @param {Message} message the last answer */
  continueAnswer(message) {
    if (!this.idle) return;
    const { revision } = message; // another tab may continue the answer first
    return this.#continue(message, () => message.revision === revision);
  }

  /**
   * Shows what other tabs have changed. If the last answer is not complete, another tab receives it: this tab waits until
   * that one ends or is closed, and continues the answer in the second case.
   */
  async resume() {
    const message = path(this.conversation).at(-1);
    const isOpen = () => !message?.finish || message.finish === "interrupted";
    if (!this.idle || message?.role !== "assistant" || !isOpen()) return;
    await this.#continue(message, isOpen);
  }

  /**
   * @param {Message} message
   * @param {() => boolean} isUnchanged asked when no other tab receives the answer and its latest text is known
   */
  async #continue(message, isUnchanged) {
    this.awaited.add(message.id);
    this.#drawState();
    await holding(message.id, async () => {
      const known = await this.#refresh(message);
      if (!known || this.generation || !isUnchanged() || !this.app.panes.includes(this) || !this.isLast(message)) return;
      message.continued = message.content.length;
      message.system = this.conversation.system;
      message.parameters = this.#parameters();
      message.model = this.conversation.model || message.model;
      const scores = message.edited || !message.content ? [] : await this.app.library.readScores(message.id);
      await this.#generate(message, scores, true);
      if (message.content.length === message.continued && message.finish === "stop")
        this.app.toast("The model added nothing: it considers the answer complete.");
    });
  }

  #drawState() {
    this.drawMessages();
    this.app.onbusy();
  }

  /**
   * @param {Message} message an answer that no other tab receives any more
   * @returns {Promise<boolean>} whether its latest text is known
   */
  async #refresh(message) {
    try {
      await this.app.library.refresh(this.conversation);
      return true;
    } catch {
      this.app.toast("The browser could not read the stored conversation. Load the page again.");
      return false;
    } finally {
      this.awaited.delete(message.id);
      this.#drawState();
    }
  }

  /**
   * Adds a version of the answer that starts with its first tokens and another choice at `index`.
   * @param {Message} message
   * @param {TokenScore[]} tokens
   * @param {number} index
   * @param {string} alternative
   */
  branchAt(message, tokens, index, alternative) {
    if (!this.idle) return;
    const logprob = tokens[index].top.find(([text]) => text === alternative)?.[1] ?? 0;
    const scores = [...tokens.slice(0, index), { text: alternative, logprob, top: tokens[index].top }];
    const content = scores.map(({ text }) => text).join("");
    const branch = this.#newAnswer(this.conversation.messages[message.parent ?? ""], content);
    branch.continued = content.length;
    return this.#generate(branch, scores);
  }

  /**
   * Adds an edited message as a sibling, and sends it if it is the user's.
   * @param {Message} message
   * @param {string} content
   */
  acceptEdit(message, content) {
    this.views.delete(message.id); // its view shows the editor
    const parent = message.parent ? this.conversation.messages[message.parent] : null;
    const { files, model, system, parameters } = message;
    if (message.role === "user") {
      const edited = addMessage(this.conversation, parent, { role: "user", content, ...(files ? { files } : {}) });
      return this.#answer(edited);
    }
    const edited = addMessage(this.conversation, parent, {
      role: "assistant",
      content,
      model,
      system,
      parameters,
      edited: true,
      finish: "stop",
    });
    this.app.save(this.conversation);
    this.drawMessages();
    this.views.get(edited.id)?.element.focus();
  }

  /**
   * @param {Message} message
   * @param {string} focus label of the button that keeps the focus, or "message"
   */
  showBranch(message, focus) {
    if (this.generation) return;
    select(this.conversation, message);
    this.app.save(this.conversation);
    this.#drawState();
    this.app.resume();
    const view = this.views.get(message.id);
    const button = /** @type {HTMLElement | null} */ (
      view?.element.querySelector(`[aria-label="${focus}"]:not(:disabled)`)
    );
    (button ?? view?.element)?.focus();
    this.app.announcer.say(view?.element.querySelector(".branch-place")?.textContent ?? "");
  }

  stop() {
    this.generation?.stop();
  }

  /**
   * @param {Message} message
   * @param {TokenScore[]} scores
   * @param {boolean} [held] whether this tab holds the lock of the answer
   */
  async #generate(message, scores, held = false) {
    const { app, conversation } = this;
    const announcer = this.label === "B" ? null : app.announcer; // two answers at once cannot be followed by ear
    const speak = oncePerFrame(() => announcer?.update(message.content));
    const generation = new Generation(conversation, message, scores, this.model?.context ?? null, () =>
      this.#onupdate(view, speak),
    );
    this.generation = generation;
    this.views.delete(message.id);
    const view = new MessageView(this, message);
    view.generation = generation;
    this.views.set(message.id, view);
    this.drawMessages();
    view.refresh();
    this.scroller.scrollToEnd();
    announcer?.start(message.content);
    app.library.busy.add(conversation.id);
    app.onbusy();
    const receive = () => this.#receive(generation, view, announcer, speak);
    try {
      await (held ? receive() : holding(message.id, receive));
    } finally {
      app.library.busy.delete(conversation.id);
      app.onbusy();
    }
  }

  /**
   * Runs while this tab holds the lock: another tab must not see an answer without its end and without a lock.
   * @param {Generation} generation
   * @param {MessageView} view
   * @param {import("./announcer.js").Announcer | null} announcer
   * @param {ReturnType<typeof oncePerFrame>} speak
   */
  async #receive(generation, view, announcer, speak) {
    const { app, conversation } = this;
    const { message, scores } = generation;
    this.#save(message);
    const timer = setInterval(() => view.draw(), 250); // the time shown while waiting
    await generation.run();
    clearInterval(timer);
    this.generation = view.generation = null;
    view.draw.flush();
    speak.flush();
    conversation.updated = Date.now();
    this.drawMessages();
    view.refresh();
    announcer?.finish(
      message.content,
      message.error ? `Error: ${message.error}` : message.finish === "stopped" ? "Stopped." : "Answer complete.",
    );
    await Promise.all([this.#save(message), app.saveScores(conversation, message, scores)]);
  }

  /** @param {Message} message an answer of which this tab has more than the others */
  #save(message) {
    this.saved = performance.now();
    message.revision = (message.revision ?? 0) + 1;
    return this.app.save(this.conversation);
  }

  /**
   * @param {MessageView} view
   * @param {() => void} speak
   */
  #onupdate(view, speak) {
    if (!this.generation) return;
    view.draw();
    speak();
    if (performance.now() - this.saved > SAVE_INTERVAL) this.#save(view.message);
  }

  /** @param {Element | null | undefined} element @returns {Message | null} */
  messageOf(element) {
    return this.conversation.messages[/** @type {HTMLElement | undefined} */ (element)?.dataset.id ?? ""] ?? null;
  }
}
