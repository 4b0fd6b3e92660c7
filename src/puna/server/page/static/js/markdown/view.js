/**
 * Shows markdown that grows. Finished blocks are final; only the last block is parsed again when text arrives. Long
 * lists, tables, paragraphs and quotes are split, so that the text to parse stays short.
 */

import { CodeBlock, highlightIn } from "./code.js";
import { decorate, newOutline } from "./decorate.js";
import { drawAhead } from "./math.js";
import { lex, plainHtml, toHtml } from "./parser.js";
import { reconcile } from "./reconcile.js";
import { sanitizeProse } from "./sanitize.js";
import { CODE, formulasIn, lengthOf, light, SPLIT, splitBlock, weight } from "./split.js";
import { visible } from "./visible.js";

/** @typedef {import("./parser.js").Token} Token */

/** Characters that are parsed in one call, so that a long stored answer is shown in slices; more for a longer block. */
const WINDOW = 4000;

const LARGEST_WINDOW = 16_000;

const FENCE = /^ {0,3}(`{3,}|~{3,})([^\n]*)\n/;

/** Types of blocks that are split into blocks of the same type. Lists and tables stay one element. */
const TEXTS = new Set(["paragraph", "blockquote"]);

/**
 * A list or table whose first items are final while further items arrive.
 * @typedef {{type: "list" | "table", ordered: boolean, parent: Element, prefix: string}} Continuation
 */

export class MarkdownView {
  text = "";
  finished = false;
  /** Weight of everything that has been drawn, each time it was drawn. */
  drawn = 0;
  /** Length of the text whose blocks are final. */
  committed = 0;
  window = WINDOW;
  /** @type {ChildNode[]} the elements of the last block */
  tail = [];
  /** @type {ChildNode[]} the items of the last block if it continues a list or table */
  items = [];
  tailSource = "";
  /** @type {CodeBlock | null} */
  code = null;
  /** @type {Continuation | null} */
  continuation = null;
  /** @type {Record<string, any>} definitions of reference links */
  links = Object.create(null);
  /** Headings of the final blocks; the same including the last block. */
  outline = newOutline();
  pendingOutline = newOutline();

  /** @param {Element} container */
  constructor(container) {
    this.container = container;
    this.clear();
  }

  /** Removes everything that is shown. */
  clear() {
    this.container.replaceChildren();
    Object.assign(this, {
      text: "",
      finished: false,
      committed: 0,
      window: WINDOW,
      tail: [],
      items: [],
      tailSource: "",
      code: null,
    });
    Object.assign(this, {
      continuation: null,
      links: Object.create(null),
      outline: newOutline(),
      pendingOutline: newOutline(),
    });
  }

  /**
   * Shows a part of the text; call it again while it returns true.
   * @param {string} source complete text so far
   * @param {boolean} finished whether the text is complete
   * @returns {boolean} whether a part of the text is not shown yet
   */
  update(source, finished) {
    const text = visible(source);
    const extended = this.finished && (!finished || text !== this.text);
    if (extended || !text.startsWith(this.text)) this.clear();
    this.text = text;
    this.finished = finished;
    const rest = text.slice(this.committed);
    const fence = this.continuation ? null : FENCE.exec(rest);
    return fence ? this.#stepCode(rest, fence) : this.#stepBlocks(rest);
  }

  /**
   * @param {string} rest starts with a code fence
   * @param {RegExpExecArray} fence
   */
  #stepCode(rest, fence) {
    const language = (/^[\w+#.-]*/.exec(fence[2].trim())?.[0] ?? "").toLowerCase();
    const mark = fence[1];
    const body = fence[0].length;
    // While the answer arrives, the closing line counts once its end has arrived: "```" may become "```python".
    const closing = new RegExp(
      `^ {0,3}${mark[0]}{${mark.length},}[ \\t]*${this.finished ? "(?:\\n|$(?![^]))" : "\\n"}`,
      "m",
    );
    const match = closing.exec(rest.slice(body));
    const end = match ? body + match.index : rest.length;
    // The last line may be the beginning of the closing fence.
    const pending = match || this.finished ? /\n$/ : new RegExp(`\\n?(?: {0,3}${mark[0]}+[ \\t]*)?$`);
    let shown = rest.slice(body, end).replace(pending, "");
    if (!this.code || !shown.startsWith(this.code.text)) {
      this.code = new CodeBlock(language);
      this.drawn += CODE;
      reconcile(this.container, this.tail, []); // a block that looks the same would not get the text
      this.tail = reconcile(this.container, [], [this.code.element]);
    }
    const drawn = this.code.text.length;
    const more = shown.length > drawn + SPLIT;
    if (more) shown = shown.slice(0, drawn + SPLIT);
    this.drawn += shown.length - drawn;
    this.code.update(shown);
    if (more) return true;
    if (!match && !this.finished) return false;
    this.code = null;
    this.#commit(match ? end + match[0].length : rest.length);
    return this.committed < this.text.length;
  }

  /** @param {string} rest */
  #stepBlocks(rest) {
    const more = rest.length > this.window;
    const piece = more ? rest.slice(0, rest.lastIndexOf("\n", this.window) + 1 || this.window) : rest;
    if (piece === this.tailSource && !more) {
      if (this.finished) this.#commit(piece.length);
      return false;
    }
    const prefix = this.continuation?.prefix ?? "";
    const tokens = this.#lex(prefix + piece);
    if (this.continuation && !continues(this.continuation, tokens[0])) {
      reconcile(this.continuation.parent, this.items, []);
      this.items = [];
      this.continuation = null;
      return true;
    }
    let last = tokens.findLastIndex((token) => token.type !== "space");
    // A long text is split even if its end has arrived, so that blocks do not depend on when text arrives.
    const long = tokens.findIndex((token, index) => index < last && TEXTS.has(token.type) && splitBlock(token));
    if (long >= 0) last = long;
    if (last > 0) {
      const final = light(tokens.slice(0, last));
      if (!drawAhead(formulasIn(final))) return true;
      this.#show(final);
      this.#commit(lengthOf(final) - prefix.length);
      return true;
    }
    const split = last === 0 ? splitBlock(tokens[0]) : null;
    if (!drawAhead(formulasIn(split?.tokens ?? tokens))) return true;
    if (split) {
      this.#show(split.tokens);
      const parent = this.continuation?.parent ?? this.#growingParent(tokens[0].type);
      this.#commit(split.length - prefix.length);
      if (parent && !TEXTS.has(tokens[0].type)) {
        this.continuation = {
          type: /** @type {any} */ (tokens[0].type),
          ordered: Boolean(tokens[0].ordered),
          parent,
          prefix: split.prefix ?? "",
        };
      }
      return true;
    }
    if (more && this.window < LARGEST_WINDOW) {
      this.window *= 2;
      return true;
    }
    this.#show(tokens);
    this.tailSource = piece;
    if (more || this.finished) this.#commit(piece.length);
    return more;
  }

  /** @param {string} source @returns {Token[]} */
  #lex(source) {
    try {
      const tokens = lex(source, this.links);
      if (lengthOf(tokens) === source.length) return tokens;
    } catch {
      // The parser gave up, for example on nested brackets.
    }
    return [{ type: "plain", raw: source }];
  }

  /** @param {Token[]} tokens replace the elements of the last block */
  #show(tokens) {
    this.drawn += weight(tokens);
    const outline = { ...this.outline };
    let fragment;
    try {
      fragment = sanitizeProse(toHtml(tokens));
      decorate(fragment, outline);
    } catch {
      fragment = sanitizeProse(plainHtml(tokens.map((token) => token.raw).join("")));
    }
    this.pendingOutline = outline;
    let nodes = [...fragment.childNodes];
    if (this.continuation) {
      const first = fragment.querySelector("ul, ol, tbody");
      nodes = nodes.filter((node) => !node.contains(first));
      this.items = reconcile(this.continuation.parent, this.items, [...(first?.childNodes ?? [])]);
    }
    this.tail = reconcile(this.container, this.tail, nodes);
  }

  /** @param {string} type @returns {Element | null} the list, or the body of the table, in the last block */
  #growingParent(type) {
    const element = /** @type {Element | undefined} */ (this.tail.find((node) => node instanceof Element));
    if (type === "list") return element ?? null;
    return element?.querySelector("tbody") ?? null;
  }

  /** @param {number} length of the source of the elements that become final */
  #commit(length) {
    this.committed += length;
    this.outline = this.pendingOutline;
    highlightIn([...this.items, ...this.tail]);
    this.items = this.tail = [];
    this.tailSource = "";
    this.continuation = null;
    this.window = WINDOW;
  }
}

/**
 * @param {Continuation} continuation
 * @param {Token | undefined} token
 */
function continues(continuation, token) {
  return token?.type === continuation.type && Boolean(token.ordered) === continuation.ordered;
}
