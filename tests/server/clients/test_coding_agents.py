"""Requests in the shapes that coding agents send: Codex to /v1/responses, and Claude Code to /v1/messages.

Both begin with the same long prompt in each turn, send tools that only their own servers run, and expect that the
prompt comes from the cache. Claude Code also puts a line into the system message that differs in every request.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.clients.weather import MODEL, SCHEMA, get_weather

try:
    from httpx2 import Client  # the name that newer SDKs use
except ImportError:
    from httpx import Client

PROMPT = "You are a coding agent. Read the files before you change them. " * 60
"""The static beginning of the prompt: about 4,000 tokens of the small vocabulary."""

SHELL = {
    "type": "object",
    "properties": {"command": {"type": "array", "items": {"enum": ["ls", "pwd"]}, "minItems": 1, "maxItems": 2}},
    "required": ["command"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def http(address: str) -> Iterator[Any]:
    with Client(base_url=address, timeout=60) as client:
        yield client


def events_of(response: Any) -> list[dict[str, Any]]:
    """Returns the events of a stream, whose lines `event:` and `data:` agree."""
    assert response.status_code == 200, response.text
    blocks = [block.split("\n") for block in response.text.split("\n\n") if block and not block.startswith(":")]
    events = [json.loads(block[1].removeprefix("data: ")) for block in blocks]
    assert [block[0] for block in blocks] == [f"event: {event['type']}" for event in events]
    return events


def codex(items: list[Any], **fields: Any) -> dict[str, Any]:
    """Returns a request as Codex sends it."""
    function = {
        "type": "function",
        "name": "shell",
        "description": "Runs a command",
        "strict": False,
        "parameters": SHELL,
    }
    return {
        "model": MODEL,
        "instructions": PROMPT,
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment_context>"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "List the files."}]},
            *items,
        ],
        "tools": [
            function,
            {"type": "web_search", "external_web_access": False},
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark"}},
            {"type": "namespace", "name": "mcp", "description": "x", "tools": []},
            {"type": "image_generation", "output_format": "png"},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": None,
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199-conversation",
        "client_metadata": {"x-codex-installation-id": "0199"},
        "text": {"verbosity": "medium"},
        **fields,
    }  # fmt: skip


def test_a_turn_of_codex(http: Any) -> None:
    forced = {"tool_choice": "required", "max_output_tokens": 200}
    response = http.post("/v1/responses", json=codex([], **forced))
    events = events_of(response)
    skipped = "tools[1]=web_search,tools[2]=custom,tools[3]=namespace,tools[4]=image_generation"
    assert response.headers["x-puna-ignored"] == skipped
    (call,) = events[-1]["response"]["output"]
    assert events[-1]["type"] == "response.completed" and call["name"] == "shell"
    assert set(json.loads(call["arguments"])["command"]) <= {"ls", "pwd"}
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "a.py"}
    final = events_of(http.post("/v1/responses", json=codex([*done, result], tool_choice="none", max_output_tokens=8)))
    usage = final[-1]["response"]["usage"]
    assert final[-1]["response"]["output"][0]["type"] == "message"
    assert usage["input_tokens_details"]["cached_tokens"] >= events[-1]["response"]["usage"]["input_tokens"] - 64


def test_the_probe_of_codex(http: Any) -> None:
    body = {"model": MODEL, "input": [], "max_output_tokens": 1, "store": False, "stream": True}
    assert events_of(http.post("/v1/responses", json=body))[-1]["response"]["usage"]["output_tokens"] == 1


CCH = (f"{number:05x}" for number in itertools.count(0xFA690, 7919))


def claude_code(*turns: Any, **fields: Any) -> dict[str, Any]:
    """Returns a request as Claude Code sends it."""
    header = f"x-anthropic-billing-header: cc_version=2.1.154.3a3; cc_entrypoint=cli; cch={next(CCH)};"
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    reminder = {"type": "text", "text": "<system-reminder>Today is Friday.</system-reminder>"}
    return {
        "model": MODEL,
        "max_tokens": 32000,
        "system": [
            {"type": "text", "text": header},
            {"type": "text", "text": "You are Claude Code.", **cached},
            {"type": "text", "text": PROMPT, **cached},
        ],
        "messages": [
            {"role": "user", "content": [reminder, {"type": "text", "text": "What is the weather?", **cached}]},
            *turns,
        ],
        "tools": [
            {
                "name": "Weather",
                "description": "The weather",
                "input_schema": {"$schema": "http://json-schema.org/draft-07/schema#", **SCHEMA},
            },
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
            {"type": "tool_search_tool_regex_20251119", "name": "tool_search"},
            {"name": "mcp__x", "description": "x", "input_schema": SCHEMA, "defer_loading": True},
        ],
        "metadata": {"user_id": "user_0_account__session_1"},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "stream": True,
        **fields,
    }


def post(http: Any, body: dict[str, Any]) -> Any:
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219", "x-api-key": "x"}
    return http.post("/v1/messages?beta=true", json=body, headers=headers)


def test_a_turn_of_claude_code(http: Any) -> None:
    response = post(http, claude_code(tool_choice={"type": "any", "disable_parallel_tool_use": True}))
    events = events_of(response)
    skipped = "tools[1]=web_search_20250305,tools[2]=tool_search_tool_regex_20251119,tools[3]=mcp__x"
    assert response.headers["x-puna-ignored"] == skipped
    use = next(event["content_block"] for event in events if event["type"] == "content_block_start")
    pieces = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    use["input"] = json.loads("".join(pieces))
    assert use["name"] == "Weather" and events[-2]["delta"]["stop_reason"] == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": get_weather(**use["input"])}
    turns = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    final = events_of(post(http, claude_code(*turns, tool_choice={"type": "none"}, max_tokens=8)))
    start, first = final[0]["message"]["usage"], events[0]["message"]["usage"]
    total = first["input_tokens"] + first["cache_read_input_tokens"]
    assert start["cache_read_input_tokens"] >= total - 64 and start["input_tokens"] < 200


def test_tokens_of_claude_code_are_counted(http: Any) -> None:
    left_out = ("max_tokens", "metadata", "stream")
    body = {name: value for name, value in claude_code().items() if name not in left_out}
    headers = {"anthropic-version": "2023-06-01"}
    counts = [
        http.post("/v1/messages/count_tokens?beta=true", json=item, headers=headers).json() for item in (body, body)
    ]
    assert counts[0] == counts[1] and counts[0]["input_tokens"] > 2000
