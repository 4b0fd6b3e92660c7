/**
 * The tokens of an answer, underlined and tinted by their probability, with the alternatives of the chosen token. Colour
 * is never the only sign: the underline changes its style, and the focused token shows its number.
 */

import { h, iconButton } from "../dom.js";
import { inSlices } from "../frames.js";
import { visible } from "../markdown/visible.js";

/** @typedef {import("../conversation.js").TokenScore} TokenScore */

/** Lower limits of the probability, and the name of each level. The CSS has one style per level. */
const LEVELS = /** @type {const} */ ([
  [0.9, "sure", "at least 90 %"],
  [0.5, "likely", "50 to 90 %"],
  [0.2, "unsure", "20 to 50 %"],
  [0, "unlikely", "below 20 %"],
]);

/** @param {number} logprob */
export const percent = (logprob) => {
  const value = Math.exp(logprob) * 100;
  return value >= 99.95
    ? "100 %"
    : value >= 10
      ? `${value.toFixed(1)} %`
      : value >= 0.1
        ? `${value.toFixed(2)} %`
        : "< 0.1 %";
};

/** @param {number} logprob */
const level = (logprob) => LEVELS.find(([limit]) => Math.exp(logprob) >= limit)?.[1] ?? "unlikely";

/** @param {string} text of a token @returns {string} with symbols for spaces and line ends */
const shown = (text) => visible(text).replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";

export class HeatMap {
  /**
   * @param {TokenScore[]} tokens
   * @param {(index: number, alternative: string) => void} onbranch continues the answer with another token
   */
  constructor(tokens, onbranch) {
    this.tokens = tokens;
    this.onbranch = onbranch;
    this.current = 0;
    this.text = h("div", {
      class: "heat-text",
      role: "listbox",
      tabindex: "0",
      "aria-label": "Tokens of the answer. Arrow keys move between tokens.",
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.#key(event),
      onclick: (/** @type {MouseEvent} */ event) => this.#click(event),
      onfocus: () => this.#select(this.current),
    });
    this.detail = h("div", { class: "heat-detail", role: "group", "aria-label": "Chosen token" });
    this.element = h("div", { class: "heat" }, legend(tokens), this.text, this.detail);
    this.detail.append(
      h("p", { class: "hint" }, "Click a token, or use the arrow keys, to see what else the model considered."),
    );
    /** @type {HTMLElement[]} */
    this.spans = [];
    inSlices(() => this.#addSome());
  }

  /** @returns {boolean} whether tokens are left */
  #addSome() {
    const batch = this.tokens.slice(this.spans.length, this.spans.length + 100);
    for (const { text, logprob } of batch) {
      const newlines = text.match(/\n/g)?.length ?? 0;
      const label = visible(text).replaceAll("\n", "↵");
      const id = `t${Math.random().toString(36).slice(2)}`;
      const span = h(
        "span",
        {
          role: "option",
          id,
          class: `token ${level(logprob)}`,
          "aria-selected": "false",
          "aria-label": `${label.trim() || shown(text)}, ${percent(logprob)}`,
        },
        label || "∅",
      );
      this.spans.push(span);
      this.text.append(span);
      if (newlines) this.text.append(...Array.from({ length: newlines }, () => document.createElement("br")));
    }
    return this.spans.length < this.tokens.length;
  }

  /** @param {MouseEvent} event */
  #click(event) {
    const index = this.spans.indexOf(/** @type {any} */ (/** @type {Element} */ (event.target).closest(".token")));
    if (index >= 0) this.#select(index);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const steps = /** @type {Record<string, number>} */ ({
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: 10,
      ArrowUp: -10,
      Home: -Infinity,
      End: Infinity,
    });
    const step = steps[event.key];
    if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.#select(Math.min(Math.max(this.current + step, 0), this.spans.length - 1));
  }

  /** @param {number} index */
  #select(index) {
    const span = this.spans[index];
    if (!span) return;
    this.spans[this.current]?.setAttribute("aria-selected", "false");
    this.current = index;
    span.setAttribute("aria-selected", "true");
    this.text.setAttribute("aria-activedescendant", span.id);
    span.scrollIntoView({ block: "nearest" });
    this.#showDetail(index);
    this.detail.scrollIntoView({ block: "nearest" });
  }

  /** @param {number} index */
  #showDetail(index) {
    const { text, logprob, top } = this.tokens[index];
    const rank = top.findIndex(([alternative]) => alternative === text);
    const all = /** @type {[string, number][]} */ (rank < 0 ? [...top, [text, logprob]] : top);
    const place = rank < 0 ? `not among the ${top.length} most probable` : `choice ${rank + 1}`;
    const rows = all.map(([alternative, value]) => {
      const chosen = alternative === text;
      const bar = h("meter", {
        min: "0",
        max: "1",
        value: String(Math.exp(value)),
        "aria-label": `Probability of ${shown(alternative)}`,
      });
      const action = chosen
        ? h("span", { class: "chosen" }, "chosen")
        : iconButton("continue", `Continue with ${shown(alternative)}`, () => this.onbranch(index, alternative));
      return h(
        "tr",
        { class: chosen ? "chosen-row" : "" },
        h("th", { scope: "row" }, h("code", {}, shown(alternative))),
        h("td", { class: "number" }, percent(value)),
        h("td", {}, bar),
        h("td", {}, action),
      );
    });
    const head = h(
      "p",
      { class: "heat-head" },
      h("code", {}, shown(text)),
      ` ${percent(logprob)} · ${place} · token ${index + 1} of ${this.tokens.length}`,
    );
    this.detail.replaceChildren(
      head,
      h(
        "table",
        { class: "alternatives" },
        h("caption", { class: "visually-hidden" }, "Alternatives"),
        h("tbody", {}, ...rows),
      ),
    );
  }
}

/** @param {TokenScore[]} tokens */
function legend(tokens) {
  const mean = tokens.reduce((sum, { logprob }) => sum + logprob, 0) / Math.max(tokens.length, 1);
  const keys = LEVELS.map(([, name, words]) =>
    h("li", {}, h("span", { class: `token ${name}`, "aria-hidden": "true" }, "abc"), ` ${words}`),
  );
  return h(
    "div",
    { class: "heat-legend" },
    h("ul", { "aria-label": "Probability of a token" }, ...keys),
    h("span", {}, `perplexity ${Math.exp(-mean).toFixed(2)}`),
  );
}
