"""Rendering chat templates: sandboxed Jinja in the dialect of Hugging Face, with limits on what a template may do.

The limits hold loops, the text written, repetitions, powers and padding. A template that joins text to itself again and
again can still fill the memory: they stop slips, not every bad intent.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from puna.errors import ChatTemplateError

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]

MAX_LOOP_STEPS = 1_000_000
"""Steps of all loops of one rendering together; a conversation of 10,000 messages takes fewer."""
MAX_CHARACTERS = 100_000_000
"""Longest rendered text, and longest string a template may build by repetition."""

MAX_WIDTH = 10_000
"""Widest padding: `'%9d' % x`, `'{:9}'.format(x)`, `center`, `ljust`, `rjust`, `zfill`, `indent`."""

MAX_BITS = 4096
"""Largest integer a template may compute."""

_STEPS = "puna_steps"
"""The template variable through which every loop counts its steps."""

_RESERVED = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", _STEPS,
     "return_assistant_tokens_mask", "tokenizer_kwargs")
)  # fmt: skip
"""Names of template variables that the conversation fills, and arguments of transformers that puna does not have."""

_CONTINUE = "\ue000CONTINUE\ue000 "
"""Marks where the final message ends. Trailing space: templates that trim the message show it by dropping that."""


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
        messages: each with "role" and mostly "content"; keys whose value is None are dropped.
        continue_final_message: cut the text right after the last message's content, for the model to go on.
        tools, documents: JSON descriptions, for templates that know them.
        variables: what else the template sees, such as `bos_token`.

    Raises:
        ChatTemplateError: the template does not compile, fails, refuses the conversation, or does too much; or a
            variable has a reserved name.
    """
    taken = sorted(_RESERVED & variables.keys())
    if taken:
        raise ChatTemplateError(f"template variable {taken[0]!r}: the name is reserved; pass it under another")
    turns = _turns(messages)
    if continue_final_message:
        if add_generation_prompt:
            raise ChatTemplateError("continue_final_message and add_generation_prompt exclude each other; choose one")
        turns[-1] = {**turns[-1], "content": _marked(turns[-1].get("content"))}
    values = {
        "messages": turns,
        "tools": _descriptions("tools", tools),
        "documents": _descriptions("documents", documents),
        "add_generation_prompt": add_generation_prompt,
        **variables,
    }
    text = _run(_compile(template), values)
    return _cut(text) if continue_final_message else text


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ChatTemplateError(f"a conversation is a list of at least one message, not {messages!r:.60}")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ChatTemplateError(f"{message!r:.60} is no message; it must be a dictionary with 'role' and 'content'")
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _descriptions(name: str, items: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    if items is None:
        return None
    for item in items:
        if not isinstance(item, Mapping):
            raise ChatTemplateError(f"{name}: {item!r:.60} is no dictionary; describe it by a JSON schema")
    return [dict(item) for item in items]


def _marked(content: object) -> Any:
    """The final content with the mark behind its text, or behind the last text part of a list."""
    if isinstance(content, str):
        return content + _CONTINUE
    parts = list(content) if isinstance(content, (list, tuple)) else []
    for index in reversed(range(len(parts))):
        if isinstance(parts[index], Mapping) and isinstance(parts[index].get("text"), str):
            parts[index] = {**parts[index], "text": parts[index]["text"] + _CONTINUE}
            return parts
    raise ChatTemplateError("continue_final_message: the last message has no text to continue; give it content")


def _cut(text: str) -> str:
    mark = _CONTINUE.rstrip()
    at = text.rfind(mark)
    if at < 0:
        raise ChatTemplateError("continue_final_message: the template does not show the last message; do without it")
    return text[:at] if text.startswith(_CONTINUE, at) else text[:at].rstrip()


def _run(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    import jinja2

    steps = _Steps()
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate({**values, _STEPS: steps}):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_CHARACTERS:
                raise ChatTemplateError(f"the chat template wrote over {MAX_CHARACTERS} characters; mend the template")
    except ChatTemplateError:
        raise
    except jinja2.TemplateError as exc:
        raise ChatTemplateError(f"the chat template refuses this conversation: {exc}") from exc
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as exc:
        raise ChatTemplateError(
            f"the chat template failed on this conversation: {type(exc).__name__}: {exc}; "
            "compare the messages with what the template expects"
        ) from exc
    return "".join(pieces)


class _Steps:
    """Counts the steps of all loops of one rendering."""

    def __init__(self) -> None:
        self.left = MAX_LOOP_STEPS

    def __call__(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.left -= 1
            if self.left < 0:
                raise ChatTemplateError(f"the chat template loops over {MAX_LOOP_STEPS} times; mend the template")
            yield item


@functools.lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    """Compiles a template; kept, as every turn of a chat renders the same one."""
    import jinja2

    try:
        return _environment().from_string(source)
    except (jinja2.TemplateError, RecursionError, MemoryError) as exc:
        raise ChatTemplateError(f"the chat template does not compile: {exc}; mend it or pass chat_template=") from exc


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """transformers' environment: trim_blocks, lstrip_blocks, loop controls, {% generation %} and three helpers."""
    from jinja2 import ext, nodes, parser, runtime, sandbox, visitor

    class Generation(ext.Extension):
        """`{% generation %}` marks what the assistant wrote; rendering shows its body."""

        tags = {"generation"}  # noqa: RUF012  # Jinja's own spelling

        def parse(self, parser: parser.Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class CountLoops(visitor.NodeTransformer):
        def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  # Jinja's naming rule
            self.generic_visit(node)
            node.iter = nodes.Call(nodes.Name(_STEPS, "load"), [node.iter], [], None, None).set_lineno(node.lineno)
            return node

    class Environment(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "%"))

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree = super()._parse(source, name, filename)
            CountLoops().visit(tree)
            return tree

        def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
            if operator != "%":
                _check_product(operator, left, right)
            elif isinstance(left, str):
                _check_widths(left, right)
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
            method = inspect.unwrap(__obj)  # the sandbox wraps str.format
            if isinstance(method, types.BuiltinMethodType) and isinstance(method.__self__, str):
                _check_call(method, args, kwargs)
            return super().call(__context, __obj, *args, **kwargs)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation])
    for name in ("center", "format", "indent"):
        environment.filters[name] = _limited(environment.filters[name])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _check_product(operator: str, left: Any, right: Any) -> None:
    """Refuses repetitions, products and powers that would fill the memory."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_BITS:
            raise ChatTemplateError(f"the chat template computes a number of {bits} bits; the limit is {MAX_BITS}")
    for value, count in ((left, right), (right, left)):
        if isinstance(value, (str, list, tuple)) and isinstance(count, int) and len(value) * count > MAX_CHARACTERS:
            raise ChatTemplateError(
                f"the chat template repeats a value to {len(value) * count} items; mend the template"
            )


def _check_call(method: types.BuiltinMethodType, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if method.__name__ in ("format", "format_map"):
        _check_widths(method.__self__, args, kwargs)
    elif method.__name__ in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        _check_widths("", args, kwargs)


_SPECS = re.compile(r"%(?:\([^)]*\))?([-+ #0-9.*]+)|\{[^{}:]*:([^{}]+)")
"""What stands between % and its letter, or between : and } of a field."""


def _check_widths(template: object, *values: Any) -> None:
    """Refuses padding over `MAX_WIDTH`: a number in a format, or one among its values where the format refers to it."""
    written = [digits for spec in _SPECS.findall(str(template)) for digits in re.findall(r"\d+", "".join(spec))]
    widths = [int(digits) if len(digits) < 9 else MAX_WIDTH + 1 for digits in written]
    if not template or re.search(r"\*|\{[^{}]*:[^{}]*\{", str(template)):
        widths += _numbers_in(values)
    if max(widths, default=0) > MAX_WIDTH:
        raise ChatTemplateError(f"the chat template pads text to over {MAX_WIDTH} characters; mend the template")


def _numbers_in(value: Any) -> list[int]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in _numbers_in(item)]
    return [value] if isinstance(value, int) else []


def _limited(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja that pads or formats, with its widths checked."""

    @functools.wraps(filter_)
    def checked(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_widths(value if filter_.__name__ == "do_format" else "", args, kwargs)
        return filter_(value, *args, **kwargs)

    return checked


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # templates may name it
    return datetime.datetime.now().astimezone().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's HTML escapes, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
