/** Highlights code blocks: a worker finds the parts, and the page colours a few lines per frame. */

import { h } from "../dom.js";

/** @typedef {import("./highlighter.js").Part} Part */

const SCRIPT = new URL("highlighter.js", import.meta.url).href;

/** Longer code stays plain. */
const LIMIT = 50_000;

/** Longer pieces stay plain: the elements of one would take longer than a frame to lay out. */
const PIECE_LIMIT = 8000;

/** @type {Worker | null} */
let worker = null;
/** Whether the worker could not be loaded. */
let failed = false;
let count = 0;
/** @type {Map<number, (parts: Part[]) => void>} what to do with the results that have not arrived */
const pending = new Map();
/** @type {(() => void)[]} pieces to colour, one per frame, the last first: the end of an answer is read first */
const waiting = [];

/** Starts the worker, so that it has loaded when the first block ends. */
export function prepareHighlighting() {
  if (worker) return;
  // The policy of the page allows no other script.
  const policy = /** @type {any} */ (window).trustedTypes?.createPolicy("puna", { createScriptURL: () => SCRIPT });
  worker = new Worker(policy?.createScriptURL("") ?? SCRIPT, { type: "module" });
  worker.onmessage = ({ data: { id, parts } }) => {
    if (parts.length) pending.get(id)?.(parts);
    pending.delete(id);
  };
  worker.onerror = () => {
    failed = true; // code stays plain
    pending.clear();
  };
}

/**
 * Colours code once its parts are known. Code in an unknown language stays plain.
 * @param {Element[]} pieces whose texts together are the code
 * @param {string} language
 */
export function highlight(pieces, language) {
  const text = pieces.map((piece) => piece.textContent).join("");
  if (!language || text.length > LIMIT) return;
  prepareHighlighting();
  if (failed) return;
  count += 1;
  pending.set(count, (parts) => colour(pieces, parts));
  worker?.postMessage({ id: count, text, language });
}

/**
 * @param {Element[]} pieces
 * @param {Part[]} parts
 */
function colour(pieces, parts) {
  let part = 0;
  let offset = 0;
  for (const piece of pieces) {
    /** @type {Part[]} */
    const own = [];
    for (let rest = piece.textContent?.length ?? 0; rest > 0;) {
      const [text, classes] = parts[part];
      const some = text.slice(offset, offset + rest);
      own.push([some, classes]);
      rest -= some.length;
      offset += some.length;
      if (offset === text.length) [part, offset] = [part + 1, 0];
    }
    if ((piece.textContent?.length ?? 0) > PIECE_LIMIT) continue;
    waiting.push(() =>
      piece.replaceChildren(...own.map(([text, classes]) => (classes ? h("span", { class: classes }, text) : text))),
    );
    if (waiting.length === 1) requestAnimationFrame(step);
  }
}

function step() {
  waiting.pop()?.();
  if (waiting.length) requestAnimationFrame(step);
}
