/** The scrolled part of a pane: it follows new text until a person scrolls up, and has a button that goes to the end. */

import { h, iconButton } from "../dom.js";

/** Distance from the end, in pixels, within which the view follows new text. */
const BOTTOM = 60;

export class Scroller {
  /**
   * @param {string} label
   * @param {...HTMLElement} children
   */
  constructor(label, ...children) {
    this.following = true;
    this.lastTop = 0;
    this.element = h(
      "div",
      { class: "scroller", tabindex: "0", role: "region", "aria-label": label, onscroll: () => this.#onscroll() },
      ...children,
    );
    this.jump = iconButton("down", "Go to the end", () => this.scrollToEnd(), { class: "jump", hidden: true });
  }

  #onscroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.element;
    const atEnd = scrollHeight - scrollTop - clientHeight < BOTTOM;
    // Only scrolling up stops following, because new text also moves the end away from the view.
    if (atEnd) this.following = true;
    else if (scrollTop < this.lastTop) this.following = false;
    this.lastTop = scrollTop;
    this.jump.hidden = atEnd || this.following;
  }

  keepBottom() {
    if (this.following) this.element.scrollTop = this.element.scrollHeight;
  }

  scrollToEnd() {
    this.following = true;
    this.jump.hidden = true;
    this.keepBottom();
  }
}
