/** Code blocks: language, copy button, text that grows. Code is never run. */

import { copyText } from "../clipboard.js";
import { h, icon } from "../dom.js";
import { highlight, prepareHighlighting } from "./highlight.js";

/** Lines per element. The browser lays out only the last element again when text is added. */
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

/** @type {WeakMap<Element, CodeBlock>} */
const blocks = new WeakMap();

export class CodeBlock {
  /** @param {string} language */
  constructor(language) {
    this.language = language;
    this.text = "";
    this.code = h("code", {});
    this.lines = 0;
    /** @type {Text | null} the text of the last chunk, unless it is full */
    this.last = null;
    this.element = frame(language, this.code, () => this.text);
    blocks.set(this.element, this);
    prepareHighlighting();
  }

  /** @param {string} text that starts with the text shown so far */
  update(text) {
    let added = text.slice(this.text.length);
    this.text = text;
    while (added) {
      if (!this.last) {
        this.last = document.createTextNode("");
        this.code.append(h("span", { class: "code-chunk" }, this.last));
      }
      let end = 0;
      while (this.lines < CHUNK_LINES && end < added.length) {
        const newline = added.indexOf("\n", end);
        end = newline < 0 ? added.length : newline + 1;
        if (newline >= 0) this.lines += 1;
      }
      this.last.appendData(added.slice(0, end));
      added = added.slice(end);
      if (this.lines === CHUNK_LINES) [this.lines, this.last] = [0, null];
    }
  }

  /** Colours the block, whose text is complete. */
  highlight() {
    highlight([...this.code.children], this.language);
  }
}

/** @param {Node[]} nodes whose code blocks are coloured, because they are final */
export function highlightIn(nodes) {
  for (const node of nodes) {
    if (!(node instanceof Element)) continue;
    for (const element of [node, ...node.querySelectorAll(".code-block")]) blocks.get(element)?.highlight();
  }
}

/**
 * @param {string} text
 * @param {string} language
 */
export function codeBlock(text, language) {
  const block = new CodeBlock(language);
  block.update(text);
  return block;
}
