"""What a person does in the page, and the checks that hold whatever the person does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 120_000
"""Milliseconds after which a test that waits for an event fails; a busy machine needs more than a few seconds."""

WATCH = """
window.__violations = [];
addEventListener("securitypolicyviolation", (event) =>
  __violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""
"""Records violations of the content security policy."""

UNSAFE = """() => {
  const forbidden = "script img iframe object embed style link meta base form input video audio template noscript " +
    "svg:not(.icon) annotation-xml maction";
  const bad = [...document.querySelectorAll(forbidden.split(" ").map((name) => `.message ${name}`).join(", "))];
  for (const element of document.querySelectorAll(".message *")) {
    for (const { name, value } of element.attributes) {
      if (/^on/i.test(name) || name === "srcdoc" || name === "src" || name === "action") bad.push(element);
      if (name.endsWith("href") && !/^(https?:|mailto:|#i-)/i.test(value)) bad.push(element);
      if (name === "style" && /url|expression|position/i.test(value)) bad.push(element);
    }
    if (element.tagName === "A" && element.href && element.rel !== "noopener noreferrer nofollow") bad.push(element);
  }
  return bad.map((element) => element.outerHTML.slice(0, 300));
}"""
"""Elements of messages that markdown must never produce."""

STORED = """() => new Promise((resolve) => {
  indexedDB.open("puna").onsuccess = ({ target: { result: database } }) => {
    const request = database.transaction("conversations").objectStore("conversations").getAll();
    request.onsuccess = () => { resolve(request.result); database.close(); };
  };
})"""
"""Reads the conversations in the database."""


class Person:
    """A browser context with one tab."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(**context)
        self.context.add_init_script(WATCH)
        self.problems: list[str] = []
        self.context.on("request", self._on_request)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        self.page.on("console", self._on_console)
        self.page.on("dialog", self._on_dialog)
        self.open()

    def _on_request(self, request: Any) -> None:
        origin = "{0.scheme}://{0.netloc}/".format(urlsplit(request.url))
        if origin != self.url and not request.url.startswith(("blob:" + self.url, "data:")):
            self.problems.append(f"request to another origin: {request.url}")

    def _on_console(self, message: Any) -> None:
        if (
            message.type in ("error", "warning") and "status of" not in message.text
        ):  # "the server responded with a status of"
            self.problems.append(f"console: {message.text}")

    def _on_dialog(self, dialog: Any) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open(self) -> None:
        """Loads the page and waits for the models."""
        self.page.goto(self.url)
        self.page.wait_for_selector(".model-choice option", state="attached")

    def button(self, name: str, within: Any = None) -> Any:
        """Returns the button with a label."""
        return (within or self.page).get_by_role("button", name=name, exact=True)

    @property
    def articles(self) -> Any:
        """The messages that are shown."""
        return self.page.locator("article")

    def see(self, text: str) -> None:
        """Waits for a text in the messages."""
        self.page.locator(".messages").get_by_text(text).first.wait_for()

    def write(self, text: str) -> None:
        """Sends a message without waiting for the answer."""
        self.page.get_by_role("textbox", name="Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def wait(self) -> None:
        """Waits until no answer is arriving."""
        self.page.wait_for_selector(".send[type=submit]:not([hidden])")

    def ask(self, text: str) -> str:
        """Sends a message; returns the text of the answer."""
        self.write(text)
        self.page.wait_for_selector(".send.stop:not([hidden]), article.assistant:last-child footer .actions")
        self.wait()
        return self.articles.last.locator(".body").inner_text()

    def reload(self) -> None:
        """Loads the page again with the data that the browser has stored."""
        self.page.reload()
        self.page.wait_for_selector(".model-choice option", state="attached")

    def check(self) -> None:
        """Fails if a script of the model ran, another origin was asked, or the policy was violated."""
        assert self.page.evaluate("window.__pwned") is None
        assert self.page.evaluate("window.__violations") == []
        assert self.page.evaluate(UNSAFE) == []
        assert self.problems == []

    def close(self) -> None:
        """Checks, and closes the tab."""
        try:
            self.check()
        finally:
            self.context.close()


def stored(person: Person) -> list[dict[str, Any]]:
    """Returns the conversations in the database."""
    return person.page.evaluate(STORED)


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < end, "the condition never holds"
        time.sleep(0.05)
