/** Shown before the first message: the model, and examples of questions. */

import { h } from "../dom.js";
import { visible } from "../markdown/visible.js";

/** @typedef {import("./pane.js").Pane} Pane */

const EXAMPLES = [
  "Explain a matrix as if I could draw it",
  "Write a haiku about high grassland",
  "What is 17 × 23? Show the steps.",
];

/** @param {Pane} pane @returns {HTMLElement} */
export function welcome(pane) {
  const examples = EXAMPLES.map((text) =>
    h("button", { type: "button", class: "example", onclick: () => pane.app.composer.fill(text) }, text),
  );
  const name = pane.model ? visible(pane.model.id) : "the model";
  return h(
    "div",
    { class: "welcome" },
    h("h2", {}, pane.label ? `Column ${pane.label}` : "What would you like to ask?"),
    h(
      "p",
      {},
      pane.label
        ? `Answers of ${name} appear here.`
        : `You are talking to ${name}. Everything stays between this browser and your server.`,
    ),
    pane.label ? null : h("div", { class: "examples" }, ...examples),
  );
}
