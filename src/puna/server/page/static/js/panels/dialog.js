/** Modal dialogs: the browser keeps the focus inside, closes them with Escape, and returns the focus. */

import { h, iconButton } from "../dom.js";

/**
 * @param {string} title
 * @param {(Node | string | null)[]} content
 * @param {{class?: string, onclose?: () => void}} [options]
 * @returns {HTMLDialogElement} open; it removes itself when it closes
 */
export function openDialog(title, content, options = {}) {
  const id = `dialog-${document.querySelectorAll("dialog").length}`;
  const returnTo = /** @type {HTMLElement | null} */ (document.activeElement);
  const dialog = h(
    "dialog",
    { class: `dialog ${options.class ?? ""}`, "aria-labelledby": id },
    h(
      "div",
      { class: "dialog-head" },
      h("h2", { id }, title),
      iconButton("close", "Close", () => dialog.close()),
    ),
    h("div", { class: "dialog-body" }, ...content),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    options.onclose?.();
    if (returnTo?.isConnected) returnTo.focus();
  });
  dialog.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * @param {string} title
 * @param {string} question
 * @param {string} action
 * @returns {Promise<boolean>}
 */
export function confirmDialog(title, question, action) {
  return new Promise((resolve) => {
    let accepted = false;
    const accept = () => {
      accepted = true;
      dialog.close();
    };
    const buttons = h(
      "div",
      { class: "dialog-buttons" },
      h("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Cancel"),
      h("button", { type: "button", class: "button danger", onclick: accept }, action),
    );
    const dialog = openDialog(title, [h("p", {}, question), buttons], {
      class: "narrow",
      onclose: () => resolve(accepted),
    });
  });
}
