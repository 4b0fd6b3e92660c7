/** TeX to MathML, which browsers draw without additional fonts or scripts. */

import { sanitizeMath } from "./sanitize.js";

const OPTIONS = { trust: false, strict: false, throwOnError: true, maxExpand: 200, maxSize: [20, 300] };

/** Formulas that are kept: the last block of an answer is drawn again whenever text arrives. */
const KEPT = 400;

/** @type {Map<string, Element>} the latest formulas by kind and TeX */
const drawn = new Map();

/**
 * Replaces the text of a placeholder with the formula. A formula with a mistake stays visible as its source.
 * @param {Element} placeholder whose text is TeX
 */
export function renderMath(placeholder) {
  const tex = placeholder.textContent ?? "";
  const display = placeholder.classList.contains("math-display");
  const key = `${display} ${tex}`;
  const formula = drawn.get(key) ?? draw(tex, display);
  drawn.delete(key); // to add it as the latest
  drawn.set(key, formula);
  for (const oldest of drawn.keys()) {
    if (drawn.size <= KEPT) break;
    drawn.delete(oldest);
  }
  placeholder.replaceChildren(formula.cloneNode(true));
}

/**
 * @param {string} tex
 * @param {boolean} display
 * @returns {Element} MathML, or the source
 */
function draw(tex, display) {
  const holder = document.createElement("div");
  try {
    /** @type {any} */ (window).temml.render(tex, holder, { ...OPTIONS, macros: {}, displayMode: display });
    const math = holder.firstElementChild;
    if (!math || holder.querySelectorAll("*").length > 5000) throw new Error("too large");
    sanitizeMath(math);
    return math;
  } catch {
    const code = document.createElement("code");
    code.textContent = tex;
    code.title = "This formula could not be drawn.";
    return code;
  }
}
