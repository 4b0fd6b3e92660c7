"""Translates a request of the chat API to a `Generation`."""

from __future__ import annotations

from typing import Any

from puna.server.errors import ApiError
from puna.server.generation import Generation
from puna.server.protocol.answer_format import read_format
from puna.server.protocol.chat.tools import read_tools
from puna.server.protocol.choices import shared_arguments
from puna.server.protocol.endpoint import Call
from puna.server.protocol.fields import Values
from puna.server.protocol.reasoning import read_effort
from puna.server.protocol.sampling import read_options
from puna.server.tools.history import needs_tools

_ROLES = {"developer": "system", "function": "tool"}


def read_generation(call: Call) -> Generation:
    """Returns the generation for a request.

    Raises:
        ApiError: fields contradict each other, or there is no such model.
    """
    values, service = call.values, call.service
    adapter = service.adapter(values["model"])
    options = {**read_options(values, service), **read_format(values)}
    limit = _limit(values)
    if limit is not None:
        options["max_tokens"] = limit
    if values["logprobs"]:
        options["logprobs"] = values["top_logprobs"] or 0
    elif values["top_logprobs"]:
        raise _contradiction(
            "top_logprobs", "top_logprobs is set, but logprobs is not true; set logprobs to true, or omit both"
        )
    if values["prompt_logprobs"] is not None:
        options["prompt_logprobs"] = values["prompt_logprobs"]
    if values["continue_final_message"] and values["add_generation_prompt"]:
        raise _contradiction(
            "add_generation_prompt", "continue_final_message and add_generation_prompt are both true; omit one of them"
        )
    tools = read_tools(values)
    if values["chat_template"] is not None and (tools is not None or needs_tools(values["messages"])):
        raise _contradiction(
            "chat_template",
            "chat_template is set, but tool calls need the model's template; omit the tools or chat_template",
        )
    return Generation(
        [template_message(message, index) for index, message in enumerate(values["messages"])],
        options=options,  # type: ignore[arg-type]
        adapter=adapter,
        tools=None if tools is None else [function.description_json for function in tools.functions],
        tool_set=tools,
        add_generation_prompt=values["add_generation_prompt"] is not False,
        continue_final_message=values["continue_final_message"],
        template_kwargs={
            **read_effort(values["reasoning_effort"], "reasoning_effort", service),
            **(values["chat_template_kwargs"] or {}),
        },
        chat_template=values["chat_template"],
        prediction=_prediction(values),
        progress=values["stream"] and values["return_progress"],
        **shared_arguments(values),
    )


def template_message(message: Values, index: int) -> dict[str, Any]:
    """Returns a message for the chat template; its content is a text or None."""
    content = message["content"]
    if isinstance(content, list):
        content = "\n".join(part["text"] if part["type"] == "text" else part["refusal"] for part in content)
    if content is None:
        content = message["refusal"]
    if content is None and not message["tool_calls"]:
        path = f"messages[{index}].content"
        raise ApiError(400, f"{path} is missing; it must be a text or an array of parts", param=path,
                       code="invalid_value")  # fmt: skip
    result = {"role": _ROLES.get(message["role"], message["role"]), "content": content}
    for name in ("name", "tool_calls", "tool_call_id"):
        if message[name]:
            result[name] = message[name]
    reasoning = message["reasoning_content"] if message["reasoning_content"] is not None else message["reasoning"]
    if reasoning is not None:
        result["reasoning_content"] = reasoning
    return result


def _limit(values: Values) -> int | None:
    newer, older = values["max_completion_tokens"], values["max_tokens"]
    if newer is not None and older is not None and newer != older:
        raise _contradiction(
            "max_tokens", f"max_completion_tokens is {newer} and max_tokens is {older}; give only max_completion_tokens"
        )
    limit: int | None = older if newer is None else newer
    return limit


def _prediction(values: Values) -> str | None:
    if values["prediction"] is None:
        return None
    content = values["prediction"]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _contradiction(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")
