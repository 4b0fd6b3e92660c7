/** The text field in which a message is edited. */

import { h } from "../dom.js";

/**
 * @param {string} text
 * @param {string} label of the field
 * @param {string} action label of the button that accepts the text
 * @param {(text: string | null) => void} done called with null if the edit is cancelled
 * @returns {HTMLElement}
 */
export function editor(text, label, action, done) {
  const field = h("textarea", { class: "edit-field", "aria-label": label, rows: "3", value: text });
  const accept = () => done(field.value);
  const cancel = () => done(null);
  field.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      accept();
    }
  });
  requestAnimationFrame(() => field.focus());
  const buttons = h(
    "div",
    { class: "edit-buttons" },
    h("button", { type: "button", class: "button", onclick: cancel }, "Cancel"),
    h("button", { type: "button", class: "button primary", onclick: accept }, action),
  );
  return h("div", { class: "editor" }, field, buttons);
}
