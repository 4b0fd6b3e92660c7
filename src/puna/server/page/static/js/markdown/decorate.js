/** Completes sanitized markdown: code blocks, formulas, tables, links and headings. */

import { h } from "../dom.js";
import { codeBlock } from "./code.js";
import { renderMath } from "./math.js";

/**
 * Models choose heading levels freely. Here the headings of an answer start at h3, below those of the page, and a level
 * is at most one deeper than the heading before it.
 * @typedef {{level: number}} Outline
 */

/** @returns {Outline} of an answer without headings so far */
export const newOutline = () => ({ level: 2 });

/**
 * @param {DocumentFragment} fragment is changed in place
 * @param {Outline} outline
 */
export function decorate(fragment, outline) {
  for (const heading of fragment.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    const level = Math.min(Number(heading.tagName[1]) + 2, outline.level + 1, 6);
    outline.level = level;
    heading.replaceWith(h(`h${level}`, { class: `level-${heading.tagName[1]}` }, ...heading.childNodes));
  }
  for (const pre of fragment.querySelectorAll("pre")) {
    const language = /language-(\S*)/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "";
    pre.replaceWith(codeBlock((pre.textContent ?? "").replace(/\n$/, ""), language.toLowerCase()).element);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = h("div", { class: "table-frame", role: "region", "aria-label": "Table", tabindex: "0" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const item of fragment.querySelectorAll("li")) {
    if (/^[☑☐] /.test(item.textContent ?? "")) item.className = "task";
  }
  // Each block has the direction of its first letter, such as Arabic; code does not.
  for (const block of fragment.children) if (block.className !== "code-block") block.setAttribute("dir", "auto");
  for (const formula of fragment.querySelectorAll(".math-inline, .math-display")) renderMath(formula);
  for (const anchor of fragment.querySelectorAll("a")) showTarget(anchor);
}

/**
 * Opens a link without passing on this page, and shows its host unless the text is the address.
 * @param {HTMLAnchorElement} anchor
 */
function showTarget(anchor) {
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer nofollow";
  anchor.referrerPolicy = "no-referrer";
  let target;
  try {
    const url = new URL(anchor.href);
    target = url.protocol === "mailto:" ? url.pathname : url.host;
  } catch {
    anchor.removeAttribute("href");
    return;
  }
  const text = anchor.textContent ?? "";
  const isAddress = text === anchor.getAttribute("href") || text === target;
  if (!isAddress) anchor.append(h("span", { class: "link-host" }, `\u00a0(${target})`));
}
