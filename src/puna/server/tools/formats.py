"""`ToolFormat`: how a model writes calls of functions. `detect` reads the format from the model's chat template.

The template renders a conversation with an example call; the text around the function's name and its arguments is the
format. Therefore every template that writes a name and then its arguments, as JSON or as Python, is supported.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from puna.errors import ChatTemplateError

if TYPE_CHECKING:
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast

ID = "\ue000ID\ue001"
"""Represents the identifier of a call in the texts of a format: nine letters or digits."""

_NAME, _OTHER = "zq_first_function", "zq_other_function"
_IDS = ("zq9id8k7w", "zq5id4k3w")
_ARGUMENTS = {"zq_text": "zq value", "zq_number": 7}
_TEXT = "zq content"
_QUESTION = {"role": "user", "content": "zq question"}
_PLAIN = {"role": "assistant", "content": _TEXT}


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes calls: `before`, a name, `between`, arguments, and then `after`, or `separator` and a name.

    Attributes:
        before: the text before the first name. `ID` in this and the next texts is an identifier.
        between: the text between a name and its arguments.
        separator: the text between the arguments of a call and the name of the next one. None: an answer has one call.
        after: the text after the last arguments.
        marker: the beginning of `before` that shows that calls follow. None: only the beginning of the answer does.
        style: "json": arguments are a JSON object; "python": they are keyword arguments.
        item_separator, key_separator: the separators of JSON arguments.
        special: special tokens in these texts; an optional one may precede the calls.
        optional: a special token that may precede the calls; None if there is none.
        renders_tools: whether the chat template describes functions. If not, the system message must.
        renders_calls: whether the template writes earlier calls. If not, they must be written into the content.
        renders_results: whether the template writes messages of the role "tool".
        arguments: whether the template expects arguments as an object or as JSON text.
        content: the content of a message that has only calls: None or "".
        short_ids: whether the template accepts only identifiers of nine letters or digits.
    """

    before: str
    between: str
    separator: str | None
    after: str
    marker: str | None
    style: Literal["json", "python"] = "json"
    item_separator: str = ", "
    key_separator: str = ": "
    special: tuple[str, ...] = ()
    optional: str | None = None
    renders_tools: bool = True
    renders_calls: bool = True
    renders_results: bool = True
    arguments: Literal["object", "text"] = "object"
    content: str | None = None
    short_ids: bool = False

    @property
    def shows_special(self) -> bool:
        """Whether `ToolParser` needs the special tokens in the text of the answer."""
        return bool(self.special or self.optional)

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """Returns the text of calls: (name, arguments as JSON text)."""
        separator = self.after + "\n" + self.before if self.separator is None else self.separator
        written = separator.join(name + self.between + arguments for name, arguments in calls)
        return self.before + written + self.after


TAGGED = ToolFormat(
    before='<tool_call>\n{"name": "',
    between='", "arguments": ',
    separator='}\n</tool_call>\n<tool_call>\n{"name": "',
    after="}\n</tool_call>",
    marker="<tool_call>",
)
"""The most common format of open models: Hermes, Qwen, SmolLM."""

FALLBACK = replace(TAGGED, renders_tools=False, renders_calls=False, renders_results=False)
"""For a chat template that ignores tools."""

_BRACKETED = ToolFormat(
    before='[TOOL_CALLS][{"name": "', between='", "arguments": ', separator='}, {"name": "', after="}]",
    marker="[TOOL_CALLS]",
)  # fmt: skip

_BARE = ToolFormat(before='{"name": "', between='", "parameters": ', separator=None, after="}", marker=None)

_HINTS = (("[TOOL_CALLS]", _BRACKETED), ("<tool_call>", TAGGED), ('"parameters"', _BARE), ("<|python_tag|>", _BARE))
"""Formats of templates that describe tools but do not write earlier calls, by a text in the template."""

_MARKER = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")
"""A tag at the beginning of calls, such as <tool_call> or [TOOL_CALLS]."""


@functools.lru_cache(maxsize=8)
def detect(tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> ToolFormat:
    """Returns the format in which a model writes calls, from its chat template."""
    return _Detector(tokenizer).detect()


class _Detector:
    """Renders examples with a tokenizer's chat template."""

    def __init__(self, tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._special = sorted(set(tokenizer.skipped_tokens().values()) - {""}, key=len, reverse=True)
        parameters = {"type": "object", "properties": {"zq_text": {"type": "string"}, "zq_number": {"type": "integer"}}}
        self._tools = [
            {"type": "function", "function": {"name": name, "description": "zq", "parameters": parameters}}
            for name in (_NAME, _OTHER)
        ]

    def detect(self) -> ToolFormat:
        plain, described = self._render([_QUESTION], tools=False), self._render([_QUESTION])
        if described is None or described == plain or _NAME not in described:
            return FALLBACK
        for arguments in ("object", "text"):
            for content in (None, ""):
                turn = self._turn(self._calls((_NAME,), arguments, content))
                found = None if turn is None else self._from_turn(turn)
                if found is not None:
                    known = replace(found, arguments=arguments, content=content)
                    return self._complete(known)
        template = self._tokenizer.get_chat_template(tools=self._tools)
        known = next((item for hint, item in _HINTS if hint in template), FALLBACK)
        results = self._renders_results(_PLAIN)
        return self._with_tokens(replace(known, renders_tools=True, renders_calls=False, renders_results=results))

    def _complete(self, known: ToolFormat) -> ToolFormat:
        """Adds the properties of a format that other examples show."""
        turn = self._turn(self._calls((_NAME, _OTHER), known.arguments, known.content))
        separator = None if turn is None else self._separator(turn, known)
        answer = self._calls((_NAME,), known.arguments, known.content)
        lengthened = self._calls((_NAME,), known.arguments, known.content, ("call_0123456789",))
        return self._with_tokens(
            replace(
                known,
                separator=separator,
                renders_results=self._renders_results(answer),
                short_ids=self._render([_QUESTION, lengthened]) is None,
            )
        )

    def _renders_results(self, answer: Mapping[str, Any]) -> bool:
        result = {"role": "tool", "name": _NAME, "tool_call_id": _IDS[0], "content": "zq result"}
        rendered = self._render([_QUESTION, answer, result])
        return rendered is not None and "zq result" in rendered

    def _with_tokens(self, known: ToolFormat) -> ToolFormat:
        """Adds the special tokens of a format."""
        text = known.before + known.between + (known.separator or "") + known.after
        special = tuple(item for item in self._special if item in text)
        tagged = known.marker is None and known.style == "json" and "<|python_tag|>" in self._special
        optional = "<|python_tag|>" if tagged else None
        return replace(known, special=special, optional=optional)

    def _from_turn(self, turn: str) -> ToolFormat | None:
        """Returns the format of the text of a turn with one call; None if it has no name with arguments after it."""
        before, name, rest = turn.partition(_NAME)
        if not name or _NAME in rest:
            return None
        start, end, style = _arguments(rest)
        if start < 0:
            return None
        written = rest[start:end]
        item, key = (", ", ": ") if style == "python" else _separators(written)
        texts = [before.lstrip(), rest[:start], rest[end:]]
        before, between, after = (text.replace(_IDS[0], ID) for text in texts)
        known = ToolFormat(before, between, None, after[: self._end_of_turn(after)].rstrip(), None, style, item, key)
        return replace(known, marker=self._marker(before))

    def _marker(self, before: str) -> str | None:
        match = _MARKER.match(before)
        special = next((item for item in self._special if before.startswith(item)), None)
        if special is not None:
            return special
        if match is not None:
            return match[0]
        return before.rstrip() if before.strip() and before.strip()[0] not in "{[" else None

    def _separator(self, turn: str, known: ToolFormat) -> str | None:
        """Returns the text between two calls; None if the template does not write two calls next to each other."""
        first = turn.find(_NAME)
        second = turn.find(_OTHER)
        if first < 0 or second < first:
            return None
        rest = turn[first + len(_NAME) : second]
        start, end, _ = _arguments(rest)
        if start < 0 or self._end_of_turn(rest[end:]) < len(rest) - end:
            return None
        return rest[end:].replace(_IDS[0], ID).replace(_IDS[1], ID)

    def _end_of_turn(self, text: str) -> int:
        """Returns the index of the token that ends a turn; the length of the text if there is none."""
        plain = self._render([_QUESTION, _PLAIN]) or ""
        rest = plain.rpartition(_TEXT)[2].strip()
        ends = [item for item in self._special if rest.startswith(item)]
        ends += [item for item in self._special if item in ("<|eom_id|>", "<|eom|>", self._tokenizer.eos_token)]
        return min((index for end in ends if (index := text.find(end)) >= 0), default=len(text))

    def _turn(self, answer: Mapping[str, Any]) -> str | None:
        """Returns the text of an answer: from where it differs from an answer without calls."""
        plain, text = self._render([_QUESTION, _PLAIN]), self._render([_QUESTION, answer])
        if plain is None or text is None:
            return None
        pairs = zip(plain, text, strict=False)
        return text[next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(plain), len(text))) :]

    def _calls(
        self, names: Sequence[str], arguments: str, content: str | None, ids: Sequence[str] = _IDS
    ) -> dict[str, Any]:
        value = _ARGUMENTS if arguments == "object" else json.dumps(_ARGUMENTS)
        calls = [
            {"id": ids[index], "type": "function", "function": {"name": name, "arguments": value}}
            for index, name in enumerate(names)
        ]
        return {"role": "assistant", "content": content, "tool_calls": calls}

    def _render(self, messages: Sequence[Mapping[str, Any]], *, tools: bool = True) -> str | None:
        """Returns the rendered text; None if the template refuses the conversation or fails."""
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tools=self._tools if tools else None,
                tokenize=False,
            )
        except ChatTemplateError:
            return None
        return str(text)


def _arguments(rest: str) -> tuple[int, int, Literal["json", "python"]]:
    """Returns where the example's arguments begin and end in the text after its name, and their style.

    The beginning is -1 if there are no arguments, or the text does not have them as an object.
    """
    key = rest.find('"zq_text"')
    start = rest.rfind("{", 0, key) if key >= 0 else -1
    if start >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(rest, start)
        except ValueError:
            value, end = None, 0
        return (start, end, "json") if value == _ARGUMENTS else (-1, 0, "json")
    start, end = rest.find("zq_text="), rest.find(")")
    return (start, end, "python") if 0 < start < end and rest[:start].endswith("(") else (-1, 0, "python")


def _separators(written: str) -> tuple[str, str]:
    """Returns the separators of items and of keys in the example's arguments as JSON text."""
    for item in (", ", ","):
        for key in (": ", ":"):
            if json.dumps(_ARGUMENTS, separators=(item, key)) == written:
                return item, key
    return ", ", ": "
