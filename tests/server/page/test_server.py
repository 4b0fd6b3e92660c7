"""The page on the real server: its files need no key, and the model card has the defaults that the page shows."""

from __future__ import annotations

from puna.config import GenerationDefaults
from puna.server.app import create_app
from puna.server.page.files import HEADERS, page_files
from puna.server.service import Service
from puna.server.settings import ServerSettings


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
