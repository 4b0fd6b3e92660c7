"""One person uses every feature of the page; the scripted server records the requests."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.server.page.browser import PATIENCE, Person, stored, wait_for
from tests.server.page.mock import CONTEXT

pytestmark = pytest.mark.slow


def tree(person: Person, text: str) -> list[Any]:
    """Returns the messages of the stored conversation that contains a text, as `[role, text, shown, answers]`.

    Imported conversations and messages have other ids.
    """
    (conversation,) = [one for one in stored(person) if text in json.dumps(one["messages"], ensure_ascii=False)]
    messages, selected = conversation["messages"].values(), conversation["selected"].values()

    def below(parent: str | None) -> list[Any]:
        return [
            [message["role"], message["content"], message["id"] in selected, below(message["id"])]
            for message in sorted(messages, key=lambda message: message["created"])
            if message["parent"] == parent
        ]

    return below(None)


def test_a_conversation_from_its_first_question_to_its_import(person, mock, expect, tmp_path):
    dialog, items = person.page.get_by_role("dialog"), person.page.locator(".conversation-list li")
    person.write("demo 5")
    person.see("Three facts")
    assert person.articles.last.get_attribute("aria-busy") == "true", "the answer is shown while it arrives"
    person.wait()
    person.see("signed area")

    person.write("slow")
    person.see("Word 3 of")
    person.button("Stop").click()
    person.wait()
    assert "stopped by you" in person.articles.last.inner_text()

    person.button("Edit", person.articles.first).click()
    person.page.get_by_role("textbox", name="Edit your message").fill("What do llamas eat?")
    person.button("Send", person.articles.first).click()
    person.wait()
    assert person.articles.count() == 2 and "about “What do llamas eat?”" in person.articles.last.inner_text()
    person.button("Previous version", person.articles.first).click()
    assert person.articles.count() == 4 and "Word 3 of" in person.articles.last.inner_text()
    person.button("Next version", person.articles.first).click()
    assert person.articles.count() == 2

    person.button("Compare two models").click()
    left, right = person.page.locator(".pane").all()
    person.page.get_by_label("Model of column B").select_option("poet")
    person.button("Settings of column B").click()
    person.page.get_by_role("spinbutton", name="Temperature").fill("1.5")
    person.button("Save").click()
    person.write("And vicuñas?")
    left.get_by_text("what tiny-llama says about “And vicuñas?”").wait_for()
    right.get_by_text("what poet says about “And vicuñas?”").wait_for()
    person.wait()
    assert sorted((body["model"], body.get("temperature")) for body in mock.requests[-2:]) == [
        ("poet", 1.5), ("tiny-llama", None),
    ]  # fmt: skip
    person.button("Keep A").click()

    person.page.get_by_label("Model", exact=True).select_option("lawyer")
    assert "what lawyer says" in person.ask("May I keep an alpaca?")
    assert mock.requests[-1]["model"] == "lawyer" and len(mock.requests[-1]["messages"]) == 5
    shown, before = person.articles.locator(".body").all_inner_texts(), tree(person, "alpaca")
    assert [len(question[3][0][3]) for question in before] == [1, 1], "each version of the question has a second one"

    person.reload()
    assert person.articles.locator(".body").all_inner_texts() == shown
    expect(person.page.get_by_label("Model", exact=True)).to_have_value("lawyer")
    person.button("New conversation").click()
    person.page.get_by_role("searchbox").fill("ALPACA")
    expect(items).to_have_count(1)
    items.locator(".open").click()
    assert person.articles.locator(".body").all_inner_texts() == shown

    person.button("Export").click()
    with person.page.expect_download() as download:
        person.button("Export", dialog).click()
    download.value.save_as(tmp_path / "export.json")
    items.locator(".delete").click()
    person.button("Delete", dialog).click()
    expect(items).to_have_count(0)
    assert not any("alpaca" in json.dumps(one) for one in stored(person))
    person.page.get_by_label("File to import").set_input_files(tmp_path / "export.json")
    person.page.get_by_text("One conversation was imported.").wait_for()
    items.locator(".open").click()
    assert person.articles.locator(".body").all_inner_texts() == shown
    assert tree(person, "alpaca") == before
    person.button("Previous version", person.articles.first).click()
    assert person.articles.count() == 4 and "Word 3 of" in person.articles.last.inner_text()
    assert "stopped by you" in person.articles.last.inner_text()


def test_an_answer_streams_and_has_figures(person, mock):
    person.write("slow")
    person.see("Reading the prompt: ")
    person.see("Word 3 of")
    assert person.articles.last.get_attribute("aria-busy") == "true"
    person.page.keyboard.press("Escape")
    person.wait()
    assert "stopped by you" in person.articles.last.inner_text()
    text = person.ask("demo")
    assert "signed area" in text
    footer = person.articles.last.locator("footer").inner_text()
    assert "tokens/s" in footer and "first token after" in footer and "from the cache" in footer
    body = mock.requests[-1]
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["stream"] and body["logprobs"] and body["top_logprobs"] == 5 and body["return_progress"]
    assert "temperature" not in body, "the server's defaults apply unless the person changes them"


def test_a_model_without_settings_chooses_likely_tokens(browser, mock, monkeypatch):
    monkeypatch.setattr(mock, "defaults", {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0})
    person = Person(browser, mock.url)
    person.ask("hello")
    assert (mock.requests[-1]["temperature"], mock.requests[-1]["top_p"]) == (0.2, 0.9)
    person.button("Settings of this conversation").click()
    temperature = person.page.get_by_role("spinbutton", name="Temperature")
    assert temperature.get_attribute("placeholder") == "0.2"
    temperature.fill("1")
    person.button("Save").click()
    person.ask("hello again")
    assert mock.requests[-1]["temperature"] == 1
    person.button("Continue this answer").click()
    person.wait()
    assert (mock.requests[-1]["temperature"], mock.requests[-1]["top_p"]) == (1, 0.9)
    person.close()


def test_answers_have_a_maximum_length(person, mock):
    """By default a quarter of the context: a model that does not stop must not make the conversation useless."""
    person.ask("hello")
    assert mock.requests[-1]["max_completion_tokens"] == CONTEXT // 4 == 4096
    person.button("Settings of this conversation").click()
    length = person.page.get_by_role("spinbutton", name="Maximum answer length in tokens")
    assert length.get_attribute("placeholder") == "4096"
    length.fill("100")
    person.button("Save").click()
    person.ask("hello again")
    assert mock.requests[-1]["max_completion_tokens"] == 100


def test_a_full_context_has_a_remedy(person):
    person.ask("fill the context")
    answer = person.articles.last
    assert "edit a long message or answer above" in answer.locator(".notice").inner_text()
    assert "the context is full" in answer.locator("footer").inner_text()
    person.reload()
    assert person.page.locator(".notice").count() == 1
    person.ask("fill more")
    answer = person.articles.last
    assert "the prompt has 17000 tokens" in answer.inner_text()
    person.button("Answer again", answer).click()
    person.wait()
    person.button("New conversation", answer).click()
    assert person.articles.count() == 0
    person.ask("hello")
    assert person.page.locator(".notice").count() == 0


def test_the_stop_button_cancels_the_request(person, mock):
    before = mock.cancelled
    person.write("slow")
    person.see("Word 2 of")
    person.button("Stop").click()
    person.wait()
    wait_for(lambda: mock.cancelled > before)
    assert mock.cancelled == before + 1


def test_markdown_code_and_formulas_are_drawn(person):
    person.ask("demo")
    answer = person.articles.last
    assert answer.locator("math").count() == 3
    assert answer.locator("math mtable mtd").count() == 4
    answer.locator("pre .hljs-keyword").nth(1).wait_for()
    assert answer.locator("table td").nth(1).evaluate("cell => getComputedStyle(cell).textAlign") == "right"
    assert answer.locator("li.task").count() == 2
    person.context.grant_permissions(["clipboard-read", "clipboard-write"])
    person.button("Copy code", answer).click()
    copied = person.page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("def determinant(") and copied.endswith("# -2.0")


def test_edits_and_other_answers_are_branches(person, mock):
    person.ask("first question")
    person.button("Answer again").click()
    person.wait()
    assert "2 / 2" in person.articles.last.inner_text()
    person.button("Previous version").click()
    assert "1 / 2" in person.articles.last.inner_text()
    person.button("Edit", person.articles.first).click()
    person.page.get_by_role("textbox", name="Edit your message").fill("second question")
    person.button("Send", person.articles.first).click()
    person.wait()
    assert mock.requests[-1]["messages"] == [{"role": "user", "content": "second question"}]
    assert "second question" in person.articles.last.inner_text()
    person.button("Edit", person.articles.last).click()
    person.page.get_by_role("textbox", name="Edit the answer").fill("My own words")
    person.button("Save", person.articles.last).click()
    assert "My own words" in person.articles.last.inner_text() and "edited" in person.articles.last.inner_text()
    person.button("Continue this answer").click()
    person.wait()
    body = mock.requests[-1]
    assert body["messages"][-1] == {"role": "assistant", "content": "My own words"}
    assert body["continue_final_message"] and not body["add_generation_prompt"]
    assert "My own words And this is the continuation." in person.articles.last.inner_text()
    person.button("Previous version", person.articles.first).click()
    assert "first question" in person.articles.last.inner_text()


def test_settings_and_models_belong_to_a_conversation(person, mock):
    person.button("Settings of this conversation").click()
    temperature = person.page.get_by_role("spinbutton", name="Temperature")
    assert temperature.get_attribute("placeholder") == "0.7"
    temperature.fill("0.2")
    person.page.get_by_label("System prompt").fill("Be brief.")
    person.page.get_by_label("Stop strings, one per line").fill("END\n###")
    person.page.get_by_label("Request token probabilities").uncheck()
    person.button("Save").click()
    person.page.get_by_label("Model", exact=True).select_option("poet")
    person.ask("hello")
    body = mock.requests[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["model"], body["temperature"], body["stop"]) == ("poet", 0.2, ["END", "###"])
    assert "logprobs" not in body
    person.page.get_by_label("Model", exact=True).select_option("lawyer")
    assert "what lawyer says" in person.ask("hello again")
    person.button("New conversation").click()
    person.ask("fresh")
    assert mock.requests[-1]["messages"][0]["role"] == "user" and "temperature" not in mock.requests[-1]


def test_probabilities_and_alternatives(person, mock):
    person.ask("tell me")
    person.button("Token probabilities").click()
    tokens = person.page.locator(".heat-text").get_by_role("option")
    assert tokens.count() > 10
    tokens.nth(3).click()
    detail = person.page.get_by_role("group", name="Chosen token")
    assert "token 4 of" in detail.inner_text() and "chosen" in detail.inner_text()
    person.page.keyboard.press("ArrowRight")
    assert "token 5 of" in detail.inner_text()
    prefix = "".join(person.page.locator(".heat-text .token").all_text_contents()[:4])
    person.button("Continue with ␣the").click()
    person.wait()
    continued = mock.requests[-1]["messages"][-1]
    assert continued["role"] == "assistant" and continued["content"] == f"{prefix} the"
    assert "2 / 2" in person.articles.last.inner_text()


def test_compare_two_models(person, mock):
    person.ask("before")
    person.button("Compare two models").click()
    left, right = person.page.locator(".pane").all()
    person.page.get_by_label("Model of column A").select_option("poet")
    person.page.get_by_label("Model of column B").select_option("lawyer")
    person.write("who are you?")
    left.get_by_text("what poet says about “who are you?”").wait_for()
    right.get_by_text("what lawyer says about “who are you?”").wait_for()
    person.wait()
    assert {body["model"] for body in mock.requests[-2:]} == {"poet", "lawyer"}
    assert all(body["messages"][0]["content"] == "before" for body in mock.requests[-2:])
    person.reload()
    assert person.page.locator(".pane").count() == 2
    person.button("Keep B").click()
    assert person.page.locator(".pane").count() == 1
    assert "what lawyer says" in person.articles.last.inner_text()
    assert person.page.locator(".conversation-list li").count() == 2


def test_reload_search_delete(person, expect):
    person.ask("a question about vicuñas")
    person.button("New conversation").click()
    person.ask("a question about condors")
    person.reload()
    assert "condors" in person.articles.last.inner_text()
    person.page.keyboard.press("Control+k")
    person.page.keyboard.type("VICUÑAS")
    items = person.page.locator(".conversation-list li")
    assert items.count() == 1 and "vicuñas" in items.first.inner_text()
    items.first.get_by_role("button", name="a question about vicuñas").first.click()
    assert "vicuñas" in person.articles.first.inner_text()
    person.page.get_by_role("searchbox").fill("")
    person.button("Delete a question about condors").click()
    person.page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    expect(person.page.locator(".conversation-list li")).to_have_count(1)


def test_a_reload_during_an_answer_continues_it(person, mock):
    person.write("slow")
    person.see("Word 90 of")
    person.reload()
    person.wait()
    text = person.articles.last.inner_text()
    assert "Word 20 of" in text and "And this is the continuation." in text and "interrupted" not in text
    assert mock.requests[-1]["continue_final_message"]
    assert "Word 20 of" in mock.requests[-1]["messages"][-1]["content"]
    requests = len(mock.requests)
    person.reload()
    person.ask("hello")  # a request of the reloaded page would come first
    assert len(mock.requests) == requests + 1


def test_reasoning_is_shown_apart_and_not_sent_again(person, mock):
    person.ask("think about llamas")
    reasoning = person.articles.last.locator("details.reasoning")
    assert reasoning.get_attribute("open") is None
    assert "First I" not in person.articles.last.locator(".body").inner_text()
    reasoning.locator("summary").click()
    assert reasoning.locator(".reasoning-text").inner_text() == "First I <b>consider</b> it. Then I know."
    person.reload()
    reasoning.locator("summary").click()
    assert "First I" in reasoning.inner_text()
    person.ask("and now?")
    assert "First I" not in str(mock.requests[-1]["messages"])


def test_the_reason_of_a_cache_miss_is_shown(person, mock):
    person.ask("miss the cache")
    assert 'the prompt differs from token 31, " llama"' in person.articles.last.locator("footer").inner_text()
    assert mock.requests[-1]["explain_prefix"] is True


def test_export_and_import(person, expect, tmp_path):
    person.page.get_by_label("Model", exact=True).select_option("poet")
    person.ask("remember the puna")
    person.button("Answer again").click()
    person.wait()
    person.button("Export").click()
    with person.page.expect_download() as download:
        person.page.get_by_role("dialog").get_by_role("button", name="Export", exact=True).click()
    path = tmp_path / "export.json"
    download.value.save_as(path)
    document = json.loads(path.read_text())
    (conversation,) = document["conversations"]
    answers = [message for message in conversation["messages"].values() if message["role"] == "assistant"]
    assert len(answers) == 2
    assert all(message["model"] == "poet" and message["created"] for message in answers)
    assert all(message["parameters"] == {"max_completion_tokens": 4096} for message in answers)
    assert conversation["tokens"][answers[0]["id"]][0]["top"]
    person.page.get_by_label("File to import").set_input_files(path)
    person.page.get_by_text("0 conversations were imported.").wait_for()
    person.button("Delete remember the puna").click()
    person.page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    expect(person.page.locator(".conversation-list li")).to_have_count(0)
    person.page.get_by_label("File to import").set_input_files(path)
    person.page.get_by_text("One conversation was imported.").wait_for()
    person.page.locator(".conversation-list .open").click()
    assert "2 / 2" in person.articles.last.inner_text()
    person.button("Token probabilities").click()
    assert person.page.locator(".heat-text").get_by_role("option").count() > 5


def _broken_exports():
    message = {"id": "a" * 32, "parent": None, "role": "user", "content": "x", "created": 1}
    conversation = {
        "id": "c" * 32,
        "title": "t",
        "created": 1,
        "updated": 1,
        "model": "",
        "system": "",
        "sampling": {},
        "selected": {},
    }
    conversation["messages"] = {message["id"]: message}

    def changed(**fields):
        return conversation | fields

    def with_message(**fields):
        return changed(messages={"a" * 32: message | fields})

    loop = {"a" * 32: message | {"parent": "b" * 32}, "b" * 32: message | {"id": "b" * 32, "parent": "a" * 32}}
    bad = [
        changed(id="__proto__"), changed(title=5), changed(created="now"), changed(messages=[]), changed(messages=loop),
        changed(selected={"root": "b" * 32}), changed(sampling={"temperature": "hot"}), changed(sampling=[]),
        changed(tokens={"a" * 32: [{"text": 1}]}), with_message(role="system"), with_message(content=None),
        with_message(parent="d" * 32), with_message(files=[{"name": "x"}]), with_message(content="x" * (4 * 2**20 + 1)),
        None, [],
    ]  # fmt: skip
    files = [json.dumps({"format": "puna-conversations", "version": 1, "conversations": [item]}) for item in bad]
    return ["", "[]", "null", "{", '{"format": "other"}', '{"format": "puna-conversations", "version": 2}', *files]


def test_files_of_another_shape_are_not_imported(person, tmp_path):
    for number, text in enumerate(_broken_exports()):
        path = tmp_path / f"bad-{number}.json"
        path.write_text(text)
        person.page.get_by_label("File to import").set_input_files(path)
        person.page.get_by_text(f"bad-{number}.json was not imported.").wait_for()
    assert person.page.locator(".conversation-list li").count() == 0
    assert person.page.evaluate("({}).polluted") is None


def test_text_files_are_attached(person, mock, tmp_path):
    source, image = tmp_path / "notes.md", tmp_path / "image.png"
    source.write_text("Fence inside:\n```\ncode\n```\n")
    image.write_bytes(b"\x89PNG\r\n\x1a\n\xff\x00")
    chooser = person.page.get_by_label("Choose text files")
    chooser.set_input_files([source, image])
    person.page.get_by_text("image.png is not a text file").wait_for()
    person.ask("Summarise")
    assert (
        mock.requests[-1]["messages"][-1]["content"]
        == "Summarise\n\nFile notes.md:\n````\nFence inside:\n```\ncode\n```\n````"
    )
    drop = """text => {
      const data = new DataTransfer();
      data.items.add(new File([text], "dropped.txt"));
      const event = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
      document.querySelector("#main").dispatchEvent(event);
    }"""
    person.page.evaluate(drop, "dropped text")
    person.page.locator(".chip", has_text="dropped.txt").wait_for()
    paste = """text => {
      const data = new DataTransfer();
      data.setData("text/plain", text);
      const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
      document.querySelector("#composer-text").dispatchEvent(event);
    }"""
    person.page.evaluate(paste, "long " * 2000)
    person.page.locator(".chip", has_text="pasted-1.txt").wait_for()
    person.button("Remove dropped.txt").click()
    person.ask("And this?")
    assert "File pasted-1.txt:" in mock.requests[-1]["messages"][-1]["content"]
    assert "dropped" not in mock.requests[-1]["messages"][-1]["content"]


def test_the_request_of_an_answer_can_be_repeated(person, mock):
    pytest.importorskip("openai")
    person.page.get_by_label("Model", exact=True).select_option("poet")
    person.ask("quotes ' \" $HOME `x` \\ 'and' ünïcode\nlines")
    body = mock.requests[-1]
    person.button("Show the request").click()
    dialog = person.page.get_by_role("dialog")

    def snippet(name):
        dialog.get_by_role("tab", name=name).click()
        return dialog.locator("code").first.inner_text()

    assert json.loads(snippet("JSON")) == body
    options = {"capture_output": True, "text": True, "timeout": PATIENCE / 1000, "check": True}
    output = subprocess.run(["bash", "-c", snippet("curl")], **options)
    assert mock.requests[-1] == body and "data: [DONE]" in output.stdout
    output = subprocess.run([sys.executable, "-c", snippet("Python")], **options)
    assert mock.requests[-1] == body and "what poet says" in output.stdout


def test_errors_are_shown_and_can_be_repeated(person):
    assert "temperature must be between 0 and 2" not in person.ask("refuse this")
    assert "temperature must be between 0 and 2, got 7" in person.articles.last.inner_text()
    person.ask("break here")
    assert "the backend failed" in person.articles.last.inner_text()
    assert "Here is" in person.articles.last.inner_text()
    assert "continuation" not in person.articles.last.inner_text()
    person.button("Continue this answer").click()
    person.wait()
    assert "continuation" in person.articles.last.inner_text()


def test_the_page_waits_while_the_model_loads(person, mock):
    mock.loading = True
    person.page.goto(person.url)
    person.page.get_by_text("The server is loading the model").wait_for()
    mock.loading = False
    person.page.wait_for_selector(".model-choice option", state="attached")
    assert person.page.locator("#banner").inner_text() == ""


def test_a_key_is_asked_for_and_kept_in_the_tab(person, mock):
    mock.key = "secret-1"
    try:
        person.page.goto(person.url)
        person.page.get_by_role("textbox", name="API key").fill("wrong")
        person.page.keyboard.press("Enter")
        person.page.get_by_text("The server refused this key.").wait_for()
        person.page.get_by_role("textbox", name="API key").fill("secret-1")
        person.page.keyboard.press("Enter")
        person.page.wait_for_selector(".model-choice option", state="attached")
        assert "what tiny-llama says" in person.ask("with a key")
        person.reload()
        assert "secret-1" not in person.page.url
        assert person.page.evaluate("JSON.stringify(localStorage) + document.cookie").find("secret-1") < 0
        person.button("Show the request").click()
        dialog = person.page.get_by_role("dialog")
        dialog.get_by_role("tab", name="curl").click()
        assert "$PUNA_API_KEY" in dialog.inner_text() and "secret-1" not in dialog.inner_text()
    finally:
        mock.key = None
