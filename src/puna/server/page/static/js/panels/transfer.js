/** Export of chosen conversations, and import of a file. */

import { h } from "../dom.js";
import { visible } from "../markdown/visible.js";
import { exportDocument, importDocument, ImportError, LIMITS } from "../storage/transfer.js";
import { openDialog } from "./dialog.js";

/** @typedef {import("../app.js").App} App */

/** @param {App} app */
export function exportDialog(app) {
  const all = app.library.list();
  if (!all.length) return app.toast("There is no conversation to export yet.");
  const boxes = all.map((conversation) => {
    const box = h("input", { type: "checkbox", id: `export-${conversation.id}`, checked: true });
    const label = h("label", { for: box.id }, visible(conversation.title || "New conversation"));
    return { conversation, box, element: h("li", { class: "check" }, box, label) };
  });
  const everything = h("input", { type: "checkbox", id: "export-all", checked: true });
  everything.addEventListener("change", () => boxes.forEach(({ box }) => (box.checked = everything.checked)));
  const run = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const chosen = boxes
      .filter(({ box }) => box.checked)
      .flatMap(({ conversation }) => app.library.sides(conversation));
    if (!chosen.length) return app.toast("Choose at least one conversation.");
    const text = JSON.stringify(await exportDocument(app.library, chosen), null, 1);
    const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    h("a", { href: url, download: `puna-${new Date().toISOString().slice(0, 10)}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    dialog.close();
  };
  const form = h(
    "form",
    { class: "fields", onsubmit: run },
    h("div", { class: "check" }, everything, h("label", { for: "export-all" }, "All conversations")),
    h("ul", { class: "export-list", "aria-label": "Conversations" }, ...boxes.map(({ element }) => element)),
    h("p", { class: "hint" }, "The file contains texts, versions, times, models, parameters and token probabilities."),
    h("div", { class: "dialog-buttons" }, h("button", { type: "submit", class: "button primary" }, "Export")),
  );
  const dialog = openDialog("Export conversations", [form], { class: "narrow" });
}

/**
 * @param {App} app
 * @param {File} file
 */
export async function importFile(app, file) {
  if (file.size > LIMITS.bytes) return app.toast(`${file.name} is larger than ${LIMITS.bytes / 2 ** 20} MB.`);
  try {
    const added = await importDocument(app.library, await file.text());
    app.toast(added === 1 ? "One conversation was imported." : `${added} conversations were imported.`);
  } catch (error) {
    if (!(error instanceof ImportError)) throw error;
    app.toast(`${file.name} was not imported. ${error.message}`);
  }
}
