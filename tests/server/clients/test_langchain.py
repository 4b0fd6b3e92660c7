"""`langchain-openai` and `langchain-anthropic`: chat models with tools, streams and structured output."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from tests.server.clients.weather import CITIES, MODEL, QUESTION, City, get_weather


class Answer(BaseModel):
    """A schema of structured output."""

    city: City


def openai_model(address: str, **fields: Any) -> Any:
    models = pytest.importorskip("langchain_openai")
    return models.ChatOpenAI(model=MODEL, base_url=f"{address}/v1", api_key="x", temperature=0, max_retries=0, **fields)


def anthropic_model(address: str, **fields: Any) -> Any:
    models = pytest.importorskip("langchain_anthropic")
    return models.ChatAnthropic(
        model=MODEL, base_url=address, api_key="x", max_retries=0, max_tokens=fields.pop("max_tokens"), **fields
    )


def responses_model(address: str, **fields: Any) -> Any:
    return openai_model(address, use_responses_api=True, **fields)


MODELS = pytest.mark.parametrize("model", [openai_model, responses_model, anthropic_model])


@MODELS
def test_a_tool_round_trip(address: str, model: Any) -> None:
    chat = model(address, max_tokens=100)
    from langchain_core.messages import HumanMessage, ToolMessage

    question = HumanMessage(QUESTION)
    answer = chat.bind_tools([get_weather], tool_choice="any").invoke([question])
    assert answer.tool_calls
    results = [ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"]) for call in answer.tool_calls]
    text_only = {"type": "none"} if model is anthropic_model else "none"
    chat = model(address, max_tokens=8).bind_tools([get_weather], tool_choice=text_only)
    final = chat.invoke([question, answer, *results])
    assert final.text and not final.tool_calls
    assert final.usage_metadata["input_token_details"]["cache_read"] > 0


@MODELS
def test_streams(address: str, model: Any) -> None:
    chat = model(address, max_tokens=8)
    pieces = list(chat.stream(QUESTION))
    assert len(pieces) > 3 and "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("model", [openai_model, responses_model])
def test_structured_output(address: str, model: Any) -> None:
    answer = model(address, max_tokens=100).with_structured_output(Answer).invoke(QUESTION)
    assert answer.city in CITIES
