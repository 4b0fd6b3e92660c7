/** Announces answers sentence by sentence: screen readers stutter if a live region changes with each token. */

import { h } from "../dom.js";
import { visible } from "../markdown/visible.js";

const SENTENCE = /^[^]*?(?:[.!?…]["')\]”’*_]*\s+|[。！？]|\n\s*\n|\n(?=[ \t]*(?:[-*+#>]|\d+[.)]|```|~~~)))/;

/** Longer texts without the end of a sentence are announced in parts of this length, at a space if there is one. */
const LONGEST = 600;

/** Elements that the live region keeps; screen readers have read the older ones. */
const KEPT = 40;

/** @param {string} text markdown @returns {string} without the marks */
function spoken(text) {
  return visible(text)
    .replace(/!?\[([^\]]*)\]\([^)]*\)/g, "$1")
    .replace(/^[ \t]*(?:#{1,6}|>|[-*+])[ \t]+/gm, "")
    .replace(/[*_`|]+/g, " ")
    .replace(/\s+/g, " ")
    .trim();
}

export class Announcer {
  /** @param {HTMLElement} region with the role "log" */
  constructor(region) {
    this.region = region;
    /** Length of the text that has been read. */
    this.read = 0;
    /** @type {RegExp | null} the end of the open code block */
    this.fence = null;
  }

  /** @param {string} content that was read before, if an answer is continued */
  start(content) {
    this.read = content.length;
    this.fence = null;
  }

  /** @param {string} text */
  say(text) {
    if (!text) return;
    this.region.append(h("p", {}, text));
    while (this.region.children.length > KEPT) this.region.firstElementChild?.remove();
  }

  /**
   * Announces the sentences that are complete.
   * @param {string} content of the answer so far
   */
  update(content) {
    for (;;) {
      const rest = content.slice(this.read);
      if (this.fence) {
        const end = this.fence.exec(rest);
        if (!end) return;
        const lines = rest.slice(0, end.index).split("\n").length - 1;
        this.say(`Code, ${lines} ${lines === 1 ? "line" : "lines"}.`);
        this.read += end.index + end[0].length;
        this.fence = null;
        continue;
      }
      const open = /^\s*(`{3,}|~{3,})[^\n]*\n/.exec(rest);
      if (open) {
        this.read += open[0].length;
        this.fence = new RegExp(`^ {0,3}${open[1][0]}{${open[1].length},}[ \\t]*\\n`, "m");
        continue;
      }
      const text = rest.slice(0, LONGEST);
      const sentence = SENTENCE.exec(text)?.[0] ?? (text.length < LONGEST ? "" : (/^[^]*\s/.exec(text)?.[0] ?? text));
      if (!sentence) return;
      this.say(spoken(sentence));
      this.read += sentence.length;
    }
  }

  /**
   * @param {string} content
   * @param {string} end what happened, such as "Answer complete."
   */
  finish(content, end) {
    this.update(`${content}\n\n`);
    this.say(end);
  }
}
