/** One conversation on the screen: header, messages, and the requests that extend it. A comparison has two panes. */

import { addMessage, path, select } from "../conversation.js";
import { h, iconButton } from "../dom.js";
import { oncePerFrame } from "../frames.js";
import { visible } from "../markdown/visible.js";
import { Generation, isReceived } from "./generation.js";
import { MessageView } from "./message.js";
import { count } from "./statistics.js";
import { welcome } from "./welcome.js";

/** @typedef {import("../conversation.js").Conversation} Conversation */
/** @typedef {import("../conversation.js").Message} Message */
/** @typedef {import("../conversation.js").TokenScore} TokenScore */
/** @typedef {import("../app.js").App} App */

/** Milliseconds between two saves of an answer that is arriving. */
const SAVE_INTERVAL = 1500;

/** Distance from the end, in pixels, within which the view follows new text. */
const BOTTOM = 60;

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
    this.following = true;
    this.saved = 0;
    this.list = h("div", { class: "messages" });
    this.system = h("div", { class: "system" });
    this.scroller = h(
      "div",
      {
        class: "scroller",
        tabindex: "0",
        role: "region",
        "aria-label": label ? `Conversation ${label}` : "Conversation",
        onscroll: () => this.#onscroll(),
      },
      this.system,
      this.list,
    );
    this.jump = iconButton("down", "Go to the end", () => this.scrollToEnd(), { class: "jump", hidden: true });
    this.header = h("div", { class: "pane-header" });
    this.element = h(
      "section",
      { class: "pane", "aria-label": label ? `Column ${label}` : "Chat" },
      this.scroller,
      this.jump,
    );
    this.drawHeader();
    this.drawMessages();
    this.scrollToEnd();
  }

  get model() {
    return this.app.model(this.conversation.model);
  }

  drawHeader() {
    const { app, conversation } = this;
    const name = this.label ? `Model of column ${this.label}` : "Model";
    const choice = h("select", {
      class: "model-choice",
      "aria-label": name,
      onchange: () => this.#chooseModel(choice.value),
    });
    const known = app.models.some(({ id }) => id === conversation.model);
    if (conversation.model && !known)
      choice.append(h("option", { value: conversation.model }, `${conversation.model} (not on this server)`));
    for (const [group, adapters] of /** @type {[string, boolean][]} */ ([
      ["Models", false],
      ["Adapters", true],
    ])) {
      const models = app.models.filter(({ parent }) => (parent !== null) === adapters);
      if (models.length)
        choice.append(
          h("optgroup", { label: group }, ...models.map(({ id }) => h("option", { value: id }, visible(id)))),
        );
    }
    choice.value = conversation.model || this.model?.id || "";
    this.gauge = h("div", { class: "gauge" });
    const settings = iconButton(
      "sliders",
      this.label ? `Settings of column ${this.label}` : "Settings of this conversation",
      () => app.editSettings(this),
    );
    const keep = this.label
      ? h(
          "button",
          { type: "button", class: "button small", onclick: () => app.endComparison(this) },
          `Keep ${this.label}`,
        )
      : null;
    const mark = this.label ? h("span", { class: "side-mark", "aria-hidden": "true" }, this.label) : null;
    this.header.replaceChildren(...[mark, choice, this.gauge, settings, keep].filter((item) => item !== null));
    this.#drawGauge();
    const prompt = conversation.system;
    this.system.replaceChildren(
      ...(prompt
        ? [
            h(
              "button",
              { type: "button", class: "system-chip", onclick: () => app.editSettings(this) },
              h("span", { class: "system-label" }, "System"),
              h("span", { class: "system-text" }, visible(prompt)),
            ),
          ]
        : []),
    );
  }

  /** @param {string} model */
  #chooseModel(model) {
    this.conversation.model = model;
    this.app.save(this.conversation);
    this.drawHeader();
    /** @type {HTMLElement | null} */ (this.header.querySelector("select"))?.focus();
  }

  #drawGauge() {
    const context = this.model?.context;
    const usage = path(this.conversation).findLast((message) => message.usage)?.usage;
    const used = usage?.total_tokens ?? 0;
    if (!context) return this.gauge.replaceChildren();
    const label = `${count(used)} of ${count(context)} tokens of the context`;
    const bar = h("meter", {
      min: "0",
      max: String(context),
      high: String(0.85 * context),
      optimum: "0",
      value: String(used),
      "aria-label": label,
      title: label,
    });
    this.gauge.replaceChildren(
      bar,
      h("span", { class: "gauge-text", "aria-hidden": "true" }, `${count(used)} / ${count(context)}`),
    );
  }

  drawMessages() {
    const messages = path(this.conversation);
    const elements = messages.map((message) => {
      let view = this.views.get(message.id);
      if (!view) {
        view = new MessageView(this, message);
        this.views.set(message.id, view);
      } else if (!this.generation || view.generation !== this.generation) {
        view.refresh();
      }
      return view.element;
    });
    if (
      elements.some((element, index) => this.list.children[index] !== element) ||
      this.list.children.length !== elements.length
    ) {
      this.list.replaceChildren(...elements);
    }
    this.element.classList.toggle("empty", !messages.length);
    if (!messages.length) this.list.replaceChildren(welcome(this));
    this.#drawGauge();
  }

  #onscroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    const atEnd = scrollHeight - scrollTop - clientHeight < BOTTOM;
    // Only scrolling up stops following, because new text also moves the end away from the view.
    if (atEnd) this.following = true;
    else if (scrollTop < (this.lastTop ?? 0)) this.following = false;
    this.lastTop = scrollTop;
    this.jump.hidden = atEnd || this.following;
  }

  keepBottom() {
    if (this.following && this.list) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  scrollToEnd() {
    this.following = true;
    this.jump.hidden = true;
    this.keepBottom();
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
    if (this.generation) return;
    return this.#answer(this.conversation.messages[message.parent ?? ""]);
  }

  /** @param {Message} message the last answer */
  async continueAnswer(message) {
    if (this.generation) return;
    if (!message.content) return this.regenerate(message);
    message.continued = message.content.length;
    message.system = this.conversation.system;
    message.parameters = this.#parameters();
    message.model = this.conversation.model || message.model;
    await this.#generate(message, message.edited ? [] : await this.app.library.readScores(message.id));
    if (message.content.length === message.continued && !message.error)
      this.app.toast("The model added nothing: it considers the answer complete.");
  }

  /** Continues the last answer if closing or reloading the page has interrupted it. */
  async resume() {
    const message = path(this.conversation).at(-1);
    if (this.generation || message?.role !== "assistant" || message.finish !== "interrupted") return;
    if ((await isReceived(message)) || this.generation) return;
    return message.content ? this.continueAnswer(message) : this.#generate(message, []);
  }

  /**
   * Adds a version of the answer that starts with its first tokens and another choice at `index`.
   * @param {Message} message
   * @param {TokenScore[]} tokens
   * @param {number} index
   * @param {string} alternative
   */
  branchAt(message, tokens, index, alternative) {
    if (this.generation) return;
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
    this.drawMessages();
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
   */
  async #generate(message, scores) {
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
    this.scrollToEnd();
    announcer?.start(message.content);
    app.onbusy();
    app.save(conversation);
    const timer = setInterval(() => view.draw(), 250); // the time shown while waiting
    await generation.run();
    clearInterval(timer);
    this.generation = view.generation = null;
    view.draw.flush();
    speak.flush();
    conversation.updated = Date.now();
    await app.library.saveScores(message.id, scores);
    this.drawMessages();
    view.refresh();
    announcer?.finish(
      message.content,
      message.error ? `Error: ${message.error}` : message.finish === "stopped" ? "Stopped." : "Answer complete.",
    );
    app.save(conversation);
    app.onbusy();
  }

  /**
   * @param {MessageView} view
   * @param {() => void} speak
   */
  #onupdate(view, speak) {
    if (!this.generation) return;
    view.draw();
    speak();
    if (performance.now() - this.saved > SAVE_INTERVAL) {
      this.saved = performance.now();
      this.app.save(this.conversation);
    }
  }

  /** @param {Element | null | undefined} element @returns {Message | null} */
  messageOf(element) {
    return this.conversation.messages[/** @type {HTMLElement | undefined} */ (element)?.dataset.id ?? ""] ?? null;
  }
}
