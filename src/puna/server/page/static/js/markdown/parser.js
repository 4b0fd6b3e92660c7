/** GitHub-flavoured markdown to HTML text. Raw HTML is ordinary text, images are links, formulas are placeholders. */

import { Lexer, Marked } from "../../vendor/marked/marked.esm.js";

/** @typedef {{type: string, raw: string, [key: string]: any}} Token */

const ESCAPES = /** @type {Record<string, string>} */ ({
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
});
const escape = (/** @type {string} */ text) => text.replace(/[&<>"']/g, (character) => ESCAPES[character]);

const ALLOWED_LINK = /^(?:https?:\/\/|mailto:)/i;

/**
 * @param {string} href
 * @param {string} label HTML text
 */
function link(href, label) {
  if (!ALLOWED_LINK.test(href.trim())) return label;
  return `<a href="${escape(href.trim())}">${label}</a>`;
}

/**
 * An extension of marked for formulas.
 * @param {"block" | "inline"} level
 * @param {RegExp} start
 * @param {RegExp} rule with the formula in the first group that matches
 */
function formula(level, start, rule) {
  const name = `${level}Math`;
  return {
    name,
    level,
    start: (/** @type {string} */ source) => {
      const index = source.search(start);
      return index < 0 ? undefined : index;
    },
    tokenizer(/** @type {string} */ source) {
      const match = rule.exec(source);
      if (!match) return undefined;
      const tex = match.slice(1).find((group) => group !== undefined) ?? "";
      const display = level === "block" || match[0].startsWith("$$") || match[0].startsWith("\\[");
      return { type: name, raw: match[0], tex, display };
    },
    renderer: (/** @type {any} */ token) => {
      const tag = level === "block" ? "div" : "span";
      return `<${tag} class="${token.display ? "math-display" : "math-inline"}">${escape(token.tex)}</${tag}>`;
    },
  };
}

const marked = new Marked({ gfm: true, async: false });
marked.use({
  extensions: [
    formula("block", /\n {0,3}(?:\$\$|\\\[)/, /^ {0,3}(?:\$\$([^$]{1,4000}?)\$\$|\\\[([^]{1,4000}?)\\\]) *(?:\n|$)/),
    // As in pandoc: "$" opens before and closes after a character that is not a space, and "$5 and $6" is text.
    formula(
      "inline",
      /\$|\\[([]/,
      /^(?:\$\$([^$\n]{1,2000})\$\$|\$(?![\s$])((?:\\.|[^$\\\n]){0,1000}?(?:\\.|[^\s$\\]))\$(?![\d$])|\\\(([^\n]{1,2000}?)\\\)|\\\[([^\n]{1,2000}?)\\\])/,
    ),
  ],
  tokenizer: {
    html: () => undefined,
    tag: () => undefined,
  },
  renderer: {
    html: (/** @type {any} */ { text }) => escape(text),
    image: (/** @type {any} */ { href, text }) => link(href, `🖼 ${escape(text || href)}`),
    link(/** @type {any} */ { href, tokens }) {
      return link(href, /** @type {any} */ (this).parser.parseInline(tokens));
    },
    checkbox: (/** @type {any} */ { checked }) => (checked ? "☑ " : "☐ "),
    code: (/** @type {any} */ { text, lang }) =>
      `<pre><code class="language-${escape(/^[\w+#.-]*/.exec(lang ?? "")?.[0] ?? "")}">${escape(text)}\n</code></pre>`,
  },
});

/** More nested quotes and lists than this on one line are shown as plain text: parsers recurse once per level. */
const DEEP = /^[ \t]*(?:>[ \t]*|(?:[-+*]|\d{1,9}[.)])[ \t]+){16}/m;

/**
 * @param {string} source
 * @param {Record<string, any>} links definitions of reference links so far; this call adds its own
 * @returns {Token[]} whose `raw` texts together are the source
 */
export function lex(source, links) {
  if (DEEP.test(source)) return [{ type: "plain", raw: source }];
  const lexer = new Lexer(/** @type {any} */ (marked.defaults));
  /** @type {any} */ (lexer.tokens).links = links;
  return /** @type {Token[]} */ ([...lexer.lex(source)]);
}

/**
 * @param {Token[]} tokens
 * @returns {string} HTML, not sanitized yet
 */
export function toHtml(tokens) {
  if (tokens.length === 1 && tokens[0].type === "plain") return `<p class="plain">${escape(tokens[0].raw)}</p>`;
  return /** @type {string} */ (marked.parser(/** @type {any} */ (tokens)));
}

/**
 * @param {string} source
 * @returns {string} HTML that shows the source unchanged
 */
export function plainHtml(source) {
  return toHtml([{ type: "plain", raw: source }]);
}
