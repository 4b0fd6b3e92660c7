/** The request of an answer: JSON, curl, Python. */

import { apiKey } from "../api.js";
import { h } from "../dom.js";
import { codeBlock } from "../markdown/code.js";
import { visible } from "../markdown/visible.js";
import { curlSnippet, pythonSnippet, requestBody } from "../request.js";
import { openDialog } from "./dialog.js";

/** @typedef {import("../conversation.js").Conversation} Conversation */
/** @typedef {import("../conversation.js").Message} Message */

/**
 * @param {Conversation} conversation
 * @param {Message} message
 */
export function showRequest(conversation, message) {
  const url = new URL("v1", document.baseURI).href;
  const body = requestBody(conversation, message);
  const key = apiKey() !== null;
  const texts = /** @type {Record<string, [string, string]>} */ ({
    JSON: [JSON.stringify(body, null, 2), "json"],
    curl: [curlSnippet(url, body, key), "bash"],
    Python: [pythonSnippet(url, body, key), "python"],
  });
  const panel = h("div", { role: "tabpanel", id: "request-panel", "aria-labelledby": "tab-JSON" });
  const tabs = Object.keys(texts).map((name) =>
    h(
      "button",
      { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "request-panel", onclick: () => choose(name) },
      name,
    ),
  );
  const choose = (/** @type {string} */ name) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab.id === `tab-${name}`));
      tab.tabIndex = tab.id === `tab-${name}` ? 0 : -1;
    }
    const [text, language] = texts[name];
    panel.setAttribute("aria-labelledby", `tab-${name}`);
    const block = codeBlock(text, language);
    block.highlight();
    panel.replaceChildren(block.element);
  };
  const move = (/** @type {KeyboardEvent} */ event) => {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!step) return;
    const index = tabs.indexOf(/** @type {any} */ (document.activeElement));
    const next = tabs[(index + step + tabs.length) % tabs.length];
    choose(next.textContent ?? "");
    next.focus();
  };
  choose("JSON");
  const list = h(
    "div",
    { role: "tablist", class: "tabs", "aria-label": "Form of the request", onkeydown: move },
    ...tabs,
  );
  const fingerprint = message.fingerprint
    ? h(
        "p",
        { class: "hint" },
        "System fingerprint: ",
        h("code", {}, visible(message.fingerprint)),
        ". The same fingerprint, request and seed give the same answer.",
      )
    : null;
  const note = message.edited ? h("p", { class: "hint" }, "A person edited the text of this answer.") : null;
  openDialog("Request of this answer", [list, panel, note, fingerprint], { class: "wide" });
}
