"""POST /tokenize, /detokenize and /apply-template: convert texts, conversations and token ids, with vLLM's fields."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from puna.server.errors import ApiError
from puna.server.protocol.chat.fields import MESSAGE, TOOL
from puna.server.protocol.chat.request import template_message
from puna.server.protocol.chat.tools import function_of
from puna.server.protocol.endpoint import Call, add_endpoint
from puna.server.protocol.fields import HONOURED, Field, Table
from puna.server.protocol.schemas import INT, TEXT, array, record
from puna.server.protocol.types import Array, Boolean, Integer, Map, Text
from puna.server.service import Service
from puna.server.tools.formats import detect
from puna.server.tools.history import needs_tools, with_tools
from puna.server.tools.toolset import ToolSet

_MODEL = Field("model", Text(1), HONOURED, "name of the model or of an adapter")

_CONVERSATION = (
    Field("messages", Array(MESSAGE, 1, "messages"), HONOURED, "a conversation"),
    Field("add_generation_prompt", Boolean(), HONOURED, "end with the header of the answer", example=False),
    Field("continue_final_message", Boolean(), HONOURED, "end with the text of the last message", False,
          example=False),
    Field("chat_template_kwargs", Map(), HONOURED, "more variables of the chat template",
          example={"enable_thinking": False}),
    Field("tools", Array(TOOL, 1, "tools"), HONOURED, "functions that the prompt describes"),
)  # fmt: skip

TOKENIZE = Table("TokenizeRequest", (
    _MODEL,
    Field("prompt", Text(), HONOURED, "a text; a request has either prompt or messages", example="the llama"),
    Field("add_special_tokens", Boolean(), HONOURED, "add special tokens such as BOS; the default is true for a prompt "
          "and false for messages, because the chat template writes these tokens"),
    Field("return_token_strs", Boolean(), HONOURED, "also return the text of each token", False, example=True),
    *_CONVERSATION,
), open=False)  # fmt: skip

DETOKENIZE = Table("DetokenizeRequest", (
    _MODEL,
    Field("tokens", Array(Integer(0, 2**31 - 1), 0), HONOURED, "the token ids", required=True, example=[5, 6]),
), open=False)  # fmt: skip

TEMPLATE = Table("ApplyTemplateRequest", (
    _MODEL,
    Field("messages", Array(MESSAGE, 1, "messages"), HONOURED, "the conversation", required=True,
          example=[{"role": "user", "content": "the llama"}]),
    *_CONVERSATION[1:],
), open=False)  # fmt: skip


def router(service: Service) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter()
    count = record({"count": INT, "max_model_len": INT, "tokens": array(INT)}, {"token_strs": array(TEXT)})
    prompt = record({"prompt": TEXT})
    for path, table, handler, response, summary in (
        ("/tokenize", TOKENIZE, _tokenize, count, "Encode a text or a conversation"),
        ("/detokenize", DETOKENIZE, _detokenize, prompt, "Decode token ids"),
        ("/apply-template", TEMPLATE, _template, prompt, "Write a conversation as the model reads it"),
    ):
        add_endpoint(routes, service, path, table, handler, summary=summary, response=response, admitted=False)
    return routes


async def _tokenize(call: Call) -> Response:
    values = call.values
    if (values["prompt"] is None) == (values["messages"] is None):
        raise ApiError(400, "the request must have either prompt or messages", param="prompt", code="invalid_value")
    adapter = _adapter(call)
    text = values["prompt"] if values["messages"] is None else await asyncio.to_thread(_render, call)
    special = values["add_special_tokens"]
    special = values["messages"] is None if special is None else special
    tokenizer = call.service.llm.tokenizer
    ids = await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=special)
    document = {"count": len(ids), "max_model_len": call.service.llm.longest_text(adapter), "tokens": list(ids)}
    if values["return_token_strs"]:
        document["token_strs"] = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    return call.json(document)


async def _detokenize(call: Call) -> Response:
    _adapter(call)
    tokenizer, tokens = call.service.llm.tokenizer, call.values["tokens"]
    size = call.service.llm.config.vocab_size
    unknown = next((token for token in tokens if token >= size), None)
    if unknown is not None:
        raise ApiError(400, f"tokens has {unknown}; the vocabulary has {size} tokens", param="tokens",
                       code="invalid_value")  # fmt: skip
    text = await asyncio.to_thread(tokenizer.decode, tokens, clean_up_tokenization_spaces=False)
    return call.json({"prompt": str(text)})


async def _template(call: Call) -> Response:
    _adapter(call)
    return call.json({"prompt": await asyncio.to_thread(_render, call)})


def _adapter(call: Call) -> str | None:
    name = call.values["model"]
    return None if name is None else call.service.adapter(name)


def _render(call: Call) -> str:
    """Returns the text of a conversation."""
    values, tokenizer = call.values, call.service.llm.tokenizer
    messages: list[Any] = [template_message(message, index) for index, message in enumerate(values["messages"])]
    functions = tuple(function_of(tool["function"]) for tool in values["tools"] or ())
    descriptions = None
    if functions or needs_tools(messages):
        tools = ToolSet(functions) if functions else None
        messages, descriptions = with_tools(messages, detect(tokenizer), tools)
    continues = values["continue_final_message"]
    if continues and values["add_generation_prompt"]:
        raise ApiError(400, "continue_final_message and add_generation_prompt are both true; omit one of them",
                       param="add_generation_prompt", code="invalid_value")  # fmt: skip
    return str(
        tokenizer.apply_chat_template(
            messages,
            tools=descriptions,
            tokenize=False,
            add_generation_prompt=values["add_generation_prompt"] is not False and not continues,
            continue_final_message=continues,
            template_variables=values["chat_template_kwargs"] or {},
        )
    )
