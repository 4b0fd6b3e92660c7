/** The header of a pane: the choice of a model, the context gauge, the settings; and the system prompt. */

import { path } from "../conversation.js";
import { h, iconButton, keepFocus } from "../dom.js";
import { visible } from "../markdown/visible.js";
import { count } from "./statistics.js";

/**
 * @param {import("../api.js").Model[]} models
 * @param {string} chosen
 * @param {string} label
 * @param {(model: string) => void} onchange
 * @returns {HTMLSelectElement}
 */
function modelChoice(models, chosen, label, onchange) {
  const choice = h("select", { class: "model-choice", "aria-label": label, onchange: () => onchange(choice.value) });
  const option = (/** @type {string} */ id, note = "") => h("option", { value: id }, visible(id) + note);
  if (chosen && !models.some(({ id }) => id === chosen)) choice.append(option(chosen, " (not on this server)"));
  for (const [group, adapters] of /** @type {[string, boolean][]} */ ([
    ["Models", false],
    ["Adapters", true],
  ])) {
    const members = models.filter(({ parent }) => (parent !== null) === adapters);
    if (members.length) choice.append(h("optgroup", { label: group }, ...members.map(({ id }) => option(id))));
  }
  choice.value = chosen;
  return choice;
}

/**
 * @param {number} used tokens
 * @param {number | null | undefined} context maximum number of tokens, if known
 * @returns {HTMLElement[]}
 */
function contextGauge(used, context) {
  if (!context) return [];
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
  return [bar, h("span", { class: "gauge-text", "aria-hidden": "true" }, `${count(used)} / ${count(context)}`)];
}

/**
 * @param {string} prompt
 * @param {() => void} onclick
 * @returns {HTMLButtonElement}
 */
function systemChip(prompt, onclick) {
  return h(
    "button",
    { type: "button", class: "system-chip", onclick },
    h("span", { class: "system-label" }, "System"),
    h("span", { class: "system-text" }, visible(prompt)),
  );
}

export class Header {
  /** @param {import("./pane.js").Pane} pane */
  constructor(pane) {
    this.pane = pane;
    this.element = h("div", { class: "pane-header" });
    this.system = h("div", { class: "system" });
    this.gauge = h("div", { class: "gauge" });
  }

  draw() {
    const { app, conversation, label, model } = this.pane;
    const name = label ? `Model of column ${label}` : "Model";
    const choice = modelChoice(app.models, conversation.model || model?.id || "", name, (id) => this.#choose(id));
    const settings = iconButton("sliders", label ? `Settings of column ${label}` : "Settings of this conversation", () =>
      app.editSettings(this.pane),
    );
    const keep = label
      ? h(
          "button",
          { type: "button", class: "button small", onclick: () => app.endComparison(this.pane) },
          `Keep ${label}`,
        )
      : null;
    const mark = label ? h("span", { class: "side-mark", "aria-hidden": "true" }, label) : null;
    const items = [mark, choice, this.gauge, settings, keep].filter((item) => item !== null);
    keepFocus(this.element, () => this.element.replaceChildren(...items));
    this.drawGauge();
    const prompt = conversation.system;
    this.system.replaceChildren(...(prompt ? [systemChip(prompt, () => app.editSettings(this.pane))] : []));
    this.drawn = this.#settings;
  }

  /** Draws the header again if another tab has changed what it shows. */
  update() {
    if (this.drawn !== this.#settings) this.draw();
  }

  get #settings() {
    const { model, system } = this.pane.conversation;
    return JSON.stringify([model, system]);
  }

  /** @param {string} model */
  #choose(model) {
    const { app, conversation } = this.pane;
    conversation.model = model;
    app.save(conversation);
    this.draw();
  }

  drawGauge() {
    const { conversation, model } = this.pane;
    const usage = path(conversation).findLast((message) => message.usage)?.usage;
    this.gauge.replaceChildren(...contextGauge(usage?.total_tokens ?? 0, model?.context));
  }
}
