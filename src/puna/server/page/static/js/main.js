/** Starts the page and handles the shortcuts that work everywhere. */

import { setKeyPrompt } from "./api.js";
import { App } from "./app.js";
import { showHelp } from "./panels/help.js";
import { askForKey } from "./panels/key.js";
import { Library } from "./storage/library.js";

setKeyPrompt(askForKey);
const app = new App(await Library.open());

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const control = event.ctrlKey || event.metaKey;
  const message = document.activeElement?.closest("article");
  /** @type {Record<string, () => void>} */
  const actions = {
    "control k": () => {
      app.toggleSidebar(true);
      app.sidebar.search.focus();
      app.sidebar.search.select();
    },
    "control shift o": () => app.create(),
    "control .": () => app.editSettings(app.panes[0]),
    "control /": showHelp,
    "alt arrowup": () => app.panes[0].focusMessage(app.panes[0].messageOf(message), -1),
    "alt arrowdown": () => app.panes[0].focusMessage(app.panes[0].messageOf(message), 1),
    escape: () => (app.busy ? app.stop() : app.toggleSidebar(false)),
  };
  const keys = [control && "control", event.altKey && "alt", event.shiftKey && "shift", event.key.toLowerCase()];
  const action = actions[keys.filter(Boolean).join(" ")];
  if (!action || event.isComposing) return;
  event.preventDefault();
  action();
});

await app.start();
