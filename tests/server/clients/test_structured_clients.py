"""`instructor`, `pydantic-ai`, `openai-agents` and simonw's `llm`: loops around tools and schemas."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.server.clients.weather import CITIES, MODEL, QUESTION, SCHEMA, City, get_weather


class Answer(BaseModel):
    """A schema of structured output."""

    city: City


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "RESPONSES_TOOLS", "ANTHROPIC"])
def test_instructor(address: str, mode: str) -> None:
    instructor = pytest.importorskip("instructor")
    chosen = instructor.Mode["TOOLS" if mode == "ANTHROPIC" else mode]
    messages = [{"role": "user", "content": QUESTION}]
    if mode == "ANTHROPIC":
        anthropic = pytest.importorskip("anthropic")
        client = instructor.from_anthropic(anthropic.Anthropic(base_url=address, api_key="x"), mode=chosen)
        answer = client.messages.create(model=MODEL, max_tokens=100, messages=messages, response_model=Answer)
    else:
        openai = pytest.importorskip("openai")
        client = instructor.from_openai(openai.OpenAI(base_url=f"{address}/v1", api_key="x"), mode=chosen)
        limit = {"max_output_tokens": 100} if mode == "RESPONSES_TOOLS" else {"max_tokens": 100}
        answer = client.chat.completions.create(
            model=MODEL, messages=messages, response_model=Answer, temperature=0, **limit
        )
    assert answer.city in CITIES


@pytest.mark.parametrize("kind", ["chat", "responses", "anthropic"])
def test_pydantic_ai(address: str, kind: str) -> None:
    pytest.importorskip("pydantic_ai")
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    async def run(model: Any) -> Any:
        agent = Agent(model, output_type=Answer, model_settings={"max_tokens": 200})
        async with model.client:
            return await agent.run(QUESTION)

    if kind == "anthropic":
        anthropic = pytest.importorskip("anthropic")
        client = anthropic.AsyncAnthropic(base_url=address, api_key="x")
        result = asyncio.run(run(AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client))))
    else:
        openai = pytest.importorskip("openai")
        provider = OpenAIProvider(openai_client=openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x"))
        result = asyncio.run(
            run((OpenAIChatModel if kind == "chat" else OpenAIResponsesModel)(MODEL, provider=provider))
        )
    assert result.output.city in CITIES and result.usage.output_tokens > 0


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_openai_agents(address: str, kind: str) -> None:
    agents = pytest.importorskip("agents")
    openai = pytest.importorskip("openai")
    agents.set_tracing_disabled(True)
    called = []

    @agents.function_tool
    def weather(city: City) -> str:
        """Returns the weather in a city."""
        called.append(city)
        return get_weather(city)

    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x") as client:
            model = agents.OpenAIChatCompletionsModel if kind == "chat" else agents.OpenAIResponsesModel
            settings = {"temperature": 0, "max_tokens": 200}
            agent = agents.Agent(
                name="weather", instructions="Be brief.", tools=[weather], model=model(MODEL, client),
                model_settings=agents.ModelSettings(tool_choice="required", **settings),
                tool_use_behavior="stop_on_first_tool",
            )  # fmt: skip
            call = await agents.Runner.run(agent, QUESTION)
            # The schema ends the answer: if `max_tokens` ends it, the package raises an error (Responses, 0.24).
            answering = agent.clone(tools=[], output_type=Answer, model_settings=agents.ModelSettings(**settings))
            return call, await agents.Runner.run(answering, call.to_input_list())

    call, result = asyncio.run(run())
    assert called and set(called) <= set(CITIES) and call.final_output == get_weather(called[-1])
    assert result.final_output.city in CITIES


def test_llm(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")  # other packages of the environment may be plugins
    pytest.importorskip("llm")
    entry = [
        f"- model_id: puna\n  model_name: {MODEL}\n  api_base: {address}/v1\n  supports_schema: true\n",
        f"- model_id: puna-text\n  model_name: {MODEL}\n  api_base: {address}/v1\n  completion: true\n",
    ]
    (tmp_path / "extra-openai-models.yaml").write_text("".join(entry))
    import llm

    model = llm.get_model("puna")
    model.key = "x"
    pieces = list(model.prompt(QUESTION, temperature=0, max_tokens=8))
    assert len(pieces) > 3
    answer = model.prompt(QUESTION, schema=SCHEMA, temperature=0, max_tokens=100, stream=False)
    assert json.loads(answer.text())["city"] in CITIES
    text = llm.get_model("puna-text")
    text.key = "x"
    assert text.prompt("the llama", temperature=0, max_tokens=8, stream=False).text()
