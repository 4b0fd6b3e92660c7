/** The view of one message: text, figures, actions, branches. */

import { copyText } from "../clipboard.js";
import { siblings } from "../conversation.js";
import { h, icon, iconButton, keepFocus } from "../dom.js";
import { hasTime, oncePerFrame } from "../frames.js";
import { MarkdownView } from "../markdown/view.js";
import { visible } from "../markdown/visible.js";
import { fullText } from "../request.js";
import { editor } from "./editor.js";
import { HeatMap } from "./heat.js";
import { fullNotice } from "./notice.js";
import { count, figures, liveFigures } from "./statistics.js";

/** @typedef {import("../conversation.js").Message} Message */
/** @typedef {import("./pane.js").Pane} Pane */

/** Limit of the weight that is drawn in one frame (`markdown/split.js`): the browser must lay it out, too. */
const WEIGHT = 2000;

export class MessageView {
  /**
   * @param {Pane} pane
   * @param {Message} message
   */
  constructor(pane, message) {
    this.pane = pane;
    this.message = message;
    /** @type {import("./generation.js").Generation | null} */
    this.generation = null;
    this.isUser = message.role === "user";
    /** @type {Map<string, string>} the states of the parts that are shown */
    this.states = new Map();
    this.body = h("div", { class: this.isUser ? "body user-text" : "body prose" });
    this.state = h("div", { class: "state" });
    this.footer = h("footer", { class: "message-footer" });
    this.head = h("header", { class: "message-head" });
    this.element = h(
      "article",
      {
        class: `message ${message.role}`,
        tabindex: "-1",
        "data-id": message.id,
        onkeydown: (/** @type {KeyboardEvent} */ event) => this.#key(event),
      },
      this.head,
      this.body,
      this.state,
      this.footer,
    );
    this.markdown = this.isUser ? null : new MarkdownView(this.body);
    this.draw = oncePerFrame(() => this.#draw());
    this.refresh();
  }

  /** Shows the message again after it has changed in any way. */
  refresh() {
    if (this.editing) return;
    const name = this.isUser ? "You" : this.message.model || "Answer";
    this.element.setAttribute("aria-label", this.isUser ? "You" : `Answer of ${name}`);
    this.head.replaceChildren(h("h2", { class: "who" }, name));
    if (this.isUser) this.#drawUser();
    else this.#draw();
    this.#drawFooter();
  }

  /**
   * Elements are not replaced by the same ones: that would take their focus.
   * @param {string} part
   * @param {any} state from which the part is drawn
   * @returns {boolean} whether the part must be drawn again
   */
  #differs(part, state) {
    const text = JSON.stringify(state);
    const differs = this.states.get(part) !== text;
    this.states.set(part, text);
    return differs;
  }

  #drawUser() {
    if (!this.#differs("body", this.message.content)) return;
    const files = (this.message.files ?? []).map(({ name, text }) =>
      h(
        "details",
        { class: "file" },
        h(
          "summary",
          {},
          icon("file"),
          h("span", {}, visible(name)),
          h("span", { class: "size" }, `${count(text.length)} characters`),
        ),
        h("pre", { tabindex: "0", role: "region", "aria-label": `Contents of ${visible(name)}` }, visible(text)),
      ),
    );
    this.body.replaceChildren(...(this.message.content ? [h("p", { dir: "auto" }, visible(this.message.content))] : []), ...files);
  }

  /** Whether nothing more of the message is arriving, here or in another tab. */
  get ended() {
    return !this.generation && (Boolean(this.message.finish) || !this.pane.awaited.has(this.message.id));
  }

  #draw() {
    const { message } = this;
    if (this.markdown && !this.heat && !this.editing) {
      const end = this.markdown.drawn + WEIGHT;
      let more = true;
      while (more && hasTime() && this.markdown.drawn < end) more = this.markdown.update(message.content, this.ended);
      if (more) this.draw();
    }
    this.#drawReasoning();
    this.#drawState();
    this.pane.scroller.keepBottom();
  }

  /** The reasoning is open until the answer begins; then the reader decides. */
  #drawReasoning() {
    const { reasoning = "", content } = this.message;
    if (reasoning.length === this.drawn && Boolean(content) === this.answering) return;
    if (!reasoning) return;
    if (!this.reasoning) {
      this.thoughts = h("div", { class: "reasoning-text", tabindex: "0", role: "region", "aria-label": "Reasoning" });
      this.reasoning = h("details", { class: "reasoning" }, h("summary", {}, "Reasoning"), this.thoughts);
      this.body.before(this.reasoning);
    }
    if (reasoning.length !== this.drawn) this.thoughts.textContent = visible(reasoning);
    if (Boolean(content) !== this.answering) this.reasoning.open = Boolean(this.generation) && !content;
    this.drawn = reasoning.length;
    this.answering = Boolean(content);
  }

  #drawState() {
    const { message, generation } = this;
    this.element.classList.toggle("streaming", Boolean(generation));
    this.element.setAttribute("aria-busy", String(Boolean(generation)));
    if (!this.#differs("state", generation ? performance.now() : [message.error, message.full])) return;
    if (!generation) {
      const error = message.error
        ? h("p", { class: "error" }, icon("alert"), h("span", {}, visible(message.error)))
        : null;
      this.state.replaceChildren(...(error ? [error] : []), ...(message.full ? [fullNotice(this)] : []));
      this.live = null;
      return;
    }
    if (!this.live) {
      this.live = h("p", { class: "figures" });
      this.bar = h("progress", { "aria-label": "Reading the prompt" });
      this.prefill = h("div", { class: "prefill" }, this.bar, h("span", {}));
      this.dots = h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
      this.state.replaceChildren(this.dots, this.prefill, this.live);
    }
    const { progress } = generation;
    this.prefill.hidden = !progress;
    this.dots.hidden = Boolean(generation.first) || Boolean(progress);
    if (progress) {
      this.bar.max = progress.total;
      this.bar.value = progress.done;
      const cached = progress.cached ? `, ${count(progress.cached)} from the cache` : "";
      const text = `Reading the prompt: ${count(progress.done)} of ${count(progress.total)} tokens${cached}`;
      this.prefill.lastElementChild.textContent = text;
    }
    this.live.textContent = liveFigures(generation);
  }

  #drawFooter() {
    const { message, pane } = this;
    const text = this.isUser || !this.ended ? [] : figures(message);
    const versions = siblings(pane.conversation, message).map(({ id }) => id);
    const state = [versions, pane.isLast(message), pane.elsewhere, Boolean(this.heat), text];
    if (!this.#differs("footer", this.generation ? null : state)) return;
    if (this.generation) return this.footer.replaceChildren();
    const disabled = pane.elsewhere;
    const buttons = [iconButton("copy", "Copy", (event) => this.#copy(event))];
    if (this.isUser) {
      buttons.push(iconButton("edit", "Edit", () => this.edit(), { disabled }));
    } else {
      buttons.push(iconButton("refresh", "Answer again", () => pane.regenerate(message), { disabled }));
      if (pane.isLast(message))
        buttons.push(iconButton("continue", "Continue this answer", () => pane.continueAnswer(message), { disabled }));
      buttons.push(iconButton("edit", "Edit", () => this.edit(), { disabled }));
      buttons.push(
        iconButton("heat", "Token probabilities", () => this.toggleHeat(), {
          "aria-pressed": String(Boolean(this.heat)),
        }),
      );
      buttons.push(iconButton("code", "Show the request", () => pane.app.showRequest(pane.conversation, message)));
    }
    const figuresLine = text.length ? [h("p", { class: "figures" }, text.join(" · "))] : [];
    keepFocus(this.footer, () =>
      this.footer.replaceChildren(...this.#branches(), h("div", { class: "actions" }, ...buttons), ...figuresLine),
    );
  }

  #branches() {
    const all = siblings(this.pane.conversation, this.message);
    if (all.length < 2) return [];
    const index = all.indexOf(this.message);
    const step = (/** @type {number} */ offset, /** @type {string} */ name, /** @type {string} */ label) =>
      iconButton(name, label, () => this.pane.showBranch(all[index + offset], label), {
        disabled: !all[index + offset],
      });
    const place = h(
      "span",
      { class: "branch-place" },
      h("span", { class: "visually-hidden" }, "Version "),
      `${index + 1} / ${all.length}`,
    );
    return [
      h(
        "div",
        { class: "branches", role: "group", "aria-label": "Versions" },
        step(-1, "left", "Previous version"),
        place,
        step(1, "right", "Next version"),
      ),
    ];
  }

  /** @param {Event} event */
  async #copy(event) {
    const button = /** @type {HTMLElement} */ (event.currentTarget);
    const copied = await copyText(this.isUser ? fullText(this.message) : this.message.content);
    button.replaceChildren(icon(copied ? "check" : "alert"));
    this.pane.app.announcer.say(copied ? "Copied." : "The browser refused to copy.");
    setTimeout(() => button.replaceChildren(icon("copy")), 1600);
  }

  edit() {
    if (this.generation || this.pane.elsewhere) return;
    this.editing = true;
    this.states.clear();
    this.footer.replaceChildren();
    const done = (/** @type {string | null} */ text) => {
      this.editing = false;
      if (text !== null && text.trim() && text !== this.message.content)
        return this.pane.acceptEdit(this.message, text);
      this.markdown?.clear();
      this.refresh();
      this.element.focus();
    };
    this.body.replaceChildren(
      editor(
        this.message.content,
        this.isUser ? "Edit your message" : "Edit the answer",
        this.isUser ? "Send" : "Save",
        done,
      ),
    );
  }

  async toggleHeat() {
    if (this.heat) {
      this.heat = null;
      this.body.classList.add("prose");
      this.markdown?.clear();
      this.refresh();
    } else {
      const tokens = await this.pane.app.library.readScores(this.message.id);
      if (!tokens.length)
        return this.pane.app.toast(
          "This answer has no token probabilities. The settings have an option that requests them; an edit removes them.",
        );
      this.heat = new HeatMap(tokens, (index, alternative) =>
        this.pane.branchAt(this.message, tokens, index, alternative),
      );
      this.markdown?.clear();
      this.body.classList.remove("prose");
      this.body.replaceChildren(this.heat.element);
      this.#drawFooter();
    }
    /** @type {HTMLElement | null} */ (this.footer.querySelector("[aria-pressed]"))?.focus();
  }

  /** Keys of a focused message. @param {KeyboardEvent} event */
  #key(event) {
    if (event.target !== this.element || event.ctrlKey || event.metaKey || event.altKey) return;
    const { pane, message } = this;
    const all = siblings(pane.conversation, message);
    const index = all.indexOf(message);
    /** @type {Record<string, () => void>} */
    const actions = {
      e: () => this.edit(),
      c: () => /** @type {HTMLElement} */ (this.footer.querySelector(".actions button"))?.click(),
      r: () => !this.isUser && pane.regenerate(message),
      p: () => !this.isUser && this.toggleHeat(),
      ArrowLeft: () => all[index - 1] && pane.showBranch(all[index - 1], "message"),
      ArrowRight: () => all[index + 1] && pane.showBranch(all[index + 1], "message"),
      ArrowUp: () => pane.focusMessage(message, -1),
      ArrowDown: () => pane.focusMessage(message, 1),
    };
    const action = actions[event.key];
    if (!action || this.generation) return;
    event.preventDefault();
    action();
  }
}
