/** System prompt and sampling settings of a conversation. An empty field means the default that it shows. */

import { h } from "../dom.js";
import { openDialog } from "./dialog.js";

/** @typedef {import("../chat/pane.js").Pane} Pane */

/**
 * @typedef {object} Setting
 * @property {string} name of the field in the request
 * @property {string} label
 * @property {string} help
 * @property {number} min
 * @property {number} max
 * @property {number | "any"} step
 * @property {number} [fallback] default of the API, if the server names none
 * @property {boolean} [slider]
 */

/** @type {Setting[]} */
const SETTINGS = [
  {
    name: "temperature",
    label: "Temperature",
    help: "0 always chooses the most probable token.",
    min: 0,
    max: 2,
    step: 0.05,
    fallback: 1,
    slider: true,
  },
  {
    name: "top_p",
    label: "Top p",
    help: "Only the most probable tokens that together have this probability.",
    min: 0,
    max: 1,
    step: 0.01,
    fallback: 1,
    slider: true,
  },
  {
    name: "min_p",
    label: "Min p",
    help: "Only tokens with at least this share of the highest probability.",
    min: 0,
    max: 1,
    step: 0.01,
    fallback: 0,
    slider: true,
  },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    help: "Above 1, tokens that have occurred become less probable.",
    min: 0.5,
    max: 2,
    step: 0.01,
    fallback: 1,
    slider: true,
  },
  { name: "top_k", label: "Top k", help: "Only this many of the most probable tokens.", min: 0, max: 1_000_000, step: 1 },
  { name: "max_completion_tokens", label: "Maximum answer length in tokens", help: "“Continue this answer” goes on after it.", min: 1, max: 10_000_000, step: 1 },
  {
    name: "seed",
    label: "Seed",
    help: "The same seed gives the same answer.",
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    step: 1,
  },
  { name: "frequency_penalty", label: "Frequency penalty", help: "", min: -2, max: 2, step: 0.05, fallback: 0 },
  { name: "presence_penalty", label: "Presence penalty", help: "", min: -2, max: 2, step: 0.05, fallback: 0 },
];

/**
 * @param {Setting} setting
 * @param {Record<string, any>} sampling
 * @param {Record<string, any>} defaults of the model
 * @returns {{element: HTMLElement, field: HTMLInputElement}}
 */
function row(setting, sampling, defaults) {
  const { name, label, help, min, max, step, slider } = setting;
  const standard = defaults[name] ?? setting.fallback;
  const value = sampling[name];
  const field = h("input", {
    type: "number",
    id: `setting-${name}`,
    min,
    max,
    step: slider ? "any" : step,
    placeholder: standard ?? "default",
    value: value ?? "",
    "aria-describedby": help ? `help-${name}` : null,
  });
  const range = slider
    ? h("input", { type: "range", min, max, step, "aria-label": label, value: value ?? standard })
    : null;
  range?.addEventListener("input", () => (field.value = range.value));
  field.addEventListener("input", () => range && (range.value = field.value || String(standard)));
  const text = h(
    "div",
    { class: "setting-text" },
    h("label", { for: field.id }, label),
    help ? h("p", { class: "hint", id: `help-${name}` }, help) : null,
  );
  return { field, element: h("div", { class: slider ? "setting with-range" : "setting" }, text, range, field) };
}

/** @param {Pane} pane */
export function editSettings(pane) {
  const { conversation, app, model } = pane;
  const sampling = conversation.sampling;
  const system = h("textarea", {
    id: "setting-system",
    rows: "5",
    value: conversation.system,
    placeholder: "For example: You answer in one sentence.",
  });
  const rows = SETTINGS.map((setting) => ({ setting, ...row(setting, sampling, model?.defaults ?? {}) }));
  const stops = h("textarea", { id: "setting-stop", rows: "2", value: (sampling.stop ?? []).join("\n") });
  const probabilities = h("input", { type: "checkbox", id: "setting-probabilities" });
  probabilities.checked = sampling.probabilities !== false;
  const apply = (/** @type {Event} */ event) => {
    event.preventDefault();
    const result = /** @type {Record<string, any>} */ ({});
    for (const { setting, field } of rows) if (field.value !== "") result[setting.name] = Number(field.value);
    const lines = stops.value.split("\n").filter(Boolean);
    if (lines.length) result.stop = lines;
    if (!probabilities.checked) result.probabilities = false;
    conversation.system = system.value.trim();
    conversation.sampling = result;
    app.save(conversation);
    pane.header.draw();
    dialog.close();
  };
  const reset = () => {
    for (const { field } of rows) {
      field.value = "";
      field.dispatchEvent(new Event("input"));
    }
    stops.value = "";
    probabilities.checked = true;
  };
  const form = h(
    "form",
    { class: "fields", onsubmit: apply },
    h("label", { for: "setting-system" }, "System prompt"),
    system,
    h(
      "fieldset",
      {},
      h("legend", {}, "Sampling"),
      ...rows.map(({ element }) => element),
      h(
        "div",
        { class: "setting tall" },
        h("div", { class: "setting-text" }, h("label", { for: "setting-stop" }, "Stop strings, one per line")),
        stops,
      ),
      h(
        "div",
        { class: "setting check" },
        probabilities,
        h("label", { for: "setting-probabilities" }, "Request token probabilities"),
      ),
    ),
    h("p", { class: "hint" }, "An empty field means the default of the server. Changes apply to the next answers."),
    h(
      "div",
      { class: "dialog-buttons" },
      h("button", { type: "button", class: "button", onclick: reset }, "Use the defaults"),
      h("button", { type: "submit", class: "button primary" }, "Save"),
    ),
  );
  const dialog = openDialog(pane.label ? `Settings of column ${pane.label}` : "Settings of this conversation", [form]);
}
