/** Builds elements. Text becomes text nodes; nothing here parses HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Creates an element. Functions under `on...` become event listeners, `true` an empty attribute; `false`, `null` and
 * `undefined` are omitted.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any} the element
 */
export function h(tag, attributes = {}, ...children) {
  const element = /** @type {any} */ (document.createElement(tag));
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * @param {string} name of a symbol in index.html
 * @returns {SVGSVGElement} a decorative icon
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/**
 * A button that shows only an icon; the label is its accessible name and its tooltip.
 * @param {string} name of the icon
 * @param {string} label
 * @param {(event: Event) => void} onclick
 * @param {Record<string, any>} [attributes]
 * @returns {HTMLButtonElement}
 */
export function iconButton(name, label, onclick, attributes = {}) {
  const { class: extra = "", ...others } = attributes;
  return h(
    "button",
    { type: "button", class: `icon-button ${extra}`, "aria-label": label, title: label, onclick, ...others },
    icon(name),
  );
}

/**
 * Replaces children of an element; if one of them has the focus, the new one with the same label gets it.
 * @param {Element} container
 * @param {() => void} replace
 */
export function keepFocus(container, replace) {
  const focused = document.activeElement;
  const label = container.contains(focused) ? focused?.getAttribute("aria-label") : null;
  replace();
  if (!label || document.activeElement === focused) return;
  const same = [...container.querySelectorAll("[aria-label]")].find(
    (element) => element.getAttribute("aria-label") === label,
  );
  /** @type {HTMLElement | undefined} */ (same)?.focus();
}

/**
 * @param {string} id
 * @returns {any} the element of index.html with this id
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no element "${id}"`);
  return element;
}
