"""Renders a conversation with a chat template: checks the messages, and marks the message to be continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from puna.errors import ChatTemplateError, show
from puna.templates import GENERATION_END, GENERATION_START, render

Message = Mapping[str, Any]

_RESERVED = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
     "return_assistant_tokens_mask", "tokenizer_kwargs")
)  # fmt: skip
"""Template variables that `render_chat` sets, and arguments of `apply_chat_template`."""

_START, _END = "\ue000GENERATION\ue001", "\ue001GENERATION\ue000"
"""Mark the text of the assistant while it is rendered."""

_CONTINUE = "\ue000CONTINUE\ue000 "
"""Marks the end of the final message. A template that trims the message removes the trailing space of the mark."""


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any],
) -> str:
    """Renders one conversation.

    Args:
        messages: dictionaries with "role" and usually "content"; keys whose value is None are dropped.
        continue_final_message: end the text right after the content of the last message, for the model to continue it.
        tools, documents: JSON descriptions, for templates that support them.
        variables: more variables for the template, such as `bos_token`.

    Raises:
        ChatTemplateError: the template does not compile, fails, refuses the conversation, or exceeds a limit; or a
            variable has a reserved name.
    """
    reserved = sorted(_RESERVED & variables.keys())
    if reserved:
        raise ChatTemplateError(f"template variable {reserved[0]!r}: the name is reserved; use another name")
    turns = _turns(messages)
    if continue_final_message:
        if add_generation_prompt:
            raise ChatTemplateError("continue_final_message and add_generation_prompt exclude each other; choose one")
        turns[-1] = {**turns[-1], "content": _with_mark(turns[-1].get("content"))}
    values = {
        "messages": turns,
        "tools": _descriptions("tools", tools),
        "documents": _descriptions("documents", documents),
        "add_generation_prompt": add_generation_prompt,
        **variables,
    }
    text = render(template, values)
    return _up_to_mark(text) if continue_final_message else text


def render_marked(
    template: str, messages: Sequence[Message], *, variables: Mapping[str, Any], **options: Any
) -> tuple[str, list[tuple[int, int]]]:
    """Renders one conversation; also returns the character ranges of the template's {% generation %} blocks.

    Args:
        variables, options: the arguments of `render_chat`.
    """
    marks = {GENERATION_START: _START, GENERATION_END: _END}
    text, spans = "", []
    for index, part in enumerate(
        render_chat(template, messages, variables={**variables, **marks}, **options).split(_START)
    ):
        inside, _, after = part.partition(_END) if index else ("", "", part)
        if index:
            spans.append((len(text), len(text) + len(inside)))
        text += inside + after
    return text, spans


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ChatTemplateError(f"a conversation must be a list of at least one message, got {show(messages)}")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ChatTemplateError(
                f"{show(message)} is not a message; it must be a dictionary with 'role' and 'content'"
            )
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _descriptions(name: str, items: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    if items is None:
        return None
    for item in items:
        if not isinstance(item, Mapping):
            raise ChatTemplateError(f"{name}: {show(item)} is not a dictionary; describe it by a JSON schema")
    return [dict(item) for item in items]


def _with_mark(content: object) -> Any:
    """Returns the content with `_CONTINUE` after its text, or after the last text of a list of parts."""
    if isinstance(content, str):
        return content + _CONTINUE
    parts = list(content) if isinstance(content, (list, tuple)) else []
    for index in reversed(range(len(parts))):
        if isinstance(parts[index], Mapping) and isinstance(parts[index].get("text"), str):
            parts[index] = {**parts[index], "text": parts[index]["text"] + _CONTINUE}
            return parts
    raise ChatTemplateError("continue_final_message: the last message has no text to continue; give it content")


def _up_to_mark(text: str) -> str:
    mark = _CONTINUE.rstrip()
    index = text.rfind(mark)
    if index < 0:
        raise ChatTemplateError("continue_final_message: the template omits the last message; drop this argument")
    return text[:index] if text.startswith(_CONTINUE, index) else text[:index].rstrip()
