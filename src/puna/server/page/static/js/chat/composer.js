/** The field in which a message is written, with its files and the buttons that send and stop. */

import { h, icon, iconButton } from "../dom.js";
import { visible } from "../markdown/visible.js";
import { isLongPaste, readTextFile } from "./files.js";
import { count } from "./statistics.js";

/** @typedef {import("../app.js").App} App */

export class Composer {
  /**
   * @param {App} app
   * @param {HTMLElement} form
   */
  constructor(app, form) {
    this.app = app;
    this.form = form;
    /** @type {{name: string, text: string}[]} */
    this.files = [];
    this.field = h("textarea", {
      dir: "auto",
      id: "composer-text",
      rows: "1",
      placeholder: "Write a message",
      "aria-label": "Message",
      "aria-describedby": "composer-hint",
    });
    this.chips = h("ul", { class: "chips", "aria-label": "Attached files", hidden: true });
    this.picker = h("input", {
      type: "file",
      multiple: true,
      class: "visually-hidden",
      tabindex: "-1",
      "aria-label": "Choose text files",
      onchange: () => this.#addPicked(),
    });
    this.sendButton = h(
      "button",
      { type: "submit", class: "send", "aria-label": "Send", title: "Send (Enter)" },
      icon("send"),
    );
    this.stopButton = h(
      "button",
      {
        type: "button",
        class: "send stop",
        "aria-label": "Stop",
        title: "Stop (Esc)",
        hidden: true,
        onclick: () => app.stop(),
      },
      icon("stop"),
    );
    const attach = iconButton("attach", "Attach text files", () => this.picker.click());
    const hint = h(
      "p",
      { class: "composer-hint", id: "composer-hint" },
      h("span", {}, h("kbd", {}, "Enter"), " sends, "),
      h("span", {}, h("kbd", {}, "Shift"), " + ", h("kbd", {}, "Enter"), " starts a new line. Models make mistakes."),
    );
    form.append(
      h(
        "div",
        { class: "composer-box" },
        this.chips,
        this.field,
        h(
          "div",
          { class: "composer-row" },
          attach,
          this.picker,
          h("span", { class: "spacer" }),
          this.stopButton,
          this.sendButton,
        ),
      ),
      hint,
    );
    this.#listen();
    this.#resize();
  }

  #listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      // 229: an input method, as for Japanese, uses Enter to accept its text.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      this.#send();
    });
    this.field.addEventListener("input", () => this.#resize());
    this.field.addEventListener("paste", (/** @type {ClipboardEvent} */ event) => this.#paste(event));
    const main = /** @type {HTMLElement} */ (this.form.parentElement);
    main.addEventListener("dragover", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      this.form.classList.add("dropping");
    });
    main.addEventListener("dragleave", () => this.form.classList.remove("dropping"));
    main.addEventListener("drop", (event) => {
      this.form.classList.remove("dropping");
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      this.addFiles([...event.dataTransfer.files]);
    });
  }

  #addPicked() {
    this.addFiles([...this.picker.files]);
    this.picker.value = "";
  }

  /** @param {ClipboardEvent} event */
  #paste(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (files.length && !text) {
      event.preventDefault();
      this.addFiles(files);
    } else if (isLongPaste(text)) {
      event.preventDefault();
      const number = this.files.filter(({ name }) => name.startsWith("pasted")).length + 1;
      this.#add([{ name: `pasted-${number}.txt`, text }]);
    }
  }

  /** @param {File[]} files */
  async addFiles(files) {
    for (const file of files) {
      try {
        this.#add([await readTextFile(file)]);
      } catch (error) {
        this.app.toast(/** @type {Error} */ (error).message);
      }
    }
    this.field.focus();
  }

  /** @param {{name: string, text: string}[]} files */
  #add(files) {
    this.files.push(...files);
    this.#drawChips();
    this.app.announcer.say(`Attached ${files.map(({ name }) => name).join(", ")}.`);
  }

  #drawChips() {
    this.chips.hidden = !this.files.length;
    const chips = this.files.map((file) =>
      h(
        "li",
        { class: "chip" },
        icon("file"),
        h("span", { class: "chip-name" }, visible(file.name)),
        h("span", { class: "size" }, `${count(file.text.length)} characters`),
        iconButton("close", `Remove ${file.name}`, () => this.#remove(file)),
      ),
    );
    this.chips.replaceChildren(...chips);
  }

  /** @param {{name: string, text: string}} file */
  #remove(file) {
    this.files = this.files.filter((other) => other !== file);
    this.#drawChips();
    this.field.focus();
  }

  #resize() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }

  #send() {
    const text = this.field.value.trim();
    if ((!text && !this.files.length) || this.app.busy || this.app.elsewhere) return;
    if (!this.app.models.length) return this.app.toast("The server has not named a model yet.");
    const files = this.files;
    this.files = [];
    this.fill("");
    this.#drawChips();
    this.app.send(text, files);
  }

  /** @param {string} text */
  fill(text) {
    this.field.value = text;
    this.#resize();
    this.field.focus();
  }

  /**
   * @param {boolean} busy
   * @param {boolean} elsewhere whether another tab receives the answer
   */
  setBusy(busy, elsewhere) {
    this.field.placeholder = elsewhere ? "Another tab is receiving an answer in this conversation" : "Write a message";
    this.sendButton.disabled = elsewhere;
    const hadFocus = document.activeElement === this.stopButton;
    this.stopButton.hidden = !busy;
    this.sendButton.hidden = busy;
    if (hadFocus && !busy) this.field.focus();
  }
}
