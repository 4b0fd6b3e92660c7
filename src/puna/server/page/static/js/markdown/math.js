/** TeX to MathML, which browsers draw without additional fonts or scripts. */

import { sanitizeMath } from "./sanitize.js";

const OPTIONS = { trust: false, strict: false, throwOnError: true, maxExpand: 200, maxSize: [20, 300] };

/**
 * Replaces the text of a placeholder with the formula. A formula with a mistake stays visible as its source.
 * @param {Element} placeholder whose text is TeX
 */
export function renderMath(placeholder) {
  const tex = placeholder.textContent ?? "";
  const holder = document.createElement("div");
  try {
    const display = placeholder.classList.contains("math-display");
    /** @type {any} */ (window).temml.render(tex, holder, { ...OPTIONS, macros: {}, displayMode: display });
    const math = holder.firstElementChild;
    if (!math || holder.querySelectorAll("*").length > 5000) throw new Error("too large");
    sanitizeMath(math);
    placeholder.replaceChildren(math);
  } catch {
    const code = document.createElement("code");
    code.textContent = tex;
    code.title = "This formula could not be drawn.";
    placeholder.replaceChildren(code);
  }
}
