/** The bar above the messages: title, model, comparison, theme, help. */

import { byId, h, iconButton } from "../dom.js";
import { showHelp } from "./help.js";

/** @typedef {import("../app.js").App} App */

const THEMES = /** @type {const} */ (["system", "light", "dark"]);

export class TopBar {
  /**
   * @param {App} app
   * @param {HTMLElement} element
   */
  constructor(app, element) {
    this.app = app;
    this.title = h("input", {
      class: "title",
      "aria-label": "Title of the conversation",
      maxlength: "200",
      placeholder: "New conversation",
      onchange: () => this.#rename(),
    });
    this.title.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter") app.composer.field.focus();
    });
    this.slot = h("div", { class: "pane-slot" });
    this.compare = iconButton("columns", "Compare two models", () => app.compare());
    this.theme = iconButton("theme", "Theme", () => this.#nextTheme());
    const menu = iconButton("menu", "Conversations", () => app.toggleSidebar(true), { class: "only-narrow" });
    const help = iconButton("help", "Keyboard shortcuts", showHelp);
    element.append(menu, this.title, this.slot, h("div", { class: "topbar-actions" }, this.compare, this.theme, help));
    this.#labelTheme();
  }

  draw() {
    const { app } = this;
    const compared = app.panes.length > 1;
    const title = app.conversation?.title ?? "";
    if (title !== this.shown) this.title.value = title; // a person may be typing another one
    this.shown = title;
    byId("heading").textContent = app.conversation?.title || "New conversation";
    document.title = app.conversation?.title ? `${app.conversation.title} · puna` : "puna";
    const headers = compared ? [] : app.panes.map((pane) => pane.header.element);
    if (this.slot.firstChild !== (headers[0] ?? null)) this.slot.replaceChildren(...headers);
    this.compare.hidden = compared;
    byId("main").classList.toggle("comparing", compared);
  }

  #rename() {
    const { conversation } = this.app;
    if (!conversation) return;
    conversation.title = this.title.value = this.title.value.trim();
    this.app.save(conversation);
    this.draw();
  }

  get #current() {
    return document.documentElement.dataset.theme ?? "system";
  }

  #labelTheme() {
    const label = `Theme: ${this.#current}`;
    this.theme.setAttribute("aria-label", label);
    this.theme.title = label;
  }

  #nextTheme() {
    const next = THEMES[(THEMES.indexOf(/** @type {any} */ (this.#current)) + 1) % THEMES.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("puna.theme", next);
    } catch {
      // Storage is disabled: the theme lasts until the tab is closed.
    }
    this.#labelTheme();
  }
}
