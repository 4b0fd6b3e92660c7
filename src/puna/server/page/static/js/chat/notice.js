/** Shown below an answer that filled the context, or a message that no longer fits: what a person can do. */

import { h } from "../dom.js";

/** @param {import("./message.js").MessageView} view @returns {HTMLElement} */
export function fullNotice({ pane }) {
  return h(
    "div",
    { class: "notice" },
    h("p", { class: "notice-title" }, "The context of the model is full"),
    h(
      "p",
      {},
      "The model reads the complete conversation before each answer, and this one has reached its limit. Start a new " +
        "conversation, or edit a long message or answer above to make it shorter. Nothing is lost: an edit adds a version.",
    ),
    h("button", { type: "button", class: "button small", onclick: () => pane.app.create() }, "New conversation"),
  );
}
