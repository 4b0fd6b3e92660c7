"""The built-in chat templates (Llama 2, Llama 3), the choice of a template, and the tokens that end a turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from puna.errors import ChatTemplateError, show
from puna.tokenizer.calls.encoding import DEFAULTS
from puna.tokenizer.chat.render import render_chat, render_marked
from puna.tokenizer.special import AnyTokenizer

DEFAULT_SYSTEM_PROMPT = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
"""Meta's system prompt for Llama 2 Chat (llama/generation.py, July 2023)."""

_TEXT_ONLY = """\
{%- for message in messages -%}
  {%- if message['content'] is not string -%}
    {{- raise_exception("the built-in template shows text only, so each message needs 'content', a string") -}}
  {%- endif -%}
{%- endfor -%}
"""
"""Refuses messages without content, and content in parts, which would be shown in Python's notation."""

_LLAMA_2 = """\
{%- set ns = namespace(system=DEFAULT_PROMPT) -%}
{%- if messages[0]['role'] == 'system' -%}
  {%- set ns.system = messages[0]['content'] -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set turns = messages -%}
  {%- if '<<SYS>>' in messages[0]['content'] -%}{%- set ns.system = none -%}{%- endif -%}
{%- endif -%}
{%- if not turns -%}
  {{- raise_exception('Llama 2 writes the system message into the first user message; add one') -}}
{%- endif -%}
{%- for message in turns -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
  {%- endif -%}
  {%- set content = message['content'] -%}
  {%- if loop.first and ns.system is not none -%}
    {%- set content = '<<SYS>>\\n' + ns.system + '\\n<</SYS>>\\n\\n' + content -%}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
  {%- elif message['role'] == 'system' -%}
    {{- '<<SYS>>\\n' + content.strip() + '\\n<</SYS>>\\n\\n' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- ' ' + content.strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""

LLAMA_3 = (
    _TEXT_ONLY
    + """\
{{- bos_token -}}
{%- for message in messages -%}
  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
)
"""Llama 3's turns: header, blank line, trimmed text, <|eot_id|> (llama3/llama/tokenizer.py, ChatFormat)."""

LLAMA_3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
"""A vocabulary with all of these tokens belongs to a model with Llama 3's chat format."""


def llama_2_template(use_default_system_prompt: bool) -> str:
    """Returns Llama 2's template, in which the system message is part of the first turn.

    Args:
        use_default_system_prompt: add Meta's system prompt to a conversation without a system message.
    """
    prompt = "none"
    if use_default_system_prompt:
        quoted = DEFAULT_SYSTEM_PROMPT.replace("\n", "\\n").replace("'", "\\'")
        prompt = f"'{quoted}'"
    return _TEXT_ONLY + _LLAMA_2.replace("DEFAULT_PROMPT", prompt)


def default_template(token_id: Callable[[str], int | None], use_default_system_prompt: bool) -> str:
    """Chooses the built-in template that fits the vocabulary; `token_id` returns the id of a token, or None."""
    if all(token_id(token) is not None for token in LLAMA_3_TOKENS):
        return LLAMA_3
    if token_id("</s>") is not None:
        return llama_2_template(use_default_system_prompt)
    raise ChatTemplateError(
        "this tokenizer has no chat template and its vocabulary fits neither Llama 2's nor Llama 3's template; "
        "pass chat_template= or use plain text"
    )


def named_templates(templates: Any) -> Any:
    """Returns a list of {"name": ..., "template": ...} as a dictionary, and other values unchanged."""
    if isinstance(templates, (list, tuple)):
        if wrong := [
            item for item in templates if not isinstance(item, Mapping) or not {"name", "template"} <= item.keys()
        ]:
            raise ChatTemplateError(f"{show(wrong[0])} is not a template; it must be {{'name': ..., 'template': ...}}")
        return {str(item["name"]): str(item["template"]) for item in templates}
    return templates


def get_chat_template(self: AnyTokenizer, chat_template: str | None = None, tools: Sequence[Any] | None = None) -> str:
    """Returns the source of the template that `apply_chat_template` renders.

    Args:
        chat_template: Jinja source, or the name of one of this tokenizer's templates.
        tools: if there are tools, a template named "tool_use" is preferred to "default".

    Raises:
        ChatTemplateError: there is no template, or no template of this name.
    """
    templates: str | Mapping[str, str] | None = named_templates(self.chat_template)
    named = templates if isinstance(templates, Mapping) else {}
    if chat_template is not None:
        if not isinstance(chat_template, str) or (chat_template not in named and "{" not in chat_template):
            raise ChatTemplateError(
                f"chat_template={show(chat_template)} is neither Jinja source, which contains '{{', nor the name of a "
                f"template of this tokenizer ({', '.join(sorted(named)) or 'it has none'})"
            )
        return named.get(chat_template, chat_template)
    if not isinstance(templates, Mapping):
        return self.default_chat_template if templates is None else templates
    name = "tool_use" if tools is not None and "tool_use" in named else "default"
    if name not in named:
        raise ChatTemplateError(f"no chat template is named 'default'; choose one by name: {', '.join(sorted(named))}")
    return named[name]


def apply_chat_template(
    self: AnyTokenizer,
    conversation: Any,
    chat_template: str | None = None,
    add_generation_prompt: bool = False,
    tokenize: bool = True,
    padding: bool | str = False,
    truncation: bool | str = False,
    max_length: int | None = None,
    return_tensors: str | None = None,
    return_dict: bool = False,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool = False,
    return_assistant_tokens_mask: bool = False,
    tokenizer_kwargs: Mapping[str, Any] | None = None,
    sanitize_control_tokens: bool = False,
    template_variables: Mapping[str, Any] | None = None,
    **more_variables: Any,
) -> Any:
    """Renders a conversation, or a list of conversations, and encodes the text without adding BOS or EOS.

    Args:
        conversation: messages with "role" and "content", or an object with the attribute `messages`.
        chat_template: a template, or the name of one of this tokenizer's templates.
        add_generation_prompt: end with the header of the assistant's answer.
        tokenize: False returns the text.
        return_dict: return a `BatchEncoding` with all columns instead of the ids.
        tools: JSON descriptions; a Python function is described by transformers' `get_json_schema`.
        continue_final_message: do not close the last message, so that the model continues it.
        return_assistant_tokens_mask: add the column `assistant_masks`, which is 1 for the tokens of the template's
            {% generation %} blocks; needs `return_dict=True` and the fast tokenizer.
        tokenizer_kwargs: more arguments of the call of the tokenizer.
        sanitize_control_tokens: must be False.
        template_variables, more_variables: more variables for the template, such as enable_thinking=True; as in
            transformers, a variable that the template does not use has no effect. Names of arguments of a call of the
            tokenizer, such as return_attention_mask, are passed to the call, as in transformers 4.34.

    Returns:
        Ids: a list, or with `return_tensors` a tensor (1, tokens); for several conversations, a list of lists or a
        tensor (conversations, tokens). With `tokenize=False`, the texts; with `return_dict`, a `BatchEncoding`.

    Raises:
        ChatTemplateError: there is no template; the template does not compile, fails to render, or refuses the
            conversation; or a variable has a reserved name.
    """
    if sanitize_control_tokens:
        raise ChatTemplateError("sanitize_control_tokens is not supported; remove special tokens from the messages")
    masked = return_assistant_tokens_mask
    if (masked and not (return_dict and tokenize and self.is_fast)) or (masked and continue_final_message):
        raise ChatTemplateError(
            "return_assistant_tokens_mask needs tokenize=True, return_dict=True, the fast tokenizer and no "
            "continue_final_message"
        )
    for name, value, kind in (
        ("tools", tools, Sequence), ("documents", documents, Sequence), ("tokenizer_kwargs", tokenizer_kwargs, Mapping),
        ("template_variables", template_variables, Mapping),
    ):  # fmt: skip
        if value is not None and (not isinstance(value, kind) or isinstance(value, str | bytes)):
            raise ChatTemplateError(
                f"{name} is {show(value)}; it must be a {'list' if kind is Sequence else 'dictionary'}"
            )
    source = self.get_chat_template(chat_template, tools)
    conversations, batched = _conversations(conversation)
    call = {name: more_variables.pop(name) for name in [*more_variables] if name in DEFAULTS}
    options: dict[str, Any] = {
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": continue_final_message,
        "tools": None if tools is None else [_description(tool) for tool in tools],
        "documents": documents,
        "variables": {**self.special_tokens_map, **(template_variables or {}), **more_variables},
    }
    texts, spans = [], []
    for messages in conversations:
        text, marked = (
            render_marked(source, messages, **options) if masked else (render_chat(source, messages, **options), [])
        )
        texts.append(text)
        spans.append(marked)
    if not tokenize:
        return texts if batched else texts[0]
    call |= {"padding": padding, "truncation": truncation, "max_length": max_length} | dict(tokenizer_kwargs or {})
    fixed = {"add_special_tokens": False, "split_special_tokens": False, "return_tensors": return_tensors}
    encoded = self(texts if batched else texts[0], **(fixed | call))
    if masked:
        masks = [_mask(encoded, index, marked) for index, marked in enumerate(spans)]
        encoded["assistant_masks"] = masks if batched or return_tensors else masks[0]
        encoded.convert_to_tensors(return_tensors)
    return encoded if return_dict else encoded["input_ids"]


def _conversations(conversation: Any) -> tuple[list[Any], bool]:
    """Returns lists of messages, and whether there are several conversations."""
    first = conversation[0] if isinstance(conversation, (list, tuple)) and conversation else None
    batched = isinstance(first, (list, tuple)) or hasattr(first, "messages")
    return [getattr(item, "messages", item) for item in (conversation if batched else [conversation])], batched


def _description(tool: Any) -> Any:
    """Returns the JSON description of a tool; transformers describes a Python function by its docstring."""
    if not callable(tool):
        return tool
    try:
        from transformers.utils.chat_template_utils import get_json_schema
    except ImportError as exc:
        raise ChatTemplateError(
            f"tools: {show(tool)} is a function; pass its JSON description, or install transformers, which describes it"
        ) from exc
    return get_json_schema(cast("Callable[..., Any]", tool))


def _mask(encoded: Any, index: int, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Returns 1 for the tokens of one row that are in the character ranges `spans`, else 0."""
    mask = [0] * len(encoded.encodings[index])
    for start, end in spans:
        first, last = (encoded.char_to_token(index, char) for char in (start, end - 1))
        if first is None:
            break
        stop = len(mask) if last is None else last + 1
        mask[first:stop] = [1] * (stop - first)
    return mask


def end_of_turn_ids(tokenizer: AnyTokenizer) -> frozenset[int]:
    """Returns a set of one id, the special token that the chat template puts after an answer; empty if there is none.

    Some files do not list this token as an end token: early conversions of Llama 3 did not stop at <|eot_id|>.
    """
    answer = "42"
    turns = [{"role": "user", "content": "Six times seven?"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except ChatTemplateError:
        return frozenset()
    rest = str(text).rpartition(answer)[2].strip()
    ids = tokenizer.encode(rest, add_special_tokens=False, split_special_tokens=False)
    added = tokenizer.added_tokens_decoder
    return frozenset(index for index in ids[:1] if index in added and added[index].special)
