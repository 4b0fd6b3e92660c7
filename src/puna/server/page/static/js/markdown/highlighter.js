/** A worker that highlights code, so that the page stays responsive. It answers with texts and class names, not HTML. */

import hljs from "../../vendor/highlight/highlight.min.js";

/** @typedef {[string, string]} Part a text and its classes, possibly none */

/** Collects the parts of a text. Highlight.js calls these methods, and would write HTML without them. */
class Parts {
  /** @param {{classPrefix: string}} options */
  constructor({ classPrefix }) {
    this.prefix = classPrefix;
    /** @type {Part[]} */
    this.parts = [];
    /** @type {string[]} */
    this.scopes = [];
  }
  addText(/** @type {string} */ text) {
    const classes = this.scopes.at(-1) ?? "";
    const last = this.parts.at(-1);
    if (last?.[1] === classes) last[0] += text;
    else if (text) this.parts.push([text, classes]);
  }
  /** @param {string} scope such as "title.function", which becomes the classes "hljs-title function_" */
  openNode(scope) {
    const [first, ...others] = scope.split(".");
    this.scopes.push([this.prefix + first, ...others.map((name, depth) => name + "_".repeat(depth + 1))].join(" "));
  }
  closeNode() {
    this.scopes.pop();
  }
  startScope(/** @type {string} */ scope) {
    this.openNode(scope);
  }
  endScope() {
    this.closeNode();
  }
  __addSublanguage(/** @type {Parts} */ { parts }) {
    this.parts.push(...parts);
  }
  finalize() {}
  toHTML() {
    return "";
  }
}

hljs.configure(/** @type {any} */ ({ __emitter: Parts }));

onmessage = ({ data: { id, text, language } }) => {
  const known = hljs.getLanguage(language);
  const parts = known ? /** @type {any} */ (hljs.highlight(text, { language, ignoreIllegals: true }))._emitter.parts : [];
  // After an error in a grammar, the parts are incomplete.
  const complete = parts.map(([part]) => part).join("") === text;
  postMessage({ id, parts: complete ? parts : [] });
};
