/** Asks for the API key of the server. */

import { h } from "../dom.js";
import { openDialog } from "./dialog.js";

/**
 * @param {boolean} refused whether the server refused the key of this tab
 * @returns {Promise<string | null>} null if the user closes the dialog
 */
export function askForKey(refused) {
  return new Promise((resolve) => {
    /** @type {string | null} */
    let key = null;
    const field = h("input", {
      type: "password",
      id: "api-key",
      autocomplete: "off",
      spellcheck: "false",
      required: true,
    });
    const submit = (/** @type {Event} */ event) => {
      event.preventDefault();
      const text = field.value.trim();
      if (/^[\x21-\x7e]+$/.test(text)) {
        key = text;
        dialog.close();
      } else {
        field.setCustomValidity("A key consists of ASCII characters without spaces."); // as all values of headers do
        field.reportValidity();
      }
    };
    field.addEventListener("input", () => field.setCustomValidity(""));
    const form = h(
      "form",
      { class: "fields", onsubmit: submit },
      refused ? h("p", { class: "error", role: "alert" }, "The server refused this key.") : null,
      h("label", { for: "api-key" }, "API key"),
      field,
      h("p", { class: "hint" }, "The key is kept until this tab is closed. It is sent to this server only."),
      h("div", { class: "dialog-buttons" }, h("button", { type: "submit", class: "button primary" }, "Use this key")),
    );
    const dialog = openDialog("This server needs an API key", [form], { class: "narrow", onclose: () => resolve(key) });
    field.focus();
  });
}
