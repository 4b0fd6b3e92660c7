/** DOMPurify with one narrow list per kind of content. Every element made from a model's text passes through here. */

import DOMPurify from "../../vendor/dompurify/purify.es.mjs";

const PROSE_TAGS = [
  "a",
  "blockquote",
  "br",
  "code",
  "del",
  "div",
  "em",
  "h1",
  "h2",
  "h3",
  "h4",
  "h5",
  "h6",
  "hr",
  "li",
  "ol",
  "p",
  "pre",
  "span",
  "strong",
  "table",
  "tbody",
  "td",
  "th",
  "thead",
  "tr",
  "ul",
];

const COMMON = { ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false, RETURN_DOM_FRAGMENT: true };

const PROSE = {
  ...COMMON,
  ALLOWED_TAGS: PROSE_TAGS,
  ALLOWED_ATTR: ["align", "class", "href", "start"],
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
};
/** Formulas are built with the CSSOM; a style attribute set again would be refused by the content security policy. */
const MATH = {
  ...COMMON,
  RETURN_DOM_FRAGMENT: false,
  IN_PLACE: true,
  USE_PROFILES: { mathMl: true },
  ADD_ATTR: ["style"],
  FORBID_ATTR: ["href", "src", "id", "name", "xlink:href"],
  FORBID_TAGS: ["annotation-xml", "semantics", "maction"],
};

/** @param {string} html of markdown @returns {DocumentFragment} */
export const sanitizeProse = (html) => /** @type {any} */ (DOMPurify.sanitize(html, /** @type {any} */ (PROSE)));

/** @param {Element} math is changed in place */
export const sanitizeMath = (math) => void DOMPurify.sanitize(math, /** @type {any} */ (MATH));
