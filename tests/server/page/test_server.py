"""The page on the real server: its files need no key, and the model card has the defaults that the page shows."""

from __future__ import annotations

import json
import re

import pytest

from puna.config import GenerationDefaults
from puna.server.app import create_app
from puna.server.page.files import FOLDER, HEADERS, page_files
from puna.server.service import Service
from puna.server.settings import ServerSettings
from tests.server.page.browser import Person


def test_every_file_is_served_without_a_key(llm):
    from starlette.testclient import TestClient

    settings = ServerSettings(keys=(("person", "secret-key-1"),))
    with TestClient(create_app(Service(llm, settings), settings), "http://127.0.0.1:8000") as client:
        for path, file in page_files().items():
            response = client.get(path)
            assert (response.status_code, response.content) == (200, file.body), path
            assert response.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
        assert client.get("/v1/models").status_code == 401
        assert client.post("/").status_code in (401, 405)
        assert client.get("/page/../v1/models").status_code == 401
        assert client.get("/page/missing.js").status_code == 401


def test_the_model_card_has_the_settings_of_a_request_that_sets_none(client, llm):
    (card,) = client.get("/v1/models").json()["data"]
    defaults = GenerationDefaults.of(llm.generation_config)
    assert card["sampling_defaults"]["temperature"] == (defaults.temperature if llm.generation_config.do_sample else 1)
    assert card["sampling_defaults"]["top_p"] == defaults.top_p
    request = {"model": card["id"], "messages": [{"role": "user", "content": "Hello"}], "seed": 5, "max_tokens": 12}
    answers = [
        client.post("/v1/chat/completions", json=request | settings).json()["choices"]
        for settings in ({}, card["sampling_defaults"])
    ]
    assert answers[0] == answers[1]


def page_request(name: str) -> dict:
    """Returns a request with every field that the page can send."""
    settings = (FOLDER / "js/panels/settings.js").read_text()
    names = re.findall(r'\bname: "(\w+)"', settings)
    assert {"temperature", "top_p", "max_completion_tokens", "seed"} <= set(names)
    body: dict = dict.fromkeys(names, 1)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    body |= {"model": name, "messages": messages}
    body |= {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True, "stop": ["###"]}
    return body | {"logprobs": True, "top_logprobs": 5, "max_completion_tokens": 8, "presence_penalty": 0}


def stream(client, body: dict) -> list[dict]:
    """Returns the chunks of a streaming answer."""
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_the_server_accepts_every_field_of_the_page(client, llm):
    body = page_request("golden")
    chunks = stream(client, body)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"]]
    scores = [token for item in logprobs if item for token in item["content"]]
    assert "".join(token["token"] for token in scores) == text and len(scores[0]["top_logprobs"]) == 5
    assert chunks[-1]["usage"]["total_tokens"] > 0
    body["messages"].append({"role": "assistant", "content": text})
    assert stream(client, body | {"continue_final_message": True, "add_generation_prompt": False})[-1]["usage"]


@pytest.mark.slow
def test_a_person_talks_to_the_real_server(browser, llm):
    from tests.server.page.mock import serve

    settings = ServerSettings(name="golden", access_log="off")
    with serve(create_app(Service(llm, settings), settings)) as url:
        person = Person(browser, url)
        person.button("Settings of this conversation").click()
        person.page.get_by_role("spinbutton", name="Maximum answer length in tokens").fill("20")
        person.button("Save").click()
        person.ask("Hello")
        assert "first token after" in person.articles.last.inner_text()
        person.button("Continue this answer").click()
        person.wait()
        person.button("Answer again").click()
        person.wait()
        person.button("Token probabilities").click()
        assert person.page.locator(".heat-text .token").count() > 5
        assert person.articles.last.locator(".error").count() == 0
        person.close()
