"""Documents of contents: conversations are rendered by the chat template, and the answers found in the result.

The characters of an answer are those that rendering one more message adds: from the end of the conversation before it,
with the header of an answer (add_generation_prompt), to the end of the conversation with it. No token id is compared,
and the template needs no {% generation %} marks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from puna.errors import ChatTemplateError, DataError, show
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.data.layouts.conversation import Conversation
from puna.training.data.layouts.document import Document, Span
from puna.training.data.layouts.table import Completion, Content, Text


def render(content: Content, tokenizer: PreTrainedTokenizerBase) -> Document:
    """Returns the document of a row.

    Raises:
        DataError: the chat template refuses the conversation, leaves out a message, or renders an earlier answer
            differently once other messages follow.
    """
    if isinstance(content, Text):
        spans = (Span(0, len(content.text), 1.0),)
        return Document(content.text, spans, content.source, content.begins, content.ends, content.is_continuous)
    if isinstance(content, Completion):
        text = content.prompt + content.completion
        return Document(text, (Span(len(content.prompt), len(text), 1.0),), content.source, begins=True, ends=True)
    return _render_chat(content, tokenizer)


def _render_chat(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> Document:
    text = _rendered(conversation, len(conversation.messages), tokenizer)
    _check_contents(conversation, text)
    spans: list[Span] = []
    for index, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            answer = _answer(conversation, index, text, tokenizer)
            spans += [] if answer is None else [Span(*answer, conversation.weights[index])]
    return Document(text, tuple(spans), conversation.source)


def _answer(
    conversation: Conversation, index: int, text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int] | None:
    """Returns the first character of an answer in the rendered text, and the one after its last.

    None for an answer of weight 0 that is rendered differently once other messages follow.
    """
    is_last = index == len(conversation.messages) - 1
    complete = text if is_last else _rendered(conversation, index + 1, tokenizer)
    if not is_last and not text.startswith(
        complete
    ):  # some templates write EOS after the last message, such as Phi-3's
        complete = complete.removesuffix(tokenizer.eos_token or "")
    if not text.startswith(complete):
        if not conversation.weights[index]:
            return None
        raise DataError(
            f"{conversation.source}: the chat template renders the answer in messages[{index}] differently once other "
            "messages follow, so that the model would not learn what it has to write; give each answer a separate row "
            'that ends with it, and set "weight": 0 for the answers before it'
        )
    if index == 0:  # there is no conversation before the answer
        content = str(conversation.messages[0].get("content", "")).strip()
        return max(text.find(content), 0), len(complete)
    header = _rendered(conversation, index, tokenizer, add_generation_prompt=True)
    if complete.startswith(header):
        return len(header), len(complete)
    # Some headers contain more than the header of an answer that is complete, such as the beginning of a thought.
    before = _rendered(conversation, index, tokenizer)
    if not complete.startswith(before):
        raise DataError(
            f"{conversation.source}: the chat template renders the messages before the answer in messages[{index}] "
            "differently once the answer follows, so that the beginning of the answer cannot be found; use another "
            "template, or rows with prompt and completion as texts"
        )
    pairs = enumerate(zip(header, complete, strict=False))
    return next(position for position, (a, b) in pairs if a != b), len(complete)


def _check_contents(conversation: Conversation, text: str) -> None:
    """Raises DataError if the chat template leaves out a message, the description of a tool, or a call."""
    for index, message in enumerate(conversation.messages):
        content = str(message.get("content", "")).strip()
        has_thoughts = message["role"] == "assistant" and "</think>" in content
        if content not in text and not has_thoughts and json.dumps(content)[1:-1] not in text:
            raise DataError(
                f"{conversation.source}: the chat template leaves out the text of messages[{index}] "
                f"({message['role']}); remove the message, or use a template that shows it"
            )
        for call in message.get("tool_calls", []):
            _check_name(call["function"]["name"], f"the call in messages[{index}]", conversation, text)
    for tool in conversation.tools or []:
        _check_name(dict(tool.get("function", tool)).get("name", ""), "the description of a tool", conversation, text)


def _check_name(name: object, what: str, conversation: Conversation, text: str) -> None:
    if str(name) not in text:
        raise DataError(
            f"{conversation.source}: the chat template leaves out {what}, {show(name)}; use a model whose template "
            "shows tools, or write calls and descriptions as text"
        )


def _rendered(
    conversation: Conversation, count: int, tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False
) -> str:
    messages: Sequence[dict[str, Any]] = conversation.messages[:count]
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tools=conversation.tools, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except ChatTemplateError as exc:
        raise DataError(f"{conversation.source}: {exc}") from exc
