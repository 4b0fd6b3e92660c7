/** TeX to MathML, which browsers draw without additional fonts or scripts. */

import { sanitizeMath } from "./sanitize.js";

const OPTIONS = { trust: false, strict: false, throwOnError: true, maxExpand: 200, maxSize: [20, 300] };

/** Formulas that are kept: the last block of an answer is drawn again whenever text arrives. */
const KEPT = 1000;

/** Formulas of a block that are drawn ahead, so that KEPT does not drop one before it is shown. */
const AHEAD = KEPT / 2;

/** Longer formulas, or those with more elements, are shown as TeX: drawing one could take longer than 50 ms. */
export const LONGEST_TEX = 2500;
const MOST_ELEMENTS = 2500;

/** An inline formula of more characters of TeX can be wider than the page; it can be scrolled. */
const NARROW = 60;

/** Characters of TeX that `drawAhead` draws, or one formula. Each takes 20 to 60 microseconds. */
const STEP = 200;

/** @type {Map<string, Element>} the latest formulas by kind and TeX */
const drawn = new Map();

/**
 * Replaces the text of a placeholder with the formula. A formula that cannot be drawn stays visible as TeX.
 * @param {Element} placeholder whose text is TeX
 */
export function renderMath(placeholder) {
  const tex = placeholder.textContent ?? "";
  placeholder.classList.toggle("wide", tex.length > NARROW);
  const formula = get(tex, placeholder.classList.contains("math-display"));
  placeholder.replaceChildren(formula.cloneNode(true));
}

/**
 * Draws a few formulas that will be shown, so that no frame has to draw many.
 * @param {{tex: string, display: boolean}[]} formulas
 * @returns {boolean} whether all are drawn
 */
export function drawAhead(formulas) {
  let length = 0;
  for (const { tex, display } of formulas.slice(0, AHEAD)) {
    if (drawn.has(keyOf(tex, display))) continue;
    if (length >= STEP) return false;
    get(tex, display);
    length += tex.length;
  }
  return true;
}

const keyOf = (/** @type {string} */ tex, /** @type {boolean} */ display) => `${display} ${tex}`;

/**
 * @param {string} tex
 * @param {boolean} display
 * @returns {Element} the formula, which is kept
 */
function get(tex, display) {
  const key = keyOf(tex, display);
  const formula = drawn.get(key) ?? draw(tex, display);
  drawn.delete(key); // to add it as the latest
  drawn.set(key, formula);
  for (const oldest of drawn.keys()) {
    if (drawn.size <= KEPT) break;
    drawn.delete(oldest);
  }
  return formula;
}

/**
 * @param {string} tex
 * @param {boolean} display
 * @returns {Element} MathML, or the source
 */
function draw(tex, display) {
  const holder = document.createElement("div");
  try {
    if (tex.length > LONGEST_TEX) throw new Error("too long");
    /** @type {any} */ (window).temml.render(tex, holder, { ...OPTIONS, macros: {}, displayMode: display });
    const math = holder.firstElementChild;
    if (!math || holder.querySelectorAll("*").length > MOST_ELEMENTS) throw new Error("too large");
    sanitizeMath(math);
    return math;
  } catch {
    const code = document.createElement("code");
    code.textContent = tex;
    code.title = "This formula has a mistake or is too long to be drawn.";
    return code;
  }
}
