/** The list of conversations: search, open, delete, export, import. */

import { matches } from "../conversation.js";
import { h, icon, iconButton } from "../dom.js";
import { visible } from "../markdown/visible.js";
import { exportDialog, importFile } from "./transfer.js";

/** @typedef {import("../app.js").App} App */
/** @typedef {import("../conversation.js").Conversation} Conversation */

const DAY = 24 * 3600 * 1000;

/** @param {number} time @returns {string} heading of the group */
function period(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  if (time >= midnight - 7 * DAY) return "Last seven days";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}

export class Sidebar {
  /**
   * @param {App} app
   * @param {HTMLElement} element
   */
  constructor(app, element) {
    this.app = app;
    this.element = element;
    this.search = h("input", {
      type: "search",
      placeholder: "Search",
      "aria-label": "Search the conversations",
      oninput: () => this.draw(),
    });
    this.list = h("div", { class: "conversation-list" });
    this.found = h("p", { class: "visually-hidden", role: "status" });
    this.picker = h("input", {
      type: "file",
      accept: ".json,application/json",
      class: "visually-hidden",
      tabindex: "-1",
      "aria-label": "File to import",
      onchange: () => this.#importPicked(),
    });
    const brand = h(
      "div",
      { class: "brand" },
      h("img", { src: "page/icon.svg", alt: "", width: "28", height: "28" }),
      h("span", {}, "puna"),
      iconButton("close", "Close the list", () => app.toggleSidebar(false), { class: "only-narrow" }),
    );
    const create = h(
      "button",
      { type: "button", class: "button new-chat", onclick: () => app.create() },
      icon("plus"),
      "New conversation",
    );
    const field = h("div", { class: "search" }, icon("search"), this.search);
    const foot = h(
      "div",
      { class: "sidebar-foot" },
      h(
        "button",
        { type: "button", class: "text-button", onclick: () => this.picker.click() },
        icon("upload"),
        "Import",
      ),
      h(
        "button",
        { type: "button", class: "text-button", onclick: () => exportDialog(app) },
        icon("download"),
        "Export",
      ),
      this.picker,
    );
    element.append(brand, create, field, this.found, this.list, foot);
  }

  async #importPicked() {
    const file = this.picker.files?.[0];
    this.picker.value = "";
    if (file) await importFile(this.app, file);
  }

  draw() {
    const query = this.search.value.trim();
    const all = this.app.library.list();
    const shown = query
      ? all.filter((conversation) => this.app.library.sides(conversation).some((side) => matches(side, query)))
      : all;
    // An answer that arrives is saved often; the same buttons keep the focus.
    const items = shown.map(({ id, title, pair, updated }) => [id, title, pair, period(updated)]);
    const drawn = query ? "" : JSON.stringify([items, this.app.conversation?.id]);
    if (drawn && drawn === this.drawn) return;
    this.drawn = drawn;
    this.found.textContent = query ? `${shown.length} found` : "";
    /** @type {Map<string, Conversation[]>} */
    const groups = new Map();
    for (const conversation of shown) {
      const name = period(conversation.updated);
      groups.set(name, [...(groups.get(name) ?? []), conversation]);
    }
    const sections = [...groups].map(([name, items]) =>
      h("section", {}, h("h2", {}, name), h("ul", {}, ...items.map((item) => this.#item(item, query)))),
    );
    const empty = h(
      "p",
      { class: "hint" },
      query ? "Nothing found." : "Your conversations will be listed here. They are stored in this browser only.",
    );
    this.list.replaceChildren(...(sections.length ? sections : [empty]));
  }

  /**
   * @param {Conversation} conversation
   * @param {string} query
   */
  #item(conversation, query) {
    const title = visible(conversation.title || "New conversation");
    const current = this.app.conversation?.id === conversation.id;
    const open = h(
      "button",
      {
        type: "button",
        class: "open",
        "aria-current": current ? "page" : null,
        onclick: () => this.app.open(conversation),
      },
      conversation.pair ? icon("columns") : null,
      h(
        "span",
        { class: "item-title" },
        conversation.pair ? h("span", { class: "visually-hidden" }, "Comparison: ") : null,
        title,
      ),
      query ? excerpt(conversation, query) : null,
    );
    const remove = iconButton("trash", `Delete ${title}`, () => this.app.remove(conversation), { class: "delete" });
    return h("li", { class: current ? "current" : "" }, open, remove);
  }
}

/**
 * @param {Conversation} conversation
 * @param {string} query
 * @returns {HTMLElement | null} the place of the first word in a message
 */
function excerpt(conversation, query) {
  const word = query.toLowerCase().split(/\s+/)[0];
  for (const { content } of Object.values(conversation.messages)) {
    const index = content.toLowerCase().indexOf(word);
    if (index < 0) continue;
    const before = content.slice(Math.max(0, index - 24), index);
    const after = content.slice(index + word.length, index + word.length + 40);
    return h(
      "span",
      { class: "excerpt" },
      visible(before).replace(/\s+/g, " "),
      h("mark", {}, visible(content.slice(index, index + word.length))),
      visible(after).replace(/\s+/g, " "),
    );
  }
  return null;
}
