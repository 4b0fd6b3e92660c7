"""WCAG 2.2 AA: axe in every state and theme, the keyboard, announcements, targets, 400 % zoom, reduced motion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.page.browser import Person

pytestmark = pytest.mark.slow

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

VIOLATIONS = """async (tags) => {
  const result = await axe.run(document, { runOnly: { type: "tag", values: tags } });
  const summary = (node) => node.failureSummary.split("\\n").slice(1, 3);
  const entry = (rule, node) => `${rule.id}: ${node.target} ${summary(node)} ${node.html.slice(0, 120)}`;
  return result.violations.flatMap((rule) => rule.nodes.map((node) => entry(rule, node)));
}"""

SMALL_TARGETS = """() => [...document.querySelectorAll("button, select, summary, input, [role=tab]")]
  .filter((element) => element.checkVisibility({ visibilityProperty: true }) && !element.closest("[inert]"))
  .filter((element) => !element.matches(".visually-hidden"))
  .map((element) => [element.getBoundingClientRect(), element.ariaLabel || element.textContent || element.id])
  .filter(([box]) => box.width < 24 || box.height < 24).map(([box, name]) => `${name}: ${box.width} x ${box.height}`)"""

SIDEWAYS = """() => [...document.querySelectorAll("html, body, .scroller, .main, .sidebar, .dialog")]
  .filter((element) => element.scrollWidth > element.clientWidth + 1 && element.clientWidth)
  .map((element) => `${element.tagName} ${element.className}: ${element.scrollWidth} > ${element.clientWidth}`)"""


def _answer(person: Person) -> None:
    person.ask("demo")


def _streaming(person: Person) -> None:
    person.write("slow")
    person.see("Word 2 of")


def _reading(person: Person) -> None:
    person.write("slow")
    person.see("Reading the prompt")


def _heat(person: Person) -> None:
    person.ask("hello")
    person.button("Token probabilities").click()
    person.page.locator(".heat-text .token").nth(2).click()


def _editing(person: Person) -> None:
    person.ask("hello")
    person.button("Edit", person.articles.last).click()


def _branches(person: Person) -> None:
    person.ask("hello")
    person.button("Answer again").click()
    person.wait()


def _compare(person: Person) -> None:
    person.button("Compare two models").click()
    person.ask("hello")


def _error(person: Person) -> None:
    person.ask("refuse")


def _full(person: Person) -> None:
    person.ask("fill the context")


def _files(person: Person) -> None:
    file = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"a few notes\n" * 20}
    person.page.get_by_label("Choose text files").set_input_files(file)
    person.page.locator(".chip").wait_for()
    person.ask("Read this")
    person.page.locator("summary").click()
    person.page.get_by_label("Choose text files").set_input_files(file)


def _reasoning(person: Person) -> None:
    person.ask("think about it")
    person.page.locator("summary").click()


def _search(person: Person) -> None:
    person.ask("hello")
    _list(person)
    person.page.get_by_role("searchbox").fill("good question")


def _list(person: Person) -> None:
    menu = person.page.get_by_role("button", name="Conversations", exact=True)
    if menu.is_visible():
        menu.click()
        person.page.wait_for_timeout(300)


def _dialog(name: str) -> Callable[[Person], None]:
    def open_dialog(person: Person) -> None:
        person.button(name).click()

    return open_dialog


def _request(person: Person) -> None:
    person.ask("hello")
    person.button("Show the request").click()
    person.page.get_by_role("tab", name="Python").click()


def _system(person: Person) -> None:
    person.button("Settings of this conversation").click()
    person.page.get_by_label("System prompt").fill("Be brief. " * 30)
    person.button("Save").click()


def _export(person: Person) -> None:
    person.ask("hello")
    _list(person)
    person.button("Export").click()


def _delete(person: Person) -> None:
    person.ask("hello")
    _list(person)
    person.button("Delete hello").click()


def _toast(person: Person) -> None:
    _list(person)
    person.button("Export").click()
    person.page.get_by_text("There is no conversation to export yet.").wait_for()


STATES: dict[str, Callable[[Person], Any]] = {
    "empty": lambda person: None,
    "answer": _answer,
    "reading": _reading,
    "streaming": _streaming,
    "heat": _heat,
    "editing": _editing,
    "branches": _branches,
    "compare": _compare,
    "error": _error,
    "full": _full,
    "files": _files,
    "reasoning": _reasoning,
    "search": _search,
    "settings": _dialog("Settings of this conversation"),
    "help": _dialog("Keyboard shortcuts"),
    "request": _request,
    "system": _system,
    "export": _export,
    "delete": _delete,
    "toast": _toast,
}


@pytest.fixture(scope="module")
def axe() -> str:
    """Returns the source of axe-core."""
    package = pytest.importorskip("axe_playwright_python")
    return (Path(package.__path__[0]) / "axe.min.js").read_text()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("view", ["light", "dark", "phone"])
def test_axe_finds_nothing(browser, mock, axe, view, state):
    size = {"width": 390, "height": 844} if view == "phone" else {"width": 1280, "height": 860}
    person = Person(browser, mock.url, viewport=size, color_scheme="dark" if view == "dark" else "light")
    STATES[state](person)
    person.page.evaluate(axe)
    assert person.page.evaluate(VIOLATIONS, TAGS) == []
    assert person.page.evaluate(SMALL_TARGETS) == []
    assert person.page.evaluate(SIDEWAYS) == []
    person.close()


@pytest.mark.parametrize("state", STATES)
def test_nothing_scrolls_sideways_at_400_percent(browser, mock, state):
    """1280 by 1024 pixels at 400 % are 320 by 256."""
    person = Person(browser, mock.url, viewport={"width": 320, "height": 256})
    STATES[state](person)
    assert person.page.evaluate(SIDEWAYS) == []
    person.close()


def test_the_bar_and_the_field_do_not_cover_the_answer_at_400_percent(browser, mock):
    person = Person(browser, mock.url, viewport={"width": 320, "height": 256})
    person.ask("demo")
    height = person.page.locator(".scroller").evaluate("element => element.clientHeight")
    assert height >= 200
    person.close()


def test_sentences_are_announced(person):
    log = person.page.locator("#announcements")
    assert (log.get_attribute("role"), log.get_attribute("aria-live")) == ("log", "polite")
    person.ask("demo")
    spoken = log.locator("p").all_inner_texts()
    assert spoken[1] == "Definition" and spoken[-1] == "Answer complete."
    assert "It is zero exactly when the columns are parallel." in spoken
    assert "Code, 7 lines." in spoken
    assert not [text for text in spoken if "```" in text or "**" in text]
    assert person.articles.last.get_attribute("aria-busy") == "false"


def test_the_end_of_an_answer_does_not_move_the_focus(person):
    person.write("slow")
    person.see("Word 2 of")
    person.page.get_by_role("searchbox").focus()
    person.button("Stop").dispatch_event("click")
    person.wait()
    assert person.page.evaluate("document.activeElement.type") == "search"


def _focused(person: Person) -> dict[str, Any] | None:
    return person.page.evaluate(
        """() => {
          const element = document.activeElement;
          if (element === document.body) return null; // after the last element
          const style = getComputedStyle(element);
          const box = element.closest(".composer-box") ?? element;
          const outline = style.outlineStyle !== "none" || getComputedStyle(box).outlineStyle !== "none";
          return { name: element.ariaLabel || element.textContent.trim().slice(0, 40) || element.id, outline };
        }"""
    )


def test_the_keyboard_reaches_everything_with_visible_focus(person):
    person.ask("demo")
    person.page.evaluate("document.activeElement.blur()")
    names = []
    for _ in range(45):
        person.page.keyboard.press("Tab")
        if focus := _focused(person):
            assert focus["outline"], focus
            names.append(focus["name"])
    expected = {
        "Skip to the message field",
        "New conversation",
        "Search the conversations",
        "Export",
        "Model",
        "Message",
    }
    expected |= {"Settings of this conversation", "Compare two models", "Keyboard shortcuts", "Copy code", "Send"}
    expected |= {"Answer again", "Continue this answer", "Token probabilities", "Show the request"}
    assert expected - set(names) == set()


def test_a_session_by_keyboard_only(person, mock):
    keyboard = person.page.keyboard
    person.page.get_by_role("textbox", name="Message", exact=True).focus()
    keyboard.type("first")
    keyboard.press("Enter")
    person.see("what tiny-llama says about “first”")
    person.wait()
    keyboard.press("Alt+ArrowUp")
    assert person.articles.last.evaluate("element => element === document.activeElement")
    keyboard.press("r")
    person.page.get_by_text("2 / 2").wait_for()
    person.wait()
    person.articles.last.focus()
    keyboard.press("ArrowLeft")
    assert "1 / 2" in person.articles.last.inner_text()
    keyboard.press("ArrowUp")
    keyboard.press("e")
    person.page.get_by_role("textbox", name="Edit your message").wait_for()
    person.page.wait_for_timeout(100)
    keyboard.press("Control+a")
    keyboard.type("changed")
    keyboard.press("Control+Enter")
    person.see("what tiny-llama says about “changed”")
    person.wait()
    person.articles.last.focus()
    keyboard.press("p")
    person.page.locator(".heat-text").wait_for()
    keyboard.press("Control+.")
    person.page.get_by_role("dialog").wait_for()
    keyboard.press("Escape")
    keyboard.press("Control+/")
    person.page.get_by_role("dialog", name="Keyboard shortcuts").wait_for()
    keyboard.press("Escape")
    keyboard.press("Control+Shift+O")
    assert person.articles.count() == 0
    keyboard.press("Control+k")
    keyboard.type("changed")
    keyboard.press("Tab")
    keyboard.press("Enter")
    person.see("what tiny-llama says about “changed”")


def test_reduced_motion_is_respected(browser, mock):
    person = Person(browser, mock.url, reduced_motion="reduce")
    person.write("slow")
    person.see("Reading the prompt")
    animations = person.page.evaluate("document.getAnimations().length")
    assert animations == 0
    person.close()
