/** The list of keyboard shortcuts. */

import { h } from "../dom.js";
import { openDialog } from "./dialog.js";

const META = /mac|iphone|ipad/i.test(navigator.userAgent) ? "⌘" : "Ctrl";

/** Keys and meaning. `main.js` and `chat/message.js` implement them. */
const SHORTCUTS = /** @type {[string, [string[], string][]][]} */ ([
  [
    "Everywhere",
    [
      [[META, "K"], "Search the conversations"],
      [[META, "Shift", "O"], "New conversation"],
      [[META, "."], "Settings of the conversation"],
      [[META, "/"], "This list"],
      [["Esc"], "Stop the answer, or close what is open"],
      [["Alt", "↑"], "Go to the last message, then to the one before"],
      [["Alt", "↓"], "Go to the next message"],
    ],
  ],
  [
    "In the message field",
    [
      [["Enter"], "Send"],
      [["Shift", "Enter"], "New line"],
    ],
  ],
  [
    "On a message",
    [
      [["↑", "↓"], "Previous or next message"],
      [["←", "→"], "Previous or next version"],
      [["C"], "Copy"],
      [["E"], "Edit"],
      [["R"], "Answer again"],
      [["P"], "Token probabilities"],
    ],
  ],
  [
    "In the token view",
    [
      [["←", "→"], "Previous or next token"],
      [["↑", "↓"], "Ten tokens back or forward"],
    ],
  ],
]);

export function showHelp() {
  const sections = SHORTCUTS.map(([title, rows]) => {
    const items = rows.map(([keys, meaning]) =>
      h("div", { class: "shortcut" }, h("dt", {}, meaning), h("dd", {}, ...keys.map((key) => h("kbd", {}, key)))),
    );
    return h("section", {}, h("h3", {}, title), h("dl", {}, ...items));
  });
  openDialog("Keyboard shortcuts", [h("div", { class: "shortcuts" }, ...sections)]);
}
