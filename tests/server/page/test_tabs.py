"""Two tabs of one browser: they show each other's conversations, and no save of one loses a message of the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.page.browser import PATIENCE, Person, stored, wait_for


class Tab(Person):
    """Another tab of a person's browser, with the same conversation."""

    def __init__(self, first: Person) -> None:
        self.url, self.context, self.problems = first.page.url, first.context, first.problems
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        self.page.on("console", self._on_console)
        self.open()


def contents(conversation: dict[str, Any], role: str) -> list[str]:
    """Returns the texts of all messages of a role, of all branches."""
    return sorted(message["content"] for message in conversation["messages"].values() if message["role"] == role)


def answers(person: Person) -> list[dict[str, Any]]:
    """Returns the answers in the database, of all conversations and branches."""
    messages = [message for conversation in stored(person) for message in conversation["messages"].values()]
    return [message for message in messages if message["role"] == "assistant"]


def ended(person: Person) -> list[dict[str, Any]]:
    """Returns the answers in the database that have an end."""
    return [message for message in answers(person) if "finish" in message]


@pytest.fixture
def second(person) -> Iterator[Tab]:
    """Yields a second tab with the first tab's conversation, which has one answer."""
    person.ask("first")
    yield Tab(person)


def test_tabs_show_each_others_answers(person, second):
    for index, tab in enumerate([second, person, second, person]):
        tab.page.bring_to_front()
        tab.ask(f"question {index}")
        for other in (person, second):
            other.see(f"about “question {index}”")
    assert person.articles.count() == second.articles.count() == 10
    (conversation,) = stored(person)
    assert len(conversation["messages"]) == 10


def test_messages_sent_in_both_tabs_at_once_become_versions(person, second):
    for tab, text in ((person, "one"), (second, "two")):
        tab.page.get_by_role("textbox", name="Message", exact=True).fill(text)
    for tab in (person, second):
        tab.page.keyboard.press("Enter")
    for tab, text in ((person, "one"), (second, "two")):
        tab.page.bring_to_front()
        tab.see(f"about “{text}”")
        tab.wait()
    wait_for(lambda: len(ended(person)) == 3)
    (conversation,) = stored(person)
    assert contents(conversation, "user") == ["first", "one", "two"]
    assert len(contents(conversation, "assistant")) == 3
    for tab in (person, second):
        tab.reload()
        assert "2" in tab.page.locator(".branch-place").first.inner_text()


def test_an_answer_is_shown_in_the_other_tab_which_waits(person, second, expect):
    person.page.bring_to_front()
    person.write("slow")
    person.see("Word 2 of")
    second.page.bring_to_front()
    second.see("Word 2 of")
    field = second.page.get_by_role("textbox", name="Message", exact=True)
    expect(field).to_have_attribute("placeholder", "Another tab is receiving an answer in this conversation")
    expect(second.button("Send")).to_be_disabled()
    person.page.bring_to_front()
    person.button("Stop").click()
    person.wait()
    second.page.bring_to_front()
    expect(second.button("Send")).to_be_enabled()
    assert second.articles.last.locator(".body").inner_text() == person.articles.last.locator(".body").inner_text()
    second.ask("and then")
    assert [len(contents(stored(person)[0], role)) for role in ("user", "assistant")] == [3, 3]


def test_the_other_tab_continues_when_the_first_is_closed(person, second):
    person.page.bring_to_front()
    person.write("slow")
    person.see("Word 2 of")
    second.page.bring_to_front()
    second.see("Word 2 of")
    person.page.close()
    person.page = second.page  # for the checks at the end
    second.see("And this is the continuation.")
    second.wait()
    (conversation,) = stored(second)
    assert len(conversation["messages"]) == 4
    second.reload()
    assert "Word 2 of" in second.articles.last.inner_text()


@pytest.mark.parametrize("arriving", [False, True])
def test_a_conversation_deleted_in_one_tab_stays_deleted(person, second, expect, arriving):
    if arriving:
        person.page.bring_to_front()
        person.write("slow")
        person.see("Word 2 of")
    second.page.bring_to_front()
    second.button("Delete first").click()
    second.button("Delete", second.page.get_by_role("dialog")).click()
    person.page.bring_to_front()
    expect(person.articles).to_have_count(0)
    person.page.get_by_text("This conversation was deleted in another tab.").wait_for()
    person.page.wait_for_timeout(2000)
    assert stored(person) == []
    person.ask("again")
    assert [conversation["title"] for conversation in stored(person)] == ["again"]


def test_settings_of_both_tabs_are_kept_and_exported(person, second, tmp_path: Path):
    person.page.locator(".model-choice").select_option("poet")
    second.page.bring_to_front()
    second.ask("second")
    assert second.page.locator(".model-choice").input_value() == "poet"
    person.page.bring_to_front()
    person.see("about “second”")
    person.button("Export").click()
    with person.page.expect_download() as download:
        person.button("Export", person.page.get_by_role("dialog")).click()
    path = tmp_path / "export.json"
    download.value.save_as(path)
    (conversation,) = json.loads(path.read_text())["conversations"]
    assert conversation["model"] == "poet"
    assert contents(conversation, "user") == ["first", "second"]


FAIL = """([store, method]) => {
  const original = IDBObjectStore.prototype[method];
  IDBObjectStore.prototype[method] = function (...values) {
    if (this.name === store) throw new DOMException("the disk is full", "QuotaExceededError");
    return original.apply(this, values);
  };
}"""
"""Makes a method of a store of the database fail."""


def test_an_answer_whose_probabilities_cannot_be_stored_is_complete(person, second):
    person.page.bring_to_front()
    person.page.evaluate(FAIL, ["tokens", "put"])
    person.ask("again")
    person.page.get_by_text("could not store the token probabilities of the answer").wait_for()
    wait_for(lambda: len(ended(person)) == 2)
    second.page.bring_to_front()
    second.see("about “again”")
    second.ask("and then")
    assert len(answers(second)) == 3 and "continuation" not in str(answers(second))


def test_a_tab_that_cannot_read_the_answer_of_another_can_still_send(person, second, expect):
    person.page.bring_to_front()
    person.write("slow")
    second.page.bring_to_front()
    second.see("Word 2 of")
    second.page.evaluate(FAIL, ["conversations", "get"])
    person.page.bring_to_front()
    person.button("Stop").click()
    second.page.bring_to_front()
    second.page.get_by_text("could not read the stored conversation").wait_for()
    expect(second.button("Send")).to_be_enabled()
    second.problems.clear()  # a message of the other tab could not be read, either


def export(tab: Person, path: Path) -> Path:
    """Exports the conversations of a tab."""
    tab.button("Export").click()
    with tab.page.expect_download() as download:
        tab.button("Export", tab.page.get_by_role("dialog")).click()
    download.value.save_as(path)
    return path


def test_a_conversation_that_is_imported_again_is_stored_by_every_tab(person, second, tmp_path):
    path = export(person, tmp_path / "export.json")
    second.page.bring_to_front()
    second.button("Delete first").click()
    second.button("Delete", second.page.get_by_role("dialog")).click()
    wait_for(lambda: not stored(person))
    third = Tab(person)
    for text in ("One conversation was imported.", "0 conversations were imported."):
        third.page.get_by_label("File to import").set_input_files(path)
        third.page.get_by_text(text).wait_for()
    second.page.bring_to_front()
    second.page.locator(".conversation-list").get_by_role("button", name="first").first.click()
    second.ask("and then")
    wait_for(lambda: len(ended(second)) == 2)
    second.reload()
    second.see("about “and then”")


UNFINISHED = """async () => {
  const { newConversation, addMessage, select } = await import("/page/js/conversation.js");
  const conversation = newConversation();
  const user = addMessage(conversation, null, { role: "user", content: "question" });
  const content = "```python\\ndef f():\\n    return 1";
  addMessage(conversation, user, { role: "assistant", content, model: "tiny-llama" });
  select(conversation, addMessage(conversation, user, { role: "assistant", content: "whole", finish: "stop" }));
  await new Promise((resolve) => {
    indexedDB.open("puna").onsuccess = ({ target: { result: database } }) => {
      const transaction = database.transaction("conversations", "readwrite");
      transaction.objectStore("conversations").put(conversation);
      transaction.oncomplete = () => { resolve(); database.close(); };
    };
  });
}"""
"""Stores a conversation whose first answer has no end; the second version is shown."""


@pytest.mark.parametrize("locks", [True, False])
def test_an_interrupted_version_is_continued_if_no_tab_can_receive_it(person, locks):
    person.page.evaluate(UNFINISHED)
    if not locks:
        person.page.add_init_script("Object.defineProperty(Navigator.prototype, 'locks', { value: undefined })")
    person.reload()
    person.page.locator(".conversation-list").get_by_role("button", name="question").first.click()
    person.button("Previous version").click()
    if locks:
        person.see("And this is the continuation.")
        person.wait()
    else:
        person.articles.last.locator("footer").get_by_text("interrupted").wait_for()
        person.articles.last.locator(".hljs-keyword").first.wait_for()


def test_an_answer_that_another_tab_receives_cannot_be_changed(person, second, expect):
    person.page.bring_to_front()
    person.write("slow")
    second.page.bring_to_front()
    second.see("Word 2 of")
    for name in ("Continue this answer", "Answer again", "Edit"):
        expect(second.button(name, second.articles.last)).to_be_disabled()
    assert "interrupted" not in second.articles.last.inner_text()
    second.articles.last.press("r")
    person.page.bring_to_front()
    person.button("Stop").click()
    person.wait()
    second.page.bring_to_front()
    expect(second.button("Continue this answer", second.articles.last)).to_be_enabled()
    assert len(answers(second)) == 2


def test_an_answer_is_continued_once_however_often_the_button_is_pressed(person, mock):
    person.ask("first")
    requests = len(mock.requests)
    person.page.evaluate("""() => {
      const button = document.querySelector('article:last-child [aria-label="Continue this answer"]');
      button.click();
      button.click();
    }""")
    person.see("And this is the continuation.")
    person.wait()
    person.ask("and then")
    assert len(mock.requests) == requests + 2


def test_the_focus_and_an_editor_stay_while_another_tab_receives(person, second, expect):
    second.page.bring_to_front()
    second.button("Edit", second.articles.first).click()
    field = second.page.get_by_role("textbox", name="Edit your message")
    field.fill("draft")
    person.page.bring_to_front()
    person.button("Answer again").click()
    person.wait()
    second.page.bring_to_front()
    wait_for(lambda: len(ended(second)) == 2)
    person.page.bring_to_front()
    person.write("slow")
    second.page.bring_to_front()
    wait_for(lambda: "Word 2 of" in str(answers(second)))
    expect(field).to_be_focused()
    expect(field).to_have_value("draft")
    field.press("Escape")
    for control in (second.page.locator(".model-choice"), second.button("Copy", second.articles.first)):
        control.focus()
        element = control.element_handle()
        words = len(str(answers(second)))
        wait_for(lambda words=words: len(str(answers(second))) > words)
        second.page.wait_for_timeout(100)  # the message of the other tab is on its way
        assert element.evaluate("element => element === document.activeElement")
    person.page.bring_to_front()
    person.button("Stop").click()
    person.wait()
