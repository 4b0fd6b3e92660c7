/** Code blocks: language, copy button, highlighting. Code is never run. */

import hljs from "../../vendor/highlight/highlight.min.js";
import { copyText } from "../clipboard.js";
import { h, icon } from "../dom.js";
import { sanitizeCode } from "./sanitize.js";

/** Longer code stays plain: highlighting it would take longer than a frame. */
const HIGHLIGHT_LIMIT = 12_000;

/** Lines per element of a block that grows. The browser lays out only the last element again when text is added. */
const CHUNK_LINES = 40;

/**
 * @param {string} language of the fence, possibly empty
 * @param {Node} content of the block
 * @param {() => string} text returns the text to copy
 * @returns {HTMLElement}
 */
function frame(language, content, text) {
  const label = h("span", {}, "Copy");
  const copy = h("button", { type: "button", class: "code-copy", "aria-label": "Copy code" }, icon("copy"), label);
  copy.addEventListener("click", async () => {
    label.textContent = (await copyText(text())) ? "Copied" : "Not copied";
    setTimeout(() => (label.textContent = "Copy"), 1600);
  });
  const name = language || "text";
  const pre = h("pre", { tabindex: "0", role: "region", "aria-label": `Code, ${name}` }, content);
  return h(
    "div",
    { class: "code-block" },
    h("div", { class: "code-head" }, h("span", { class: "code-language" }, name), copy),
    pre,
  );
}

/**
 * @param {string} text
 * @param {string} language
 * @returns {HTMLElement} a finished block
 */
export function codeBlock(text, language) {
  const code = h("code", {});
  if (hljs.getLanguage(language) && text.length <= HIGHLIGHT_LIMIT) {
    code.append(sanitizeCode(hljs.highlight(text, { language, ignoreIllegals: true }).value));
  } else {
    code.textContent = text;
  }
  return frame(language, code, () => text);
}

/** A block whose end has not arrived yet. */
export class GrowingCode {
  /** @param {string} language */
  constructor(language) {
    this.language = language;
    this.text = "";
    this.code = h("code", {});
    this.lines = 0;
    this.element = frame(language, this.code, () => this.text);
  }

  /** @param {string} text that starts with the text shown so far */
  update(text) {
    let added = text.slice(this.text.length);
    this.text = text;
    while (added) {
      if (this.lines === 0) {
        this.last = document.createTextNode("");
        this.code.append(h("span", { class: "code-chunk" }, this.last));
      }
      let end = 0;
      while (this.lines < CHUNK_LINES && end < added.length) {
        const newline = added.indexOf("\n", end);
        end = newline < 0 ? added.length : newline + 1;
        if (newline >= 0) this.lines += 1;
      }
      /** @type {Text} */ (this.last).appendData(added.slice(0, end));
      added = added.slice(end);
      if (this.lines === CHUNK_LINES) this.lines = 0;
    }
  }
}
