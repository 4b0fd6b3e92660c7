/** Splits long markdown, so that a frame draws only a little: the first part of a block becomes final. */

import { LONGEST_TEX } from "./math.js";
import { lex } from "./parser.js";

/** @typedef {import("./parser.js").Token} Token */

/** Weight from which a block is split. Parsing and laying out this much takes a few milliseconds. */
export const SPLIT = 2000;

/** A block is split at the end of a sentence within this much after SPLIT, else at a space within as much again. */
const SEARCH = 800;

/** A character weighs 1; an element in the text, or a cell of a table, as much as this many characters. */
const ELEMENT = 10;

/** A frame of a code block has a button and an icon. */
export const CODE = 300;

/** A character of TeX becomes about half an element, which takes several times as long to draw as a character. */
const TEX = 8;

/** Long words, also texts in scripts without spaces, weigh twice as much: the browser looks for places to break them. */
const LONG_WORD = /\S{100,}/g;

/** Ends of sentences, or spaces, before a letter: after a split, a letter cannot start a list or a heading. */
const SENTENCE_ENDS = /[.!?…][)"'”’]?\s+(?=\p{L})|[。！？](?=\p{L})/gu;
const SPACES = /\s(?=\p{L})/gu;

/** Tokens in a text that are not split. */
const ATOMS = new Set(["inlineMath", "codespan", "link"]);

/**
 * @typedef {object} Split
 * @property {Token[]} tokens that are final
 * @property {number} length of their source
 * @property {string} [prefix] source that must precede the rest: the head of a table
 */

/** @param {Token[]} tokens */
export const lengthOf = (tokens) => tokens.reduce((sum, token) => sum + token.raw.length, 0);

/** @param {Token} token @returns {Token[]} */
function children(token) {
  const cells = token.rows ? [...token.header, ...token.rows.flat()] : [];
  return [...(token.tokens ?? []), ...(token.items ?? []), ...cells];
}

/** @param {Token[]} tokens @returns {{tex: string, display: boolean}[]} */
export function formulasIn(tokens) {
  return tokens.flatMap((token) =>
    token.tex === undefined ? formulasIn(children(token)) : [/** @type {any} */ (token)],
  );
}

/** @param {Token} token @returns {number} the weight of its elements and formulas */
function elements(token) {
  const { length = 0 } = token.tex ?? {};
  let own = ELEMENT + (length > LONGEST_TEX ? 0 : TEX * length); // a longer formula is shown as text
  if (token.type === "code") own = CODE;
  // The text of an item has children; then the words are theirs.
  if (token.type === "text") own = token.tokens ? 0 : (token.raw.match(LONG_WORD) ?? []).join("").length;
  return children(token).reduce((sum, child) => sum + elements(child), own);
}

/** @param {Token[]} tokens @returns {number} how long it takes to draw them, compared with a character of text */
export const weight = (tokens) => tokens.reduce((sum, token) => sum + token.raw.length + elements(token), 0);

/** @param {Token[]} tokens @returns {Token[]} the first ones, as many as one frame draws; at least one */
export function light(tokens) {
  let sum = 0;
  const end = tokens.findIndex((token, index) => (sum += weight([token])) > SPLIT && index > 0);
  return end < 0 ? tokens : tokens.slice(0, end);
}

/**
 * @param {Token} token
 * @returns {Split | null} the first part of a long block
 */
export function splitBlock(token) {
  if (weight([token]) <= SPLIT) return null;
  if (token.type === "list") return splitList(token);
  if (token.type === "table") return splitTable(token);
  if (token.type === "paragraph") return splitText(token);
  if (token.type === "blockquote") return splitQuote(token);
  return null;
}

/** @param {Token} token @returns {Split | null} */
function splitList(token) {
  const items = light(token.items.slice(0, -1));
  const source = items.map((/** @type {Token} */ item) => item.raw).join("");
  if (!items.length || !token.raw.startsWith(source)) return null;
  return { tokens: [{ ...token, items }], length: source.length };
}

/** @param {Token} token @returns {Split | null} */
function splitTable(token) {
  if (token.rows.length < 2) return null;
  const [names, marks, ...lines] = token.raw.split("\n");
  const rows = token.rows.slice(0, -1).map((/** @type {Token[]} */ tokens, /** @type {number} */ index) => ({
    type: "row",
    raw: `${lines[index]}\n`,
    tokens,
  }));
  const final = light(rows);
  const prefix = `${names}\n${marks}\n`;
  const tokens = [{ ...token, rows: final.map((row) => row.tokens) }];
  return { tokens, length: prefix.length + lengthOf(final), prefix };
}

/**
 * @param {Token} token a paragraph
 * @param {number} limit
 * @returns {number} the first position before which the paragraph has this weight, not within a formula or code
 */
function positionOf(token, limit) {
  let position = 0;
  let sum = 0;
  for (const part of token.tokens) {
    const own = weight([part]);
    const { length } = part.raw;
    if (sum + own >= limit) return position + (ATOMS.has(part.type) ? length : Math.ceil((length * (limit - sum)) / own));
    position += part.raw.length;
    sum += own;
  }
  return position;
}

/**
 * Splits a paragraph after a sentence, a word, or else anywhere but in a surrogate pair. A stored answer may be split at
 * another position than on arrival, because the text after the split also counts as part of a long word or a link.
 * @param {Token} token
 * @returns {Split | null}
 */
function splitText(token) {
  const { raw } = token;
  const texts = token.tokens.map((/** @type {Token} */ part) =>
    ATOMS.has(part.type) ? "x".repeat(part.raw.length) : part.raw,
  );
  const places = texts.join(""); // without spaces in formulas and code
  const [start, near, far] = [SPLIT, SPLIT + SEARCH, SPLIT + 2 * SEARCH].map((limit) => positionOf(token, limit));
  const firstAfter = (/** @type {RegExp} */ ends, /** @type {number} */ limit) => {
    ends.lastIndex = start;
    const match = ends.exec(places);
    return match && match.index < limit ? match.index + match[0].length : 0;
  };
  let end = firstAfter(SENTENCE_ENDS, near);
  if (!end && near < raw.length) end = firstAfter(SPACES, far);
  if (!end && far < raw.length) end = far + (/[\uDC00-\uDFFF]/.test(raw[far]) ? 1 : 0);
  return end ? { tokens: lex(raw.slice(0, end), Object.create(null)), length: end } : null;
}

/** @param {Token} token @returns {Split | null} */
function splitQuote({ raw }) {
  const place = [...raw.matchAll(/\n> ?\n(?=>)/g)].find(({ index }) => index > SPLIT);
  if (!place) return null;
  const end = place.index + place[0].length;
  return { tokens: lex(raw.slice(0, end), Object.create(null)), length: end };
}
