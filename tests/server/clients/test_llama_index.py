"""`llama-index-llms-openai-like`: completions, chats, streams and tools."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.clients.weather import MODEL, QUESTION, Arguments, get_weather

pytest.importorskip("llama_index.llms.openai_like")


def model_of(address: str, **fields: Any) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(
        model=MODEL, api_base=f"{address}/v1", api_key="x", context_window=8192, temperature=0, max_retries=0,
        is_function_calling_model=True, **fields,
    )  # fmt: skip


def test_completions_and_streams(address: str) -> None:
    model = model_of(address, is_chat_model=False, max_tokens=8)
    text = model.complete("the llama").text
    assert text and "".join(piece.delta for piece in model.stream_complete("the llama")) == text


def test_a_tool_round_trip(address: str) -> None:
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool

    tool = FunctionTool.from_defaults(get_weather, fn_schema=Arguments)
    model = model_of(address, is_chat_model=True, max_tokens=100)
    history = [ChatMessage(role="user", content=QUESTION)]
    answer = model.chat_with_tools([tool], chat_history=history, tool_required=True)
    calls = model.get_tool_calls_from_response(answer)
    assert calls
    history.append(answer.message)
    for call in calls:
        output = str(tool(**call.tool_kwargs))
        history.append(ChatMessage(role="tool", content=output, additional_kwargs={"tool_call_id": call.tool_id}))
    assert model_of(address, is_chat_model=True, max_tokens=8).chat(history).message.content
