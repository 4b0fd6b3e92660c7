/** The application: the open conversation, in one or two panes, and the actions of the complete page. */

import { ApiError, listModels } from "./api.js";
import { Announcer } from "./chat/announcer.js";
import { Composer } from "./chat/composer.js";
import { Pane } from "./chat/pane.js";
import { duplicate, newConversation } from "./conversation.js";
import { byId, h, icon } from "./dom.js";
import { confirmDialog } from "./panels/dialog.js";
import { showRequest } from "./panels/request.js";
import { editSettings } from "./panels/settings.js";
import { Sidebar } from "./panels/sidebar.js";
import { TopBar } from "./panels/topbar.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./conversation.js").Message} Message */
/** @typedef {import("./api.js").Model} Model */

const RETRY = 1000;
const TOAST = 6000;

export class App {
  /** @param {import("./storage/library.js").Library} library */
  constructor(library) {
    this.library = library;
    /** @type {Model[]} */
    this.models = [];
    /** @type {Conversation | null} */
    this.conversation = null;
    /** @type {Pane[]} */
    this.panes = [];
    this.announcer = new Announcer(byId("announcements"));
    this.composer = new Composer(this, byId("composer"));
    this.sidebar = new Sidebar(this, byId("sidebar"));
    this.topbar = new TopBar(this, byId("topbar"));
    this.showRequest = showRequest;
    this.editSettings = editSettings;
    library.onchange = () => this.sidebar.draw();
    library.onadopt = (conversation) => this.#onadopt(conversation);
    library.isEdited = (conversation) =>
      this.panes.some((pane) => pane.conversation === conversation && pane.editing);
    library.onremove = (ids) => {
      if (!this.conversation || !ids.includes(this.conversation.id)) return;
      this.show(newConversation());
      this.toast("This conversation was deleted in another tab.");
    };
    byId("backdrop").addEventListener("click", () => this.toggleSidebar(false));
    matchMedia("(max-width: 800px)").addEventListener("change", () => this.toggleSidebar(false));
    this.toggleSidebar(false);
  }

  /** Opens the conversation in the page's URL, or a new one, and requests the server's models. */
  async start() {
    this.#openFromAddress();
    window.addEventListener("hashchange", () => this.#openFromAddress());
    if (!this.library.persistent)
      this.toast("This browser does not store data for this page: conversations are lost when the tab is closed.");
    await this.#loadModels();
    if (this.models.length) for (const pane of this.panes) pane.resume();
  }

  /** Without locks (HTTP on another host than localhost), the page does not know whether another tab receives an answer. */
  resume() {
    if (this.models.length && navigator.locks) for (const pane of this.panes) pane.resume();
  }

  /** @param {Conversation} conversation that another tab has changed */
  #onadopt(conversation) {
    const pane = this.panes.find((other) => other.conversation === conversation);
    if (!pane) return;
    if (Boolean(conversation.pair) !== this.panes.length > 1 && !this.busy) return this.show(conversation);
    this.resume();
    pane.showChanges();
    this.topbar.draw();
    this.onbusy();
  }

  async #loadModels() {
    const banner = byId("banner");
    for (;;) {
      try {
        this.models = await listModels();
        banner.replaceChildren();
        this.panes.forEach((pane) => {
          pane.header.draw();
          pane.drawMessages();
        });
        this.topbar.draw();
        return;
      } catch (error) {
        const status = error instanceof ApiError ? error.status : 0;
        const text =
          status === 503
            ? "The server is loading the model …"
            : error instanceof Error
              ? error.message
              : "The server did not answer.";
        if (banner.textContent !== text) banner.replaceChildren(h("p", {}, icon("alert"), h("span", {}, text)));
        if (status === 401) return;
        await new Promise((resolve) => setTimeout(resolve, RETRY));
      }
    }
  }

  /** @param {string} id @returns {Model | undefined} the first model if the conversation names none */
  model(id) {
    return id ? this.models.find((model) => model.id === id) : this.models[0];
  }

  get busy() {
    return this.panes.some((pane) => pane.generation);
  }

  /** Whether another tab receives an answer of this conversation. */
  get elsewhere() {
    return this.panes.some((pane) => pane.elsewhere);
  }

  #openFromAddress() {
    const id = /^#c=([0-9a-f]{32})$/.exec(location.hash)?.[1];
    if (id && id === this.conversation?.id) return;
    const conversation = id ? this.library.conversations.get(id) : undefined;
    this.show(conversation ?? newConversation());
  }

  create() {
    this.show(newConversation({ model: this.conversation?.model ?? "" }));
    this.toggleSidebar(false);
    this.composer.field.focus();
  }

  /** @param {Conversation} conversation */
  open(conversation) {
    this.show(conversation);
    this.toggleSidebar(false);
    this.composer.field.focus();
  }

  /** @param {Conversation} conversation is shown, with the other side of its comparison */
  show(conversation) {
    this.stop();
    const sides = this.library.sides(conversation);
    this.conversation = sides[0];
    this.panes = sides.map((side, index) => new Pane(this, side, sides.length > 1 ? "AB"[index] : ""));
    const compare = sides.length > 1;
    byId("panes").classList.toggle("compare", compare);
    if (compare) this.panes.forEach((pane) => pane.element.prepend(pane.header.element));
    byId("panes").replaceChildren(...this.panes.map((pane) => pane.element));
    this.panes.forEach((pane) => pane.scroller.scrollToEnd());
    const stored = this.library.conversations.has(this.conversation.id);
    history.replaceState(null, "", stored ? `#c=${this.conversation.id}` : location.pathname + location.search);
    this.topbar.draw();
    this.sidebar.draw();
    this.onbusy();
    this.resume();
  }

  /**
   * @param {string} text
   * @param {{name: string, text: string}[]} files
   */
  send(text, files) {
    for (const pane of this.panes) pane.send(text, files);
    const { conversation } = this;
    if (conversation) history.replaceState(null, "", `#c=${conversation.id}`);
    this.topbar.draw();
  }

  stop() {
    for (const pane of this.panes) pane.stop();
  }

  onbusy() {
    this.composer.setBusy(this.busy, this.elsewhere);
  }

  /** @param {Conversation} conversation */
  async save(conversation) {
    if (!Object.keys(conversation.messages).length && !conversation.pair) return;
    await this.library.save(conversation).catch(() => this.#toastFull("the conversation"));
  }

  /**
   * @param {Conversation} conversation
   * @param {Message} message
   * @param {import("./conversation.js").TokenScore[]} scores of the message
   */
  async saveScores(conversation, message, scores) {
    if (this.library.removed.has(conversation.id)) return;
    await this.library
      .saveScores(message.id, scores)
      .catch(() => this.#toastFull("the token probabilities of the answer"));
  }

  /** @param {string} what */
  #toastFull(what) {
    this.toast(`The browser could not store ${what}. Its storage may be full; export or delete some conversations.`);
  }

  /** Puts a copy of the conversation next to it, with another model or adapter. */
  compare() {
    const { conversation } = this;
    if (!conversation || conversation.pair || this.busy) return;
    const current = this.model(conversation.model)?.id ?? "";
    const other = this.models.find(({ id }) => id !== current)?.id ?? current;
    conversation.model = current;
    const { copy } = duplicate(conversation, { model: other, pair: conversation.id, side: 1, origin: undefined });
    Object.assign(conversation, { pair: copy.id, side: 0 });
    this.save(copy);
    this.save(conversation);
    this.show(conversation);
    this.composer.field.focus();
  }

  /** @param {Pane} kept stays open; the other column becomes a separate conversation */
  endComparison(kept) {
    if (this.busy) return;
    for (const side of this.panes.map((pane) => pane.conversation)) {
      delete side.pair;
      delete side.side;
      if (side !== kept.conversation && !Object.keys(side.messages).length) this.library.remove([side]);
      else if (side !== kept.conversation) side.title = `${side.title} (${side.model})`.slice(0, 200);
      if (Object.keys(side.messages).length) this.save(side);
    }
    this.open(kept.conversation);
  }

  /** @param {Conversation} conversation */
  async remove(conversation) {
    const title = conversation.title || "New conversation";
    if (
      !(await confirmDialog(
        "Delete this conversation?",
        `“${title}” will be removed from this browser. There is no copy on the server.`,
        "Delete",
      ))
    )
      return;
    if (this.conversation?.id === conversation.id) this.stop();
    await this.library.remove(this.library.sides(conversation));
    if (this.conversation?.id === conversation.id) this.show(newConversation());
    this.sidebar.search.focus();
  }

  /** @param {boolean} open only on narrow screens, where the list covers the page */
  toggleSidebar(open) {
    const narrow = matchMedia("(max-width: 800px)").matches;
    byId("app").classList.toggle("sidebar-open", narrow && open);
    byId("sidebar").inert = narrow && !open;
    byId("main").inert = narrow && open;
    if (narrow && open) this.sidebar.search.focus();
  }

  /** @param {string} text */
  toast(text) {
    const item = h("p", { class: "toast" }, text);
    byId("toasts").append(item);
    setTimeout(() => item.remove(), TOAST + 40 * text.length);
  }
}
