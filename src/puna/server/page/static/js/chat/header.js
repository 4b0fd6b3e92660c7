/** Parts of the header of a pane: the choice of a model, the context gauge, the system prompt. */

import { h } from "../dom.js";
import { visible } from "../markdown/visible.js";
import { count } from "./statistics.js";

/**
 * @param {import("../api.js").Model[]} models
 * @param {string} chosen
 * @param {string} label
 * @param {(model: string) => void} onchange
 * @returns {HTMLSelectElement}
 */
export function modelChoice(models, chosen, label, onchange) {
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
export function contextGauge(used, context) {
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
export function systemChip(prompt, onclick) {
  return h(
    "button",
    { type: "button", class: "system-chip", onclick },
    h("span", { class: "system-label" }, "System"),
    h("span", { class: "system-text" }, visible(prompt)),
  );
}
